"""A Service as this machine reaches it: a listener on loopback, relayed to the Service's ready endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from emulators.kubernetes.client import Informers, Object
from emulators.kubernetes.network.relay import listen
from emulators.kubernetes.network.services import ServiceTable
from emulators.kubernetes.resources import ENDPOINT_SLICES, SERVICES


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
    """Listens from the start; writes each URL's file when its Service first has a ready endpoint."""

    def __init__(self, informers: Informers, services: ServiceTable, entries: Iterable[Exposed]):
        self._informers, self._services, self._entries = informers, services, list(entries)
        self._servers: list[asyncio.Server] = []
        self._unannounced: list[tuple[Exposed, str]] = []

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
                    entry.file.parent.mkdir(parents=True, exist_ok=True)
                    partial_file = entry.file.with_name(entry.file.name + ".partial")
                    partial_file.write_text(url + "\n")
                    partial_file.rename(entry.file)

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
