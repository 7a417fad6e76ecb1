"""gRPC's health checking: its two messages, and the question that a probe asks, on the wire.

A kubelet asks by itself, in a dozen frames of HTTP/2: gRPC's library has threads and fork handlers, which a process
that starts others all the time must not have (it died of them). Facts: github.com/grpc/grpc doc/health-checking.md
and doc/PROTOCOL-HTTP2.md, RFC 9113, RFC 7541, kubernetes pkg/probe/grpc.
"""

from __future__ import annotations

import asyncio
import contextlib

SERVICE = "grpc.health.v1.Health"
CHECK = f"/{SERVICE}/Check"
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GO_AWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _ACK, _END_HEADERS = 0x1, 0x1, 0x4
_FRAME_HEADER = 9
_STREAM = 1
"""The first that a client opens, and the only one here."""


class Unhealthy(Exception):
    """Why, in the words of the kubelet's probe."""


def request(service: str) -> bytes:
    """A HealthCheckRequest for a service, whose name is at most 127 bytes (all of a probe's are)."""
    name = service.encode()
    return bytes([0x0A, len(name)]) + name if name else b""


def service_of(message: bytes) -> str:
    """Which service a HealthCheckRequest is about; empty: the server as a whole."""
    return message[2 : 2 + message[1]].decode() if message[:1] == b"\x0a" else ""


def response(status: str) -> bytes:
    """A HealthCheckResponse."""
    number = STATUSES.index(status)
    return bytes([0x08, number]) if number else b""


def status_of(message: bytes) -> str:
    return STATUSES[message[1]] if message[:1] == b"\x08" else STATUSES[0]


async def check(host: str, port: int, service: str, seconds: float) -> None:
    """Asks whether the service is healthy. Raises Unhealthy."""
    address = f"{host}:{port}"
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), seconds)
    except (TimeoutError, OSError):
        raise Unhealthy(
            f'timeout: failed to connect service "{address}" within {seconds}s: context deadline exceeded'
        ) from None
    try:
        writer.write(_question(address, service))
        status = status_of(await asyncio.wait_for(_answer(reader, writer), seconds))
    except TimeoutError:
        raise Unhealthy(f"timeout: health rpc did not complete within {seconds}s") from None
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Unhealthy(f"error: health rpc probe failed: {error}") from error
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    if status != "SERVING":
        raise Unhealthy(f'service unhealthy (responded with "{status}")')


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def _question(address: str, service: str) -> bytes:
    """All that a client says of one call: its settings, the call's headers, its message."""

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()

    # HPACK's static table: 3 is `:method: POST`, 6 `:scheme: http`; 4, 1 and 31 (15 + 16) are names; `te` is not in it.
    headers = b"\x83\x86\x04" + text(CHECK) + b"\x01" + text(address)
    headers += b"\x0f\x10" + text("application/grpc") + b"\x00" + text("te") + text("trailers")
    message = request(service)
    return b"".join(
        [
            _PREFACE,
            _frame(_SETTINGS, 0, 0),
            _frame(_HEADERS, _END_HEADERS, _STREAM, headers),
            _frame(_DATA, _END_STREAM, _STREAM, b"\x00" + len(message).to_bytes(4) + message),
        ]
    )


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes:
    """The call's message. Raises Unhealthy when the call ends without one."""
    data = b""
    while True:
        header = await reader.readexactly(_FRAME_HEADER)
        payload = await reader.readexactly(int.from_bytes(header[:3]))
        kind, flags, stream = header[3], header[4], int.from_bytes(header[5:])
        if kind in (_SETTINGS, _PING) and not flags & _ACK:
            writer.write(_frame(kind, _ACK, 0, payload if kind == _PING else b""))
        elif kind == _DATA and stream == _STREAM:
            data += payload
            if len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[1:5]):
                return data[5:]
        # A server that goes says so, and answers what it has begun, before it closes the connection.
        refused = kind == _RESET or (kind == _GO_AWAY and any(payload[4:8]))
        if refused or (stream == _STREAM and flags & _END_STREAM and kind in (_DATA, _HEADERS)):
            # The reason is in trailers, which are compressed: most often there is no such service.
            raise Unhealthy(
                f"error: health rpc probe failed: the call ended without an answer (does the server have {SERVICE}?)"
            )
