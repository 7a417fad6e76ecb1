"""`python -m emulated_cloud.real.gateway --kubeconfig FILE --logs DIR`: Istio's pilot as the controller of Gateways.

It answers for the GatewayClasses of `networking.gke.io/gateway`, in place of the emulated controller (gateway/), and
what it makes of Gateways, HTTPRoutes and InferencePools reaches a plain Envoy of the same wheel by its own way, ADS.
Istio would have an installer and a sidecar's agent beside it; what they would do is done here, and no more:

* a Gateway's Envoy: a Deployment and a Service of the type LoadBalancer, both called `<gateway>-<class>`, where
  pilot looks for a Gateway's address. Envoy listens on all addresses of the cluster's machine, so every listener has a
  port of its own there, and the Service leads to it;
* a DestinationRule for each pool's picker that shows a certificate of its own: TLS without a name to check.

It runs in the cluster's own network (namespace.py). pilot and this are one: when one ends, both end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

from emulated_cloud.kubernetes.client import Client, Informers, Object, key_of, owner_reference, split_key
from emulated_cloud.kubernetes.resources import (
    DEPLOYMENTS,
    GATEWAY_CLASSES,
    GATEWAYS,
    INFERENCE_POOLS,
    SERVICES,
    Resource,
)
from emulated_cloud.kubernetes.running import run_until_told
from emulated_cloud.kubernetes.workqueue import WorkQueue
from emulated_cloud.process import dies_with_its_parent, how_it_ended
from emulated_cloud.real.parts import PARTS

OBJECTS = Path(__file__).parent / "config" / "gateway.yaml"
CONTROLLER = "networking.gke.io/gateway"
ENVOY_IMAGE = "docker.io/envoyproxy/envoy:v1.40.0"
GATEWAY_LABEL = "gateway.networking.k8s.io/gateway-name"
PLAIN_HTTP2 = "kubernetes.io/h2c"
START_SECONDS = 180.0

# The customary ports: nobody else is in this network.
XDS_PORT, HTTP_PORT, MONITORING_PORT, FIRST_LISTENER_PORT = 15010, 15080, 15014, 15100

DESTINATION_RULES = Resource("destinationrules", "DestinationRule", "networking.istio.io")

MESH = {"defaultProviders": {}, "enablePrometheusMerge": False, "enableAutoMtls": False}
"""Without mutual TLS, for which clusters would wait for an agent's secrets."""

ENVIRONMENT = {
    "PILOT_ENABLE_GATEWAY_API": "true",
    "ENABLE_GATEWAY_API_INFERENCE_EXTENSION": "true",
    "PILOT_GATEWAY_API_CONTROLLER_NAME": CONTROLLER,
    # GatewayClasses are GKE's, and a Gateway's Envoy is made here.
    "PILOT_ENABLE_GATEWAY_API_DEPLOYMENT_CONTROLLER": "false",
    "PILOT_ENABLE_GATEWAY_API_GATEWAYCLASS_CONTROLLER": "false",
    # Filters that istio-proxy has and Envoy has not.
    "PILOT_ENABLE_METADATA_EXCHANGE": "false",
    "PILOT_ENABLE_ALPN_FILTER": "false",
    "ENABLE_CA_SERVER": "false",
    "VALIDATION_WEBHOOK_CONFIG_NAME": "",
    "INJECTION_WEBHOOK_CONFIG_NAME": "",
    "ENABLE_LEADER_ELECTION": "false",
    "POD_NAME": "istiod-0",
    "POD_NAMESPACE": "istio-system",
}


class GatewayError(Exception):
    """pilot did not come up, or ended: its last words."""


class Pilot:
    """The process, and its log."""

    def __init__(self, kubeconfig: Path, logs: Path):
        self._kubeconfig, self._mesh = kubeconfig, kubeconfig.with_name("mesh.yaml")
        self._log = logs / "pilot-discovery.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when it answers."""
        # JSON is YAML.
        self._mesh.write_text(json.dumps(MESH), encoding="utf-8")
        with open(self._log, "ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                str(PARTS["gateway"].folder / "pilot-discovery"),
                "discovery",
                *("--kubeconfig", str(self._kubeconfig)),
                *("--meshConfig", str(self._mesh), "--networksConfig", "none"),
                *("--grpcAddr", f"127.0.0.1:{XDS_PORT}", "--secureGRPCAddr", ""),
                *("--httpAddr", f"127.0.0.1:{HTTP_PORT}", "--httpsAddr", ""),
                *("--monitoringAddr", f"127.0.0.1:{MONITORING_PORT}", "--ctrlz_port", "0"),
                *("-n", "istio-system"),
                env={**os.environ, **ENVIRONMENT},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_its_parent,
            )

    async def ready(self) -> None:
        """Raises GatewayError when it is not in time."""
        async with aiohttp.ClientSession() as session:
            for _ in range(int(START_SECONDS / 0.1)):
                with contextlib.suppress(aiohttp.ClientError):
                    async with session.get(f"http://127.0.0.1:{HTTP_PORT}/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.1)
        raise GatewayError(f"pilot-discovery was not ready in {START_SECONDS:g} s: {self._last_words()}")

    async def ended(self) -> str:
        """How it ended, once it has."""
        assert self._process
        return how_it_ended("pilot-discovery", await self._process.wait(), self._last_words())

    async def stop(self) -> None:
        if self._process and self._process.returncode is None:
            # It would wait for its clients for long.
            self._process.kill()
            await self._process.wait()

    def _last_words(self) -> str:
        words = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        return f"{''.join(words)} (its log is {self._log})"


class Installer:
    """Makes what pilot needs beside Gateways and pools."""

    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._classes, self._gateways = informers.of(GATEWAY_CLASSES), informers.of(GATEWAYS)
        self._pools, self._services = informers.of(INFERENCE_POOLS), informers.of(SERVICES)
        self._gateway_queue = WorkQueue("gateway", self._reconcile_gateway)
        self._pool_queue = WorkQueue("pool", self._reconcile_pool)
        self._gateways.on_change(self._gateway_queue.changed)
        self._classes.on_change(lambda *_: self._look_again())
        self._pools.on_change(self._pool_queue.changed)
        self._services.on_change(self._service_changed)

    def _look_again(self) -> None:
        for key in self._gateways.items:
            self._gateway_queue.add(key)

    def _service_changed(self, old: Object | None, new: Object | None) -> None:
        changed = key_of(new or old or {})
        for key, pool in self._pools.items.items():
            if changed == _picker(pool):
                self._pool_queue.add(key)

    async def stop(self) -> None:
        await self._gateway_queue.stop()
        await self._pool_queue.stop()

    # -- a Gateway's Envoy ------------------------------------------------------------------------------------

    async def _reconcile_gateway(self, key: str) -> None:
        gateway = self._gateways.items.get(key)
        if gateway is None:
            # What was made for it has it as owner.
            return
        kind = self._classes.items.get(gateway["spec"]["gatewayClassName"])
        if kind is None or kind["spec"]["controllerName"] != CONTROLLER:
            return
        ports = self._ports(gateway)
        for resource, made in ((SERVICES, _service(gateway, ports)), (DEPLOYMENTS, _deployment(gateway, ports))):
            meta = made["metadata"]
            answer = await self._client.patch(
                resource, meta["name"], meta["namespace"], made, "apply", field_manager="gateway", force=True
            )
            if resource == SERVICES:
                # The next Gateway must see which ports are taken.
                self._services.observe(answer)

    def _ports(self, gateway: Object) -> dict[int, int]:
        """Port of a listener → the one that Envoy listens on."""
        name = f"{gateway['metadata']['namespace']}/{_name(gateway)}"
        taken = {key: dict(_target_ports(service)) for key, service in self._services.items.items()}
        own = taken.get(name, {})
        used = {port for ports in taken.values() for port in ports.values()}
        free = (port for port in itertools.count(FIRST_LISTENER_PORT) if port not in used)
        wanted = dict.fromkeys(listener["port"] for listener in gateway["spec"]["listeners"])
        return {port: own.get(port) or next(free) for port in wanted}

    # -- a pool's picker --------------------------------------------------------------------------------------

    async def _reconcile_pool(self, key: str) -> None:
        pool = self._pools.items.get(key)
        service = self._services.items.get(_picker(pool)) if pool else None
        if pool is None or service is None:
            return
        number = pool["spec"]["endpointPickerRef"].get("port", {}).get("number")
        port: Object = next((each for each in service["spec"]["ports"] if each["port"] == number), {})
        namespace, name = split_key(key_of(service))
        if port.get("appProtocol") == PLAIN_HTTP2:
            await self._client.delete(DESTINATION_RULES, name, namespace)
            return
        tls = {"mode": "SIMPLE", "insecureSkipVerify": True}
        rule = {
            "metadata": {
                "name": name,
                "namespace": namespace,
                "ownerReferences": [owner_reference(INFERENCE_POOLS, pool)],
            },
            "spec": {"host": f"{name}.{namespace}.svc.cluster.local", "trafficPolicy": {"tls": tls}},
        }
        await self._client.patch(DESTINATION_RULES, name, namespace, rule, "apply", field_manager="gateway", force=True)


def _picker(pool: Object) -> str:
    """The key of the Service of its endpoint picker."""
    return f"{pool['metadata']['namespace']}/{pool['spec'].get('endpointPickerRef', {}).get('name')}"


def _target_ports(service: Object) -> Iterator[tuple[int, int]]:
    """Port → port of the pod, of a Service that was made here."""
    if GATEWAY_LABEL in (service["metadata"].get("labels") or {}):
        for port in service["spec"]["ports"]:
            yield port["port"], port["targetPort"]


def _name(gateway: Object) -> str:
    return f"{gateway['metadata']['name']}-{gateway['spec']['gatewayClassName']}"


def _metadata(gateway: Object) -> Object:
    return {
        "name": _name(gateway),
        "namespace": gateway["metadata"]["namespace"],
        "labels": {GATEWAY_LABEL: gateway["metadata"]["name"]},
        "ownerReferences": [owner_reference(GATEWAYS, gateway)],
    }


def _service(gateway: Object, ports: dict[int, int]) -> Object:
    return {
        "metadata": _metadata(gateway),
        "spec": {
            "type": "LoadBalancer",
            "selector": {GATEWAY_LABEL: gateway["metadata"]["name"]},
            "ports": [
                {"name": f"tcp-{port}", "port": port, "targetPort": target, "protocol": "TCP"}
                for port, target in ports.items()
            ],
        },
    }


def _deployment(gateway: Object, ports: dict[int, int]) -> Object:
    labels = {GATEWAY_LABEL: gateway["metadata"]["name"]}
    variables = {"POD_NAME": "metadata.name", "POD_NAMESPACE": "metadata.namespace", "POD_IP": "status.podIP"}
    container = {
        "name": "envoy",
        "image": ENVOY_IMAGE,
        "command": ["envoy"],
        "args": [
            *("--config-yaml", json.dumps(_bootstrap(gateway["metadata"]["name"]))),
            *("--disable-hot-restart", "--concurrency", "1", "--log-level", "warn"),
        ],
        "env": [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in variables.items()],
        "readinessProbe": {"tcpSocket": {"port": next(iter(ports.values()))}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "250m", "memory": "256Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    spec = {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": False,
        "containers": [container],
    }
    return {
        "metadata": _metadata(gateway),
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _bootstrap(gateway: str) -> dict[str, Any]:
    """Envoy's: who it is, as pilot knows its own proxies, and where pilot is. $(…) is what a kubelet fills in."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": XDS_PORT}}
    http2 = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    ads = {"ads": {}, "resource_api_version": "V3"}
    return {
        "node": {
            "id": "router~$(POD_IP)~$(POD_NAME).$(POD_NAMESPACE)~$(POD_NAMESPACE).svc.cluster.local",
            "cluster": gateway,
            "metadata": {
                "NAMESPACE": "$(POD_NAMESPACE)",
                "CLUSTER_ID": "Kubernetes",
                "ISTIO_VERSION": "1.31.0",
                "INSTANCE_IPS": "$(POD_IP)",
                "LABELS": {GATEWAY_LABEL: gateway},
            },
        },
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "dynamic_resources": {
            "lds_config": ads,
            "cds_config": ads,
            "ads_config": {
                "api_type": "GRPC",
                "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "pilot"}}],
            },
        },
        "static_resources": {
            "clusters": [
                {
                    "name": "pilot",
                    "type": "STATIC",
                    "connect_timeout": "5s",
                    "typed_extension_protocol_options": {
                        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2
                    },
                    "load_assignment": {
                        "cluster_name": "pilot",
                        "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
                    },
                }
            ]
        },
    }


async def run(kubeconfig: Path, logs: Path) -> None:
    """Serves until told to end. Raises GatewayError when pilot ends before that."""
    pilot = Pilot(kubeconfig, logs)
    async with Client.from_kubeconfig(kubeconfig, "gateway") as client:
        informers = Informers(client)
        installer = Installer(client, informers)
        try:
            await pilot.start()
            ended = asyncio.create_task(pilot.ended())
            serving = asyncio.create_task(run_until_told(f"http://127.0.0.1:{HTTP_PORT}", pilot.ready()))
            await asyncio.wait([ended, serving], return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                serving.cancel()
                raise GatewayError(ended.result())
            ended.cancel()
            serving.result()
        finally:
            await installer.stop()
            await informers.stop()
            await pilot.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--logs", type=Path, required=True, help="the folder of pilot's log")
    options = parser.parse_args()
    try:
        asyncio.run(run(options.kubeconfig, options.logs))
    except GatewayError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
