"""Node pools in the order of a ComputeClass, and the two containers of gpu-or-tpu on their nodes: the real entrypoint
runs in every pod."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from components.ensure_cluster.step import wanted
from serving.features.gpu_or_tpu import COMPUTE_CLASS, Pool, entrypoint
from serving.settings import Settings, validated
from tests.contract.kubernetes_cluster import PYTHON_IMAGE, SERVER, Cluster, Kube, kube, wait_for

__all__ = ["kube"]

pytestmark = pytest.mark.skipif("CLUSTER_KUBECONFIG" in os.environ, reason="pods have roots of their own there")
BASE = {"scenario": "fungibility", "project": "demo-project", "bucket": "demo-bucket"}
OUT = "GCE out of resources"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    accelerators = {"nvidia-l4": 16, "tpu-v6e-slice": 16}
    # A pool that has failed is left alone until the test is over: nothing here waits for it.
    more = {"pools": str(folder / "pools.json"), "accelerators": accelerators, "cpu_quota": 1000, "backoff_seconds": 60}
    made = Cluster(folder, more=more)
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def pools(cluster: Cluster, kube: Kube) -> list[str]:
    """A class of the test's own with three node pools, one node each: their names, in its order."""
    named = [f"{kube.namespace[:20].strip('-')}-{name}" for name in ("spot", "l4", "v6e")]
    kinds = [("gpu", "g2-standard-8", True), ("gpu", "g2-standard-8", False), ("tpu", "ct6e-standard-1t", False)]
    settings = validated(Settings, BASE)
    file = Path(cluster.more["pools"])
    made = json.loads(file.read_text()) if file.exists() else {}
    for name, (accelerator, machine, spot) in zip(named, kinds, strict=True):
        pool = Pool(name=name, accelerator=accelerator, machine_type=machine, spot=spot, max_nodes=1)  # type: ignore[arg-type]
        body = {**wanted(settings, pool), "status": "RUNNING"}
        body["config"]["labels"] = {COMPUTE_CLASS: kube.namespace}
        body["config"]["taints"] = [{"key": COMPUTE_CLASS, "value": kube.namespace, "effect": "NO_SCHEDULE"}]
        made[f"projects/demo/locations/us-central1/clusters/gemma/nodePools/{name}"] = body
    file.write_text(json.dumps(made))
    priorities = [{"nodepools": [name]} for name in named]
    body = {
        "apiVersion": "cloud.google.com/v1",
        "kind": "ComputeClass",
        "metadata": {"name": kube.namespace},
        "spec": {"priorities": priorities, "whenUnsatisfiable": "DoNotScaleUp"},
    }
    client.CustomObjectsApi(kube.raw).create_cluster_custom_object("cloud.google.com", "v1", "computeclasses", body)
    return named


def create(kube: Kube, name: str) -> None:
    """A pod with two servers on one port, each for nodes with its device, on a node of its own."""

    def server(container: str, device: str, answer: str) -> dict[str, Any]:
        probe = {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1, "failureThreshold": 600}
        return {
            "name": container,
            "image": PYTHON_IMAGE,
            "command": ["sh", "-c", entrypoint(), "serve-on", device, "python", "-c", SERVER],
            "args": ["0.0.0.0"],
            "env": [{"name": "ANSWER", "value": answer}],
            "startupProbe": probe,
            "readinessProbe": probe,
            "volumeMounts": [{"name": "devices", "mountPath": "/host/dev", "readOnly": True}],
            "securityContext": {"privileged": True},
        }

    tolerations = [{"key": key, "operator": "Exists"} for key in ("nvidia.com/gpu", "google.com/tpu", COMPUTE_CLASS)]
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "either"}}}
    spec = {
        "nodeSelector": {COMPUTE_CLASS: kube.namespace},
        "tolerations": [*tolerations, {"key": "cloud.google.com/gke-spot", "operator": "Exists"}],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}},
        "containers": [server("cards", "/host/dev/nvidia0", "card"), server("chips", "/host/dev/vfio/0", "chip")],
        "volumes": [{"name": "devices", "hostPath": {"path": "/dev", "type": "Directory"}}],
        "terminationGracePeriodSeconds": 600,
    }
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "either"}}, "spec": spec}
    kube.core.create_namespaced_pod(kube.namespace, body)


def came(kube: Kube, name: str) -> tuple[str, str]:
    """(the node pool, the container that serves) of a pod, once it is ready; the other container idles."""

    def ready() -> Any:
        pod = kube.pod(name)
        return pod if any(c.type == "Ready" and c.status == "True" for c in pod.status.conditions or []) else None

    pod = wait_for(ready, 120, lambda: (kube.pod(name).status, kube.events(name)))
    assert all(status.restart_count == 0 for status in pod.status.container_statuses)
    words = {each: kube.log(name, container=each) for each in ("cards", "chips")}
    (serving,) = (each for each, said in words.items() if said == "serving\n")
    (idle,) = (said for each, said in words.items() if each != serving)
    assert "on this node: idle, another container of the pod serves here" in idle
    node = kube.core.read_node(pod.spec.node_name)
    return node.metadata.labels["cloud.google.com/gke-nodepool"], serving


def test_a_pool_that_is_full_is_followed_by_the_next(kube: Kube, pools: list[str]) -> None:
    for number, (pool, serving) in enumerate(zip(pools, ("cards", "cards", "chips"), strict=True)):
        create(kube, f"p{number}")
        assert came(kube, f"p{number}") == (pool, serving)
    create(kube, "p3")
    words = kube.wait_event("p3", "NotTriggerScaleUp", "3 max node group size reached")
    assert words.startswith("pod didn't trigger scale-up")
    assert "didn't match pod anti-affinity rules" in kube.wait_event("p3", "FailedScheduling")
    # An idle container ends at once when it is told: no ten minutes of grace are waited for.
    kube.core.delete_namespaced_pod("p2", kube.namespace)
    wait_for(lambda: "p2" not in {pod.metadata.name for pod in kube.pods()})
    assert came(kube, "p3") == (pools[2], "chips")


def test_without_the_first_choice_the_second_serves(kube: Kube, pools: list[str], cluster: Cluster) -> None:
    cluster.configure(decline={pools[0]: OUT})
    create(kube, "first")
    assert came(kube, "first") == (pools[1], "cards")
    assert failures(kube) == 1


def test_without_any_card_a_chip_serves(kube: Kube, pools: list[str], cluster: Cluster) -> None:
    cluster.configure(decline=dict.fromkeys(pools[:2], OUT))
    create(kube, "first")
    assert came(kube, "first") == (pools[2], "chips")
    assert failures(kube) == 2


def test_without_any_choice_the_pod_waits_and_is_told_why(kube: Kube, pools: list[str], cluster: Cluster) -> None:
    cluster.configure(decline=dict.fromkeys(pools, OUT))
    create(kube, "first")
    kube.wait_event("first", "NotTriggerScaleUp", "3 in backoff after failed scale-up")
    assert kube.pod("first").status.phase == "Pending"
    assert failures(kube) == 3


def failures(kube: Kube) -> int:
    """How many choices had none, each of which said so."""
    items = kube.core.list_namespaced_event(kube.namespace, field_selector="involvedObject.name=first").items
    failed = [event for event in items if event.reason == "FailedScaleUp"]
    assert all(f"failed: {OUT}. Pod is at risk of not being scheduled." in event.message for event in failed)
    # Of the same zone they are one event, which counts.
    return sum(event.count for event in failed)
