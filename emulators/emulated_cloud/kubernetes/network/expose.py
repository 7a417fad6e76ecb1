"""A Service as this machine reaches it: a listener on loopback, relayed to the Service's ready endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from emulated_cloud.kubernetes.client import Informers, Object, timestamp
from emulated_cloud.kubernetes.network.relay import listen
from emulated_cloud.kubernetes.network.services import NoEndpoint, ServiceTable
from emulated_cloud.kubernetes.pods import is_ready
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, PODS, SERVICES


class Exposed(Protocol):
    """namespace, service, port of the Service; address to listen on; file for the URL."""

    @property
    def namespace(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def address(self) -> str: ...
    @property
    def file(self) -> Path | None: ...


class Expose:
    """Listens from the start; writes each URL's file when its Service first has an endpoint that answers, of a pod that
    has become ready since: in a cluster that has just come back, EndpointSlices and pods still say what was before."""

    def __init__(self, informers: Informers, services: ServiceTable, entries: Iterable[Exposed]):
        self._informers, self._services, self._entries = informers, services, list(entries)
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
            choose = partial(self._services.endpoint, entry.namespace, entry.service, entry.port)
            server = await listen(host, int(port), choose)
            self._servers.append(server)
            bound = server.sockets[0].getsockname()
            self._unannounced.append((entry, f"http://{bound[0]}:{bound[1]}"))
        for resource in (SERVICES, ENDPOINT_SLICES):
            self._informers.of(resource).on_change(self._look)

    def _look(self, _old: Object | None, _new: Object | None) -> None:
        for entry, url in list(self._unannounced):
            if self._services.has_endpoint(entry.namespace, entry.service, entry.port):
                self._unannounced.remove((entry, url))
                if entry.file:
                    task = asyncio.create_task(self._announce(entry, entry.file, url))
                    self._announcing.add(task)
                    task.add_done_callback(self._announcing.discard)

    async def _announce(self, entry: Exposed, file: Path, url: str) -> None:
        while not await self._answers(entry):
            await asyncio.sleep(0.1)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_name(file.name + ".partial")
        partial_file.write_text(url + "\n", encoding="utf-8")
        partial_file.rename(file)

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
