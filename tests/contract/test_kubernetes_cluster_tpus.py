"""Nodes of the emulated GKE with TPU chips or out of a reservation, and a node that Compute Engine takes away.

kubernetes_cluster.py says how to run this against a real control plane.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.kubernetes.gke.preemption import ANNOTATION, TAINT
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_cluster import Cluster, Kube, deployment, kube, wait_for

__all__ = ["kube"]

WHERE = "cloud.google.com/gke-tpu-"
WAITS_FOR_A_FILE = """
import os, signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
print("may be told to end", flush=True)
while not told or not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    sold = {"accelerators": {"tpu-v6e-slice": 8, "nvidia-l4": 2}, "cpu_quota": 1000}
    made = Cluster(tmp_path_factory.mktemp("cluster"), more=sold)
    try:
        made.start()
        yield made
    finally:
        made.stop()


def chips(topology: str, count: int, **more: str) -> dict[str, Any]:
    """What a pod asks for."""
    return {
        "nodeSelector": {f"{WHERE}accelerator": "tpu-v6e-slice", f"{WHERE}topology": topology, **more},
        "container": {"resources": {"limits": {"google.com/tpu": str(count)}}},
    }


def test_chips_in_a_topology_are_a_machine(kube: Kube) -> None:
    for topology, count, machine in (("1x1", 1, "ct6e-standard-1t"), ("2x2", 4, "ct6e-standard-4t")):
        name = f"server-{topology}"
        kube.create_pod(name, **chips(topology, count))
        pod = kube.wait_phase(name, "Succeeded", 60)
        node = kube.core.read_node(pod.spec.node_name)
        assert node.metadata.labels["node.kubernetes.io/instance-type"] == machine
        assert node.status.allocatable["google.com/tpu"] == str(count)
        assert [(taint.key, taint.effect) for taint in node.spec.taints] == [("google.com/tpu", "NoSchedule")]
        assert "google.com/tpu" in {each.key for each in pod.spec.tolerations}, "by admission"


def test_chips_that_no_machine_has_so_are_declined(kube: Kube) -> None:
    unknown = "node(s) didn't match Pod's node affinity/selector"
    cases = (("4x4", 4, unknown), ("1x1x1", 1, unknown), ("1x1", 4, "Insufficient google.com/tpu"))
    for topology, count, words in cases:
        name = f"server-{topology}"
        kube.create_pod(name, **chips(topology, count))
        said = kube.wait_event(name, "NotTriggerScaleUp")
        assert said.startswith("pod didn't trigger scale-up: ")
        assert words in said


def test_a_node_out_of_a_reservation_is_made_for_a_pod_that_selects_it(kube: Kube) -> None:
    ours = {"cloud.google.com/reservation-name": "ours", "cloud.google.com/reservation-affinity": "specific"}
    # It stays, since nothing keeps another pod from a node that has room.
    kube.create_pod("reserved", ["python", "-c", "import time; time.sleep(600)"], **chips("1x1", 1, **ours))
    reserved = kube.core.read_node(kube.wait_phase("reserved", "Running").spec.node_name)
    assert reserved.metadata.labels.items() >= ours.items()
    kube.create_pod("plain", **chips("1x1", 1))
    plain = kube.core.read_node(kube.wait_phase("plain", "Succeeded").spec.node_name)
    assert not ours.keys() & plain.metadata.labels.keys()


def test_a_node_that_is_taken_away_says_so_ends_its_pods_and_is_gone(kube: Kube, tmp_path: Path) -> None:
    spot = {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-spot": "true",
    }
    body = deployment("web", "here", pod={"nodeSelector": spot, "terminationGracePeriodSeconds": 300})
    may_go = tmp_path / "may-go"
    container = body["spec"]["template"]["spec"]["containers"][0]
    container.update(command=["python", "-c", WAITS_FOR_A_FILE, str(may_go)], args=[])
    container.pop("readinessProbe")
    container["resources"] = {"limits": {"nvidia.com/gpu": "1"}}
    kube.apps.create_namespaced_deployment(kube.namespace, body)
    [pod] = wait_for(
        lambda: [each for each in kube.pods("app=web") if each.status.phase == "Running"], 60, lambda: kube.pods()
    )
    name, node = pod.metadata.name, pod.spec.node_name
    wait_for(lambda: "may be told to end" in kube.log(name))
    kube.core.patch_node(node, {"metadata": {"annotations": {ANNOTATION: "300"}}})

    ending = wait_for(lambda: (found := kube.pod(name)).metadata.deletion_timestamp and found)
    conditions = {each.type: each for each in ending.status.conditions}
    assert conditions["DisruptionTarget"].reason == "TerminationByKubelet"
    assert "imminent node shutdown" in conditions["DisruptionTarget"].message
    going = kube.core.read_node(node)
    assert TAINT["key"] in {taint.key for taint in going.spec.taints}
    ready = next(each for each in going.status.conditions if each.type == "Ready")
    assert (ready.status, ready.message) == ("False", "node is shutting down")
    # Another pod is there already, and not on that node.
    other = wait_for(
        lambda: next(
            (each for each in kube.pods("app=web") if each.status.phase == "Running" and each.metadata.name != name),
            None,
        ),
        60,
        lambda: [(each.metadata.name, kube.events(each.metadata.name)) for each in kube.pods("app=web")],
    )
    assert other.spec.node_name != node

    may_go.touch()

    def is_gone() -> bool:
        try:
            kube.core.read_node(node)
        except ApiException as error:
            return bool(error.status == 404)
        return False

    wait_for(is_gone)
    assert name not in {each.metadata.name for each in kube.pods("app=web")}
