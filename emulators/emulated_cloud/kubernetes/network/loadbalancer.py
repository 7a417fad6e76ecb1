"""LoadBalancer Services: a loopback address each, with a relay on every port of the Service."""

from __future__ import annotations

import asyncio
import ipaddress
import os
from functools import partial

from emulated_cloud.kubernetes.client import Client, Informers, Object, key_of, split_key
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.network.relay import listen
from emulated_cloud.kubernetes.network.services import ServiceTable
from emulated_cloud.kubernetes.resources import SERVICES
from emulated_cloud.kubernetes.workqueue import WorkQueue

RETRY_SECONDS = 5.0


class LoadBalancers:
    def __init__(self, client: Client, informers: Informers, services: ServiceTable, network: str):
        self._client, self._table = client, services
        self._services = informers.of(SERVICES)
        self._network = ipaddress.ip_network(network)
        self._servers: dict[str, dict[int, asyncio.Server]] = {}
        self._events = EventRecorder(client, "service-controller")
        self.queue = WorkQueue("loadbalancer", self._reconcile)

    def start(self) -> None:
        self._services.on_change(lambda old, new: self.queue.add(key_of(new or old or {})))

    async def _reconcile(self, key: str) -> float | None:
        service = self._services.items.get(key)
        wanted = service is not None and service["spec"].get("type") == "LoadBalancer"
        if service is None or not wanted or service["metadata"].get("deletionTimestamp"):
            self._close(key, set())
            if service is not None and _ingress(service) and not wanted:
                await self._write_ingress(key, [])
            return None
        address = _ingress(service)
        if not address or ipaddress.ip_address(address) not in self._network:
            address = self._free_address()
        ports = {port["port"] for port in service["spec"].get("ports") or []}
        self._close(key, ports)
        listeners = self._servers.setdefault(key, {})
        namespace, name = split_key(key)
        for port in ports - listeners.keys():
            try:
                listeners[port] = await listen(address, port, partial(self._table.endpoint, namespace, name, port))
            except OSError as error:
                words = (
                    f"Error syncing load balancer: failed to ensure load balancer: {_explained(address, port, error)}"
                )
                self._events.event(service, "Warning", "SyncLoadBalancerFailed", words)
                return RETRY_SECONDS
        if _ingress(service) != address:
            self._events.event(service, "Normal", "EnsuringLoadBalancer", "Ensuring load balancer")
            await self._write_ingress(key, [{"ip": address, "ipMode": "VIP"}])
            self._events.event(service, "Normal", "EnsuredLoadBalancer", "Ensured load balancer")
        return None

    def _free_address(self) -> str:
        taken = {_ingress(service) for service in self._services.items.values()}
        return next(str(address) for address in self._network.hosts() if str(address) not in taken)

    async def _write_ingress(self, key: str, ingress: list[Object]) -> None:
        namespace, name = split_key(key)
        status = {"status": {"loadBalancer": {"ingress": ingress}}}
        self._services.observe(await self._client.patch(SERVICES, name, namespace, status, subresource="status"))

    def _close(self, key: str, keep: set[int]) -> None:
        listeners = self._servers.get(key, {})
        for port in listeners.keys() - keep:
            listeners.pop(port).close()

    async def stop(self) -> None:
        await self.queue.stop()
        for key in list(self._servers):
            self._close(key, set())


def _explained(address: str, port: int, error: OSError) -> str:
    said = f"{address}:{port}: {os.strerror(error.errno)}" if error.errno else str(error)
    if isinstance(error, PermissionError):
        return f"{said}. Let ordinary users have the port: sudo sysctl -w net.ipv4.ip_unprivileged_port_start={port}"
    return said


def _ingress(service: Object) -> str:
    ingress = (service.get("status") or {}).get("loadBalancer", {}).get("ingress") or [{}]
    return ingress[0].get("ip", "")
