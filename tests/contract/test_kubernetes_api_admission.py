"""What an API server refuses or warns of: validation that our objects depend on, Pod Security, missing accounts.

Every case was once answered otherwise by the emulator than by kube-apiserver (docs/conformance.md). Runs against a real
server, too: see kubernetes_api.py.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import client

from tests.contract.kubernetes_objects import Requests

pytest_plugins = ["tests.contract.kubernetes_api"]

Object = dict[str, Any]
CLAIM: Object = {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Ti"}}}
CSI = {"driver": "example.com", "volumeHandle": "v"}
VOLUME: Object = {"accessModes": ["ReadOnlyMany"], "capacity": {"storage": "1Ti"}, "csi": CSI}
BUDGETS, POLICIES = "policy/v1!poddisruptionbudgets", "networking.k8s.io/v1!networkpolicies"
VOLUMES = "/api/v1/persistentvolumes"


def event(namespace: str) -> Object:
    return {"involvedObject": {"kind": "Pod", "name": "p", "namespace": namespace}, "reason": "R", "message": "m"}


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("configmaps", {"data": {"..a": "1"}}, "data[..a]: Invalid value: \"..a\": must not start with '..'"),
        (
            "configmaps",
            {"metadata": {"labels": {"a": "b" * 64}}},
            f'metadata.labels: Invalid value: "{"b" * 64}": must be no more than 63 bytes',
        ),
        (
            "persistentvolumeclaims",
            {"spec": {**CLAIM, "resources": {"requests": {"storage": "0"}}}},
            'spec.resources[storage]: Invalid value: "0": must be greater than zero',
        ),
        (
            "persistentvolumeclaims",
            {"spec": {**CLAIM, "accessModes": ["ReadWriteOncePod", "ReadOnlyMany"]}},
            "spec.accessModes: Forbidden: may not use ReadWriteOncePod with other access modes",
        ),
        (
            "persistentvolumeclaims",
            {"spec": {**CLAIM, "volumeMode": "Disc"}},
            'spec.volumeMode: Unsupported value: "Disc": supported values: "Block", "Filesystem"',
        ),
        (
            VOLUMES,
            {"spec": {**VOLUME, "capacity": {"storage": "1024Gi", "cpu": "1"}}},
            'spec.capacity: Unsupported value: {"cpu":"1","storage":"1Ti"}: supported values: "storage"',
        ),
        (
            VOLUMES,
            {"spec": {**VOLUME, "nfs": {"server": "a", "path": "/b"}}},
            "spec.csi: Forbidden: may not specify more than 1 volume type",
        ),
        (VOLUMES, {"spec": {**VOLUME, "csi": {**CSI, "driver": "A_b"}}}, 'spec.csi.driver: Invalid value: "A_b"'),
        (
            "services",
            {"spec": {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]}},
            'spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80',
        ),
        (
            "services",
            {"spec": {"ports": [{"port": 80}], "clusterIP": "1.2.3.4"}},
            "failed to allocate IP 1.2.3.4: the provided network does not match the current range",
        ),
        (
            "services",
            {"spec": {"ports": [{"port": 80}], "externalTrafficPolicy": "Local"}},
            'spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services',
        ),
        (BUDGETS, {"spec": {"minAvailable": "101%"}}, "must not be greater than 100%"),
        (BUDGETS, {"spec": {"maxUnavailable": -1}}, "must be greater than or equal to 0"),
        (BUDGETS, {"spec": {"maxUnavailable": "x"}}, "a valid percent string must be a numeric string"),
        (
            POLICIES,
            {"spec": {"podSelector": {}, "ingress": [{"from": [{}]}]}},
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            POLICIES,
            {"spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 70000}]}]}},
            "spec.ingress[0].ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            POLICIES,
            {"spec": {"podSelector": {}, "policyTypes": ["X"]}},
            'spec.policyTypes[0]: Unsupported value: "X": supported values: "Ingress", "Egress"',
        ),
        ("events", event("elsewhere"), 'involvedObject.namespace: Invalid value: "elsewhere": does not match'),
    ],
)
def test_what_is_invalid_is_said(ask: Requests, path: str, body: Object, words: str) -> None:
    status, refusal = ask("POST", path, {**body, "metadata": {"name": "x", **body.get("metadata", {})}})
    assert (status, refusal["reason"]) == (422, "Invalid")
    assert words in refusal["message"]


def test_the_first_namespaces_stay(ask: Requests) -> None:
    status, refusal = ask("DELETE", "/api/v1/namespaces/default")
    assert (status, refusal["message"]) == (403, 'namespaces "default" is forbidden: this namespace may not be deleted')


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("resourceVersion=abc", 400, 'strconv.ParseUint: parsing "abc": invalid syntax'),
        ("resourceVersion=99999999999", 504, "Too large resource version: 99999999999"),
        ("resourceVersionMatch=Exact", 422, "resourceVersionMatch is forbidden unless resourceVersion is provided"),
        ("sendInitialEvents=true", 422, "sendInitialEvents is forbidden for list"),
        ("watch=true&sendInitialEvents=true", 422, "requires setting resourceVersionMatch to NotOlderThan"),
        ("labelSelector=,", 400, "found ','"),
        ("labelSelector=-g", 400, 'Invalid value: "-g": name part must consist of alphanumeric characters'),
        ("fieldSelector=data.a%3Db", 400, '"data.a" is not a known field selector: only "metadata.name"'),
    ],
)
def test_what_cannot_be_listed_is_said(ask: Requests, query: str, status: int, words: str) -> None:
    code, refusal = ask("GET", f"configmaps?{query}")
    assert code == status
    assert words in refusal["message"]


# -- Pod Security and service accounts --------------------------------------------------------------------------

GOOD: Object = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
LEVEL = "pod-security.kubernetes.io"


def pod_spec(context: Object | None = None, **more: Any) -> Object:
    return {"containers": [{"name": "a", "image": "i", "securityContext": context or {}}], **more}


@pytest.fixture
def restricted(api: client.ApiClient, core: client.CoreV1Api) -> Iterator[Requests]:
    """A namespace that enforces `restricted`."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name, "labels": {f"{LEVEL}/enforce": "restricted"}}})
    core.create_namespaced_service_account(name, {"metadata": {"name": "default"}})
    yield Requests(api, name)
    core.delete_namespace(name)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            pod_spec(),
            'allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation='
            "false), "
            'unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]), '
            'runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true), seccompProfile '
            '(pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")',
        ),
        (
            pod_spec(GOOD, volumes=[{"name": "h", "hostPath": {"path": "/"}}]),
            'restricted volume types (volume "h" uses restricted volume type "hostPath")',
        ),
        (pod_spec({**GOOD, "runAsUser": 0}), 'runAsUser=0 (container "a" must not set runAsUser=0)'),
        (pod_spec(GOOD, hostNetwork=True), "host namespaces (hostNetwork=true)"),
        (
            pod_spec(GOOD, securityContext={"runAsNonRoot": False, "seccompProfile": {"type": "Unconfined"}}),
            "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), seccompProfile (pod must not "
            'set securityContext.seccompProfile.type to "Unconfined")',
        ),
    ],
)
def test_an_offending_pod_is_refused(restricted: Requests, spec: Object, words: str) -> None:
    status, refusal = restricted("POST", "pods", {"metadata": {"name": "p"}, "spec": spec})
    assert (status, refusal["message"]) == (
        403,
        f'pods "p" is forbidden: violates PodSecurity "restricted:latest": {words}',
    )


def test_a_pod_that_demands_nothing_is_admitted(restricted: Requests) -> None:
    assert restricted("POST", "pods", {"metadata": {"name": "p"}, "spec": pod_spec(GOOD)})[0] == 201


def test_what_makes_offending_pods_is_admitted_with_a_warning(api: client.ApiClient, restricted: Requests) -> None:
    template = {"metadata": {"labels": {"a": "b"}}, "spec": pod_spec({**GOOD, "runAsUser": 0})}
    body = {"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}}
    assert restricted("POST", "apps/v1!deployments", body)[0] == 201
    words = 'runAsUser=0 (container \\"a\\" must not set runAsUser=0)'
    warning = f'299 - "would violate PodSecurity \\"restricted:latest\\": {words}"'
    assert api.last_response.getheaders()["Warning"] == warning


def test_a_level_that_does_not_exist_is_invalid(ask: Requests) -> None:
    body = {"metadata": {"labels": {f"{LEVEL}/enforce": "strict"}}}
    status, refusal = ask("PATCH", f"/api/v1/namespaces/{ask.namespace}", body, "application/merge-patch+json")
    assert status == 422
    assert f'metadata.labels[{LEVEL}/enforce]: Invalid value: "strict": must be one of privileged' in refusal["message"]


def test_a_pod_needs_its_service_account(ask: Requests) -> None:
    body = {"metadata": {"name": "p"}, "spec": pod_spec(serviceAccountName="nobody")}
    status, refusal = ask("POST", "pods", body)
    where = f'{ask.namespace}/nobody: serviceaccount "nobody" not found'
    assert (status, refusal["message"]) == (403, f'pods "p" is forbidden: error looking up service account {where}')
