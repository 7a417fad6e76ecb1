"""The forward proxy of pods: it stands for cluster DNS and kube-proxy.

Pods are given `http_proxy` and `https_proxy`, whose user is the pod's namespace, so that a short name means that
namespace's Service. Requests come with absolute URIs, or as CONNECT. Only their heads are read; bodies and answers pass
as they come, so that streams are not held up. A connection keeps its endpoint for a name, as a connection through
kube-proxy does.
"""

from __future__ import annotations

import asyncio
import base64
import re
from typing import cast
from urllib.parse import urlsplit

from emulated_cloud.kubernetes.network.relay import Side
from emulated_cloud.kubernetes.network.services import NoEndpoint, ServiceTable

MAX_HEAD = 64 * 1024
_HOP_BY_HOP = re.compile(rb"\r\n(?:proxy-connection|proxy-authorization|keep-alive):[^\r]*", re.IGNORECASE)


def proxy_url(address: str, namespace: str) -> str:
    return f"http://{namespace}:pod@{address}"


class BodyScanner:
    """Finds the end of a request's body: by length, or by its chunks."""

    def __init__(self, length: int, chunked: bool):
        self._left, self._chunked = length, chunked
        self._line = b""
        self._state = "size" if chunked else "data"
        self.done = not chunked and not length

    def take(self, data: bytes) -> int:
        """How many bytes of `data` belong to the body."""
        position = 0
        while position < len(data) and not self.done:
            if self._state == "data":
                step = min(self._left, len(data) - position)
                position += step
                self._left -= step
                if not self._left:
                    self._state, self.done = "size", not self._chunked
                continue
            end = data.find(b"\n", position)
            stop = len(data) if end < 0 else end + 1
            self._line += data[position:stop]
            position = stop
            if end >= 0:
                self._on_line(self._line.strip())
                self._line = b""
        return position

    def _on_line(self, line: bytes) -> None:
        if self._state == "trailer":
            self.done = not line
        elif line:
            size = int(line.split(b";")[0], 16)
            # A chunk is followed by a line break of its own.
            self._left, self._state = size + 2, "data"
            if not size:
                self._state = "trailer"


class ProxyConnection(Side):
    """A pod's connection to the proxy."""

    def __init__(self, services: ServiceTable):
        super().__init__()
        self._services = services
        self._buffer = b""
        self._body: BodyScanner | None = None
        self._tunnel = False
        self._target: tuple[str, int] | None = None
        self._connecting: asyncio.Task[None] | None = None

    def data_received(self, data: bytes) -> None:
        if self._tunnel and not self._connecting:
            super().data_received(data)
            return
        self._buffer += data
        if not self._connecting:
            self._advance()

    def _advance(self) -> None:
        """Passes on what the buffer holds: the rest of a body, then the head of the next request."""
        while self._buffer and not self._connecting:
            if self._tunnel:
                data, self._buffer = self._buffer, b""
                super().data_received(data)
                return
            if self._body:
                size = self._body.take(self._buffer)
                super().data_received(self._buffer[:size])
                self._buffer = self._buffer[size:]
                if self._body.done:
                    self._body = None
                continue
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > MAX_HEAD:
                    self._refuse(431, "the head of the request is too long")
                return
            head, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
            self._on_head(head)

    def _on_head(self, head: bytes) -> None:
        try:
            method, target, version = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
            headers = _headers(head)
            body = BodyScanner(int(headers.get("content-length", 0)), "chunked" in headers.get("transfer-encoding", ""))
            if method == "CONNECT":
                host, _, port = target.rpartition(":")
                self._go(host, int(port), headers, None, None)
                return
            url = urlsplit(target)
            if url.scheme != "http" or not url.hostname:
                self._refuse(400, "this is a proxy: ask with an absolute http:// URL, or CONNECT")
                return
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            rest = _HOP_BY_HOP.sub(b"", head[head.index(b"\r\n") :])
            changed = f"{method} {path} {version}".encode("latin-1") + rest
            self._go(url.hostname, url.port or 80, headers, changed, body)
        except ValueError:
            self._refuse(400, "malformed request")

    def _go(self, host: str, port: int, headers: dict[str, str], head: bytes | None, body: BodyScanner | None) -> None:
        """Sends a request's head to the endpoint of the connection, or of a new one; a tunnel has no head."""
        if head is not None and self._target == (host, port) and self.peer and not _closing(self.peer):
            self._send_head(head, body, "upgrade" in headers)
            return
        self._connecting = asyncio.create_task(self._connect(host, port, headers, head, body))
        if self.transport:
            self.transport.pause_reading()

    async def _connect(
        self, host: str, port: int, headers: dict[str, str], head: bytes | None, body: BodyScanner | None
    ) -> None:
        if self.peer and self.peer.transport:
            self.peer.peer = None
            self.peer.transport.close()
            self.peer = None
        try:
            address = self._services.resolve(host, port, _namespace(headers))
            _, other = await asyncio.get_running_loop().create_connection(Side, *address)
        except NoEndpoint as error:
            self._refuse(502, str(error))
            return
        except OSError as error:
            self._refuse(502, f"{host}:{port}: {error.strerror or error}")
            return
        finally:
            self._connecting = None
        if self.transport is None or self.transport.is_closing():
            if other.transport:
                other.transport.close()
            return
        self.peer, other.peer, self._target = other, self, (host, port)
        self.transport.resume_reading()
        if head is None:
            self.transport.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            self._tunnel = True
        else:
            self._send_head(head, body, "upgrade" in headers)
        self._advance()

    def _send_head(self, head: bytes, body: BodyScanner | None, upgrade: bool) -> None:
        super().data_received(head)
        self._tunnel = upgrade
        self._body = body if body and not body.done else None

    def _refuse(self, status: int, words: str) -> None:
        text = f"{words}\n".encode()
        reasons = {400: "Bad Request", 431: "Request Header Fields Too Large", 502: "Bad Gateway"}
        head = f"HTTP/1.1 {status} {reasons[status]}\r\nContent-Type: text/plain; charset=utf-8\r\n"
        if self.transport:
            self.transport.write(f"{head}Content-Length: {len(text)}\r\nConnection: close\r\n\r\n".encode() + text)
            self.transport.close()
        self._buffer = b""

    def connection_lost(self, error: Exception | None) -> None:
        if self._connecting:
            self._connecting.cancel()
        super().connection_lost(error)


def _closing(side: Side) -> bool:
    return side.transport is None or side.transport.is_closing()


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {
        name.strip().lower(): value.strip().lower() if name.lower() != "proxy-authorization" else value.strip()
        for name, _, value in pairs
    }


def _namespace(headers: dict[str, str]) -> str:
    """The user of the proxy's URL, as the client repeats it."""
    scheme, _, credentials = headers.get("proxy-authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return "default"
    return base64.b64decode(credentials).decode().partition(":")[0]


async def serve(services: ServiceTable, address: str) -> tuple[asyncio.Server, str]:
    """(server, host:port)."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ProxyConnection(services), address, 0)
    host, port = cast(tuple[str, int], server.sockets[0].getsockname()[:2])
    return server, f"{host}:{port}"
