"""What a generation's metrics say of the requests that it still runs, and what their silence does not say."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from components.promote_generation import __main__ as job
from serving.clients import engine

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
