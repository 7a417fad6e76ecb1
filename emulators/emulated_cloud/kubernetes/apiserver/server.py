"""The HTTP side: TLS, authentication, request log, scripted faults, and the streams of watches and logs.

Like every emulator it answers `/_emulator/faults` and `/_emulator/requests` (http.py), without a token and
unlogged.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import aiohttp
from aiohttp import web

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.kubernetes.apiserver import aggregation, errors, pods
from emulated_cloud.kubernetes.apiserver.errors import ApiError
from emulated_cloud.kubernetes.apiserver.reading import Watch
from emulated_cloud.kubernetes.apiserver.routes import Answer, Call, LogStream, Routes, Target
from emulated_cloud.kubernetes.apiserver.tokens import Tokens, User

ANYBODY = {"healthz", "livez", "readyz", "version"}
"""Paths that need no token."""

_BODY_LIMIT = 3 * 1024 * 1024
log = logging.getLogger(__name__)


class Dropped(Exception):
    """A scripted fault has cut the connection."""


class Record:
    """One request on its way into the log."""

    def __init__(self, request: web.Request):
        self.warnings: list[str] = []
        self.entry: dict[str, Any] = {
            "time": time.time(),
            "method": request.method,
            "path": request.raw_path,
            "status": 0,
            "user": "",
            "user_agent": request.headers.get("User-Agent", ""),
            "verb": request.method.lower(),
            "resource": "",
            "bytes_in": 0,
            "bytes_out": 0,
        }

    def aims_at(self, target: Target | None) -> None:
        if target is not None:
            self.entry |= {"verb": target.verb, "resource": target.label}


class Server:
    """The application; `app()` is what aiohttp runs."""

    def __init__(self, routes: Routes, tokens: Tokens, request_log: Path | None):
        self.routes, self.tokens = routes, tokens
        self.faults = Faults()
        self.requests: list[dict[str, Any]] = []
        self.stopping = asyncio.Event()
        self._log = open(request_log, "a", encoding="utf-8", buffering=1) if request_log else None  # noqa: SIM115
        self._behind: aiohttp.ClientSession | None = None
        """For what others answer: kubelets, and servers of API groups of their own."""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_LIMIT)
        app.router.add_route("*", "/{path:.*}", self.handle)
        app.on_shutdown.append(self._shut_down)
        return app

    async def _shut_down(self, app: web.Application) -> None:
        self.stopping.set()
        if self._behind:
            await self._behind.close()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/_emulator/"):
            return await self._admin(request)
        record = Record(request)
        fault = self.faults.take(request.method, request.raw_path)
        consumed = fault.consumed if fault else 0
        try:
            return await self._respond(request, record, fault)
        finally:
            if fault and fault.consumed == consumed:
                self.faults.give_back(fault)

    async def _respond(self, request: web.Request, record: Record, fault: Fault | None) -> web.StreamResponse:
        try:
            answer = await self._answer(request, record, fault)
        except ApiError as error:
            answer = Answer(error.status(), error.code)
        except errors.NoSuchPath:
            answer = Answer("404 page not found\n", 404, "text/plain; charset=utf-8")
        except web.HTTPRequestEntityTooLarge:
            message = f"Request entity too large: limit is {_BODY_LIMIT}"
            answer = Answer(ApiError(413, "RequestEntityTooLarge", message).status(), 413)
        try:
            return await self._send(request, answer, record, fault)
        except ApiError as error:
            return await self._send(request, Answer(error.status(), error.code), record, fault)

    async def _answer(self, request: web.Request, record: Record, fault: Fault | None) -> Answer:
        user = self._user(request)
        if user is not None:
            record.entry["user"] = user.name
        body = await request.read()
        record.entry["bytes_in"] = len(body)
        segments = [unquote(segment) for segment in request.url.raw_path.strip("/").split("/")]
        if user is None and segments[0] not in ANYBODY:
            raise errors.unauthorized()
        user = user or User("system:anonymous")
        headers, warnings = request.headers, record.warnings
        call = Call(request.method, segments, request.query, headers, body, user, request.host, warnings)
        service = aggregation.service_of(self.routes.storage.store, segments)
        target = None if service else self.routes.target(call)
        record.aims_at(target)
        if fault and fault.action == "status":
            # What went wrong in front of the server never reached it.
            self.faults.consume(fault)
            status = ApiError(fault.status, "", fault.body or "scripted fault").status()
            return Answer(status, fault.status, extra_headers=fault.headers)
        if service:
            store, path = self.routes.storage.store, request.raw_path
            asked = (call.method, path, call.headers, call.body, user.name)
            return Answer(*await aggregation.ask(store, self._session(), service, *asked))
        return self.routes.answer(call, target)

    def _user(self, request: web.Request) -> User | None:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return self.tokens.authenticate(token.strip()) if scheme.lower() == "bearer" and token else None

    # -- answers --------------------------------------------------------------------------------------------

    async def _send(
        self, request: web.Request, answer: Answer, record: Record, fault: Fault | None
    ) -> web.StreamResponse:
        if isinstance(answer.body, Watch):
            watch = answer.body
            try:
                return await self._stream(request, record, fault, lambda send: watch.run(send, self.stopping))
            finally:
                watch.stop()
        if isinstance(answer.body, LogStream):
            return await self._stream_log(request, answer.body, record, fault)
        text = answer.body if isinstance(answer.body, str) else json.dumps(answer.body, separators=(",", ":")) + "\n"
        data = text.encode()
        headers = {"Content-Type": answer.content_type, "Cache-Control": "no-cache, private", **answer.extra_headers}
        response = web.Response(status=answer.status, body=data, headers=headers)
        for warning in record.warnings:
            response.headers.add("Warning", f"299 - {json.dumps(warning)}")
        record.entry |= {"status": answer.status, "bytes_out": len(data)}
        # Before the answer, so that who has the answer finds its entry.
        self._write(record)
        if fault and fault.action != "status":
            return await self._act_out(request, response, data, fault)
        return response

    async def _stream(self, request: web.Request, record: Record, fault: Fault | None, run: Any) -> web.StreamResponse:
        """A body whose end is not known: `run` is given a function that sends."""
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        record.entry["status"] = 200

        async def send(data: bytes) -> None:
            sent = record.entry["bytes_out"]
            if fault and fault.action != "status" and sent <= fault.after_bytes < sent + len(data):
                await response.write(data[: fault.after_bytes - sent])
                await self._cut(request, fault)
            await response.write(data)
            record.entry["bytes_out"] += len(data)

        try:
            await run(send)
            await response.write_eof()
        except (ConnectionError, Dropped):
            pass
        finally:
            self._write(record)
        return response

    async def _stream_log(
        self, request: web.Request, stream: LogStream, record: Record, fault: Fault | None
    ) -> web.StreamResponse:
        try:
            async with self._session().get(stream.url) as source:
                await pods.refuse_kubelet_error(stream.pod, source)

                async def run(send: Any) -> None:
                    async for data in source.content.iter_any():
                        await send(data)

                return await self._stream(request, record, fault, run)
        except aiohttp.ClientError as error:
            raise errors.internal(f'Get "{stream.url}": {error}') from error

    def _session(self) -> aiohttp.ClientSession:
        if self._behind is None:
            # A kubelet's certificate is its own; the real server does not verify it by default either.
            connector = aiohttp.TCPConnector(ssl=False, limit=0)
            self._behind = aiohttp.ClientSession(
                connector=connector, timeout=aiohttp.ClientTimeout(total=None, connect=10)
            )
        return self._behind

    async def _act_out(
        self, request: web.Request, response: web.Response, data: bytes, fault: Fault
    ) -> web.StreamResponse:
        """Sends an answer up to the fault, then does what it says."""
        cut = web.StreamResponse(status=response.status, headers=response.headers)
        cut.content_length = len(data)
        at = min(fault.after_bytes, max(0, len(data) - 1))
        await cut.prepare(request)
        await cut.write(data[:at])
        if fault.action == "corrupt":
            self.faults.consume(fault)
            await cut.write(bytes([data[at] ^ 0xFF]) + data[at + 1 :])
            return cut
        try:
            await self._cut(request, fault)
        except Dropped:
            pass
        return cut

    async def _cut(self, request: web.Request, fault: Fault) -> None:
        self.faults.consume(fault)
        if fault.action == "stall":
            try:
                await asyncio.wait_for(self.stopping.wait(), fault.seconds)
            except TimeoutError:
                pass
        if request.transport is not None:
            request.transport.abort() if fault.action == "reset" else request.transport.close()
        raise Dropped

    # -- log and faults -------------------------------------------------------------------------------------

    def _write(self, record: Record) -> None:
        self.requests.append(record.entry)
        if self._log:
            self._log.write(json.dumps(record.entry) + "\n")

    async def _admin(self, request: web.Request) -> web.Response:
        if request.path == "/_emulator/faults":
            if request.method == "POST":
                self.faults.script(await request.json())
            return web.json_response(self.faults.as_list())
        if request.path == "/_emulator/requests":
            return web.json_response(self.requests)
        return web.Response(status=404)
