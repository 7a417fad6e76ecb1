"""What the threaded HTTP emulators share: routing by method, request log, scripted faults, JSON answers.

A server keeps a request log (one JSON object a line: time, method, path, status, user, user_agent, bytes_in,
bytes_out) that tests read to prove what was, or was not, asked. `/_emulator/faults` scripts failures (faults.py)
and `/_emulator/requests` returns the log; neither is logged.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO, NoReturn
from urllib.parse import parse_qs, unquote, urlsplit

from emulated_cloud.faults import Fault, Faults

CHUNK = 1 << 20
# A body that no handler wanted is read and thrown away up to here; beyond it the connection is closed.
DRAIN_AT_MOST = 64 << 20


class HttpError(Exception):
    """An answer other than success: raised anywhere below a handler, sent as it is."""

    def __init__(self, status: int, body: Any = "", headers: dict[str, str] | None = None):
        super().__init__(f"{status} {body}")
        self.status, self.body, self.headers = status, body, headers or {}


class ConnectionDropped(Exception):
    """A scripted fault dropped the connection; nothing more can be sent on it."""


def flip_first_byte(data: bytes) -> bytes:
    return bytes([data[0] ^ 0xFF]) + data[1:]


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header, first > last when there is no such range; None: the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size - 1
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return None
    return (first, last) if first < size else (1, 0)


class EmulatorServer(ThreadingHTTPServer):
    """A threaded server with its faults and its request log."""

    daemon_threads = True
    request_queue_size = 256
    # A re-run may want the port that a killed run has just left.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], handler: type[Handler], request_log: Path | None = None):
        self.faults = Faults()
        self.requests_seen: list[dict[str, Any]] = []
        self._log = open(request_log, "a", encoding="utf-8", buffering=1) if request_log else None  # noqa: SIM115
        self._log_lock = threading.Lock()
        super().__init__(address, handler)

    @property
    def url(self) -> str:
        host, port = self.server_address[:2]
        return f"http://{host!s}:{port}"

    def record(self, entry: dict[str, Any]) -> None:
        """Keeps the entry for `/_emulator/requests`. It is called before the answer leaves, so that whoever has an
        answer finds its request there; the handler goes on to fill in the bytes."""
        with self._log_lock:
            self.requests_seen.append(entry)

    def write_log(self, entry: dict[str, Any]) -> None:
        with self._log_lock:
            if self._log:
                self._log.write(json.dumps(entry) + "\n")

    def server_close(self) -> None:
        super().server_close()
        with self._log_lock:
            if self._log:
                self._log.close()
                self._log = None

    def shutdown_request(self, request: Any) -> None:
        """A connection that is to be reset is closed without the usual shutdown, whose FIN would come first."""
        if request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER):
            self.close_request(request)
        else:
            super().shutdown_request(request)

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

    fault: Fault | None = None
    url_path: str
    """Path of the request, not unquoted (object names hold %2F)."""
    query: dict[str, str]
    """Query parameters; a blank value counts as absent, as real clients send `pageToken=`."""

    def route(self, method: str) -> None:
        raise HttpError(404)

    def user(self) -> str:
        """Who asks, as the emulator knows the caller."""
        return ""

    def logged_path(self) -> str:
        """The path as the request log may show it: override it where a path holds a secret."""
        return self.path

    def note(self, **fields: Any) -> None:
        """Adds to the request's log entry what its path does not say."""
        if self._entry is not None:
            self._entry |= fields

    def _dispatch(self) -> None:
        parts = urlsplit(self.path)
        self.url_path = parts.path
        self.query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
        self.status_sent, self.bytes_out, self.bytes_in = 0, 0, 0
        self._chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        self._unread = 0 if self._chunked else int(self.headers.get("Content-Length") or 0)
        self.fault, self._fault_acted, self._entry = None, False, None
        if self.url_path.startswith("/_emulator/"):
            return self._admin()
        self._entry = {
            "time": time.time(),
            "method": self.command,
            "path": self.logged_path(),
            "status": 0,
            "user": self.user(),
            "user_agent": self.headers.get("User-Agent", ""),
            "bytes_in": 0,
            "bytes_out": 0,
        }
        self.fault = self.server.faults.take(self.command, self.path)
        try:
            try:
                if self.fault and self.fault.action == "slow":
                    self._acting(self.fault)
                    time.sleep(self.fault.seconds)
                if self.fault and self.fault.action == "status":
                    self._acting(self.fault)
                    raise HttpError(self.fault.status, self.fault.body, self.fault.headers)
                self.route(self.command)
            except HttpError as error:
                self._drain()
                self.send(error.status, error.body, error.headers)
            self._drain()
        except (ConnectionDropped, ConnectionError):
            self.close_connection = True
        finally:
            if self.fault and not self._fault_acted:
                self._give_back(self.fault)
            if not self.status_sent:
                self.server.record(self._entry)
            self._entry |= {"bytes_in": self.bytes_in, "bytes_out": self.bytes_out}
            self.server.write_log(self._entry)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _dispatch

    def _admin(self) -> None:
        if self.url_path == "/_emulator/faults":
            if self.command == "POST":
                self.server.faults.script(json.loads(self.read_body()))
            return self.send_json(self.server.faults.as_list())
        if self.url_path == "/_emulator/requests":
            return self.send_json(self.server.requests_seen)
        try:
            return self.admin()
        except HttpError as error:
            return self.send(error.status, error.body)

    def admin(self) -> None:
        """Answers what tests ask of one emulator alone, below `/_emulator/`."""
        raise HttpError(404)

    def _drain(self) -> None:
        """Reads what is left of the body: it would be taken for the next request of the connection, and a client
        that is still sending does not see an answer before a reset."""
        if self._unread > DRAIN_AT_MOST:
            self.close_connection = True
            return
        while data := self._read_some(CHUNK):
            self.bytes_in += len(data)

    # -- requests -------------------------------------------------------------------------------------------

    def iter_body(self) -> Iterator[bytes]:
        """The request's body in pieces of at most CHUNK bytes, through the scripted fault; a client that goes away
        mid-body raises ConnectionError, with what came before it already yielded."""
        fault = self._fault_of_the_request()
        while True:
            before_fault = fault.after_bytes - self.bytes_in if fault else CHUNK
            if fault and before_fault <= 0 and fault.action != "corrupt":
                self._act_out(fault)
            data = self._read_some(min(CHUNK, before_fault) if before_fault > 0 else CHUNK)
            if not data:
                return
            self.bytes_in += len(data)
            if fault and before_fault <= 0:
                self._acting(fault)
                data, fault = flip_first_byte(data), None
            yield data

    def _read_some(self, most: int) -> bytes:
        """At most `most` bytes of the body; none at its end."""
        if self._chunked and not self._unread:
            self._unread = int(self.rfile.readline(1024).split(b";")[0] or b"0", 16)
            if not self._unread:
                while self.rfile.readline(65536).strip():  # trailers
                    pass
                self._chunked = False
        if not self._unread:
            return b""
        data = self.rfile.read1(min(most, self._unread))
        if not data:
            self._unread, self._chunked = 0, False
            raise ConnectionResetError("the client went away in the middle of a body")
        self._unread -= len(data)
        if self._chunked and not self._unread:
            self.rfile.readline(1024)  # the line end behind a chunk
        return data

    def read_body(self) -> bytes:
        return b"".join(self.iter_body())

    def read_json(self) -> Any:
        return json.loads(self.read_body() or b"{}")

    @property
    def origin(self) -> str:
        """How the client reached us."""
        return f"http://{self.headers.get('Host') or self.server.url.removeprefix('http://')}"

    def bearer_token(self) -> str | None:
        """The token of the Authorization header; None without one, or when it is of another kind."""
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token.strip() if kind.lower() == "bearer" else None

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
        if self.command != "HEAD" and body:
            self._write(body)

    def send_json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send(status, body, headers)

    def start(self, status: int, headers: dict[str, str]) -> None:
        """Sends the status and the headers."""
        fault = self.fault if self.fault and self.fault.action == "unanswered" else self._fault_of_the_request()
        if fault and not self._fault_acted:
            if fault.action != "corrupt":
                # Either this is the fault, or the route has read no body for it to happen in.
                self._act_out(fault)
            # Before the answer: what its reader asks next may be what the fault is for.
            self._give_back(fault)
        self.status_sent = status
        if self._entry is not None:
            self._entry |= {"status": status, "bytes_in": self.bytes_in}
            self.server.record(self._entry)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def send_content(self, file: BinaryIO, size: int, headers: dict[str, str], unsatisfiable: str = "") -> None:
        """The `size` bytes of `file`, whole or the one range that was asked for. Raises HttpError 416, with the body
        `unsatisfiable`, when there is no such range."""
        wanted = byte_range(self.headers.get("Range", ""), size)
        first, last = wanted or (0, size - 1)
        if wanted:
            if first > last:
                raise HttpError(416, unsatisfiable, {"Content-Range": f"bytes */{size}"})
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{size}"}
        self.start(206 if wanted else 200, {**headers, "Content-Length": str(last - first + 1)})
        self.send_file(file, first, last - first + 1)

    def send_file(self, file: BinaryIO, offset: int, length: int) -> None:
        """`length` bytes of `file` from `offset` as the body (headers are sent already), by sendfile while no fault
        is scripted."""
        if self.command == "HEAD" or not length:
            return
        rate = self.fault.bytes_per_second if self.fault else 0
        if self._fault_of_the_answer() is None and not rate:
            self.wfile.flush()
            self.connection.settimeout(None)
            self.bytes_out += self.connection.sendfile(file, offset, length)
            return
        file.seek(offset)
        while length:
            data = file.read(min(CHUNK // 16 if rate else CHUNK, length))
            length -= len(data)
            self._write(data)
            if rate:
                time.sleep(len(data) / rate)

    def _write(self, data: bytes) -> None:
        """Writes a piece of an answer's body, through the scripted fault."""
        fault = self._fault_of_the_answer()
        if fault and self.bytes_out <= fault.after_bytes < self.bytes_out + len(data):
            cut = fault.after_bytes - self.bytes_out
            self.wfile.write(data[:cut])
            self.bytes_out += cut
            if fault.action != "corrupt":
                self._act_out(fault)
            self._acting(fault)
            data = flip_first_byte(data[cut:])
        self.wfile.write(data)
        self.bytes_out += len(data)

    # -- faults ---------------------------------------------------------------------------------------------

    def _fault_of_the_request(self) -> Fault | None:
        """The fault that is to happen while the request's body comes in."""
        return self.fault if self._fault_is_in_a_body() and self.command != "GET" else None

    def _fault_of_the_answer(self) -> Fault | None:
        """The fault that is to happen while the answer's body goes out."""
        return self.fault if self._fault_is_in_a_body() and self.command == "GET" and not self._fault_acted else None

    def _fault_is_in_a_body(self) -> bool:
        return self.fault is not None and self.fault.action not in ("status", "unanswered", "slow")

    def _acting(self, fault: Fault) -> None:
        self._fault_acted = True
        self.server.faults.consume(fault)

    def _give_back(self, fault: Fault) -> None:
        self.fault = None
        self.server.faults.give_back(fault)

    def _act_out(self, fault: Fault) -> NoReturn:
        self._acting(fault)
        self.wfile.flush()
        self.close_connection = True
        if fault.action == "stall":
            time.sleep(fault.seconds)
        if fault.action in ("reset", "unanswered"):
            # Linger 0 makes close() send RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        raise ConnectionDropped

    def log_message(self, format: str, *args: Any) -> None:
        """The request log says it already."""
