"""Patches and field ownership, with the official client. Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from tests.contract.kubernetes_objects import config_map, deployment, refused

pytest_plugins = ["tests.contract.kubernetes_api"]


@pytest.fixture
def dynamic(api: client.ApiClient) -> DynamicClient:
    return DynamicClient(api)


def applied(
    dynamic: DynamicClient, namespace: str, body: dict[str, Any], manager: str, force: bool = False
) -> dict[str, Any]:
    """The object after a server-side apply."""
    resource = dynamic.resources.get(api_version=body["apiVersion"], kind=body["kind"])
    made: dict[str, Any] = dynamic.server_side_apply(
        resource, body, namespace=namespace, field_manager=manager, force_conflicts=force
    ).to_dict()
    return made


def owners(item: dict[str, Any], *path: str) -> set[str]:
    """Who owns a field, from managedFields."""
    found = set()
    for entry in item["metadata"]["managedFields"]:
        node: Any = entry["fieldsV1"]
        for element in path:
            node = node.get(element) if node is not None else None
        if node is not None:
            found.add(entry["manager"])
    return found


# -- patches ----------------------------------------------------------------------------------------------------


def test_a_strategic_merge_patch_merges_lists_by_key(apps: client.AppsV1Api, namespace: str) -> None:
    apps.create_namespaced_deployment(namespace, deployment("web"))
    sidecar = {"name": "proxy", "image": "example.com/proxy:1"}
    env = [{"name": "A", "value": "1"}]
    change = {"spec": {"template": {"spec": {"containers": [sidecar, {"name": "server", "env": env}]}}}}
    made = apps.patch_namespaced_deployment("web", namespace, change)
    containers = {each.name: each for each in made.spec.template.spec.containers}
    assert set(containers) == {"server", "proxy"}
    assert containers["server"].image == "example.com/server:1"
    assert containers["server"].env[0].value == "1"

    gone = {"spec": {"template": {"spec": {"containers": [{"name": "proxy", "$patch": "delete"}]}}}}
    made = apps.patch_namespaced_deployment("web", namespace, gone)
    assert [each.name for each in made.spec.template.spec.containers] == ["server"]


def test_a_merge_patch_replaces_lists_and_null_deletes(dynamic: DynamicClient, namespace: str) -> None:
    resource = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    body = deployment("web")
    body["metadata"]["labels"] = {"a": "1", "b": "2"}
    resource.create(body, namespace=namespace)
    containers = [{"name": "other", "image": "example.com/other:1"}]
    change = {"metadata": {"labels": {"a": None}}, "spec": {"template": {"spec": {"containers": containers}}}}
    made = resource.patch(change, name="web", namespace=namespace, content_type="application/merge-patch+json")

    assert [each.name for each in made.spec.template.spec.containers] == ["other"]
    assert made.metadata.labels.to_dict() == {"b": "2"}


def test_a_json_patch_tests_first(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", n="1"))

    def change(expected: str) -> list[dict[str, Any]]:
        return [
            {"op": "test", "path": "/data/n", "value": expected},
            {"op": "replace", "path": "/data/n", "value": "2"},
            {"op": "add", "path": "/metadata/annotations", "value": {"example.com/by": "patch"}},
        ]

    with pytest.raises(ApiException) as error:
        core.patch_namespaced_config_map("a", namespace, change("9"))
    assert refused(error)["code"] == 422
    made = core.patch_namespaced_config_map("a", namespace, change("1"))
    assert made.data == {"n": "2"}
    assert made.metadata.annotations == {"example.com/by": "patch"}


def test_a_patch_can_say_which_version_it_is_of(core: client.CoreV1Api, namespace: str) -> None:
    version = core.create_namespaced_config_map(namespace, config_map("a", n="1")).metadata.resource_version
    change = {"metadata": {"resourceVersion": version}, "data": {"n": "2"}}
    core.patch_namespaced_config_map("a", namespace, change)
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_config_map("a", namespace, {**change, "data": {"n": "3"}})
    assert refused(error)["reason"] == "Conflict"


# -- server-side apply ------------------------------------------------------------------------------------------


def test_apply_creates_and_owns(dynamic: DynamicClient, namespace: str) -> None:
    made = applied(dynamic, namespace, deployment("web", replicas=2), "pipeline")

    [entry] = made["metadata"]["managedFields"]
    assert (entry["manager"], entry["operation"], entry["apiVersion"]) == ("pipeline", "Apply", "apps/v1")
    assert entry["fieldsV1"] == {
        "f:spec": {
            "f:replicas": {},
            "f:selector": {},
            "f:template": {
                "f:metadata": {"f:labels": {"f:app": {}}},
                "f:spec": {
                    "f:containers": {
                        'k:{"name":"server"}': {
                            ".": {},
                            "f:image": {},
                            "f:name": {},
                            "f:ports": {'k:{"containerPort":8000,"protocol":"TCP"}': {".": {}, "f:containerPort": {}}},
                        }
                    }
                },
            },
        }
    }


def test_apply_again_writes_nothing(dynamic: DynamicClient, namespace: str) -> None:
    first = applied(dynamic, namespace, deployment("web"), "pipeline")
    again = applied(dynamic, namespace, deployment("web"), "pipeline")

    assert again["metadata"]["resourceVersion"] == first["metadata"]["resourceVersion"]


def test_what_is_no_longer_applied_is_removed(dynamic: DynamicClient, namespace: str) -> None:
    applied(dynamic, namespace, config_map("a", {"keep": "1", "drop": "1"}, keep="1", drop="1"), "pipeline")
    made = applied(dynamic, namespace, config_map("a", {"keep": "1"}, keep="1"), "pipeline")

    assert made["data"] == {"keep": "1"}
    assert made["metadata"]["labels"] == {"keep": "1"}


def test_what_two_applied_goes_when_both_let_go(dynamic: DynamicClient, namespace: str) -> None:
    applied(dynamic, namespace, config_map("a", shared="1", one="1"), "one")
    made = applied(dynamic, namespace, config_map("a", shared="1"), "two")
    assert owners(made, "f:data", "f:shared") == {"one", "two"}

    made = applied(dynamic, namespace, config_map("a", one="1"), "one")
    assert made["data"] == {"shared": "1", "one": "1"}
    made = applied(dynamic, namespace, config_map("a"), "two")
    assert made["data"] == {"one": "1"}


def test_changing_what_another_owns_is_a_conflict(
    dynamic: DynamicClient, apps: client.AppsV1Api, namespace: str
) -> None:
    applied(dynamic, namespace, deployment("web", replicas=1), "pipeline")
    apps.patch_namespaced_deployment("web", namespace, {"spec": {"replicas": 5}}, field_manager="autoscaler")
    with pytest.raises(ApiException) as error:
        applied(dynamic, namespace, deployment("web", replicas=1), "pipeline")

    status = refused(error)
    assert (status["code"], status["reason"]) == (409, "Conflict")
    assert status["message"] == (
        'Apply failed with 1 conflict: conflict with "autoscaler" using apps/v1: .spec.replicas'
    )
    assert status["details"]["causes"] == [
        {
            "reason": "FieldManagerConflict",
            "message": 'conflict with "autoscaler" using apps/v1',
            "field": ".spec.replicas",
        }
    ]
    made = applied(dynamic, namespace, deployment("web", replicas=1), "pipeline", force=True)
    assert made["spec"]["replicas"] == 1
    assert owners(made, "f:spec", "f:replicas") == {"pipeline"}


def test_several_conflicts_are_listed_by_manager(dynamic: DynamicClient, namespace: str) -> None:
    applied(dynamic, namespace, deployment("web", replicas=1), "argocd")
    body = deployment("web", replicas=2)
    body["spec"]["template"]["spec"]["containers"][0]["image"] = "example.com/server:2"
    with pytest.raises(ApiException) as error:
        applied(dynamic, namespace, body, "pipeline")

    assert refused(error)["message"] == (
        'Apply failed with 2 conflicts: conflicts with "argocd":\n- .spec.replicas\n'
        '- .spec.template.spec.containers[name="server"].image'
    )


def test_the_same_value_is_owned_together(dynamic: DynamicClient, namespace: str) -> None:
    applied(dynamic, namespace, deployment("web", replicas=3), "one")
    made = applied(dynamic, namespace, deployment("web", replicas=3), "two")

    assert owners(made, "f:spec", "f:replicas") == {"one", "two"}


def test_items_of_keyed_lists_have_owners_of_their_own(dynamic: DynamicClient, namespace: str) -> None:
    applied(dynamic, namespace, deployment("web"), "pipeline")
    sidecar = {"spec": {"template": {"spec": {"containers": [{"name": "proxy", "image": "example.com/proxy:1"}]}}}}
    injected = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, **sidecar}
    applied(dynamic, namespace, injected, "injector")
    made = applied(dynamic, namespace, deployment("web"), "pipeline")
    names = {each["name"] for each in made["spec"]["template"]["spec"]["containers"]}
    assert names == {"server", "proxy"}

    made = applied(dynamic, namespace, {**injected, "spec": {}}, "injector")
    assert [each["name"] for each in made["spec"]["template"]["spec"]["containers"]] == ["server"]


def test_status_is_owned_apart(dynamic: DynamicClient, apps: client.AppsV1Api, namespace: str) -> None:
    applied(dynamic, namespace, deployment("web"), "pipeline")
    apps.patch_namespaced_deployment_status("web", namespace, {"status": {"replicas": 1}}, field_manager="controller")
    resource = dynamic.resources.get(api_version="apps/v1", kind="Deployment")
    made = dynamic.get(resource, name="web", namespace=namespace).to_dict()

    entries = {entry["manager"]: entry for entry in made["metadata"]["managedFields"]}
    assert entries["controller"]["subresource"] == "status"
    assert entries["controller"]["fieldsV1"] == {"f:status": {"f:replicas": {}}}


def test_apply_knows_no_unknown_fields(dynamic: DynamicClient, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        applied(dynamic, namespace, deployment("web", replicsa=1), "pipeline")

    assert error.value.status == 500
    assert ".spec.replicsa: field not declared in schema" in refused(error)["message"]


def test_apply_needs_a_manager(api: client.ApiClient, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        api.call_api(
            f"/api/v1/namespaces/{namespace}/configmaps/a",
            "PATCH",
            header_params={"Content-Type": "application/apply-patch+yaml"},
            body=config_map("a"),
            auth_settings=["BearerToken"],
        )
    assert refused(error)["details"]["causes"][0]["field"] == "fieldManager"
