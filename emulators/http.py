"""What the threaded HTTP emulators share: routing by method, request log, scripted faults, JSON answers.

A server keeps a request log (one JSON object a line: time, method, path, status, user, user_agent, bytes_in,
bytes_out) that tests read to prove what was, or was not, asked. `/_emulator/faults` scripts failures (faults.py)
and `/_emulator/requests` returns the log; neither is logged.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, unquote, urlsplit

from emulators.faults import Fault, Faults

CHUNK = 1 << 20


class HttpError(Exception):
    """An answer other than success: raised anywhere below a handler, sent as it is."""

    def __init__(self, status: int, body: Any = "", headers: dict[str, str] | None = None):
        super().__init__(f"{status} {body}")
        self.status, self.body, self.headers = status, body, headers or {}


class ConnectionDropped(Exception):
    """A scripted fault dropped the connection; nothing more can be sent on it."""


class EmulatorServer(ThreadingHTTPServer):
    """A threaded server with its faults and its request log."""

    daemon_threads = True
    request_queue_size = 256
    # A re-run may want the port that a killed run has just left.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[Handler], request_log: Path | None = None):
        self.faults = Faults()
        self.requests_seen: list[dict[str, Any]] = []
        self._log = open(request_log, "a", buffering=1) if request_log else None  # noqa: SIM115
        self._log_lock = threading.Lock()
        super().__init__(address, handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def record(self, entry: dict[str, Any]) -> None:
        with self._log_lock:
            self.requests_seen.append(entry)
            if self._log:
                self._log.write(json.dumps(entry) + "\n")

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is its own business; anything else is printed as usual."""
        import sys

        if not isinstance(sys.exc_info()[1], (ConnectionError, TimeoutError, ConnectionDropped)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection. Subclasses write `route(method)`, and answer with `send`, `send_json` or `send_file`."""

    protocol_version = "HTTP/1.1"
    # Without this every answer with a body waits 40 ms for the client's delayed ACK.
    disable_nagle_algorithm = True
    server: EmulatorServer

    fault: Fault | None
    url_path: str
    """Path of the request, not unquoted (object names hold %2F)."""
    query: dict[str, str]
    """Query parameters; a blank value counts as absent, as real clients send `pageToken=`."""

    def route(self, method: str) -> None:
        raise HttpError(404)

    def user(self) -> str:
        """Who asks, as the emulator knows the caller."""
        return ""

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.url_path = parts.path
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.status_sent, self.bytes_out, self.bytes_in = 0, 0, 0
        self._unread = int(self.headers.get("Content-Length") or 0)
        if self.url_path.startswith("/_emulator/"):
            return self._admin()
        started = time.time()
        self.fault = self.server.faults.take(self.command, self.path)
        try:
            if self.fault and self.fault.action == "status":
                self.read_body()
                raise HttpError(self.fault.status, self.fault.body, self.fault.headers)
            self.route(self.command)
        except HttpError as error:
            self._drain()
            self.send(error.status, error.body, error.headers)
        except (ConnectionDropped, ConnectionError):
            self.close_connection = True
        finally:
            self._drain()
            self.server.record(
                {
                    "time": started,
                    "method": self.command,
                    "path": self.path,
                    "status": self.status_sent,
                    "user": self.user(),
                    "user_agent": self.headers.get("User-Agent", ""),
                    "bytes_in": self.bytes_in,
                    "bytes_out": self.bytes_out,
                }
            )

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _dispatch

    def _admin(self) -> None:
        if self.url_path == "/_emulator/faults":
            if self.command == "POST":
                self.server.faults.script(json.loads(self.read_body()))
            return self.send_json(self.server.faults.as_list())
        if self.url_path == "/_emulator/requests":
            return self.send_json(self.server.requests_seen)
        return self.send(404)

    def _drain(self) -> None:
        """An unread body would be taken for the next request of the connection."""
        if self._unread > CHUNK:
            self.close_connection = True
        elif self._unread and not self.close_connection:
            self.rfile.read(self._unread)
        self._unread = 0

    # -- requests -------------------------------------------------------------------------------------------

    def iter_body(self):
        """The request's body in pieces of at most CHUNK bytes, through the scripted fault; a client that goes away
        mid-body raises ConnectionError, with what came before it already yielded."""
        left = self._unread
        fault = self.fault if self.command != "GET" else None
        while left:
            want = min(CHUNK, left)
            if fault and fault.action != "status":
                want = min(want, max(1, fault.after_bytes - self.bytes_in)) if self.bytes_in < fault.after_bytes else want
            data = self.rfile.read1(want)  # type: ignore[attr-defined]
            if not data:
                self._unread = 0
                raise ConnectionResetError("the client went away in the middle of a body")
            left -= len(data)
            self._unread = left
            self.bytes_in += len(data)
            yield data
            if fault and self.bytes_in >= fault.after_bytes:
                self._act_out(fault)
                fault = None

    def read_body(self) -> bytes:
        return b"".join(self.iter_body())

    def read_json(self) -> Any:
        return json.loads(self.read_body() or b"{}")

    def segments(self) -> list[str]:
        """The path's segments, each unquoted."""
        return [unquote(segment) for segment in self.url_path.strip("/").split("/")]

    # -- answers --------------------------------------------------------------------------------------------

    def send(self, status: int, body: Any = b"", headers: dict[str, str] | None = None) -> None:
        headers = dict(headers or {})
        if isinstance(body, (dict, list)):
            headers.setdefault("Content-Type", "application/json; charset=UTF-8")
            body = json.dumps(body).encode()
        elif isinstance(body, str):
            headers.setdefault("Content-Type", "text/plain; charset=UTF-8")
            body = body.encode()
        headers.setdefault("Content-Length", str(len(body)))
        self.start(status, headers)
        if self.command != "HEAD":
            self._write(body)

    def send_json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, body, headers)

    def start(self, status: int, headers: dict[str, str]) -> None:
        self.status_sent = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send_file(self, file: BinaryIO, offset: int, length: int) -> None:
        """`length` bytes of `file` from `offset` as the body (headers are sent already), by sendfile while no fault
        is scripted."""
        if self.command == "HEAD":
            return
        fault = getattr(self, "fault", None)
        if fault is None or fault.action == "status":
            self.wfile.flush()
            self.connection.settimeout(None)
            self.bytes_out += self.connection.sendfile(file, offset, length)
            return
        file.seek(offset)
        while length:
            data = file.read(min(CHUNK, length))
            length -= len(data)
            self._write(data)

    def _write(self, data: bytes) -> None:
        """Writes through the scripted fault of a response body."""
        fault = getattr(self, "fault", None)
        if (
            fault
            and self.command == "GET"
            and fault.action != "status"
            and self.bytes_out <= fault.after_bytes < self.bytes_out + len(data)
        ):
            cut = fault.after_bytes - self.bytes_out
            self.wfile.write(data[:cut])
            self.bytes_out += cut
            self._act_out(fault)
            data = data[cut:]
            if fault.action == "corrupt":
                data = bytes([data[0] ^ 0xFF]) + data[1:]
        self.wfile.write(data)
        self.bytes_out += len(data)

    def _act_out(self, fault: Fault) -> None:
        self.wfile.flush()
        if fault.action == "stall":
            time.sleep(fault.seconds)
            self.close_connection = True
            raise ConnectionDropped
        if fault.action == "reset":
            # Linger 0 makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            self.close_connection = True
            raise ConnectionDropped
        if fault.action == "truncate":
            self.close_connection = True
            raise ConnectionDropped

    def log_message(self, format: str, *args: Any) -> None:
        """The request log says it already."""
