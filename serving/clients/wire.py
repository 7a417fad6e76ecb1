"""Bytes over HTTP/1.1, for what is too big or too many for the clients of the hub and of GCS.

The standard library's http.client, whole mebibytes at a time, moves twice what the libraries above it do. Nothing here
ever shows an address in an error: a signed link or a session's URI is as good as a password.
"""

from __future__ import annotations

import email.utils
import functools
import http.client
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from serving.clients.patience import Interrupted

PIECE = 1 << 20
"""Bytes read at a time."""

_SPENT = re.compile(r";\s*r\s*=\s*0\s*;\s*t\s*=\s*(\d+)")
"""https://www.ietf.org/archive/id/draft-ietf-httpapi-ratelimit-headers-09.html"""


def retry_after(headers: Any) -> float | None:
    """Seconds that a refusal asks for: by a Retry-After (a number, or a date), or by a RateLimit of which nothing is
    left, as the hub says it (`"api";r=0;t=45`). None without one that makes sense."""
    value = headers.get("Retry-After") or ""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        pass
    spent = _SPENT.search(headers.get("RateLimit") or "")
    return float(spent[1]) + 1 if spent else None  # The seconds are whole ones, rounded either way.


class Wire:
    """One thread's connections, one a host, kept between requests.

    stall_seconds: how long the other side may be silent.
    """

    def __init__(self, stall_seconds: float = 30.0):
        self._stall_seconds = stall_seconds
        self._connections: dict[tuple[str, str], http.client.HTTPConnection] = {}

    def send(
        self, method: str, url: str, headers: dict[str, str], body: Iterable[bytes] = ()
    ) -> http.client.HTTPResponse:
        """Sends a request and returns the answer, of which only the head is read. Raises Interrupted.

        `headers` must hold the Content-Length of a body. The answer has to be read to its end before the next request
        to the same host, or everything closed.
        """
        parts = urlsplit(url)
        connection = self._connection(parts.scheme, parts.netloc)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        try:
            connection.putrequest(method, target, skip_accept_encoding=True)
            for name, value in {"Accept-Encoding": "identity", **headers}.items():
                connection.putheader(name, value)
            connection.endheaders()
            refused = self._send_body(connection, body)
            try:
                return connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                raise refused or error from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Interrupted(_in_words(error)) from error
        except BaseException:
            # The body's own source failed: half a request is on its way, and nobody may take it for a whole one.
            self.close()
            raise

    @staticmethod
    def _send_body(connection: http.client.HTTPConnection, body: Iterable[bytes]) -> OSError | None:
        """A server may refuse before it has read everything, and says why: then the error of the sending is second."""
        for piece in body:
            try:
                connection.send(piece)
            except TimeoutError:
                raise
            except OSError as error:
                return error
        return None

    def ask(self, method: str, url: str, headers: dict[str, str], body: Iterable[bytes] = ()) -> tuple[int, Any, bytes]:
        """Sends a request and reads the whole answer: (status, headers, body). Raises Interrupted."""
        response = self.send(method, url, headers, body)
        return response.status, response.headers, self.read(response)

    def read(self, response: http.client.HTTPResponse, most: int = 1 << 62) -> bytes:
        """Up to `most` bytes of an answer's body; b"" at its end. Raises Interrupted."""
        try:
            return response.read() if most >= 1 << 62 else response.read(most)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise Interrupted(_in_words(error)) from error

    def abort(self) -> None:
        """Breaks every connection, from any thread: whoever waits for one is woken with an Interrupted."""
        for connection in list(self._connections.values()):
            sock = connection.sock
            if sock is not None:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()

    def _connection(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        known = self._connections.get((scheme, netloc))
        if known is None:
            known = self._connections[scheme, netloc] = self._connect(scheme, netloc)
        return known

    def _connect(self, scheme: str, netloc: str) -> http.client.HTTPConnection:
        if scheme != "https":
            return http.client.HTTPConnection(netloc, timeout=self._stall_seconds, blocksize=PIECE)
        proxy = urllib.request.getproxies().get("https")
        if not proxy or urllib.request.proxy_bypass(netloc):
            return http.client.HTTPSConnection(netloc, timeout=self._stall_seconds, context=_tls())
        through = http.client.HTTPSConnection(urlsplit(proxy).netloc, timeout=self._stall_seconds, context=_tls())
        through.set_tunnel(netloc)
        return through


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _in_words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "the connection went silent"
    if isinstance(error, http.client.RemoteDisconnected):
        return "the connection was closed without an answer"
    return f"the connection broke ({type(error).__name__})"


def pieces(wire: Wire, response: http.client.HTTPResponse, length: int, size: int = PIECE) -> Iterator[bytes]:
    """Exactly `length` bytes of an answer's body, `size` at a time. Raises Interrupted when it ends early."""
    while length:
        piece = wire.read(response, min(size, length))
        if not piece:
            wire.close()
            raise Interrupted(f"the answer ended {length} bytes early")
        length -= len(piece)
        yield piece
