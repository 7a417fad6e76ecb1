"""What a generation's metrics say of the requests that it still runs, what their silence does not say, and who is
asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from components.promote_generation import __main__ as job
from serving.clients import engine
from serving.deployment import draining, pods
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import behind_a_gateway, labels, quick

SETTINGS = behind_a_gateway(serving={"drain_seconds": 60})

Answer = Callable[[httpx.Request], httpx.Response]


def metrics(running: int, waiting: int = 0) -> httpx.Response:
    text = "".join(
        f'# TYPE vllm:num_requests_{what} gauge\nvllm:num_requests_{what}{{engine="0",model_name="m"}} {count}.0\n'
        for what, count in (("running", running), ("waiting", waiting))
    )
    return httpx.Response(200, text=text)


def gone(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("[Errno 111] Connection refused")


def busy(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("timed out")


def client(answer: Answer) -> httpx.Client:
    return httpx.Client(transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    ("answer", "count"),
    [(lambda _: metrics(3, 2), 5), (lambda _: metrics(0), 0), (gone, 0)],
    ids=["running and waiting", "idle", "gone"],
)
def test_requests_that_run_or_wait_are_counted(answer: Answer, count: int) -> None:
    with client(answer) as http:
        assert engine.unfinished(http, "10.0.0.7") == count


SILENT: dict[str, tuple[Answer, str]] = {
    "not found": (lambda _: httpx.Response(404, text="Not Found"), "/metrics of 10.0.0.7 answered 404"),
    "an error": (lambda _: httpx.Response(500), "answered 500"),
    "another page": (lambda _: httpx.Response(200, text="<p>Welcome"), "without vllm:num_requests_running"),
    "an error with figures": (lambda _: httpx.Response(503, text=metrics(0).text), "answered 503"),
    "too busy": (busy, "ReadTimeout"),
}


@pytest.mark.parametrize("kind", SILENT)
def test_an_engine_that_does_not_say_is_not_drained(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, words = SILENT[kind]
    with client(answer) as http, pytest.raises(engine.BadAnswer, match=words):
        engine.unfinished(http, "10.0.0.7")
    monkeypatch.setattr(engine, "direct", lambda: client(answer))
    with pytest.raises(SystemExit, match=words):
        job.drain(["10.0.0.7"], 0.05, look_every=0.01)


def test_an_engine_that_says_so_late_is_drained(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([metrics(1), httpx.Response(404), metrics(2)])
    monkeypatch.setattr(engine, "direct", lambda: client(lambda _: next(answers, metrics(0))))
    result = job.drain(["10.0.0.7"], 60, look_every=0)
    assert result["running"] == 0


def test_what_still_runs_at_the_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "direct", lambda: client(lambda _: metrics(1)))
    assert job.drain(["10.0.0.7", "10.0.0.8"], 0.05, look_every=0.01)["running"] == 2


def test_the_log_has_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    answers = iter([metrics(1)] * 9)
    monkeypatch.setattr(engine, "direct", lambda: client(lambda _: next(answers, metrics(0))))
    monkeypatch.setattr(job, "_SAY_EVERY_SECONDS", 600.0)
    job.drain(["10.0.0.7"], 300, look_every=0)
    assert capsys.readouterr().out == "1 requests still running\n"


def a_pod(name: str, address: str, generation: str = "g1", **status: Any) -> dict[str, Any]:
    meta = {"name": name, "namespace": SETTINGS.namespace, "labels": labels(generation)}
    return {"kind": "Pod", "metadata": meta, "status": {"phase": "Running", "podIP": address, **status}}


def test_who_ends_still_has_requests_and_who_has_ended_has_no_address() -> None:
    going = a_pod("going", "10.0.0.2")
    going["metadata"]["deletionTimestamp"] = "2026-11-29T10:00:00Z"
    # Its address may be another pod's by now.
    evicted = a_pod("evicted", "10.0.0.3", phase="Failed", reason="Evicted")
    waits = {**a_pod("waits", ""), "status": {"phase": "Pending"}}
    another = a_pod("another", "10.0.0.5", generation="g2")
    cluster = MemoryCluster(a_pod("serves", "10.0.0.1"), going, evicted, waits, another)
    assert pods.addresses(cluster, SETTINGS, "g1") == ["10.0.0.1"]  # type: ignore[arg-type]
    assert pods.addresses(cluster, SETTINGS, "g1", ending=True) == ["10.0.0.1", "10.0.0.2"]  # type: ignore[arg-type]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str]]]:
    """Part and arguments of each Job, none of which runs."""
    begun: list[tuple[str, list[str]]] = []

    def run(*_: Any, part: str, args: list[str], **__: Any) -> dict[str, float]:
        begun.append((part, args))
        return {"running": 0, "seconds": 0.1}

    monkeypatch.setattr(draining, "run_job", run)
    return begun


def test_each_generation_that_a_run_drains_has_a_job_of_its_own(jobs: list[tuple[str, list[str]]]) -> None:
    """A Job of the same name is taken over, with the result that it had: of the other one's requests."""
    cluster = MemoryCluster(a_pod("one", "10.0.0.1"), a_pod("two", "10.0.0.2", generation="g2"))
    for generation in ("g2", "g1"):
        draining.drain(cluster, SETTINGS, generation, run_id="run-2", say=lambda _: None)  # type: ignore[arg-type]
    assert [(part, args[-1]) for part, args in jobs] == [("drain-g2", "10.0.0.2"), ("drain-g1", "10.0.0.1")]


@pytest.mark.parametrize(("drain", "settle", "seconds"), [(60, "30s", "60"), (5, "30s", "30"), (0, "30s", "30")])
def test_a_load_balancer_has_its_time_to_follow_however_short_draining_may_be(
    jobs: list[tuple[str, list[str]]], drain: int, settle: str, seconds: str
) -> None:
    settings = behind_a_gateway(serving={"drain_seconds": drain}, canary={"settle": settle})
    draining.drain(MemoryCluster(a_pod("one", "10.0.0.1")), settings, "g1", run_id="run-2", say=lambda _: None)  # type: ignore[arg-type]
    assert [args[-3:] for _, args in jobs] == [[seconds, "30", "10.0.0.1"]]


def test_a_service_follows_at_once_and_nothing_is_waited_for(jobs: list[tuple[str, list[str]]]) -> None:
    settings = quick(serving={"drain_seconds": 0})
    draining.drain(MemoryCluster(a_pod("one", "10.0.0.1")), settings, "g1", run_id="run-2", say=lambda _: None)  # type: ignore[arg-type]
    assert jobs == []
