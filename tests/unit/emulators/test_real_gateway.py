"""What the real picker and the real gateway are told, with neither: adaptations, ports, what pilot needs beside."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from emulated_cloud.real import endpoint_picker, gateway
from emulated_cloud.real.endpoint_picker import ApiServer, Refused, adapted_config, without_later_flags

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def test_later_flags_are_left_out_with_their_values() -> None:
    given = ["--pool-name=a", "--drain-timeout=30s", "--drain-timeout", "30s", "-v", "4", "--new=1"]
    # One that nobody knows is refused by the picker itself.
    assert without_later_flags(given) == ["--pool-name=a", "-v", "4", "--new=1"]


def test_a_configuration_changes_its_group_and_nothing_else() -> None:
    text = "# as deployed\napiVersion: {}\nkind: EndpointPickerConfig\nplugins:\n- type: queue-scorer\n"
    new, old = (text.format(group) for group in ("llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"))
    assert adapted_config(new) == old


def test_a_configuration_of_the_old_group_is_refused_as_its_successor_does() -> None:
    with pytest.raises(Refused, match=r"no apiVersion llm-d\.ai/v1alpha1, the one that llm-d-router v0\.10 reads"):
        adapted_config("apiVersion: inference.networking.x-k8s.io/v1alpha1\nkind: EndpointPickerConfig\n")


# -- the way to the API server ------------------------------------------------------------------------------------


def through(tmp_path: Path, upstream: Handler, calls: Callable[[str, aiohttp.ClientSession], Awaitable[Any]]) -> Any:
    """What `calls` gives of the API server's address as the picker has it, in front of `upstream`."""
    (tmp_path / "token").write_text("of-the-pod\n")

    async def run() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", upstream)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with aiohttp.ClientSession() as session:
            server = f"http://127.0.0.1:{runner.addresses[0][1]}"
            async with ApiServer(server, tmp_path / "token", session).serve() as address:
                found = await calls(address, session)
        await runner.cleanup()
        return found

    return asyncio.run(run())


def test_the_new_group_is_called_by_the_old_name(tmp_path: Path) -> None:
    asked: list[tuple[str, str]] = []

    async def upstream(request: web.Request) -> web.Response:
        asked.append((request.raw_path, request.headers["Authorization"]))
        return web.json_response({"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjectiveList"})

    async def calls(address: str, session: aiohttp.ClientSession) -> Any:
        path = "/apis/inference.networking.x-k8s.io/v1alpha2/inferenceobjectives?limit=5&resourceVersion=0"
        async with session.get(address + path) as answer:
            return await answer.json()

    found = through(tmp_path, upstream, calls)
    assert found["apiVersion"] == "inference.networking.x-k8s.io/v1alpha2"
    assert asked == [
        ("/apis/llm-d.ai/v1alpha2/inferenceobjectives?limit=5&resourceVersion=0", "Bearer of-the-pod"),
    ]


def test_events_of_a_watch_come_one_by_one_and_renamed(tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def upstream(request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Type": "application/json"})
        await answer.prepare(request)
        # A name in two pieces, and then nothing more until the event was seen.
        await answer.write(b'{"object": {"apiVersion": "llm-d')
        await answer.write(b'.ai/v1alpha2"}}\n')
        await asyncio.wait_for(seen.wait(), 120)
        return answer

    async def calls(address: str, session: aiohttp.ClientSession) -> Any:
        path = "/apis/inference.networking.x-k8s.io/v1alpha2/inferenceobjectives?watch=true"
        async with session.get(address + path) as answer:
            event = await answer.content.readline()
            seen.set()
            return json.loads(event)

    found = through(tmp_path, upstream, calls)
    assert found == {"object": {"apiVersion": "inference.networking.x-k8s.io/v1alpha2"}}


def test_other_kinds_pass_as_they_are_and_strangers_get_nothing(tmp_path: Path) -> None:
    async def upstream(request: web.Request) -> web.Response:
        status = 403 if "secrets" in request.path else 200
        return web.json_response({"annotations": {"llm-d.ai/of-a-pod": "kept"}}, status=status)

    async def calls(address: str, session: aiohttp.ClientSession) -> Any:
        statuses, bodies = [], []
        door = address.rpartition("/")[0]
        for url in (f"{address}/api/v1/pods", f"{address}/api/v1/secrets", f"{door}/api/v1/pods"):
            async with session.get(url) as answer:
                statuses.append(answer.status)
                bodies.append(await answer.text())
        return statuses, bodies

    statuses, bodies = through(tmp_path, upstream, calls)
    assert statuses == [200, 403, 404]
    assert "llm-d.ai/of-a-pod" in bodies[0]


def test_its_ports_are_those_that_it_is_told() -> None:
    told = endpoint_picker._told(["--grpc-port", "9102", "--pool-name=a", "-v=2"])
    assert (told.grpc_port, told.grpc_health_port, told.metrics_port) == (9102, 9003, 9090)


# -- a Gateway's Envoy ----------------------------------------------------------------------------------------------


GATEWAY = {
    "metadata": {"name": "gemma", "namespace": "llm", "uid": "u"},
    "spec": {"gatewayClassName": "gke-l7-rilb", "listeners": [{"name": "http", "port": 80, "protocol": "HTTP"}]},
}


def test_envoy_is_found_by_the_name_that_pilot_looks_for() -> None:
    service, deployment = gateway._service(GATEWAY, {80: 15100}), gateway._deployment(GATEWAY, {80: 15100})
    assert service["metadata"]["name"] == deployment["metadata"]["name"] == "gemma-gke-l7-rilb"
    (owner,) = service["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("Gateway", "gemma", True)
    assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert [(port["port"], port["targetPort"]) for port in service["spec"]["ports"]] == [(80, 15100)]


def test_envoys_pod_is_one_that_every_namespace_admits() -> None:
    """Pod Security's level `restricted`: a deployment's namespace may enforce it."""
    spec = gateway._deployment(GATEWAY, {80: 15100})["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"]
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_envoy_says_who_it_is_and_opens_no_door() -> None:
    bootstrap = gateway._bootstrap("gemma")
    assert bootstrap["node"]["metadata"]["LABELS"] == {"gateway.networking.k8s.io/gateway-name": "gemma"}
    assert bootstrap["admin"]["address"]["socket_address"]["address"] == "127.0.0.1"
