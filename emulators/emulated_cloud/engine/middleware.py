"""`--middleware`: classes of whoever runs the engine, in front of all its routes and of its API key.

As in vLLM a class is ASGI middleware, found by its import path (PYTHONPATH), and the last one named sees a request
first. vLLM also takes a function in Starlette's form; that is refused here, in other words than vLLM's.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_CALL = "emulated_engine.call"


class Middlewares:
    """The classes, each made once. Raises ImportError, AttributeError, ValueError for what is none."""

    def __init__(self, names: Sequence[str]):
        self._app: Any = _answer
        self._any = bool(names)
        for name in names:
            module, _, attribute = name.rpartition(".")
            found = getattr(importlib.import_module(module), attribute)
            if not inspect.isclass(found):
                raise ValueError(f"Invalid middleware {name}. The emulated engine runs ASGI classes alone.")
            make: Any = found
            self._app = make(self._app)

    async def pass_through(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The answer of the first class that has one of its own, or of `handler`."""
        if not self._any:
            return await handler(request)
        call = _Call(request, handler)
        await self._app(_scope(request) | {_CALL: call}, call.receive, call.send)
        return call.response or web.Response(status=call.status, headers=call.headers, body=bytes(call.body))


class _Call:
    """One request on its way through the classes."""

    def __init__(self, request: web.Request, handler: Handler):
        self.request, self.handler = request, handler
        self.response: web.StreamResponse | None = None
        self.status, self.headers, self.body = 500, dict[str, str](), bytearray()

    async def receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": await self.request.read(), "more_body": False}

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {key.decode(): value.decode() for key, value in message.get("headers") or []}
        self.body += message.get("body", b"")


async def _answer(scope: dict[str, Any], _receive: Any, _send: Any) -> None:
    """The engine itself, behind all classes. Its answers go out by themselves, streams included."""
    call: _Call = scope[_CALL]
    call.response = await call.handler(call.request)


def _scope(request: web.Request) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": request.scheme,
        "path": request.path,
        "raw_path": request.raw_path.partition("?")[0].encode(),
        "query_string": request.query_string.encode(),
        "root_path": "",
        "headers": [(key.lower(), value) for key, value in request.raw_headers],
        "client": (request.transport.get_extra_info("peername") if request.transport else None) or ("", 0),
    }
