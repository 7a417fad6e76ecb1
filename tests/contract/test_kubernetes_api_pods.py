"""What only pods and service accounts have, with the official client. Runs against a real server, too: see
kubernetes_api.py."""

from __future__ import annotations

import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_objects import Object, pod, refused

pytest_plugins = ["tests.contract.kubernetes_api"]


class Kubelet(BaseHTTPRequestHandler):
    """A kubelet that has one log: two lines, and a third when a test says so for whoever follows."""

    asked: list[str]
    go_on = threading.Event()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if "previous=true" in self.path:
            text = b'previous terminated container "main" in pod "p" not found'
            self.send_response(400)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"one\ntwo\n")
        self.wfile.flush()
        if "follow=true" in self.path and self.go_on.wait(60):
            self.wfile.write(b"three\n")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def node(core: client.CoreV1Api, tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """A node whose kubelet is on this machine, and the paths that it is asked for."""
    asked: list[str] = []
    handler = type("Handler", (Kubelet,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(_certificate(tmp_path))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    name = f"node-{uuid.uuid4().hex[:8]}"
    status = {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": server.server_address[1]}},
    }
    core.create_node({"metadata": {"name": name}, "status": status})
    yield name, asked
    core.delete_node(name)
    server.shutdown()
    server.server_close()


def _certificate(folder: Path) -> Path:
    """A self-signed certificate with its key, as a kubelet makes itself one."""
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "kubelet")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "kubelet.pem"
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


def bind(core: client.CoreV1Api, namespace: str, name: str, node: str) -> None:
    body = {"metadata": {"name": name}, "target": {"apiVersion": "v1", "kind": "Node", "name": node}}
    # The answer is a Status, which the client takes for a Binding.
    core.create_namespaced_pod_binding(name, namespace, body, _preload_content=False)


def test_a_pod_begins_pending(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_pod(namespace, pod("p"))

    assert (made.status.phase, made.status.qos_class) == ("Pending", "BestEffort")
    assert (made.spec.service_account_name, made.spec.priority) == ("default", 0)
    tolerated = {each.key for each in made.spec.tolerations}
    assert tolerated == {"node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"}
    [volume] = made.spec.volumes
    assert [each.mount_path for each in made.spec.containers[0].volume_mounts] == [
        "/var/run/secrets/kubernetes.io/serviceaccount"
    ]
    assert volume.projected.sources[0].service_account_token.path == "token"


def test_a_pod_without_a_token_has_no_volume_for_one(core: client.CoreV1Api, namespace: str) -> None:
    made = core.create_namespaced_pod(namespace, pod("p", automountServiceAccountToken=False))

    assert made.spec.volumes is None


def test_a_pod_is_bound_once(core: client.CoreV1Api, namespace: str, node: tuple[str, list[str]]) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    bind(core, namespace, "p", node[0])
    made = core.read_namespaced_pod("p", namespace)
    assert made.spec.node_name == node[0]
    assert {each.type: each.status for each in made.status.conditions} == {"PodScheduled": "True"}
    with pytest.raises(ApiException) as error:
        bind(core, namespace, "p", "another")
    assert error.value.status == 409
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)


def test_the_spec_of_a_pod_stays_as_it_is(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    image = {"spec": {"containers": [{"name": "main", "image": "example.com/tool:2"}]}}
    assert core.patch_namespaced_pod("p", namespace, image).spec.containers[0].image == "example.com/tool:2"
    with pytest.raises(ApiException) as error:
        core.patch_namespaced_pod("p", namespace, {"spec": {"containers": [{"name": "main", "command": ["sh"]}]}})
    assert "pod updates may not change fields other than" in refused(error)["message"]


def test_a_status_is_whole_whatever_was_sent(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    statuses = [{"name": "main", "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}, "ready": True}]
    made = core.patch_namespaced_pod_status("p", namespace, {"status": {"containerStatuses": statuses}})

    [container] = made.status.container_statuses
    assert (container.ready, container.restart_count, container.image) == (True, 0, "")


# -- deletion ---------------------------------------------------------------------------------------------------


def test_a_pod_on_a_node_is_the_kubelets_to_remove(
    core: client.CoreV1Api, namespace: str, node: tuple[str, list[str]]
) -> None:
    core.create_namespaced_pod(namespace, pod("p", terminationGracePeriodSeconds=40))
    bind(core, namespace, "p", node[0])
    going = core.delete_namespaced_pod("p", namespace)
    assert going.metadata.deletion_grace_period_seconds == 40
    longer = core.delete_namespaced_pod("p", namespace, grace_period_seconds=90)
    assert longer.metadata.deletion_grace_period_seconds == 40
    shorter = core.delete_namespaced_pod("p", namespace, grace_period_seconds=5)
    assert shorter.metadata.deletion_grace_period_seconds == 5
    assert shorter.metadata.deletion_timestamp < going.metadata.deletion_timestamp
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)

    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_pod("p", namespace)


def test_a_pod_without_a_node_goes_at_once(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    core.delete_namespaced_pod("p", namespace)

    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_pod("p", namespace)


def _running(core: client.CoreV1Api, namespace: str, name: str) -> None:
    core.create_namespaced_pod(namespace, {**pod(name), "metadata": {"name": name, "labels": {"app": "web"}}})
    conditions = [{"type": "Ready", "status": "True"}]
    core.patch_namespaced_pod_status(name, namespace, {"status": {"phase": "Running", "conditions": conditions}})


def test_eviction_asks_the_disruption_budget(api: client.ApiClient, core: client.CoreV1Api, namespace: str) -> None:
    policy = client.PolicyV1Api(api)
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}
    policy.create_namespaced_pod_disruption_budget(namespace, {"metadata": {"name": "web"}, "spec": spec})
    for name in ("a", "b"):
        _running(core, namespace, name)

    def allow(count: int) -> None:
        status = {
            "observedGeneration": 1,
            "disruptionsAllowed": count,
            "currentHealthy": 1 + count,
            "desiredHealthy": 1,
            "expectedPods": 2,
        }
        policy.patch_namespaced_pod_disruption_budget_status("web", namespace, {"status": status})

    def evict(name: str) -> None:
        core.create_namespaced_pod_eviction(name, namespace, {"metadata": {"name": name}}, _preload_content=False)

    allow(0)
    with pytest.raises(ApiException) as error:
        evict("a")
    status = refused(error)
    assert (status["code"], status["reason"]) == (429, "TooManyRequests")
    assert status["details"]["causes"][0]["reason"] == "DisruptionBudget"
    allow(1)
    evict("a")
    with pytest.raises(ApiException, match="404"):
        core.read_namespaced_pod("a", namespace)
    budget = policy.read_namespaced_pod_disruption_budget_status("web", namespace)
    assert budget.status.disruptions_allowed == 0


# -- logs -------------------------------------------------------------------------------------------------------


def test_a_log_comes_from_the_nodes_kubelet(
    core: client.CoreV1Api, namespace: str, node: tuple[str, list[str]]
) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    bind(core, namespace, "p", node[0])
    assert core.read_namespaced_pod_log("p", namespace, tail_lines=2) == "one\ntwo\n"
    assert node[1] == [f"/containerLogs/{namespace}/p/main?tailLines=2"]
    with pytest.raises(ApiException) as error:
        core.read_namespaced_pod_log("p", namespace, previous=True)
    assert (refused(error)["code"], refused(error)["reason"]) == (400, "BadRequest")
    assert "previous terminated container" in refused(error)["message"]
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)


def test_a_followed_log_comes_as_it_is_written(
    core: client.CoreV1Api, namespace: str, node: tuple[str, list[str]]
) -> None:
    core.create_namespaced_pod(namespace, pod("p"))
    bind(core, namespace, "p", node[0])
    stream = core.read_namespaced_pod_log("p", namespace, follow=True, _preload_content=False)
    came = b""
    for data in stream:
        came += data
        if came == b"one\ntwo\n":
            Kubelet.go_on.set()
    assert came == b"one\ntwo\nthree\n"
    core.delete_namespaced_pod("p", namespace, grace_period_seconds=0)


def test_a_log_is_of_one_container(core: client.CoreV1Api, namespace: str) -> None:
    body = pod("p")
    body["spec"]["containers"].append({"name": "proxy", "image": "example.com/proxy:1"})
    core.create_namespaced_pod(namespace, body)

    def message(read: Callable[[], Any]) -> str:
        with pytest.raises(ApiException) as error:
            read()
        assert error.value.status == 400
        return str(refused(error)["message"])

    assert message(lambda: core.read_namespaced_pod_log("p", namespace)) == (
        "a container name must be specified for pod p, choose one of: [main proxy]"
    )
    assert message(lambda: core.read_namespaced_pod_log("p", namespace, container="x")) == (
        "container x is not valid for pod p"
    )


# -- service accounts -------------------------------------------------------------------------------------------


def test_a_service_account_has_tokens(api: client.ApiClient, core: client.CoreV1Api, namespace: str) -> None:
    request: Object = {"spec": {"expirationSeconds": 900, "audiences": None}}
    token = core.create_namespaced_service_account_token("default", namespace, request).status.token
    review = client.AuthenticationV1Api(api).create_token_review({"spec": {"token": token}})

    assert review.status.authenticated is True
    assert review.status.user.username == f"system:serviceaccount:{namespace}:default"
    assert f"system:serviceaccounts:{namespace}" in review.status.user.groups


def test_who_am_i(api: client.ApiClient) -> None:
    reviews = client.AuthorizationV1Api(api)
    attributes = {"verb": "create", "resource": "pods", "namespace": "default"}
    answer = reviews.create_self_subject_access_review({"spec": {"resourceAttributes": attributes}})

    assert answer.status.allowed is True
    mine = client.AuthenticationV1Api(api).create_self_subject_review({})
    assert mine.status.user_info.username
