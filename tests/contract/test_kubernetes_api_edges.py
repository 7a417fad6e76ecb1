"""What an API server makes of unusual requests: every case here was once answered otherwise by the emulator than by
kube-apiserver (docs/conformance.md). Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kubernetes_objects import Requests

pytest_plugins = ["tests.contract.kubernetes_api"]

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
Object = dict[str, Any]


def config_map(**parts: Any) -> Object:
    return {"apiVersion": "v1", "kind": "ConfigMap", **parts, "metadata": {"name": "c", **parts.get("metadata", {})}}


# -- field ownership --------------------------------------------------------------------------------------------


def apply(ask: Requests, manager: str, body: Object, force: bool = False) -> tuple[int, Any]:
    query = f"fieldManager={manager}&force={str(force).lower()}"
    return ask("PATCH", f"configmaps/c?{query}", body, APPLY)


def test_an_empty_map_is_owned_and_never_stored(ask: Requests) -> None:
    empty = config_map(metadata={"labels": {}})
    status, made = apply(ask, "one", empty)
    assert status == 201
    assert "labels" not in made["metadata"]
    (entry,) = made["metadata"]["managedFields"]
    assert entry["fieldsV1"] == {"f:metadata": {"f:labels": {}}}
    # So setting it changes what another owns, though nothing is there to be changed.
    status, refusal = apply(ask, "two", empty)
    assert (status, refusal["message"]) == (
        409,
        'Apply failed with 1 conflict: conflict with "one": .metadata.labels',
    )
    status, made = apply(ask, "two", empty, force=True)
    assert (status, [entry["manager"] for entry in made["metadata"]["managedFields"]]) == (200, ["two"])


def test_the_only_label_can_be_let_go(ask: Requests) -> None:
    apply(ask, "one", config_map(metadata={"labels": {"a": "b"}}))
    status, made = apply(ask, "one", config_map(data={"k": "v"}))
    assert (status, made["metadata"]["name"], made["metadata"].get("labels")) == (200, "c", None)
    assert made["data"] == {"k": "v"}


def test_an_item_is_applied_once(ask: Requests) -> None:
    ports = [{"port": 1, "name": "a"}, {"port": 1, "name": "b"}]
    body = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": ports}}
    status, refusal = ask("PATCH", "services/s?fieldManager=one", body, APPLY)
    assert status == 500
    assert '.spec.ports: duplicate entries for key [port=1,protocol="TCP"]' in refusal["message"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "c"}}, "invalid object type: /v1, Kind=Pod"),
        ({"metadata": {"name": "c"}}, "invalid object type: /, Kind="),
    ],
)
def test_what_is_applied_is_of_the_paths_kind(ask: Requests, body: Object, words: str) -> None:
    status, refusal = apply(ask, "one", body)
    assert (status, refusal["message"]) == (400, words)


@pytest.mark.parametrize("manager", ["m" * 129, "%07"])
def test_a_field_manager_has_a_printable_name(ask: Requests, manager: str) -> None:
    assert apply(ask, manager, config_map())[0] == 422
    assert ask("POST", f"configmaps?fieldManager={manager}", config_map())[0] == 422


# -- patches and updates ----------------------------------------------------------------------------------------


def test_a_patch_moves_nothing_to_another_namespace(ask: Requests) -> None:
    ask("POST", "configmaps", config_map())
    status, refusal = ask("PATCH", "configmaps/c", {"metadata": {"namespace": "other"}}, MERGE)
    assert (status, refusal["message"]) == (
        400,
        "the namespace of the provided object does not match the namespace sent on the request",
    )


def test_what_a_patch_breaks_is_invalid(ask: Requests) -> None:
    ask("POST", "configmaps", config_map())
    status, refusal = ask("PATCH", "configmaps/c", {"data": {"a": 1}}, MERGE)
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert "json: cannot unmarshal number into Go struct field ConfigMap.data" in refusal["message"]


def test_an_update_names_its_object_and_a_version(ask: Requests) -> None:
    ask("POST", "configmaps", config_map())
    status, refusal = ask("PUT", "configmaps/c", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}})
    assert (status, refusal["message"]) == (
        400,
        "the name of the object (c based on URL) was undeterminable: name must be provided",
    )
    body = config_map(metadata={"resourceVersion": "abc"})
    status, refusal = ask("PUT", "configmaps/c", body)
    assert (status, refusal["message"]) == (500, 'strconv.ParseUint: parsing "abc": invalid syntax')


def test_the_time_of_a_lease_has_six_decimals(ask: Requests) -> None:
    def lease(name: str, moment: str) -> Object:
        kind = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        return {**kind, "metadata": {"name": name}, "spec": {"holderIdentity": "", "renewTime": moment}}

    leases = "coordination.k8s.io/v1!leases"
    for moment in ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00.5Z", "now"):
        status, refusal = ask("POST", leases, lease("l", moment))
        assert status == 400
        assert f'parsing time "{moment}" as "2006-01-02T15:04:05.000000Z07:00"' in refusal["message"]
    status, made = ask("POST", leases, lease("l", "2024-01-01T00:00:00.500000Z"))
    assert (status, made["spec"]) == (201, {"holderIdentity": "", "renewTime": "2024-01-01T00:00:00.500000Z"})


def test_empty_text_is_absent_unless_it_means_something(ask: Requests) -> None:
    """No class is not the default class for a claim; for a volume they are the same."""
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    claim = {"metadata": {"name": "c"}, "spec": {**common, "resources": {"requests": {"storage": "1Ti"}}}}
    status, made = ask("POST", "persistentvolumeclaims", claim)
    assert (status, made["spec"]["storageClassName"]) == (201, "")
    csi = {"driver": "example.com", "volumeHandle": "v"}
    spec = {**common, "capacity": {"storage": "1Ti"}, "csi": csi}
    volume = {"metadata": {"name": ask.namespace}, "spec": spec}
    status, made = ask("POST", "/api/v1/persistentvolumes?dryRun=All", volume)
    assert status == 201
    assert "storageClassName" not in made["spec"]
    status, made = ask("POST", "services", {"metadata": {"name": "s"}, "spec": {"type": "", "ports": [{"port": 80}]}})
    assert (status, made["spec"]["type"]) == (201, "ClusterIP")


# -- deletion ---------------------------------------------------------------------------------------------------


def test_a_body_speaks_for_the_whole_deletion(ask: Requests) -> None:
    ask("POST", "configmaps", config_map())
    status, _ = ask("DELETE", "configmaps/c", {"dryRun": ["All"]})
    assert (status, ask("GET", "configmaps/c")[0]) == (200, 200)
    status, _ = ask("DELETE", "configmaps/c?dryRun=All")
    assert (status, ask("GET", "configmaps/c")[0]) == (200, 200)
    # With a body, the parameter counts for nothing.
    status, _ = ask("DELETE", "configmaps/c?dryRun=All", {"propagationPolicy": "Background"})
    assert (status, ask("GET", "configmaps/c")[0]) == (200, 404)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dryRun": ["Some"]}, 'dryRun: Unsupported value: ["Some"]: supported values: "All"'),
        (
            {"propagationPolicy": "Background", "orphanDependents": True},
            "orphanDependents and deletionPropagation cannot be both set",
        ),
    ],
)
def test_deletion_is_asked_for_without_contradiction(ask: Requests, options: Object, words: str) -> None:
    status, refusal = ask("DELETE", "configmaps/none", options)
    assert status == 422
    assert words in refusal["message"]


def test_a_namespace_can_be_deleted_again_while_it_goes(ask: Requests) -> None:
    name = f"{ask.namespace}-twice"
    body = {"metadata": {"name": name, "finalizers": ["example.com/held"]}}
    ask("POST", "/api/v1/namespaces", body)
    for _ in range(2):
        status, going = ask("DELETE", f"/api/v1/namespaces/{name}")
        assert (status, going["status"]["phase"]) == (200, "Terminating")
    ask("PATCH", f"/api/v1/namespaces/{name}", {"metadata": {"finalizers": None}}, MERGE)


# -- discovery --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/v1", 415),
        ("/apis/apps/v1", 415),
        ("/version", 415),
        ("/apis", 200),
        ("/apis/apps", 200),
        ("/api/v1/namespaces/default", 200),
    ],
)
def test_discovery_judges_a_content_type_that_nothing_has(ask: Requests, path: str, status: int) -> None:
    assert ask("GET", path, content_type=MERGE)[0] == status
    assert ask("GET", path)[0] == 200


def test_a_version_that_a_group_lacks_is_not_found(ask: Requests) -> None:
    status, refusal = ask("GET", "apps/v9!deployments")
    assert (status, refusal["message"]) == (404, "the server could not find the requested resource")
