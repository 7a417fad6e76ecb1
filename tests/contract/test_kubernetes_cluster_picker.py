"""The image of the endpoint picker in a pod: what stands for it, how it is probed, what it may read, how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from emulated_cloud.cloud import default_images
from kubernetes import client

from tests.contract.kubernetes_cluster import Cluster, Kube, kube, wait_for
from tests.contract.picker_site import ALL_READ, POOL, READ, config

__all__ = ["kube"]
IMAGE = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"), more={"images": default_images()})
    try:
        made.start()
        yield made
    finally:
        made.stop()


def create_pool(kube: Kube) -> None:
    pool = {
        "apiVersion": "inference.networking.k8s.io/v1",
        "kind": "InferencePool",
        "metadata": {"name": POOL},
        "spec": {
            "selector": {"matchLabels": {"app": "vllm"}},
            "targetPorts": [{"number": 8000}],
            "endpointPickerRef": {"name": "epp", "port": {"number": 9002}},
        },
    }
    client.CustomObjectsApi(kube.raw).create_namespaced_custom_object(
        "inference.networking.k8s.io", "v1", kube.namespace, "inferencepools", pool
    )


def create_account(kube: Kube, resources: tuple[str, ...]) -> None:
    """A service account `epp` whose Role lets it read these."""
    groups = ["", "inference.networking.k8s.io", "llm-d.ai"]
    kube.core.create_namespaced_service_account(kube.namespace, {"metadata": {"name": "epp"}})
    roles = client.RbacAuthorizationV1Api(kube.raw)
    rules = [{"apiGroups": groups, "resources": [*resources], "verbs": READ}]
    roles.create_namespaced_role(kube.namespace, {"metadata": {"name": "epp"}, "rules": rules})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "epp"}
    subject = {"kind": "ServiceAccount", "name": "epp", "namespace": kube.namespace}
    binding = {"metadata": {"name": "epp"}, "roleRef": role, "subjects": [subject]}
    roles.create_namespaced_role_binding(kube.namespace, binding)


def start_pickers(kube: Kube, replicas: int) -> None:
    """A Deployment as the real chart has it: no command, a configuration from a ConfigMap, probes by gRPC."""
    data = {"epp.yaml": config()}
    kube.core.create_namespaced_config_map(kube.namespace, {"metadata": {"name": "epp"}, "data": data})
    names = [f"--pool-name={POOL}", f"--pool-namespace={kube.namespace}"]
    container = {
        "name": "epp",
        "image": IMAGE,
        "args": [*names, "--config-file=/config/epp.yaml", "--drain-timeout=10m"],
        "readinessProbe": {"grpc": {"port": 9003, "service": "readiness"}, "periodSeconds": 1, "timeoutSeconds": 10},
        "livenessProbe": {"grpc": {"port": 9003, "service": "liveness"}, "initialDelaySeconds": 60},
        "volumeMounts": [{"name": "config", "mountPath": "/config"}],
    }
    spec = {"serviceAccountName": "epp", "terminationGracePeriodSeconds": 600, "containers": [container]}
    spec["volumes"] = [{"name": "config", "configMap": {"name": "epp"}}]
    labels = {"app": "epp"}
    kube.apps.create_namespaced_deployment(
        kube.namespace,
        {
            "metadata": {"name": "epp"},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        },
    )


def ready(kube: Kube) -> int:
    return kube.apps.read_namespaced_deployment("epp", kube.namespace).status.ready_replicas or 0


def status(kube: Kube) -> Any:
    return [
        (pod.metadata.name, kube.events(pod.metadata.name), kube.log(pod.metadata.name)) for pod in kube.pods("app=epp")
    ]


def test_two_replicas_are_ready_while_there_is_a_pool_and_end_when_told(kube: Kube) -> None:
    create_account(kube, ALL_READ)
    start_pickers(kube, 2)
    pod = wait_for(lambda: kube.pods("app=epp"))[0].metadata.name
    words = 'Readiness probe failed: service unhealthy (responded with "NOT_SERVING")'
    kube.wait_event(pod, "Unhealthy", words)
    create_pool(kube)
    wait_for(lambda: ready(kube) == 2, what=lambda: status(kube))
    kube.apps.patch_namespaced_deployment("epp", kube.namespace, {"spec": {"replicas": 0}})
    # Nobody asks: long before its ten minutes of drain.
    wait_for(lambda: not kube.pods("app=epp"), what=lambda: status(kube))


def test_a_role_that_lacks_a_kind_keeps_it_from_being_ready(kube: Kube) -> None:
    create_account(kube, ("pods", "inferencepools"))
    create_pool(kube)
    start_pickers(kube, 1)
    pod = wait_for(lambda: kube.pods("app=epp"))[0].metadata.name
    refused = f'User "system:serviceaccount:{kube.namespace}:epp" cannot list resource "inferenceobjectives"'
    wait_for(lambda: kube.pod(pod).status.phase == "Running")
    wait_for(lambda: refused in kube.log(pod), what=lambda: kube.log(pod))
    kube.wait_event(pod, "Unhealthy", 'responded with "NOT_SERVING"')
    assert ready(kube) == 0
