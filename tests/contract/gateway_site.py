"""Gateways in a cluster of emulators: manifests, small servers behind them, and a picker that does as a request says.

The picker stands for `llm-d-router-endpoint-picker`: ext_proc over gRPC, with messages written by field number
(https://github.com/envoyproxy/envoy/blob/main/api/envoy/service/ext_proc/v3/external_processor.proto). It leads a
request to the address in its header `x-want`, if there is one, and signs the answer with its name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_cluster import PYTHON_IMAGE, Kube, wait_for

Object = dict[str, Any]

GATEWAY_API = ("gateway.networking.k8s.io", "v1")
INFERENCE = ("inference.networking.k8s.io", "v1")
GKE = ("networking.gke.io", "v1")

SERVER = """
import http.server, json, os, signal, socket, threading, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
healthy, go = True, threading.Event()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def answer(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        global healthy
        if self.path == "/sick":
            healthy = False
        if self.path == "/go":
            go.set()
        if self.path == os.environ.get("HEALTH", "/"):
            return self.answer(200 if healthy else 500, os.environ["ANSWER"])
        if self.path == "/":
            return self.answer(404, "nothing here")
        self.answer(200, os.environ["ANSWER"])
    def do_POST(self):
        # What a picker has looked at comes in chunks.
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        while "Transfer-Encoding" in self.headers:
            size = int(self.rfile.readline(), 16)
            data += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        asked = json.loads(data)
        if not asked.get("lines"):
            time.sleep(asked.get("seconds", 0))
            return self.answer(200, os.environ["ANSWER"])
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in range(asked["lines"]):
            data = f"{os.environ['ANSWER']} {line}\\n".encode()
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))
            self.wfile.flush()
            go.wait()
        self.wfile.write(b"0\\r\\n\\r\\n")
    def log_message(self, *args):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8000), Handler).serve_forever()
"""

PICKER = """
import os, sys, time
from concurrent import futures
import grpc
def field(number, value):
    if isinstance(value, bool):
        return bytes([number << 3, value])
    data, size = value, b""
    length = len(data)
    while length > 127:
        size += bytes([length & 127 | 128])
        length >>= 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + data
def number(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
def fields(data):
    at = 0
    while at < len(data):
        tag, at = number(data, at)
        size, at = number(data, at)
        if tag & 7 == 0:
            yield tag >> 3, size
            continue
        yield tag >> 3, data[at:at + size]
        at += size
def headers(message):
    found = {}
    for _, listed in (each for each in fields(message) if each[0] == 1):
        for _, header in fields(listed):
            parts = dict(fields(header))
            found[parts[1].decode()] = (parts.get(3) or parts.get(2) or b"").decode()
    return found
def setting(name, value):
    header = field(1, field(1, name.encode()) + field(3, value.encode()))
    return field(1, field(2, field(1, header)))
def echo(message):
    body = dict(fields(message))
    streamed = field(1, body.get(1, b"")) + field(2, bool(body.get(2, 0)))
    return field(1, field(3, field(3, streamed)))
def process(messages, _):
    for message in messages:
        for kind, content in fields(message):
            if kind == 2:
                want = headers(content).get("x-want", "")
                yield field(1, setting("x-gateway-destination-endpoint", want) if want else b"")
            elif kind == 3:
                yield field(2, setting("x-picked-by", os.environ["PICKER"]))
            elif kind in (4, 5):
                yield field(kind - 1, echo(content))
            elif kind in (6, 7):
                yield field(kind - 1, b"")
handler = grpc.method_handlers_generic_handler(
    "envoy.service.ext_proc.v3.ExternalProcessor", {"Process": grpc.stream_stream_rpc_method_handler(process)}
)
server = grpc.server(futures.ThreadPoolExecutor(64), options=[("grpc.so_reuseport", 0)])
server.add_generic_rpc_handlers([handler])
address = os.environ["FROM_IMAGE"].removeprefix("pod at ") + ":9002"
if os.environ.get("TLS"):
    import trustme
    made = trustme.CA().issue_cert("picker")
    pair = (made.private_key_pem.bytes(), made.cert_chain_pems[0].bytes())
    server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
else:
    server.add_insecure_port(address)
server.start()
server.wait_for_termination()
"""


class Site:
    """Gateways of one namespace."""

    def __init__(self, kube: Kube):
        self.kube, self.namespace = kube, kube.namespace
        self._custom = client.CustomObjectsApi(kube.raw)
        self.session = requests.Session()
        self.session.trust_env = False

    # -- objects ------------------------------------------------------------------------------------------------

    def create(self, api: tuple[str, str], plural: str, body: Object, namespace: str = "") -> Object:
        return self._custom.create_namespaced_custom_object(*api, namespace or self.namespace, plural, body)

    def read(self, api: tuple[str, str], plural: str, name: str) -> Object:
        return self._custom.get_namespaced_custom_object(*api, self.namespace, plural, name)

    def delete(self, api: tuple[str, str], plural: str, name: str) -> None:
        self._custom.delete_namespaced_custom_object(*api, self.namespace, plural, name)

    def merge(self, api: tuple[str, str], plural: str, name: str, body: Object) -> Object:
        return self._custom.patch_namespaced_custom_object(*api, self.namespace, plural, name, body)

    def gateway(self, name: str = "front", listeners: Iterable[Object] = (), **listener: Any) -> None:
        one = {"name": "http", "port": 80, "protocol": "HTTP", **listener}
        spec = {"gatewayClassName": "gke-l7-rilb", "listeners": list(listeners) or [one]}
        self.create(GATEWAY_API, "gateways", _object(GATEWAY_API, "Gateway", name, spec))

    def route(self, *refs: Object, name: str = "front", parent: str = "front", **rule: Any) -> None:
        spec = {"parentRefs": [{"name": parent}], "rules": [{"backendRefs": list(refs), **rule}]}
        self.create(GATEWAY_API, "httproutes", _object(GATEWAY_API, "HTTPRoute", name, spec))

    def move(self, *refs: Object, name: str = "front", **rule: Any) -> None:
        self.merge(GATEWAY_API, "httproutes", name, {"spec": {"rules": [{"backendRefs": list(refs), **rule}]}})

    def pool(self, name: str, **ref: Any) -> None:
        picker = {"name": f"epp-{name}", "port": {"number": 9002}, **ref}
        spec = {"selector": {"matchLabels": {"app": name}}, "targetPorts": [{"number": 8000}]}
        body = _object(INFERENCE, "InferencePool", name, {**spec, "endpointPickerRef": picker})
        self.create(INFERENCE, "inferencepools", body)

    def health_check(self, target: str, path: str, group: str = INFERENCE[0], kind: str = "InferencePool") -> None:
        check = {"requestPath": path, "portSpecification": "USE_FIXED_PORT", "port": 8000}
        default = {"checkIntervalSec": 5, "timeoutSec": 5, "config": {"type": "HTTP", "httpHealthCheck": check}}
        spec = {"default": default, "targetRef": {"group": group, "kind": kind, "name": target}}
        self.create(GKE, "healthcheckpolicies", _object(GKE, "HealthCheckPolicy", target, spec))

    def backend_policy(self, pool: str, **default: Any) -> None:
        spec = {"default": default, "targetRef": {"group": INFERENCE[0], "kind": "InferencePool", "name": pool}}
        self.create(GKE, "gcpbackendpolicies", _object(GKE, "GCPBackendPolicy", pool, spec))

    def service(self, name: str, port: int, target: int, **entry: Any) -> None:
        spec = {"selector": {"app": name}, "ports": [{"name": "p", "port": port, "targetPort": target, **entry}]}
        self.kube.core.create_namespaced_service(self.namespace, {"metadata": {"name": name}, "spec": spec})

    def server(self, name: str, app: str = "", **env: str) -> Any:
        """A pod that answers with its name."""
        return self._pod(name, app or name, SERVER, 8000, {"ANSWER": name, **env})

    def picker(self, pool: str, plaintext: bool = True) -> None:
        name, port = f"epp-{pool}", {"appProtocol": "kubernetes.io/h2c"} if plaintext else {}
        self.service(name, 9002, 9002, **port)
        self._pod(name, name, PICKER, 9002, {"PICKER": pool, **({} if plaintext else {"TLS": "1"})})

    def _pod(self, name: str, app: str, program: str, port: int, env: dict[str, str]) -> Any:
        container = {
            "name": "server",
            "image": PYTHON_IMAGE,
            "command": ["python", "-c", program],
            "env": [{"name": key, "value": value} for key, value in env.items()],
            "readinessProbe": {"tcpSocket": {"port": port}, "periodSeconds": 1, "timeoutSeconds": 10},
        }
        body = {
            "metadata": {"name": name, "labels": {"app": app}},
            "spec": {"containers": [container], "terminationGracePeriodSeconds": 1},
        }
        return self.kube.core.create_namespaced_pod(self.namespace, body)

    def served(self, *names: str) -> None:
        """A Gateway with pools of one server each, all with pickers, the first with all of the traffic."""
        for name in names:
            self.server(name, HEALTH="/health")
            self.picker(name)
            self.pool(name)
            self.health_check(name, "/health")
        self.gateway()
        self.route(*(pool_ref(name, 0 if index else 100) for index, name in enumerate(names)))
        for name in names:
            self.wait_ready(name, f"epp-{name}")
        self.wait_answer(names[0])

    # -- what they say ------------------------------------------------------------------------------------------

    def wait_ready(self, *pods: str) -> None:
        def ready() -> bool:
            found = [self.kube.pod(name).status for name in pods]
            return all(any(c.type == "Ready" and c.status == "True" for c in each.conditions or []) for each in found)

        wait_for(ready, what=lambda: [self.kube.pod(name).status for name in pods])

    def conditions(self, plural: str, name: str, api: tuple[str, str] = GATEWAY_API) -> dict[str, tuple[str, str]]:
        """(status, reason) by type, of a Gateway or of the one parent of a route or pool; empty if it has none."""
        status = self.read(api, plural, name).get("status") or {}
        found = status if plural == "gateways" else (status.get("parents") or [{}])[0]
        return {each["type"]: (each["status"], each["reason"]) for each in found.get("conditions") or []}

    def wait_conditions(
        self, plural: str, name: str, api: tuple[str, str] = GATEWAY_API, **wanted: tuple[str, str]
    ) -> None:
        def there() -> bool:
            found = self.conditions(plural, name, api)
            return all(found.get(kind) == verdict for kind, verdict in wanted.items())

        wait_for(there, what=lambda: self.read(api, plural, name).get("status"))

    def is_observed(self) -> bool:
        """Whether the Gateway's controller has done as the route says now."""
        route = self.read(GATEWAY_API, "httproutes", "front")
        seen = [each for parent in route["status"]["parents"] for each in parent["conditions"]]
        return all(each["observedGeneration"] == route["metadata"]["generation"] for each in seen)

    @property
    def envoys_folder(self) -> Path:
        """What the Envoy of the Gateway `front` is configured from."""
        return self.kube.cluster.folder / "gateways" / f"{self.namespace}_front"

    @property
    def url(self) -> str:
        def address() -> str:
            addresses = (self.read(GATEWAY_API, "gateways", "front").get("status") or {}).get("addresses") or [{}]
            return str(addresses[0].get("value", ""))

        return f"http://{wait_for(address)}"

    # -- requests -----------------------------------------------------------------------------------------------

    def ask(self, path: str = "/v1/x", **headers: str) -> requests.Response:
        wanted = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.session.get(self.url + path, headers=wanted, timeout=60)

    def post(self, url: str = "", **body: Any) -> requests.Response:
        return self.session.post(f"{url or self.url}/v1/x", json=body, timeout=60)

    @contextmanager
    def stream(self, pod: str) -> Iterator[tuple[str, Callable[[], list[str]]]]:
        """A stream of a pod: its first line, and a function that has the three others come and returns them."""
        with requests.post(f"{self.url}/v1/x", json={"lines": 4}, stream=True, timeout=60) as answer:
            lines = (line.decode() for line in answer.iter_lines(chunk_size=1))
            first = next(lines)
            address = self.kube.pod(pod).status.pod_ip

            def rest() -> list[str]:
                self.session.get(f"http://{address}:8000/go", timeout=60)
                return list(lines)

            yield first, rest

    def wait_answer(self, text: str, path: str = "/v1/x") -> None:
        def said() -> tuple[int, str]:
            try:
                answer = self.ask(path)
            except requests.ConnectionError as error:
                return 0, str(error)
            return answer.status_code, answer.text

        wait_for(lambda: said() == (200, text), what=said)

    def shares(self, count: int) -> dict[str, int]:
        """How many of so many requests each server answered; every one must be answered."""
        url, found = self.url, {}
        for _ in range(count):
            answer = self.post(url)
            assert answer.status_code == 200, (answer.status_code, answer.text)
            found[answer.text] = found.get(answer.text, 0) + 1
        return found


class Traffic:
    """Requests without a pause, from threads with connections of their own, while the block runs."""

    def __init__(self, site: Site, threads: int = 3):
        self._url, self._threads = site.url, threads
        self._pool = ThreadPoolExecutor(threads)
        self._going = True
        self.answers: list[str] = []
        self.failures: list[str] = []

    def __enter__(self) -> Traffic:
        self._running = [self._pool.submit(self._run) for _ in range(self._threads)]
        return self

    def __exit__(self, *_: object) -> None:
        self._going = False
        for each in self._running:
            each.result()

    def _run(self) -> None:
        session = requests.Session()
        session.trust_env = False
        while self._going:
            try:
                answer = session.post(f"{self._url}/v1/x", json={}, timeout=60)
            except requests.RequestException as error:
                self.failures.append(repr(error))
                continue
            if answer.status_code != 200:
                self.failures.append(f"{answer.status_code} {answer.text}")
            self.answers.append(answer.text)
            time.sleep(0.01)

    def wait_for(self, *servers: str, among: int = 30) -> None:
        """Returns when these servers, and no others, gave the newest answers, so many of those from now on."""
        before = len(self.answers)

        def gave() -> bool:
            newest = self.answers[before:][-among:]
            return len(newest) == among and set(newest) == set(servers)

        wait_for(gave, what=lambda: (self.answers[-among:], self.failures))


def _object(api: tuple[str, str], kind: str, name: str, spec: Object) -> Object:
    return {"apiVersion": "/".join(api), "kind": kind, "metadata": {"name": name}, "spec": spec}


def pool_ref(name: str, weight: int = 100, **more: Any) -> Object:
    return {"group": INFERENCE[0], "kind": "InferencePool", "name": name, "weight": weight, **more}


def refusal(error: ApiException) -> str:
    return str(json.loads(error.body)["message"])


def service_ref(name: str, port: int, weight: int = 1) -> Object:
    return {"name": name, "port": port, "weight": weight}
