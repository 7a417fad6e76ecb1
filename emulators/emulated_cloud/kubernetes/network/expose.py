"""A Service or a Gateway as this machine reaches it: a listener on loopback, relayed to the Service's ready endpoints,
or to the Gateway's address."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

import aiohttp

from emulated_cloud.kubernetes.client import Informers, Object, timestamp
from emulated_cloud.kubernetes.network.gateways import GatewayTable
from emulated_cloud.kubernetes.network.relay import listen
from emulated_cloud.kubernetes.network.services import NoEndpoint, ServiceTable
from emulated_cloud.kubernetes.pods import is_ready
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, PODS, SERVICES


class Exposed(Protocol):
    """Namespace, name and port of a Service or a Gateway; address to listen on; file for the URL."""

    @property
    def namespace(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def gateway(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def file(self) -> Path | None: ...


class Expose:
    """Listens from the start; writes each URL's file when its Service first has an endpoint that answers, of a pod that
    has become ready since: in a cluster that has just come back, EndpointSlices and pods still say what was before. A
    Gateway's, when it first passes an answer of a backend on."""

    def __init__(
        self, informers: Informers, services: ServiceTable, gateways: GatewayTable, entries: Iterable[Exposed]
    ):
        self._informers, self._services, self._gateways = informers, services, gateways
        self._entries = list(entries)
        self._servers: list[asyncio.Server] = []
        self._unannounced: list[tuple[Exposed, str]] = []
        self._announcing: set[asyncio.Task[None]] = set()
        self._pods = informers.of(PODS)
        self._since = timestamp()

    async def start(self) -> None:
        for entry in self._entries:
            if entry.file:
                # An earlier process's address.
                entry.file.unlink(missing_ok=True)
            host, _, port = entry.address.rpartition(":")
            table: GatewayTable | ServiceTable = self._gateways if entry.gateway else self._services
            choose = partial(table.endpoint, entry.namespace, entry.gateway or entry.service, entry.port)
            server = await listen(host, int(port), choose)
            self._servers.append(server)
            bound = server.sockets[0].getsockname()
            if entry.gateway:
                self._keep(self._announce_gateway(entry, f"{bound[0]}:{bound[1]}"))
            else:
                self._unannounced.append((entry, f"http://{bound[0]}:{bound[1]}"))
        for resource in (SERVICES, ENDPOINT_SLICES):
            self._informers.of(resource).on_change(self._look)

    def _look(self, _old: Object | None, _new: Object | None) -> None:
        for entry, url in list(self._unannounced):
            if self._services.has_endpoint(entry.namespace, entry.service, entry.port):
                self._unannounced.remove((entry, url))
                self._keep(self._announce(entry, url))

    def _keep(self, announcing: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(announcing)
        self._announcing.add(task)
        task.add_done_callback(self._announcing.discard)

    async def _announce(self, entry: Exposed, url: str) -> None:
        while not await self._answers(entry):
            await asyncio.sleep(0.1)
        _write(entry, url)

    async def _announce_gateway(self, entry: Exposed, bound: str) -> None:
        # What it shows is signed for names that are not asked for here.
        connector = aiohttp.TCPConnector(ssl=False)
        timeout = aiohttp.ClientTimeout(total=5)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            while not await self._gateway_answers(session, entry, bound):
                await asyncio.sleep(0.2)
        _write(entry, f"{self._gateways.scheme(entry.namespace, entry.gateway, entry.port)}://{bound}")

    async def _gateway_answers(self, session: aiohttp.ClientSession, entry: Exposed, bound: str) -> bool:
        """Whether a backend behind a Gateway answers, whatever it says: an error of the Gateway's own is none."""
        host, path = self._gateways.way_in(entry.namespace, entry.gateway)
        if not path:
            return False
        url = f"{self._gateways.scheme(entry.namespace, entry.gateway, entry.port)}://{bound}{path}"
        try:
            headers = {"Host": host} if host else None
            async with session.get(url, allow_redirects=False, headers=headers) as answer:
                return answer.status < 500 and "x-envoy-upstream-service-time" in answer.headers
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _answers(self, entry: Exposed) -> bool:
        """Whether an endpoint of the Service is ready now, and takes connections."""
        try:
            host, port = self._services.endpoint(entry.namespace, entry.service, entry.port)
            if not self._is_ready_since(entry.namespace, host):
                return False
            _, writer = await asyncio.open_connection(host, port)
        except (NoEndpoint, OSError):
            return False
        writer.close()
        return True

    def _is_ready_since(self, namespace: str, address: str) -> bool:
        """Whether the pod of an address is ready, with containers that were started since this began."""
        for pod in self._pods.in_namespace(namespace):
            status = pod.get("status") or {}
            if status.get("podIP") == address and is_ready(pod):
                states = [entry.get("state") or {} for entry in status.get("containerStatuses") or []]
                return all(state.get("running", {}).get("startedAt", "") >= self._since for state in states)
        return False

    async def stop(self) -> None:
        for task in list(self._announcing):
            task.cancel()
        for server in self._servers:
            server.close()


def _write(entry: Exposed, url: str) -> None:
    if entry.file:
        entry.file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = entry.file.with_name(entry.file.name + ".partial")
        partial_file.write_text(url + "\n", encoding="utf-8")
        partial_file.rename(entry.file)
