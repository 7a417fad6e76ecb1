"""ValidatingAdmissionPolicies and their bindings as objects: what an API server stores, completes and refuses. The
emulator evaluates none. Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.contract.kubernetes_objects import Requests

pytest_plugins = ["tests.contract.kubernetes_api"]

APPLY, MERGE = "application/apply-patch+yaml", "application/merge-patch+json"
API = "/apis/admissionregistration.k8s.io/v1"
POLICIES, BINDINGS = f"{API}/validatingadmissionpolicies", f"{API}/validatingadmissionpolicybindings"
Object = dict[str, Any]


def policy(name: str) -> Object:
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["deployments"]}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        # It refuses nothing, whoever evaluates it.
        "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [{"expression": "true"}]},
    }


def binding(name: str) -> Object:
    selector = {"matchLabels": {"kubernetes.io/metadata.name": name}}
    spec = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": selector}}
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": spec,
    }


@pytest.fixture
def name(ask: Requests) -> Iterator[str]:
    """The name of a policy and a binding that are gone afterwards: they are in no namespace."""
    yield ask.namespace
    for path in (BINDINGS, POLICIES):
        ask("DELETE", f"{path}/{ask.namespace}")


def test_discovery_names_both(ask: Requests) -> None:
    listed = {entry["name"]: entry for entry in ask("GET", API)[1]["resources"]}
    for plural, kind in (
        ("validatingadmissionpolicies", "ValidatingAdmissionPolicy"),
        ("validatingadmissionpolicybindings", "ValidatingAdmissionPolicyBinding"),
    ):
        entry = listed[plural]
        assert (entry["kind"], entry["singularName"], entry["namespaced"]) == (kind, kind.lower(), False)
        assert entry["categories"] == ["api-extensions"]
        assert {"create", "delete", "get", "list", "patch", "update", "watch"} <= set(entry["verbs"])
    assert listed["validatingadmissionpolicies/status"]["verbs"] == ["get", "patch", "update"]
    assert "validatingadmissionpolicybindings/status" not in listed


def test_openapi_describes_both(ask: Requests) -> None:
    schemas = ask("GET", "/openapi/v3/apis/admissionregistration.k8s.io/v1")[1]["components"]["schemas"]
    for kind, field in (
        ("ValidatingAdmissionPolicy", "matchConstraints"),
        ("ValidatingAdmissionPolicyBinding", "policyName"),
    ):
        assert f"io.k8s.api.admissionregistration.v1.{kind}" in schemas
        assert field in schemas[f"io.k8s.api.admissionregistration.v1.{kind}Spec"]["properties"]


def test_a_policy_is_completed_and_kept(ask: Requests, name: str) -> None:
    status, made = ask("POST", f"{POLICIES}?fieldManager=maker", policy(name))
    assert (status, made["metadata"]["generation"], made["status"]) == (201, 1, {})
    assert made["spec"]["failurePolicy"] == "Fail"
    constraints = made["spec"]["matchConstraints"]
    assert constraints["resourceRules"][0]["scope"] == "*"
    assert {**constraints, "resourceRules": []} == {
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": {},
        "resourceRules": [],
    }
    (entry,) = made["metadata"]["managedFields"]
    assert entry["fieldsV1"] == {"f:spec": {"f:failurePolicy": {}, "f:matchConstraints": {}, "f:validations": {}}}
    assert ask("GET", f"{POLICIES}/{name}")[1]["spec"] == made["spec"]
    assert name in {item["metadata"]["name"] for item in ask("GET", POLICIES)[1]["items"]}
    assert ask("GET", f"{POLICIES}/{name}/status")[0] == 200

    status, changed = ask("PATCH", f"{POLICIES}/{name}", {"spec": {"failurePolicy": "Ignore"}}, MERGE)
    assert (status, changed["metadata"]["generation"]) == (200, 2)
    status, refusal = ask("PUT", f"{POLICIES}/{name}", policy(name))
    assert (status, refusal["details"]["causes"][0]["field"]) == (422, "metadata.resourceVersion")
    assert ask("DELETE", f"{POLICIES}/{name}")[0] == 200
    assert ask("GET", f"{POLICIES}/{name}")[0] == 404


def test_a_binding_is_completed_and_kept(ask: Requests, name: str) -> None:
    status, made = ask("POST", f"{BINDINGS}?fieldManager=maker", binding(name))
    assert (status, made["metadata"]["generation"]) == (201, 1)
    assert "status" not in made
    matched = made["spec"]["matchResources"]
    assert (matched["matchPolicy"], matched["objectSelector"]) == ("Equivalent", {})
    (entry,) = made["metadata"]["managedFields"]
    actions = {".": {}, 'v:"Deny"': {}}
    assert entry["fieldsV1"]["f:spec"] == {
        "f:matchResources": {},
        "f:policyName": {},
        "f:validationActions": actions,
    }
    assert ask("GET", f"{BINDINGS}/{name}/status")[0] == 404


def test_both_are_applied(ask: Requests, name: str) -> None:
    for path, body in ((POLICIES, policy(name)), (BINDINGS, binding(name))):
        status, made = ask("PATCH", f"{path}/{name}?fieldManager=me", body, APPLY)
        assert (status, made["metadata"]["managedFields"][0]["operation"]) == (201, "Apply")
        status, again = ask("PATCH", f"{path}/{name}?fieldManager=me", body, APPLY)
        assert (status, again["metadata"]["resourceVersion"]) == (200, made["metadata"]["resourceVersion"])


def change(path: str, value: Any = None) -> Callable[[Object], None]:
    """Sets a field of the spec; without a value it goes."""

    def apply(item: Object) -> None:
        *parents, last = path.split(".")
        target: Any = item["spec"]
        for part in parents:
            target = target[int(part)] if part.isdigit() else target[part]
        target.pop(last) if value is None else target.update({last: value})

    return apply


RULE = "matchConstraints.resourceRules.0"


@pytest.mark.parametrize(
    ("make", "spoil", "words"),
    [
        (policy, change("matchConstraints"), "spec.matchConstraints: Required value"),
        (policy, change("matchConstraints.resourceRules"), "spec.matchConstraints.resourceRules: Required value"),
        (policy, change("validations"), "spec.validations: Required value: validations or auditAnnotations must con"),
        (policy, change("validations.0.expression", ""), "spec.validations[0].expression: Required value: expression"),
        (policy, change("failurePolicy", "No"), 'Unsupported value: "No": supported values: "Fail", "Ignore"'),
        (policy, change(f"{RULE}.apiGroups"), "spec.matchConstraints.resourceRules[0].apiGroups: Required value"),
        (policy, change(f"{RULE}.operations", ["READ"]), '"*", "CONNECT", "CREATE", "DELETE", "UPDATE"'),
        (policy, change(f"{RULE}.scope", "No"), 'supported values: "*", "Cluster", "Namespaced"'),
        (policy, change("matchConditions", [{"name": "", "expression": "true"}]), "matchConditions[0].name: Required"),
        (binding, change("policyName"), "spec.policyName: Required value"),
        (binding, change("validationActions"), "at least one validation action is required"),
        (binding, change("validationActions", ["Deny", "Deny"]), 'spec.validationActions[1]: Duplicate value: "Deny"'),
        (binding, change("validationActions", ["Deny", "Warn"]), "must not contain both Deny and Warn"),
        (binding, change("validationActions", ["No"]), 'supported values: "Audit", "Deny", "Warn"'),
        (binding, change("paramRef", {"name": "p"}), "spec.paramRef.parameterNotFoundAction: Required value"),
        (binding, change("paramRef", {"parameterNotFoundAction": "Deny"}), "one of name or selector must be specified"),
    ],
)
def test_what_says_too_little_is_refused(
    ask: Requests, make: Callable[[str], Object], spoil: Callable[[Object], None], words: str
) -> None:
    item = copy.deepcopy(make(ask.namespace))
    spoil(item)
    path = POLICIES if make is policy else BINDINGS
    status, refusal = ask("POST", path, item)
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert words in refusal["message"]
