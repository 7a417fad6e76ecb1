"""The scale subresource: who owns replicas, and what a later apply makes of them. Runs against a real server, too: see
kubernetes_api.py."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.kubernetes_objects import Requests, deployment

pytest_plugins = ["tests.contract.kubernetes_api"]

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
STRATEGIC, JSON = "application/strategic-merge-patch+json", "application/json-patch+json"
WEB = "apps/v1!deployments/web"
Object = dict[str, Any]


def make(ask: Requests, **spec: Any) -> None:
    assert ask("POST", "apps/v1!deployments?fieldManager=maker", deployment("web", **spec))[0] == 201


def scale(ask: Requests, replicas: int, manager: str = "scaler", **metadata: Any) -> tuple[int, Object]:
    return ask(
        "PATCH", f"{WEB}/scale?fieldManager={manager}", {"metadata": metadata, "spec": {"replicas": replicas}}, MERGE
    )


def apply(ask: Requests, **spec: Any) -> tuple[int, Object]:
    return ask("PATCH", f"{WEB}?fieldManager=applier&force=false", deployment("web", **spec), APPLY)


def replicas(ask: Requests) -> int:
    made: Object = ask("GET", WEB)[1]
    assert ask("GET", f"{WEB}/scale")[1]["spec"].get("replicas", 0) == made["spec"]["replicas"]
    return int(made["spec"]["replicas"])


def owners(ask: Requests) -> list[tuple[str, str, str]]:
    """(manager, operation, subresource) of those who own the replicas."""
    return [
        (entry["manager"], entry["operation"], entry.get("subresource", ""))
        for entry in ask("GET", WEB)[1]["metadata"]["managedFields"]
        if "f:replicas" in entry["fieldsV1"].get("f:spec", {})
    ]


@pytest.mark.parametrize("kind", ["deployments", "replicasets"])
def test_replicas_are_set_by_scale_alone(ask: Requests, kind: str) -> None:
    body = deployment("web", replicas=2)
    if kind == "replicasets":
        body["kind"] = "ReplicaSet"
    ask("POST", f"apps/v1!{kind}", body)
    path = f"apps/v1!{kind}/web"
    uid = ask("GET", path)[1]["metadata"]["uid"]

    status, shown = ask("GET", f"{path}/scale")
    assert (status, shown["kind"], shown["apiVersion"]) == (200, "Scale", "autoscaling/v1")
    assert (shown["spec"], shown["status"]["selector"], shown["metadata"]["uid"]) == ({"replicas": 2}, "app=web", uid)

    for wanted, (method, patch, content_type) in enumerate(
        [
            ("PATCH", {"spec": {"replicas": 3}}, MERGE),
            ("PATCH", {"spec": {"replicas": 4}}, STRATEGIC),
            ("PATCH", [{"op": "replace", "path": "/spec/replicas", "value": 5}], JSON),
            ("PUT", {**shown, "metadata": {"name": "web"}, "spec": {"replicas": 6}}, ""),
        ],
        start=3,
    ):
        status, shown_after = ask(method, f"{path}/scale", patch, content_type)
        assert (status, shown_after["spec"]) == (200, {"replicas": wanted})
        made = ask("GET", path)[1]
        assert (made["spec"]["replicas"], made["metadata"]["generation"]) == (wanted, wanted - 1)
        assert made["metadata"]["resourceVersion"] == shown_after["metadata"]["resourceVersion"]
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/server:1"


def test_who_scales_owns_the_replicas(ask: Requests) -> None:
    make(ask, replicas=2)
    assert owners(ask) == [("maker", "Update", "")]
    scale(ask, 4)
    assert owners(ask) == [("scaler", "Update", "scale")]
    # What changes nothing takes nothing.
    scale(ask, 4, "another")
    assert owners(ask) == [("scaler", "Update", "scale")]
    scale(ask, 5, "another")
    assert owners(ask) == [("another", "Update", "scale")]


def test_an_apply_without_replicas_leaves_what_scale_has_set(ask: Requests) -> None:
    make(ask, replicas=2)
    assert apply(ask)[0] == 200
    scale(ask, 4)
    status, made = apply(ask, minReadySeconds=1)
    assert (status, made["spec"]["replicas"], made["spec"]["minReadySeconds"]) == (200, 4, 1)
    assert owners(ask) == [("scaler", "Update", "scale")]


def test_an_apply_that_once_had_replicas_leaves_what_scale_has_changed(ask: Requests) -> None:
    apply(ask, replicas=2)
    assert owners(ask) == [("applier", "Apply", "")]
    scale(ask, 3)
    assert owners(ask) == [("scaler", "Update", "scale")]
    assert apply(ask)[1]["spec"]["replicas"] == 3


def test_applied_replicas_that_scale_only_confirmed_are_reset_by_leaving_them_out(ask: Requests) -> None:
    """Why replicas are in no applied body, not even in the first."""
    apply(ask, replicas=2)
    scale(ask, 2)
    assert owners(ask) == [("applier", "Apply", "")]
    assert apply(ask)[1]["spec"]["replicas"] == 1


def test_an_apply_with_other_replicas_conflicts_with_scale(ask: Requests) -> None:
    make(ask)
    scale(ask, 4)
    status, refusal = apply(ask, replicas=9)
    words = 'conflict with "scaler" with subresource "scale" using apps/v1'
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert refusal["details"]["causes"] == [
        {"reason": "FieldManagerConflict", "message": words, "field": ".spec.replicas"}
    ]
    assert replicas(ask) == 4


def test_a_scale_can_be_applied(ask: Requests) -> None:
    make(ask)
    scale(ask, 4)
    body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 5}}
    status, refusal = ask("PATCH", f"{WEB}/scale?fieldManager=applier", body, APPLY)
    words = 'conflict with "scaler" with subresource "scale" using autoscaling/v1: .spec.replicas'
    assert (status, refusal["message"]) == (409, f"Apply failed with 1 conflict: {words}")
    status, shown = ask("PATCH", f"{WEB}/scale?fieldManager=applier&force=true", body, APPLY)
    assert (status, shown["spec"], owners(ask)) == (200, {"replicas": 5}, [("applier", "Apply", "scale")])
    wrong = {**deployment("web"), "spec": {"replicas": 5}}
    status, refusal = ask("PATCH", f"{WEB}/scale?fieldManager=applier", wrong, APPLY)
    assert (status, refusal["message"]) == (400, "invalid object type: apps/v1, Kind=Deployment")


def test_nobody_owns_no_replicas(ask: Requests) -> None:
    """A Scale leaves a zero out, so there is nothing that its writer could own, then or later."""
    make(ask, replicas=2)
    status, shown = scale(ask, 0)
    assert (status, shown["spec"], replicas(ask), owners(ask)) == (200, {}, 0, [])
    scale(ask, 3)
    assert (replicas(ask), owners(ask)) == (3, [])
    assert apply(ask)[1]["spec"]["replicas"] == 3


def test_a_scale_says_which_object_and_version_it_is_meant_for(ask: Requests) -> None:
    make(ask, replicas=2)
    meta = ask("GET", WEB)[1]["metadata"]
    old, uid = meta["resourceVersion"], meta["uid"]
    assert scale(ask, 3, resourceVersion=old, uid=uid)[0] == 200
    status, refusal = scale(ask, 4, resourceVersion=old)
    assert (status, refusal["reason"]) == (409, "Conflict")
    assert refusal["message"] == (
        'Operation cannot be fulfilled on deployments.apps "web": the object has been modified; please apply your '
        "changes to the latest version and try again"
    )
    body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "spec": {"replicas": 4}}
    assert ask("PUT", f"{WEB}/scale", {**body, "metadata": {"name": "web", "resourceVersion": old}})[0] == 409
    status, refusal = scale(ask, 4, uid="another")
    assert (status, refusal["message"]) == (
        409,
        'Operation cannot be fulfilled on deployments/scale.apps "web": Precondition failed: UID in precondition: '
        f"another, UID in object meta: {uid}",
    )
    assert replicas(ask) == 3


@pytest.mark.parametrize(
    ("method", "body", "status", "words"),
    [
        ("PATCH", {"spec": {"replicas": -1}}, 422, 'Scale.autoscaling "web" is invalid: spec.replicas: Invalid value'),
        ("PATCH", {"spec": {"replicas": "3"}}, 422, "cannot unmarshal string into Go struct field ScaleSpec.spec.rep"),
        ("PATCH", {"spec": {"replica": 3}}, 422, 'strict decoding error: unknown field "spec.replica"'),
        ("PUT", {"metadata": {"name": "other"}}, 400, "the name of the object (other) does not match the name on the"),
        ("PUT", deployment("web"), 400, "converting (v1.Deployment) to (autoscaling.Scale): unknown conversion"),
        ("POST", {"metadata": {"name": "web"}}, 405, "the server does not allow this method"),
        ("DELETE", None, 405, "the server does not allow this method"),
    ],
)
def test_a_scale_that_is_none_is_refused(ask: Requests, method: str, body: Any, status: int, words: str) -> None:
    make(ask, replicas=2)
    content_type = MERGE if method == "PATCH" else ""
    found, refusal = ask(method, f"{WEB}/scale?fieldValidation=Strict", body, content_type)
    assert found == status
    assert words in refusal["message"]
    assert replicas(ask) == 2


def test_what_is_not_there_has_no_scale(ask: Requests) -> None:
    body = {"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": 1}}
    for answer in (
        ask("GET", f"{WEB}/scale"),
        ask("PATCH", f"{WEB}/scale", {"spec": {"replicas": 1}}, MERGE),
        ask("PUT", f"{WEB}/scale", body),
    ):
        assert (answer[0], answer[1]["message"]) == (404, 'deployments.apps "web" not found')


def test_a_dry_run_scales_nothing(ask: Requests) -> None:
    make(ask, replicas=2)
    status, shown = ask("PATCH", f"{WEB}/scale?dryRun=All", {"spec": {"replicas": 7}}, MERGE)
    assert (status, shown["spec"], replicas(ask)) == (200, {"replicas": 7}, 2)
