"""gRPC's health checking: the two messages on the wire, which need no library, and the question that a probe asks.

Facts: github.com/grpc/grpc doc/health-checking.md, kubernetes pkg/probe/grpc.
"""

from __future__ import annotations

import asyncio
import os

SERVICE = "grpc.health.v1.Health"
CHECK = f"/{SERVICE}/Check"
STATUSES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")


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


async def check(address: str, service: str, seconds: float) -> None:
    """Asks whether the service is healthy. Raises Unhealthy."""
    # Whoever asks also starts processes: gRPC's own handlers of a fork, beside threads of its own, end in a SIGSEGV. It
    # reads this once, when it is loaded. https://github.com/grpc/grpc/blob/master/doc/fork_support.md
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    import grpc.aio  # Half a second of a small machine: for whoever has such a probe.

    async with grpc.aio.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            await asyncio.wait_for(channel.channel_ready(), seconds)
        except TimeoutError:
            raise Unhealthy(
                f'timeout: failed to connect service "{address}" within {seconds}s: context deadline exceeded'
            ) from None
        try:
            status = status_of(await channel.unary_unary(CHECK)(request(service), timeout=seconds))
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise Unhealthy(
                    f"this server does not implement the grpc health protocol ({SERVICE}): {error.details()}"
                ) from error
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise Unhealthy(f"timeout: health rpc did not complete within {seconds}s") from error
            raise Unhealthy(f"error: health rpc probe failed: {error.details()}") from error
    if status != "SERVING":
        raise Unhealthy(f'service unhealthy (responded with "{status}")')
