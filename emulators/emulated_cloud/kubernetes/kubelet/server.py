"""The kubelet's own API, as far as `kubectl logs` needs it: one TLS server for all nodes."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Mapping
from pathlib import Path

from aiohttp import web

from emulated_cloud.kubernetes import tls
from emulated_cloud.kubernetes.client import parse_time
from emulated_cloud.kubernetes.kubelet.container import Container
from emulated_cloud.kubernetes.kubelet.kubelet import Kubelet
from emulated_cloud.kubernetes.kubelet.logs import latest_log, render, since


class KubeletServer:
    """`folder` keeps its certificate, which nobody verifies: a kubelet without a signer makes its own."""

    def __init__(self, kubelet: Kubelet, address: str, folder: Path):
        self._kubelet, self._address, self._folder = kubelet, address, folder
        app = web.Application()
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._container_logs)
        app.router.add_get("/healthz", self._healthz)
        # A follower that stays must not hold up the end of this process.
        self._runner = web.AppRunner(app, shutdown_timeout=0.2, access_log=None)

    async def start(self) -> int:
        """The port, which every Node names in daemonEndpoints."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._address, 0, ssl_context=tls.ensure(self._folder, [self._address]))
        await site.start()
        return self._runner.addresses[0][1]

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _container_logs(self, request: web.Request) -> web.StreamResponse:
        namespace, name, wanted = (request.match_info[part] for part in ("namespace", "pod", "container"))
        worker = self._kubelet.worker_of(namespace, name)
        if worker is None:
            return web.Response(status=404, text=f'pod "{name}" not found in namespace "{namespace}"\n')
        container = next((entry for entry in [*worker.init, *worker.main] if entry.name == wanted), None)
        if container is None:
            return web.Response(status=404, text=f'container "{wanted}" not found in pod "{name}"\n')
        previous = _is_true(request.query, "previous")
        path = latest_log(self._kubelet.pods, worker.uid, wanted, previous)
        if path is None:
            if previous:
                words = f'previous terminated container "{wanted}" in pod "{name}" not found'
            else:
                reason = container.state.get("waiting", {}).get("reason", "ContainerCreating")
                words = f'container "{wanted}" in pod "{name}" is waiting to start: {reason}'
            return web.Response(status=400, text=words)
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        await self._send(request, response, path, container)
        return response

    async def _send(self, request: web.Request, response: web.StreamResponse, path: Path, container: Container) -> None:
        query = request.query
        timestamps = _is_true(query, "timestamps")
        left = int(query["limitBytes"]) if "limitBytes" in query else None
        follow = _is_true(query, "follow") and container.log is not None and container.log.path == path
        changed = asyncio.Event()
        if follow:
            container.followers.add(changed)
        try:
            with open(path, "rb") as file:
                lines = since(iter(file.readlines()), _since(query))
                if "tailLines" in query:
                    count = int(query["tailLines"])
                    lines = iter(list(lines)[-count:] if count else [])
                text = b"".join(render(line, timestamps) for line in lines)
                while True:
                    if left is not None:
                        text, left = text[:left], left - len(text[:left])
                    if text:
                        await response.write(text)
                    if not follow or left == 0:
                        break
                    running = container.process is not None and container.log is not None and container.log.path == path
                    text = b"".join(render(line, timestamps) for line in file.readlines())
                    if not text and not running:
                        break
                    if not text:
                        changed.clear()
                        await changed.wait()
        finally:
            container.followers.discard(changed)
        await response.write_eof()


def _is_true(query: Mapping[str, str], name: str) -> bool:
    """As Go reads a boolean."""
    return query.get(name, "") in ("1", "t", "T", "true", "True", "TRUE")


def _since(query: Mapping[str, str]) -> datetime.datetime | None:
    if "sinceSeconds" in query:
        return datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=int(query["sinceSeconds"]))
    return parse_time(query["sinceTime"]) if "sinceTime" in query else None
