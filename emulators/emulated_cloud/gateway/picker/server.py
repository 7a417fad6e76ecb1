"""The picker's three ports: ext_proc (TLS unless told otherwise), gRPC health, metrics; and how they end."""

from __future__ import annotations

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from emulated_cloud.gateway.picker import wire
from emulated_cloud.gateway.picker.options import Options
from emulated_cloud.gateway.picker.processing import Exchange, Picker, Refused
from emulated_cloud.kubernetes import grpc_health, tls
from emulated_cloud.kubernetes.client import ApiError, Client

log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""After SIGTERM: how long nobody must have asked before it ends. A gateway may ask until it has heard of it."""
DRAIN_STEP_SECONDS = 0.05
ONE_OWNER = [("grpc.so_reuseport", 0)]
"""Whoever comes second to a port fails, as in Go."""
_REVIEWS = {
    "TokenReview": "/apis/authentication.k8s.io/v1/tokenreviews",
    "SubjectAccessReview": "/apis/authorization.k8s.io/v1/subjectaccessreviews",
}


class Server:
    """Serves a picker at an address. `async with`: its ports are open inside."""

    def __init__(self, picker: Picker, client: Client, options: Options, host: str):
        self._picker, self._client, self._options, self._host = picker, client, options, host
        self._streams, self._last_asked, self._is_draining = 0, time.monotonic(), False
        self._grpc = [self._ext_proc_server(), self._health_server()]
        self._metrics = web.AppRunner(self._metrics_app(), access_log=None, shutdown_timeout=1.0)

    async def __aenter__(self) -> Server:
        for server in self._grpc:
            await server.start()
        await self._metrics.setup()
        await web.TCPSite(self._metrics, self._host, self._options.metrics_port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(server.stop(None) for server in self._grpc))
        await self._metrics.cleanup()

    async def drain(self) -> None:
        """Not healthy from now on; serves until nobody has asked for a while, `--drain-timeout` at most."""
        self._is_draining = True
        told = time.monotonic()
        while time.monotonic() - told < self._options.drain_timeout:
            if not self._streams and time.monotonic() - max(self._last_asked, told) >= IDLE_SECONDS:
                return
            await asyncio.sleep(DRAIN_STEP_SECONDS)

    # -- ext_proc -------------------------------------------------------------------------------------------

    def _ext_proc_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=ONE_OWNER)
        method = grpc.stream_stream_rpc_method_handler(
            self._process, wire.ProcessingRequest.FromString, wire.ProcessingResponse.SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wire.SERVICE, {"Process": method}),))
        address = f"{self._host}:{self._options.grpc_port}"
        if self._options.secure_serving:
            server.add_secure_port(address, self._credentials())
        else:
            server.add_insecure_port(address)
        return server

    async def _process(self, requests: AsyncIterator[Any], _: object) -> AsyncIterator[Any]:
        exchange = Exchange(self._picker)
        self._streams += 1
        try:
            async for message in requests:
                self._last_asked = time.monotonic()
                try:
                    answers = await exchange.take(message)
                except Refused as refused:
                    log.info("%s", refused)
                    exchange.error = refused.code
                    yield wire.immediate(refused.status, str(refused))
                    return
                for answer in answers:
                    yield answer
        finally:
            self._streams -= 1
            exchange.close()

    def _credentials(self) -> grpc.ServerCredentials:
        """The certificate that was given, or one that is made now and that nobody knows."""
        with tempfile.TemporaryDirectory() as own:
            folder = Path(self._options.cert_path or own)
            if not self._options.cert_path:
                tls.ensure(folder, ["localhost"])
            return grpc.ssl_server_credentials([((folder / "tls.key").read_bytes(), (folder / "tls.crt").read_bytes())])

    # -- health and metrics ---------------------------------------------------------------------------------

    def _health_server(self) -> grpc.aio.Server:
        server = grpc.aio.server(options=ONE_OWNER)
        method = grpc.unary_unary_rpc_method_handler(self._check)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(grpc_health.SERVICE, {"Check": method}),))
        server.add_insecure_port(f"{self._host}:{self._options.grpc_health_port}")
        return server

    async def _check(self, request: bytes, _: object) -> bytes:
        """Every service's health is whether the pool was read; at the end, of `liveness` alone."""
        is_ending = self._is_draining and grpc_health.service_of(request) != "liveness"
        return grpc_health.response("SERVING" if self._picker.pool.is_synced and not is_ending else "NOT_SERVING")

    def _metrics_app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/metrics", self._show_metrics)
        return app

    async def _show_metrics(self, request: web.Request) -> web.Response:
        if self._options.metrics_endpoint_auth:
            await self._authorize(request)
        await self._picker.engines.refresh(self._picker.pool.endpoints)
        body = self._picker.metrics.render(self._picker.pool.endpoints)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})

    async def _authorize(self, request: web.Request) -> None:
        """As controller-runtime does it: the API server is asked who has this token, and whether he may."""
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise web.HTTPUnauthorized(text="Unauthorized")
        try:
            user = await self._review("TokenReview", {"token": token})
            if not user.get("authenticated"):
                raise web.HTTPUnauthorized(text="Unauthorized")
            who = {"user": user["user"]["username"], "groups": user["user"].get("groups") or []}
            asked = {**who, "nonResourceAttributes": {"path": "/metrics", "verb": "get"}}
            allowed = (await self._review("SubjectAccessReview", asked)).get("allowed")
        except ApiError as error:
            log.error("asking about a reader of /metrics: %s", error)
            raise web.HTTPInternalServerError(text="Authentication failed") from error
        if not allowed:
            raise web.HTTPForbidden(text=f"Authorization denied for user {who['user']}")

    async def _review(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        path = _REVIEWS[kind]
        body = {"apiVersion": "/".join(path.split("/")[2:4]), "kind": kind, "metadata": {}, "spec": spec}
        answer = await self._client.request("POST", path, body)
        status: dict[str, Any] = answer.get("status") or {}
        return status
