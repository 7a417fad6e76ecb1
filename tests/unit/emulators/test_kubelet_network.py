"""The pods' forward proxy and the relays: which endpoint, which bytes."""

from __future__ import annotations

import asyncio

import pytest
from emulated_cloud.kubernetes.network import proxy
from emulated_cloud.kubernetes.network.proxy import BodyScanner
from emulated_cloud.kubernetes.network.relay import Relay, Side, listen
from emulated_cloud.kubernetes.network.services import NoEndpoint, ServiceTable
from emulated_cloud.kubernetes.resources import ENDPOINT_SLICES, SERVICES


def _run(scenario):
    async def whole():
        await asyncio.wait_for(scenario, 120)
        # Both sides of what was closed see it, before the loop goes.
        for _ in range(5):
            await asyncio.sleep(0.01)

    asyncio.run(whole())


class _Copy:
    """An informer's items, without a server."""

    def __init__(self, items):
        self.items = {f"{item['metadata']['namespace']}/{item['metadata']['name']}": item for item in items}

    def in_namespace(self, namespace):
        return [item for item in self.items.values() if item["metadata"]["namespace"] == namespace]


class _Copies:
    def __init__(self, services, slices):
        self._of = {SERVICES: _Copy(services), ENDPOINT_SLICES: _Copy(slices)}

    def of(self, resource):
        return self._of[resource]


def _service(name="vllm", ip="10.0.0.7", port=80):
    return {
        "metadata": {"name": name, "namespace": "serving"},
        "spec": {"clusterIP": ip, "ports": [{"name": "http", "port": port}]},
    }


def _slice(*endpoints, name="vllm", port=8000):
    return {
        "metadata": {
            "name": f"{name}-abc",
            "namespace": "serving",
            "labels": {"kubernetes.io/service-name": name},
        },
        "ports": [{"name": "http", "port": port}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": dict(zip(("ready", "serving", "terminating"), conditions, strict=True)),
            }
            for address, conditions in endpoints
        ],
    }


READY, NOT_READY, LEAVING = (True, True, False), (False, False, False), (False, True, True)


def _table(*endpoints, **service):
    return ServiceTable(_Copies([_service(**service)], [_slice(*endpoints)]))


@pytest.mark.parametrize(
    "name",
    ["vllm", "vllm.serving", "vllm.serving.svc", "vllm.serving.svc.cluster.local", "VLLM.serving.svc.cluster.local."],
)
def test_cluster_names(name):
    assert _table(("127.64.0.2", READY)).resolve(name, 80, "serving") == ("127.64.0.2", 8000)


def test_a_short_name_means_the_namespace_of_who_asks():
    with pytest.raises(NoEndpoint, match="no Service vllm in namespace other"):
        _table(("127.64.0.2", READY)).resolve("vllm", 80, "other")


def test_other_names_and_addresses():
    table = _table(("127.64.0.2", READY))
    assert table.resolve("10.0.0.7", 80, "x") == ("127.64.0.2", 8000), "a cluster IP"
    assert table.resolve("127.0.0.1", 81, "x") == ("127.0.0.1", 81)
    with pytest.raises(NoEndpoint, match="not a name of this cluster"):
        table.resolve("pypi.example.com", 443, "x")
    with pytest.raises(NoEndpoint, match="has no port 81"):
        table.resolve("vllm.serving", 81, "x")


def test_ready_endpoints_take_turns_and_those_that_leave_serve_only_when_alone():
    table = _table(("127.64.0.2", READY), ("127.64.0.3", READY), ("127.64.0.4", NOT_READY), ("127.64.0.5", LEAVING))
    chosen = [table.endpoint("serving", "vllm", 80)[0] for _ in range(4)]
    assert chosen == ["127.64.0.2", "127.64.0.3"] * 2
    assert _table(("127.64.0.5", LEAVING)).endpoint("serving", "vllm", 80) == ("127.64.0.5", 8000)
    with pytest.raises(NoEndpoint, match="no ready endpoint"):
        _table(("127.64.0.4", NOT_READY)).endpoint("serving", "vllm", 80)


def test_a_headless_service_keeps_the_port():
    table = _table(("127.64.0.2", READY), ip="None")
    assert table.endpoint("serving", "vllm", 9000) == ("127.64.0.2", 9000)


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_the_end_of_a_chunked_body_is_found_however_it_is_cut(step):
    body = b"5\r\nhello\r\na;ext=1\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    data = body + b"GET http://next"
    scanner, taken = BodyScanner(0, True), 0
    while not scanner.done:
        taken += scanner.take(data[taken : taken + step])
    assert data[:taken] == body


def test_a_body_by_length():
    scanner = BodyScanner(5, False)
    assert scanner.take(b"hel") == 3
    assert scanner.take(b"lo, and more") == 2
    assert scanner.done
    assert BodyScanner(0, False).done


async def _echo_server(host, name):
    """Answers each request with its name, the request line and the body, on one connection; streams what asks."""

    async def handle(reader, writer):
        while True:
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            length = next(
                (int(x.split(":")[1]) for x in head.splitlines() if x.lower().startswith("content-length")), 0
            )
            body = await reader.readexactly(length)
            assert "proxy-authorization" not in head.lower()
            text = f"{name} {head.splitlines()[0]} {body.decode()}".encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
            if "/close" in head:
                break
        writer.close()

    return await asyncio.start_server(handle, host, 0)


async def _ask(reader, writer, url, body=b"", method="GET"):
    head = f"{method} {url} HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic c2VydmluZzpwb2Q=\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(x.split(":")[1]) for x in answer.splitlines() if x.lower().startswith("content-length"))
    return int(answer.split()[1]), (await reader.readexactly(length)).decode()


def test_requests_through_the_proxy():
    async def scenario():
        one = await _echo_server("127.64.0.2", "one")
        port = one.sockets[0].getsockname()[1]
        two = await asyncio.start_server(lambda _r, w: w.close(), "127.64.0.3", port)
        table = ServiceTable(_Copies([_service()], [_slice(("127.64.0.2", READY), port=port)]))
        server, address = await proxy.serve(table, "127.0.0.1")
        host, proxy_port = address.split(":")
        reader, writer = await asyncio.open_connection(host, proxy_port)
        assert await _ask(reader, writer, "http://vllm/a?b=1") == (200, "one GET /a?b=1 HTTP/1.1 ")
        assert await _ask(reader, writer, "http://vllm.serving.svc:80/p", b"hello", "POST") == (
            200,
            "one POST /p HTTP/1.1 hello",
        )
        status, words = await _ask(reader, writer, "http://nobody.serving/")
        assert (status, words) == (502, "no such host: there is no Service nobody in namespace serving\n")
        assert await reader.read() == b"", "and the connection is closed"
        writer.close()
        reader, writer = await asyncio.open_connection(host, proxy_port)
        writer.write(f"CONNECT 127.64.0.2:{port} HTTP/1.1\r\n\r\nGET /t HTTP/1.1\r\nContent-Length: 0\r\n\r\n".encode())
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        for open_server in (server, one, two):
            open_server.close()

    _run(scenario())


def test_what_is_not_a_proxy_request_is_refused():
    async def scenario():
        server, address = await proxy.serve(_table(), "127.0.0.1")
        for request in (b"GET /path HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n", b"GET https://x/ HTTP/1.1\r\n\r\n"):
            reader, writer = await asyncio.open_connection(*address.split(":"))
            writer.write(request)
            assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
            writer.close()
        server.close()

    _run(scenario())


def test_a_stream_is_not_held_up():
    async def scenario():
        released = asyncio.Event()

        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await released.wait()
            writer.write(b"0\r\n\r\n")
            writer.close()

        upstream = await asyncio.start_server(handle, "127.64.0.2", 0)
        port = upstream.sockets[0].getsockname()[1]
        server, address = await proxy.serve(_table(), "127.0.0.1")
        reader, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(f"GET http://127.64.0.2:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert b"first" in await asyncio.wait_for(reader.readuntil(b"first\r\n"), 120)
        released.set()
        assert await reader.read() == b"0\r\n\r\n"
        writer.close()
        server.close()
        upstream.close()

    _run(scenario())


def test_a_relay_keeps_a_connection_with_its_endpoint_and_closes_without_one():
    async def scenario():
        one, two = await _echo_server("127.64.0.2", "one"), await _echo_server("127.64.0.3", "two")
        target = {"address": one.sockets[0].getsockname()[:2]}

        def choose():
            if target["address"] is None:
                raise NoEndpoint("none")
            return target["address"]

        server = await listen("127.0.0.1", 0, choose)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert (await _request(reader, writer))[0:3] == "one"
        target["address"] = two.sockets[0].getsockname()[:2]
        assert (await _request(reader, writer))[0:3] == "one", "an open connection stays"
        other = await asyncio.open_connection("127.0.0.1", port)
        assert (await _request(*other))[0:3] == "two"
        target["address"] = None
        refused, closing = await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await refused.readexactly(1)
        for open_writer in (writer, other[1], closing):
            open_writer.close()
        for open_server in (server, one, two):
            open_server.close()

    async def _request(reader, writer):
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        return (await reader.readexactly(int(head.split(b"Content-Length: ")[1].split()[0]))).decode()

    _run(scenario())


def test_what_a_caller_says_before_there_is_another_side_is_kept():
    async def scenario():
        echo = await asyncio.start_server(_echo_line, "127.0.0.1", 0)
        loop = asyncio.get_running_loop()

        async def connect():
            await asyncio.sleep(0.1)
            return (await loop.create_connection(Side, *echo.sockets[0].getsockname()))[1]

        server = await loop.create_server(lambda: Relay(connect), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"early\n")
        assert await reader.readline() == b"early\n"
        writer.close()
        for open_server in (server, echo):
            open_server.close()

    async def _echo_line(reader, writer):
        writer.write(await reader.readline())
        writer.close()

    _run(scenario())
