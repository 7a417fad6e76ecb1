"""The controller of Gateways: one pass over one Gateway makes it and says in the statuses how that went."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import ipaddress
import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import aiohttp

from emulated_cloud.gateway import certificates, status, xds
from emulated_cloud.gateway.envoy import Envoy, Refused
from emulated_cloud.gateway.judging import Objects, judge
from emulated_cloud.gateway.resources import CLASSES, CONTROLLER, Object, Parent, Site, Verdict
from emulated_cloud.kubernetes.client import ApiError, Client, Informers, key_of, split_key
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.disk_faults import ScriptedFaults
from emulated_cloud.kubernetes.network.gateways import GatewayTable
from emulated_cloud.kubernetes.network.services import ServiceTable
from emulated_cloud.kubernetes.pods import is_active, is_ready
from emulated_cloud.kubernetes.resources import (
    BACKEND_POLICIES,
    CRDS,
    ENDPOINT_SLICES,
    GATEWAY_CLASSES,
    GATEWAYS,
    HEALTH_CHECK_POLICIES,
    HTTP_ROUTES,
    INFERENCE_POOLS,
    NAMESPACES,
    PODS,
    REFERENCE_GRANTS,
    SERVICES,
    Resource,
)
from emulated_cloud.kubernetes.workqueue import WorkQueue

log = logging.getLogger(__name__)

_NEEDED = (GATEWAY_CLASSES, GATEWAYS, HTTP_ROUTES, REFERENCE_GRANTS)
_OPTIONAL = (INFERENCE_POOLS, BACKEND_POLICIES, HEALTH_CHECK_POLICIES)
_RETRY_SECONDS = 1.0
_DESCRIPTION = "Gateways of Google Cloud's load balancers"


class GatewayController:
    """Serves Gateways of GKE's classes. Nothing happens until the Gateway API's kinds are served; a kind that is not
    (InferencePool, a policy) is as if there were none."""

    def __init__(
        self,
        client: Client,
        informers: Informers,
        services: ServiceTable,
        table: GatewayTable,
        faults: ScriptedFaults,
        folder: Path,
        network: str,
        authority: Path | None,
        serves: bool,
    ):
        self._client, self._informers, self._services = client, informers, services
        self._table, self._faults, self._folder, self._authority = table, faults, folder, authority
        self._network = ipaddress.ip_network(network)
        self._serves = serves
        self._definitions = informers.of(CRDS)
        self._watched: set[Resource] = set()
        self._envoys: dict[str, Envoy] = {}
        self._addresses: dict[str, str] = {}
        self._events = EventRecorder(client, "sc-gateway-controller")
        self.queue = WorkQueue("gateways", self._reconcile)
        self._kinds = WorkQueue("gateway kinds", self._look_for_kinds)

    def start(self) -> None:
        self._definitions.on_change(lambda _old, _new: self._kinds.add("kinds"))

    async def stop(self) -> None:
        await self._kinds.stop()
        await self.queue.stop()
        await asyncio.gather(*(envoy.stop() for envoy in self._envoys.values()))

    # -- what is watched ------------------------------------------------------------------------------------

    async def _look_for_kinds(self, _: str) -> None:
        """Watches the kinds that are served now."""
        if not all(self._is_served(resource) for resource in _NEEDED):
            return
        new = {kind for kind in (*_NEEDED, *_OPTIONAL) if self._is_served(kind)} - self._watched
        if not new:
            return
        first = not self._watched
        await self._informers.synced(*new)
        if first:
            await self._install_classes()
            self._table.gateways = self._informers.of(GATEWAYS)
            self._table.routes = self._informers.of(HTTP_ROUTES)
        self._watched |= new  # Not before: a write that failed is tried again.
        if not self._serves:
            return
        if first:
            self._informers.of(GATEWAYS).on_change(lambda old, new: self.queue.add(key_of(new or old or {})))
            for resource in (SERVICES, ENDPOINT_SLICES, NAMESPACES):
                self._informers.of(resource).on_change(self._something_changed)
            self._informers.of(PODS).on_change(self._pod_changed)
        for resource in new - {GATEWAYS}:
            self._informers.of(resource).on_change(self._something_changed)

    def _is_served(self, resource: Resource) -> bool:
        return f"{resource.plural}.{resource.group}" in self._definitions.items

    async def _install_classes(self) -> None:
        there = self._informers.of(GATEWAY_CLASSES)
        for name in CLASSES:
            found = there.items.get(name)
            if found is None:
                spec = {"controllerName": CONTROLLER, "description": _DESCRIPTION}
                found = await self._client.create(GATEWAY_CLASSES, {"metadata": {"name": name}, "spec": spec})
            if self._serves:
                await self._accept_class(found)

    async def _accept_class(self, found: Object) -> None:
        accepted = Verdict("Accepted", True, "Accepted", "")
        before = (found.get("status") or {}).get("conditions")
        await self._write(GATEWAY_CLASSES, found, {"conditions": status.conditions([accepted], before, found)})

    def _something_changed(self, _old: Object | None, _new: Object | None) -> None:
        for key in self._informers.of(GATEWAYS).items:
            self.queue.add(key)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if (old and _seen(old)) != (new and _seen(new)):
            self._something_changed(old, new)

    # -- one pass -------------------------------------------------------------------------------------------

    async def _reconcile(self, key: str) -> float | None:
        gateway = self._informers.of(GATEWAYS).items.get(key)
        if gateway is None or gateway["metadata"].get("deletionTimestamp") or not self._is_ours(gateway):
            await self._forget(key)
            return None
        bad, secrets = await certificates.problems(gateway, self._client)
        site = judge(gateway, self._objects(bad))
        address, programmed, done = await self._program(key, gateway, site, secrets)
        site.verdicts.append(programmed)
        await self._write(GATEWAYS, gateway, status.gateway(gateway, site, address))
        await self._write_parents(key, site)
        return None if done and not bad else _RETRY_SECONDS

    def _is_ours(self, gateway: Object) -> bool:
        found = self._informers.of(GATEWAY_CLASSES).items.get(gateway["spec"]["gatewayClassName"])
        return found is not None and found["spec"]["controllerName"] == CONTROLLER

    def _objects(self, bad_certificates: dict[str, str]) -> Objects:
        def items(resource: Resource) -> dict[str, Object]:
            return self._informers.of(resource).items if resource in self._watched else {}

        return Objects(
            routes=items(HTTP_ROUTES),
            pools=items(INFERENCE_POOLS),
            services=self._informers.of(SERVICES).items,
            pods=self._informers.of(PODS).items,
            namespaces=self._informers.of(NAMESPACES).items,
            grants=items(REFERENCE_GRANTS),
            backend_policies=items(BACKEND_POLICIES),
            health_policies=items(HEALTH_CHECK_POLICIES),
            bad_certificates=bad_certificates,
            endpoints=self._services.addresses,
        )

    async def _program(
        self, key: str, gateway: Object, site: Site, secrets: dict[str, Object]
    ) -> tuple[str, Verdict, bool]:
        """Makes Envoy serve a Site: the address, whether that went well, and whether nothing is left to do."""
        name = gateway["metadata"]["name"]
        if words := self._faults.take("not_programmed", name):
            await self._end(key)
            self._events.event(gateway, "Warning", "SYNC", words)
            return "", Verdict("Programmed", False, "Invalid", words), False
        address = self._address(key, gateway)
        ports = {each.port: self._open(address, each.port) for each in site.listeners}
        folder = self._folder / key.replace("/", "_")
        try:
            envoy = await self._envoy(key, folder)
            pairs = self._certificates(name, site, secrets, folder, address)
            wanted = xds.files(site, folder, address, ports, pairs)
            if self._faults.take("broken", name):
                wanted = dataclasses.replace(wanted, routes={file: _damaged(file) for file in wanted.routes})
            done = await envoy.apply(wanted)
        except Refused as error:
            self._events.event(gateway, "Warning", "SYNC", str(error))
            return address, Verdict("Programmed", False, "Invalid", str(error)), False
        except (OSError, aiohttp.ClientError, TimeoutError) as error:
            return address, Verdict("Programmed", False, "Pending", f"Envoy does not answer yet: {error!r}"), False
        return address, Verdict("Programmed", True, "Programmed", "Resource programmed"), done

    async def _envoy(self, key: str, folder: Path) -> Envoy:
        if key not in self._envoys:
            shutil.rmtree(folder, ignore_errors=True)
            started = Envoy(folder, key.replace("/", "_"))
            await started.start()
            self._envoys[key] = started
        return self._envoys[key]

    def _certificates(
        self, name: str, site: Site, secrets: dict[str, Object], folder: Path, address: str
    ) -> list[tuple[Path, Path]]:
        if not any(listener.secure for listener in site.listeners):
            return []
        if another := self._faults.take("certificate_of", name):
            return certificates.write({}, folder, self._authority, [another])
        hosts = [host for listener in site.listeners for host in listener.hosts if host != "*"]
        names = list(dict.fromkeys([address, "127.0.0.1", "localhost", *hosts]))
        return certificates.write(secrets, folder, self._authority, names)

    # -- addresses ------------------------------------------------------------------------------------------

    def _address(self, key: str, gateway: Object) -> str:
        """A Gateway's address: the one that it has, or a free one of the upper half of the network (the lower half is
        the Services')."""
        if key not in self._addresses:
            said = ((gateway.get("status") or {}).get("addresses") or [{}])[0].get("value", "")
            taken = set(self._addresses.values())
            first = self._network.num_addresses // 2
            own = [str(self._network[first + index]) for index in range(1, 200)]
            self._addresses[key] = said if said in own and said not in taken else next(a for a in own if a not in taken)
        return self._addresses[key]

    def _open(self, address: str, port: int) -> int:
        """The port that is opened for a Gateway's: itself, if this user may have it and nobody has it."""
        if (address, port) not in self._table.opened:
            opened = port if _can_bind(address, port) else port + 10000
            self._table.opened[address, port] = self._services.moved[address, port] = opened
        return self._table.opened[address, port]

    # -- statuses -------------------------------------------------------------------------------------------

    async def _write_parents(self, key: str, site: Site) -> None:
        for resource, found in ((HTTP_ROUTES, site.routes), (INFERENCE_POOLS, {k: [p] for k, p in site.pools.items()})):
            if resource in self._watched:
                for name, item in list(self._informers.of(resource).items.items()):
                    await self._write_parents_of(resource, item, key, found.get(name) or [])

    async def _write_parents_of(self, resource: Resource, item: Object, key: str, found: list[Parent]) -> None:
        parents = status.parents(item, key, found)
        if parents or (item.get("status") or {}).get("parents"):
            await self._write(resource, item, {"parents": parents})

    async def _write(self, resource: Resource, item: Object, wanted: Object) -> None:
        before = item.get("status") or {}
        if all((before.get(name) or []) == value for name, value in wanted.items()):
            return
        # What was read is what is changed: another writer's words must not be lost.
        body = {"metadata": {"resourceVersion": item["metadata"]["resourceVersion"]}, "status": wanted}
        namespace, name = split_key(key_of(item))
        try:
            answer = await self._client.patch(resource, name, namespace, body, subresource="status")
        except ApiError as error:
            if error.status != 404:
                raise
            return
        self._informers.of(resource).observe(answer)

    async def _forget(self, key: str) -> None:
        """What a Gateway leaves when it goes."""
        await self._write_parents(key, Site([], []))
        await self._end(key)
        self._addresses.pop(key, None)

    async def _end(self, key: str) -> None:
        envoy = self._envoys.pop(key, None)
        if envoy:
            await envoy.stop()


def _seen(pod: Object) -> tuple[Any, ...]:
    """What of a pod matters to who sends it requests."""
    ip = (pod.get("status") or {}).get("podIP")
    return pod["metadata"].get("labels"), ip, is_ready(pod), is_active(pod)


def _can_bind(address: str, port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EADDRINUSE):
                return False
            raise
    return True


def _damaged(file: str) -> Object:
    """A route configuration that Envoy cannot take: a virtual host without domains."""
    name = file.removeprefix("routes-").removesuffix(".json")
    kind = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
    return {"resources": [{"@type": kind, "name": name, "virtual_hosts": [{"name": "damaged"}]}]}
