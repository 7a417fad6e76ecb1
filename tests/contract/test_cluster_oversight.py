"""What plan, status and destroy ask of an API server beyond what steps do: dry runs, reviews, a namespace's objects."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
from emulated_cloud.cloud import Cloud, wait_for

from pipelines.oversight import objects
from serving.clients import kubernetes
from serving.clients.kubernetes import Cluster
from serving.deployment import removal
from serving.settings import Settings, validated
from tests.contract.test_resolve_model import PARAMETERS, REST

SETTINGS = validated(Settings, {**REST, **PARAMETERS, "namespace": f"looked-at-{uuid.uuid4().hex[:8]}"})
OURS = {"app.kubernetes.io/managed-by": "gemma-gke-pipelines"}
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SETTINGS.namespace, "labels": OURS}}
MAP = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "one", "namespace": SETTINGS.namespace},
    "data": {"key": "value"},
}


@pytest.fixture
def cluster(emulated_cloud: Cloud, cloud_environment: dict[str, str]) -> Iterator[Cluster]:
    """The cluster with a namespace that we made and a ConfigMap in it."""
    found = kubernetes.connect(SETTINGS)
    namespace = found.create(NAMESPACE)
    found.apply(MAP)
    yield found
    found.delete(namespace)
    assert wait_for(lambda: found.get("Namespace", SETTINGS.namespace) is None, 120)


def test_a_dry_run_says_what_applying_would_change_and_changes_nothing(cluster: Cluster):
    assert objects.compare(cluster, MAP)["change"] == "exists"
    found = objects.compare(cluster, {**MAP, "data": {"key": "other"}})
    assert (found["change"], found["details"]) == ("change", ["data.key: value -> other"])
    absent = {**MAP, "metadata": {**MAP["metadata"], "name": "two"}}  # type: ignore[dict-item]
    assert objects.compare(cluster, absent)["change"] == "create"
    assert cluster.would_be(absent)["data"] == {"key": "value"}
    assert [item["metadata"]["name"] for item in _own(cluster)] == ["one"]
    assert _own(cluster)[0]["data"] == {"key": "value"}


def test_a_namespace_goes_only_when_nothing_of_anybody_is_in_it(cluster: Cluster):
    assert removal.removable_namespace(cluster, SETTINGS) is None
    going = _own(cluster)
    assert removal.removable_namespace(cluster, SETTINGS, going)
    assert removal.remove(cluster, SETTINGS, going, lambda message: None) == ["ConfigMap/one"]
    assert cluster.everything_in(SETTINGS.namespace) == []
    assert removal.remove_namespace(cluster, SETTINGS, lambda message: None)
    assert not removal.remove_namespace(cluster, SETTINGS, lambda message: None)


def test_the_api_server_says_what_a_user_may_do(cluster: Cluster):
    user, group = "somebody@example.com", "rbac.authorization.k8s.io"
    named = {"name": "oversees", "namespace": SETTINGS.namespace}
    rules = [
        {"apiGroups": ["apps"], "resources": ["deployments/scale"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["one"], "verbs": ["get"]},
    ]
    cluster.apply({"apiVersion": f"{group}/v1", "kind": "Role", "metadata": named, "rules": rules})
    cluster.apply(
        {
            "apiVersion": f"{group}/v1",
            "kind": "RoleBinding",
            "metadata": named,
            "roleRef": {"apiGroup": group, "kind": "Role", "name": "oversees"},
            "subjects": [{"apiGroup": group, "kind": "User", "name": user}],
        }
    )

    def allows(who: str | None, verb: str, resource: str, name: str = "", group: str = "apps") -> bool:
        return cluster.allows(who, SETTINGS.namespace, name, group=group, resource=resource, verb=verb)

    assert allows(user, "patch", "deployments/scale")
    assert not allows(user, "patch", "deployments")
    assert not allows("another@example.com", "patch", "deployments/scale")
    assert allows(user, "get", "configmaps", "one", group="")
    assert not allows(user, "get", "configmaps", "two", group="")
    assert allows(None, "create", "deployments")
    assert "@" in cluster.caller()


def _own(cluster: Cluster) -> list[kubernetes.Object]:
    there = cluster.list("ConfigMap", SETTINGS.namespace)
    return [item for item in there if item["metadata"]["name"] != "kube-root-ca.crt"]
