"""Custom resources, with the official client. Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic import DynamicClient

from tests.contract.kubernetes_objects import Object, refused

pytest_plugins = ["tests.contract.kubernetes_api"]

SPEC = {
    "type": "object",
    "required": ["size"],
    "properties": {
        "size": {"type": "string", "enum": ["S", "M"]},
        "replicas": {"type": "integer", "minimum": 0, "default": 1},
        "port": {"x-kubernetes-int-or-string": True},
        "title": {"type": "string", "pattern": "^[a-z]+$"},
        "parts": {
            "type": "array",
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["name"],
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "value": {"type": "string"}},
            },
        },
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
    },
}
STATUS = {
    "type": "object",
    "properties": {
        "phase": {"type": "string"},
        "replicas": {"type": "integer"},
        "readyAt": {"type": "string", "nullable": True},
    },
}
COLUMNS = [
    {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
    {"name": "Ready", "type": "date", "jsonPath": ".status.readyAt"},
]


@pytest.fixture(scope="module")
def group(kubeconfig: Any) -> Iterator[str]:
    """The group of a new kind, Widget, that is served when the test begins."""
    from kubernetes.config import new_client_from_config

    name = f"t{uuid.uuid4().hex[:8]}.example.com"
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"widgets.{name}"},
        "spec": {
            "group": name,
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "subresources": {
                        "status": {},
                        "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"},
                    },
                    "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": SPEC, "status": STATUS}}},
                    "additionalPrinterColumns": COLUMNS,
                }
            ],
        },
    }
    with new_client_from_config(str(kubeconfig)) as api:
        extensions = client.ApiextensionsV1Api(api)
        extensions.create_custom_resource_definition(definition)
        _wait_until_served(extensions, f"widgets.{name}")
        yield name
        extensions.delete_custom_resource_definition(f"widgets.{name}")


def _wait_until_served(extensions: client.ApiextensionsV1Api, name: str) -> None:
    def conditions() -> dict[str, str]:
        found = extensions.read_custom_resource_definition(name).status.conditions or []
        return {each.type: each.status for each in found}

    assert wait_for(lambda: conditions().get("Established") == "True", 120), conditions()
    assert conditions()["NamesAccepted"] == "True"
    assert extensions.read_custom_resource_definition(name).status.stored_versions == ["v1"]
    # A real server serves a kind a moment after it says so.
    plural, _, group = name.partition(".")
    custom = client.CustomObjectsApi(extensions.api_client)
    assert wait_for(lambda: not _is_gone(custom, group, plural), 120)


def _is_gone(custom: client.CustomObjectsApi, group: str, plural: str) -> bool:
    """Whether nobody serves the kind (any more)."""
    try:
        custom.list_cluster_custom_object(group, "v1", plural)
    except ApiException as error:
        if error.status == 404:
            return True
        raise
    return False


@pytest.fixture
def custom(api: client.ApiClient) -> client.CustomObjectsApi:
    return client.CustomObjectsApi(api)


def widget(group: str, name: str, **spec: Any) -> Object:
    return {"apiVersion": f"{group}/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec}


def test_defaults_are_filled_in_and_unknown_fields_pruned(
    custom: client.CustomObjectsApi, group: str, namespace: str
) -> None:
    body = widget(group, "a", size="S", colour="red", port="http", free={"any": {"thing": 1}})
    made = custom.create_namespaced_custom_object(group, "v1", namespace, "widgets", body)

    assert made["spec"] == {"size": "S", "replicas": 1, "port": "http", "free": {"any": {"thing": 1}}}
    assert made["metadata"]["generation"] == 1


def test_the_schema_judges(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    body = widget(group, "a", size="XL", replicas=-1, title="Not", parts=[{"value": "nameless"}])
    with pytest.raises(ApiException) as error:
        custom.create_namespaced_custom_object(group, "v1", namespace, "widgets", body)

    status = refused(error)
    assert (status["code"], status["reason"]) == (422, "Invalid")
    causes = {cause["field"]: cause for cause in status["details"]["causes"]}
    assert causes["spec.size"]["message"] == 'Unsupported value: "XL": supported values: "S", "M"'
    assert causes["spec.replicas"]["message"].startswith("Invalid value: -1: spec.replicas in body should be greater")
    assert causes["spec.title"]["reason"] == "FieldValueInvalid"
    assert causes["spec.parts[0].name"]["reason"] == "FieldValueRequired"


def test_every_wrong_type_is_named(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    with pytest.raises(ApiException) as error:
        custom.create_namespaced_custom_object(
            group, "v1", namespace, "widgets", widget(group, "a", size=5, title=["x"])
        )

    wrong = {
        cause["field"]: cause["message"]
        for cause in refused(error)["details"]["causes"]
        if cause["reason"] == "FieldValueTypeInvalid"
    }
    assert set(wrong) == {"spec.size", "spec.title"}
    assert 'spec.size in body must be of type string: "integer"' in wrong["spec.size"]


def test_an_item_of_a_keyed_list_is_there_once(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    body = widget(group, "a", size="S", parts=[{"name": "x"}, {"name": "x"}])
    with pytest.raises(ApiException) as error:
        custom.create_namespaced_custom_object(group, "v1", namespace, "widgets", body)

    [cause] = refused(error)["details"]["causes"]
    assert (cause["field"], cause["message"]) == ("spec.parts[1]", 'Duplicate value: {"name":"x"}')


def test_an_update_must_say_what_it_replaces(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    where = (group, "v1", namespace, "widgets")
    custom.create_namespaced_custom_object(*where, widget(group, "a", size="S"))
    with pytest.raises(ApiException) as error:
        custom.replace_namespaced_custom_object(*where, "a", widget(group, "a", size="M"))

    assert refused(error)["details"]["causes"][0]["field"] == "metadata.resourceVersion"


def test_status_and_spec_are_written_apart(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    where = (group, "v1", namespace, "widgets")
    body = {**widget(group, "a", size="S"), "status": {"phase": "Ready"}}
    assert "status" not in custom.create_namespaced_custom_object(*where, body)
    change = {"metadata": {"labels": {"x": "y"}}, "spec": {"size": "M"}, "status": {"phase": "Ready"}}
    made = custom.patch_namespaced_custom_object_status(*where, "a", change)

    assert (made["spec"]["size"], made["status"], made["metadata"]["generation"]) == ("S", {"phase": "Ready"}, 1)
    assert "labels" not in made["metadata"]
    made = custom.patch_namespaced_custom_object(*where, "a", {**change, "status": {"phase": "Lost"}})
    assert (made["spec"]["size"], made["status"], made["metadata"]["generation"]) == ("M", {"phase": "Ready"}, 2)


@pytest.mark.parametrize(
    ("ready_at", "shown"), [(None, None), ("yesterday", "<invalid>"), ("2020-01-01T00:00:00Z", r"\d+[yd].*")]
)
def test_a_date_of_a_table_may_be_missing(
    custom: client.CustomObjectsApi, group: str, namespace: str, ready_at: str | None, shown: str | None
) -> None:
    where = (group, "v1", namespace, "widgets")
    made = custom.create_namespaced_custom_object(*where, widget(group, "a", size="S"))
    made = custom.replace_namespaced_custom_object_status(*where, "a", {**made, "status": {"readyAt": ready_at}})
    assert made["status"] == {"readyAt": ready_at}
    answer = custom.api_client.call_api(
        f"/apis/{group}/v1/namespaces/{namespace}/widgets",
        "GET",
        header_params={"Accept": "application/json;as=Table;g=meta.k8s.io;v=v1"},
        auth_settings=["BearerToken"],
        response_type="object",
        _return_http_data_only=True,
    )
    [row] = answer["rows"]
    assert row["cells"][:2] == ["a", None]
    assert row["cells"][2] is None if shown is None else re.fullmatch(shown, row["cells"][2])


def test_scale_is_where_the_definition_says(custom: client.CustomObjectsApi, group: str, namespace: str) -> None:
    where = (group, "v1", namespace, "widgets")
    custom.create_namespaced_custom_object(*where, widget(group, "a", size="S"))
    custom.patch_namespaced_custom_object_scale(*where, "a", {"spec": {"replicas": 3}})

    assert custom.get_namespaced_custom_object(*where, "a")["spec"]["replicas"] == 3


def test_apply_merges_keyed_lists(api: client.ApiClient, group: str, namespace: str) -> None:
    dynamic = DynamicClient(api)
    resource = dynamic.resources.get(api_version=f"{group}/v1", kind="Widget")

    def apply(body: Object, manager: str) -> Object:
        made: Object = dynamic.server_side_apply(
            resource, body, namespace=namespace, field_manager=manager, force_conflicts=False
        ).to_dict()
        return made

    apply(widget(group, "a", size="S", parts=[{"name": "x", "value": "1"}]), "one")
    made = apply(widget(group, "a", parts=[{"name": "y", "value": "2"}]), "two")
    assert [each["name"] for each in made["spec"]["parts"]] == ["x", "y"]
    with pytest.raises(ApiException) as error:
        apply(widget(group, "a", parts=[{"name": "x", "value": "9"}]), "two")
    assert '.spec.parts[name="x"].value' in refused(error)["message"]
    made = apply(widget(group, "a"), "two")
    assert [each["name"] for each in made["spec"]["parts"]] == ["x"]


def test_strategic_merge_is_for_built_in_kinds(api: client.ApiClient, group: str, namespace: str) -> None:
    resource = DynamicClient(api).resources.get(api_version=f"{group}/v1", kind="Widget")
    resource.create(widget(group, "a", size="S"), namespace=namespace)
    with pytest.raises(ApiException) as error:
        resource.patch(
            {"spec": {"size": "M"}},
            name="a",
            namespace=namespace,
            content_type="application/strategic-merge-patch+json",
        )
    assert error.value.status == 415


def test_a_definition_that_goes_takes_its_objects(
    api: client.ApiClient, custom: client.CustomObjectsApi, namespace: str
) -> None:
    group = f"t{uuid.uuid4().hex[:8]}.example.com"
    extensions = client.ApiextensionsV1Api(api)
    names = {"plural": "things", "kind": "Thing"}
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    spec = {"group": group, "scope": "Namespaced", "names": names, "versions": [version]}
    extensions.create_custom_resource_definition({"metadata": {"name": f"things.{group}"}, "spec": spec})
    _wait_until_served(extensions, f"things.{group}")
    body = {"apiVersion": f"{group}/v1", "kind": "Thing", "metadata": {"name": "a"}, "anything": {"goes": True}}
    made = custom.create_namespaced_custom_object(group, "v1", namespace, "things", body)
    assert made["anything"] == {"goes": True}
    extensions.delete_custom_resource_definition(f"things.{group}")

    assert wait_for(lambda: _is_gone(custom, group, "things"), 120)
