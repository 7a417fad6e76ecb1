"""What a Gateway, its route and its pools say of themselves, and what follows the live generation."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.oversight import status
from serving import names
from serving.deployment import gateway, traffic
from serving.deployment.record import Record
from serving.errors import InconclusiveError
from serving.rendering import render
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster

SILENT = lambda line: None  # noqa: E731
KEY = "projects/demo-project/secrets/key/versions/latest"


def settings(**values: Any) -> Settings:
    base = {
        "scenario": "inference-gateway",
        "project": "demo-project",
        "bucket": "demo-bucket",
        "inference_gateway": {"objectives": {"batch": -1, "chat": 10}},
        "gateway": {"timeout": "1s"},
    }
    return validated(Settings, {**base, **values})


SETTINGS = settings()


def condition(kind: str, status: str = "True", reason: str = "", message: str = "", **more: Any) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason or kind, "message": message, **more}


def a_gateway(*conditions: dict[str, Any], addresses: tuple[str, ...] = ("10.0.0.9",), **spec: Any) -> dict[str, Any]:
    listener = {"name": "http", "protocol": "HTTP", "port": 80, **spec}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": "gemma", "namespace": "gemma", "generation": 2},
        "spec": {"listeners": [listener]},
        "status": {
            "conditions": list(conditions or (condition("Accepted"), condition("Programmed"))),
            "addresses": [{"value": value} for value in addresses],
        },
    }


def attached(kind: str, name: str, *conditions: dict[str, Any], parent: str = "gemma") -> dict[str, Any]:
    said = list(conditions or (condition("Accepted"), condition("ResolvedRefs")))
    api = "gateway.networking.k8s.io/v1" if kind == "HTTPRoute" else "inference.networking.k8s.io/v1"
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": "gemma"},
        "spec": {},
        "status": {"parents": [{"parentRef": {"name": parent}, "conditions": said}]},
    }


def picker(generation: str, *, ready: int, replicas: int = 2) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": names.picker(generation),
            "namespace": "gemma",
            "labels": {names.DEPLOYMENT: "gemma", names.GENERATION: generation},
        },
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas, "updatedReplicas": replicas, "readyReplicas": ready, "observedGeneration": 99},
    }


def unresolved(reason: str) -> dict[str, Any]:
    return condition("ResolvedRefs", "False", reason)


UNMADE = condition("Programmed", "False", "Invalid", "no proxy-only subnet.")
ROUTE, POOL = attached("HTTPRoute", "gemma"), attached("InferencePool", "vllm-g1")


def test_all_is_well_when_every_status_says_so():
    assert gateway.problems(MemoryCluster(a_gateway(), ROUTE, POOL), SETTINGS, ["g1"]) == []


def test_before_the_first_promotion_there_is_no_route():
    assert gateway.problems(MemoryCluster(a_gateway()), SETTINGS) == []


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ([ROUTE, POOL], "Gateway gemma is not there"),
        ([a_gateway(condition("Accepted")), POOL], "Gateway gemma: nobody has said yet whether it is Programmed"),
        (
            [a_gateway(condition("Accepted"), UNMADE), POOL],
            "Gateway gemma is not Programmed (Invalid: no proxy-only subnet)",
        ),
        (
            # What was said of it as it was before says nothing of it now.
            [a_gateway(condition("Accepted"), condition("Programmed", observedGeneration=1)), POOL],
            "Gateway gemma: nobody has said yet whether it is Programmed",
        ),
        ([a_gateway(addresses=()), POOL], "Gateway gemma has no address"),
        (
            [a_gateway(), attached("HTTPRoute", "gemma", parent="another"), POOL],
            "HTTPRoute gemma has no status: the Gateway gemma has not taken it",
        ),
        (
            [a_gateway(), attached("HTTPRoute", "gemma", condition("Accepted"), unresolved("InvalidKind")), POOL],
            "HTTPRoute gemma is not ResolvedRefs (InvalidKind): the cluster does not take such a backend",
        ),
        (
            # The route says that all is well.
            [
                a_gateway(),
                ROUTE,
                attached("InferencePool", "vllm-g1", condition("Accepted"), unresolved("InvalidExtensionRef")),
            ],
            "InferencePool vllm-g1 is not ResolvedRefs (InvalidExtensionRef): the Service of its endpoint picker",
        ),
        ([a_gateway(), ROUTE], "InferencePool vllm-g1 is not there"),
    ],
)
def test_what_keeps_requests_away_is_said_in_the_controller_s_words(objects: list[dict[str, Any]], said: str):
    (problem,) = gateway.problems(MemoryCluster(*objects), SETTINGS, ["g1"])
    assert problem.startswith(said)


def test_a_load_balancer_that_is_not_made_in_time_is_inconclusive():
    cluster = MemoryCluster(a_gateway(condition("Accepted"), condition("Programmed", "False", "Pending")))
    said: list[str] = []
    with pytest.raises(
        InconclusiveError, match=r"after gateway.timeout \(1s\): .*not Programmed.*describe gateway gemma"
    ):
        gateway.wait_until_well(cluster, SETTINGS, (), said.append)
    assert any("waiting for the load balancer" in line for line in said)


@pytest.mark.parametrize(
    ("listener", "url"),
    [
        ({}, "http://10.0.0.9"),
        ({"protocol": "HTTPS", "port": 443}, "https://10.0.0.9"),
        ({"port": 8080}, "http://10.0.0.9:8080"),
    ],
)
def test_clients_call_the_gateway_s_address(listener: dict[str, Any], url: str):
    assert gateway.address(MemoryCluster(a_gateway(**listener)), SETTINGS) == url
    assert gateway.address(MemoryCluster(a_gateway(addresses=())), SETTINGS) == ""


@pytest.mark.parametrize(
    ("listener", "url"),
    [
        ({}, "http://gemma.example.com"),
        ({"protocol": "HTTPS", "port": 443}, "https://gemma.example.com"),
        ({"port": 8080}, "http://gemma.example.com:8080"),
    ],
)
def test_clients_call_it_by_its_name(listener: dict[str, Any], url: str):
    named = settings(gateway={"host": "gemma.example.com"})
    assert gateway.called(MemoryCluster(a_gateway(**listener)), named) == url
    assert gateway.called(MemoryCluster(a_gateway(addresses=())), named) == ""
    assert gateway.called(MemoryCluster(a_gateway(**listener)), SETTINGS) == gateway.address(
        MemoryCluster(a_gateway(**listener)), SETTINGS
    )


def test_status_tells_the_address_and_what_keeps_requests_away():
    assert status._endpoint(MemoryCluster(a_gateway()), SETTINGS) == "http://10.0.0.9"
    assert "has no address" in status._endpoint(MemoryCluster(), SETTINGS)
    found = status._live(MemoryCluster(a_gateway(UNMADE), ROUTE, POOL), SETTINGS, Record(live="g1", since="2026-11-29"))
    assert found is not None
    assert "not Programmed" in found["unreachable"][-1]


def test_without_a_gateway_there_is_nothing_to_say():
    service = validated(Settings, {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"})
    cluster = MemoryCluster()
    assert gateway.problems(cluster, service, ["g1"]) == []
    assert gateway.address(cluster, service) == ""
    assert gateway.picker_is_ready(cluster, service, "g1")
    gateway.scale_picker(cluster, service, "g1", 0)
    gateway.follow(cluster, service, "g1", SILENT)
    assert gateway.amiss(cluster, service, "g1") == ""
    assert cluster.calls == []


# -- endpoint pickers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "ready"), [((2, 2), True), ((1, 2), False), ((1, 1), False), ((0, 0), False), (None, False)]
)
def test_a_picker_is_ready_when_all_that_there_are_to_be_are(there: tuple[int, int] | None, ready: bool):
    objects = [picker("g1", ready=there[0], replicas=there[1])] if there else []
    assert gateway.picker_is_ready(MemoryCluster(*objects), SETTINGS, "g1") is ready


def test_one_that_rested_is_brought_up_and_one_that_does_not_come_is_inconclusive():
    cluster = MemoryCluster(picker("g1", ready=0, replicas=0))
    with pytest.raises(InconclusiveError, match=r"epp-g1 is not ready after gateway.timeout \(1s\).*no request is"):
        gateway.wait_for_picker(cluster, SETTINGS, "g1", SILENT)
    assert ("scale", "Deployment", "epp-g1") in cluster.calls
    assert cluster.get("Deployment", "epp-g1", "gemma")["spec"]["replicas"] == 2


def test_a_generation_that_rests_has_no_picker():
    cluster = MemoryCluster(picker("g1", ready=2))
    traffic.rest(cluster, SETTINGS, "g1")
    assert cluster.get("Deployment", "epp-g1", "gemma")["spec"]["replicas"] == 0


def test_a_picker_s_deployment_is_no_generation_of_its_own():
    server = {**picker("g1", ready=1), "metadata": {**picker("g1", ready=1)["metadata"], "name": "vllm-g1"}}
    from serving.deployment import record

    assert record._rebuilt(MemoryCluster(server, picker("g1", ready=2)), SETTINGS).kept == ["g1"]


# -- what follows the live generation -----------------------------------------------------------------------


def objectives(cluster: MemoryCluster) -> dict[str, tuple[int, str]]:
    return {
        item["metadata"]["name"]: (item["spec"]["priority"], item["spec"]["poolRef"]["name"])
        for item in cluster.list("InferenceObjective", "gemma")
    }


def test_objectives_are_of_the_live_generation_s_pool_and_keep_their_names():
    cluster = MemoryCluster(picker("g1", ready=2), picker("g2", ready=2))
    gateway.follow(cluster, SETTINGS, "g1", SILENT)
    assert objectives(cluster) == {"batch": (-1, "vllm-g1"), "chat": (10, "vllm-g1")}
    assert gateway.amiss(cluster, SETTINGS, "g1") == ""
    assert "InferenceObjective batch" in gateway.amiss(cluster, SETTINGS, "g2")
    gateway.follow(cluster, SETTINGS, "g2", SILENT)
    assert objectives(cluster) == {"batch": (-1, "vllm-g2"), "chat": (10, "vllm-g2")}
    before = list(cluster.calls)
    gateway.follow(cluster, SETTINGS, "g2", SILENT)
    assert cluster.calls == before, "the second time nothing is written"


def test_an_objective_that_the_settings_have_no_more_goes_and_another_deployment_s_stays():
    foreign = render.followers(settings(name="other"), "g9")[0]
    foreign["metadata"]["name"] = "foreign"
    cluster = MemoryCluster(picker("g1", ready=2), foreign)
    gateway.follow(cluster, SETTINGS, "g1", SILENT)
    fewer = settings(inference_gateway={"objectives": {"chat": 5}})
    assert "InferenceObjective chat" in gateway.amiss(cluster, fewer, "g1")
    gateway.follow(cluster, fewer, "g1", SILENT)
    assert objectives(cluster) == {"chat": (5, "vllm-g1"), "foreign": (-1, "vllm-g9")}


def test_a_picker_that_is_not_ready_is_amiss():
    assert "epp-g1 is not ready" in gateway.amiss(MemoryCluster(picker("g1", ready=1)), SETTINGS, "g1")


def test_a_promotion_points_objectives_before_it_moves_the_traffic():
    server = {**picker("g2", ready=1, replicas=1), "metadata": {**picker("g2", ready=1)["metadata"], "name": "vllm-g2"}}
    cluster = MemoryCluster(server, picker("g2", ready=2), attached("InferencePool", "vllm-g2"))
    record = Record()
    traffic.move(cluster, SETTINGS, record, "g2", run_id="run-1", say=SILENT)
    written = [kind for verb, kind, _ in cluster.calls if verb == "apply"]
    assert written.index("InferenceObjective") < written.index("HTTPRoute")
    assert record.live == "g2"
