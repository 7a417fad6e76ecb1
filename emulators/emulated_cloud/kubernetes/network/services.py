"""From a Service's name and port to the address of a ready pod."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator

from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, SERVICES

SERVICE_NAME = "kubernetes.io/service-name"
DOMAIN = ("svc", "cluster", "local")


class NoEndpoint(Exception):
    """No address for a name and port; the words for whoever asked."""


class ServiceTable:
    """Services and EndpointSlices, read as kube-proxy reads them."""

    def __init__(self, informers: Informers):
        self._services = informers.of(SERVICES)
        self._slices = informers.of(ENDPOINT_SLICES)
        self.moved: dict[tuple[str, int], int] = {}
        """Ports of addresses outside the pods' network that are served on another here (gateways.py)."""
        self._turns: dict[tuple[str, int], Iterator[int]] = defaultdict(itertools.count)

    def resolve(self, host: str, port: int, namespace: str) -> tuple[str, int]:
        """A ready endpoint in turn, for a cluster name as a pod of `namespace` may write it, or a cluster IP. Another
        address, or localhost, is itself. Raises NoEndpoint."""
        name = host.rstrip(".").lower()
        if service := self._by_cluster_ip(name):
            return self.endpoint(service["metadata"]["namespace"], service["metadata"]["name"], port)
        if name == "localhost" or name.replace(".", "").isdigit() or ":" in name:
            return name.strip("[]"), self.moved.get((name, port), port)
        parts = tuple(name.split("."))
        if len(parts) == 1:
            return self.endpoint(namespace, parts[0], port)
        if parts[2:] == DOMAIN[: len(parts) - 2]:
            return self.endpoint(parts[1], parts[0], port)
        raise NoEndpoint(f"{host}: not a name of this cluster, and nothing outside of it can be reached")

    def endpoint(self, namespace: str, name: str, port: int) -> tuple[str, int]:
        """A ready endpoint of the Service's port, in turn. Raises NoEndpoint."""
        service = self._services.items.get(f"{namespace}/{name}")
        if service is None:
            raise NoEndpoint(f"no such host: there is no Service {name} in namespace {namespace}")
        headless = service["spec"].get("clusterIP") == "None"
        entry = next((entry for entry in service["spec"].get("ports") or [] if entry["port"] == port), None)
        if entry is None and not headless:
            raise NoEndpoint(f"connection refused: Service {namespace}/{name} has no port {port}")
        addresses = self._addresses(namespace, name, entry.get("name", "") if entry else None, port)
        if not addresses:
            raise NoEndpoint(f"connection refused: Service {namespace}/{name} has no ready endpoint")
        chosen = addresses[next(self._turns[f"{namespace}/{name}", port]) % len(addresses)]
        return (chosen[0], port) if headless else chosen

    def addresses(self, namespace: str, name: str, port: int) -> list[tuple[str, int]]:
        """Every ready endpoint of a Service's port; none if there is no such Service or port."""
        service = self._services.items.get(f"{namespace}/{name}") or {"spec": {}}
        entry = next((entry for entry in service["spec"].get("ports") or [] if entry["port"] == port), None)
        return self._addresses(namespace, name, entry.get("name", ""), port) if entry else []

    def has_endpoint(self, namespace: str, name: str, port: int) -> bool:
        try:
            self.endpoint(namespace, name, port)
        except NoEndpoint:
            return False
        return True

    def _addresses(self, namespace: str, name: str, port_name: str | None, port: int) -> list[tuple[str, int]]:
        """Ready endpoints; when there is none, those that still serve while they terminate."""
        ready, serving = [], []
        for item in self._slices.in_namespace(namespace):
            if (item["metadata"].get("labels") or {}).get(SERVICE_NAME) != name:
                continue
            numbers = [entry["port"] for entry in item.get("ports") or [] if entry.get("name") in (port_name, None)]
            number = numbers[0] if numbers else port if port_name is None else None
            if number is None:
                continue
            for endpoint in item.get("endpoints") or []:
                conditions = endpoint.get("conditions") or {}
                address = (endpoint["addresses"][0], number)
                if conditions.get("ready", True):
                    ready.append(address)
                elif conditions.get("serving") and conditions.get("terminating"):
                    serving.append(address)
        return sorted(ready or serving)

    def _by_cluster_ip(self, address: str) -> Object | None:
        if not address.replace(".", "").isdigit():
            return None
        return next((item for item in self._services.items.values() if item["spec"].get("clusterIP") == address), None)
