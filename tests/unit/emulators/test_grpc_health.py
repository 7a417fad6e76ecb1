"""A kubelet's probe by gRPC: the messages on the wire, and its words for a server that is not well."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable

import grpc
import grpc.aio
import pytest
from emulated_cloud.kubernetes import grpc_health
from emulated_cloud.kubernetes.grpc_health import Unhealthy
from emulated_cloud.kubernetes.kubelet.probes import Probe, ProbeFailed


def test_the_messages() -> None:
    assert grpc_health.request("liveness") == b"\x0a\x08liveness"
    assert grpc_health.service_of(grpc_health.request("liveness")) == "liveness"
    assert grpc_health.service_of(grpc_health.request("")) == ""
    for status in grpc_health.STATUSES:
        assert grpc_health.status_of(grpc_health.response(status)) == status


def with_server(ask: Callable[[int], Awaitable[None]], implements: bool = True, seconds: float = 0.0) -> None:
    """Asks a server whose `liveness` is well and whose other services are not, `seconds` after it was asked."""

    async def answer(request: bytes, _: object) -> bytes:
        await asyncio.sleep(seconds)
        return grpc_health.response("SERVING" if grpc_health.service_of(request) == "liveness" else "NOT_SERVING")

    async def run() -> None:
        server = grpc.aio.server()
        methods = {"Check": grpc.unary_unary_rpc_method_handler(answer)} if implements else {}
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(grpc_health.SERVICE, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            await ask(port)
        finally:
            await server.stop(None)

    asyncio.run(run())


def test_a_server_that_is_well_and_one_that_is_not() -> None:
    async def ask(port: int) -> None:
        await grpc_health.check("127.0.0.1", port, "liveness", 5)
        with pytest.raises(Unhealthy, match=r'^service unhealthy \(responded with "NOT_SERVING"\)$'):
            await grpc_health.check("127.0.0.1", port, "", 5)

        async def no_command(argv: list[str], timeout: float) -> tuple[int, str]:
            raise AssertionError(argv)

        spec = {"grpc": {"port": port, "service": "readiness"}, "timeoutSeconds": 5}
        with pytest.raises(ProbeFailed, match="service unhealthy"):
            await Probe(spec, "127.0.0.1", {}, no_command)._once()

    with_server(ask)


def test_a_server_that_knows_no_health() -> None:
    async def ask(port: int) -> None:
        with pytest.raises(
            Unhealthy, match=r"ended without an answer \(does the server have grpc.health.v1.Health\?\)"
        ):
            await grpc_health.check("127.0.0.1", port, "", 5)

    with_server(ask, implements=False)


def test_a_server_that_takes_too_long() -> None:
    async def ask(port: int) -> None:
        with pytest.raises(Unhealthy, match="health rpc did not complete within 1s"):
            await grpc_health.check("127.0.0.1", port, "liveness", 1)

    with_server(ask, seconds=5)


def test_a_server_that_speaks_something_else() -> None:
    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(9)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            with pytest.raises(Unhealthy, match="error: health rpc probe failed"):
                await grpc_health.check("127.0.0.1", server.sockets[0].getsockname()[1], "", 5)

    asyncio.run(run())


def test_the_kubelet_has_no_threads_of_grpc() -> None:
    code = "import sys, emulated_cloud.kubernetes.gke.__main__; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(Unhealthy, match=f'timeout: failed to connect service "127.0.0.1:{port}" within 0.3s'):
            asyncio.run(grpc_health.check("127.0.0.1", port, "", 0.3))
