"""What a generation has to show through the load balancer, and that what fails there alone is not its fault."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.kubernetes import tls

from components.validate_server import shedding
from components.validate_server.checks import verdict
from components.validate_server.through import Through, ask
from serving import names
from serving.clients.engine import OBJECTIVE, Answer
from tests.unit import engine as engines
from tests.unit.engine import MODEL, Engine, Reply, reply, served
from tests.unit.test_validate_server import plan

HEADER = {"x-gemma-generation": "g2"}


class Way(Engine):
    """A load balancer with a server behind it that knows the model and one adapter."""

    knows = (MODEL, "korean")
    heard = 0
    """GETs, without or with a key."""

    def get(self, path: str) -> Reply:
        self.heard += 1
        return super().get(path)

    def models(self) -> Reply:
        return reply({"object": "list", "data": [{"id": name} for name in self.knows]})

    def answer(self, question: dict[str, Any]) -> Reply:
        if question["model"] not in self.knows:
            words = f"The model `{question['model']}` does not exist. Valid aliases: {MODEL}."
            return reply({"error": {"message": words, "type": "NotFoundError", "code": 404}}, 404)
        return super().answer(question)

    def chat(self, question: dict[str, Any]) -> Reply:
        return reply(self.completion(question) | {"model": question["model"]})


def asked(way: Engine, *, direct: Answer | None = None, api_key: str | None = None, **changes: Any) -> dict[str, Any]:
    with served(way) as url:
        through = Through.model_validate({"url": url, "headers": HEADER, "reach_seconds": 0, **changes})
        asking = ask(
            through, MODEL, ["korean"], api_key=api_key, request_seconds=60, direct=direct, say=lambda line: None
        )
        return asyncio.run(asking)


def streamed(seconds: float) -> Answer:
    """A stream that came over this time."""
    return Answer("A pod", "stop", 9, len(engines.WORDS), sent=0.0, times=[0.0, seconds / 2, seconds])


def test_model_and_adapters_answer_under_their_names_by_the_generations_header() -> None:
    way = Way()
    found = asked(way)
    assert (found["problems"], found["asked"], found["key"]) == ([], [MODEL, "korean"], "none")
    assert all(headers["x-gemma-generation"] == "g2" for headers in way.headers)


@pytest.mark.parametrize(
    ("spoilt", "problem"),
    [
        (lambda question: reply(b"no healthy upstream", 503), "/v1/chat/completions answered 503"),
        (lambda question: reply(b"inference error: BadRequest", 400, "text/plain"), "answered 400"),
    ],
)
def test_what_fails_on_the_way_is_a_problem_of_the_way(spoilt: Any, problem: str) -> None:
    way = Way()
    way.answer = spoilt  # type: ignore[method-assign]
    found = asked(way)
    assert any(problem in words for words in found["problems"])


def test_a_404_that_is_not_the_engines_is_a_problem() -> None:
    class Routeless(Way):
        def answer(self, question: dict[str, Any]) -> Reply:
            return super().answer(question) if question["model"] in self.knows else reply(b"fault filter abort", 404)

    (problem,) = asked(Routeless())["problems"]
    assert problem.startswith("a model that nobody serves: /v1/chat/completions answered 404 in other words")


def test_an_unknown_model_that_is_answered_is_a_problem() -> None:
    class Careless(Way):
        def answer(self, question: dict[str, Any]) -> Reply:
            return Engine.answer(self, question)

    (problem,) = asked(Careless())["problems"]
    assert "answered 200, not 404" in problem


def test_a_load_balancer_that_has_not_heard_of_it_is_waited_for_and_then_told() -> None:
    class Late(Way):
        since = 0.0

        def models(self) -> Reply:
            self.since = self.since or time.monotonic()
            return super().models() if time.monotonic() - self.since > 0.5 else reply(b"no route", 404)

    assert asked(Late(), reach_seconds=60)["problems"] == []
    found = asked(Late())
    assert found["problems"] == ["/v1/models answered 404 Not Found: no route"]
    assert found["asked"] == []


def test_a_stream_that_is_held_back_is_a_problem_and_one_that_could_not_show_it_is_none() -> None:
    (problem,) = asked(Way(), direct=streamed(2.0))["problems"]
    assert "took 2000 ms without the load balancer: it holds streams back" in problem
    assert asked(Way(), direct=streamed(0.05))["problems"] == []

    class Slow(Way):
        pause = 0.05

    found = asked(Slow(), direct=streamed(0.5))
    assert found["problems"] == []
    assert found["stream_ms"]["through"] > 100


def test_a_key_is_never_sent_to_who_cannot_show_who_it_is() -> None:
    class Locked(Way):
        def get(self, path: str) -> Reply:
            return reply({"error": "Unauthorized"}, 401)

    way = Locked()
    found = asked(way, api_key="secret", trusted=False)
    assert (found["problems"], found["asked"], found["key"]) == ([], [], "withheld")
    assert way.headers == []
    way = Way()
    assert asked(way, api_key="secret")["key"] == "sent"
    assert way.keys == {"Bearer secret"}


def test_what_is_to_be_closed_is_asked_for() -> None:
    class Public(Way):
        def get(self, path: str) -> Reply:
            return super().get(path) if path.startswith("/v1/") else reply(b"", 404)

    closed = ["/metrics", "/health"]
    assert asked(Public(), closed=closed)["problems"] == []
    assert [words.partition(":")[0] for words in asked(Way(), closed=closed)["problems"]] == [
        "/metrics is to be closed",
        "/health is to be closed",
    ]


# -- who it is ------------------------------------------------------------------------------------------------------

HOST = "gemma.example.com"


def secured(folder: Path, host: str, way: Way, **changes: Any) -> dict[str, Any]:
    """`asked` over https, of one whose certificate is for `host`."""
    context = tls.ensure(folder, [host])
    with served(way, context) as url:
        through = {"url": url, "headers": HEADER, "host": HOST, "authority": (folder / "ca.crt").read_text()}
        through |= {"reach_seconds": 0, **changes}
        asking = ask(
            Through.model_validate(through),
            MODEL,
            ["korean"],
            api_key="secret",
            request_seconds=60,
            direct=None,
            say=lambda line: None,
        )
        return asyncio.run(asking)


def test_over_https_it_shows_that_it_is_who_clients_call_and_gets_the_key(tmp_path: Path) -> None:
    way = Way()
    found = secured(tmp_path, HOST, way)
    assert (found["problems"], found["asked"], found["key"]) == ([], [MODEL, "korean"], "sent")
    assert way.keys == {"Bearer secret"}
    assert {headers["host"] for headers in way.headers} == {HOST}


def test_by_its_name_it_is_called_without_tls_too() -> None:
    way = Way()
    assert asked(way, host=HOST)["problems"] == []
    assert {headers["host"] for headers in way.headers} == {HOST}


@pytest.mark.parametrize(
    ("shown", "changes", "said"),
    [
        ("other.example.com", {}, "Hostname mismatch, certificate is not valid for 'gemma.example.com'"),
        # The address that was connected to is not who it is to be.
        ("127.0.0.1", {}, "Hostname mismatch, certificate is not valid for 'gemma.example.com'"),
        (HOST, {"authority": ""}, "unable to get local issuer certificate"),
    ],
)
def test_a_certificate_of_another_s_is_told_and_nothing_is_asked(
    tmp_path: Path, shown: str, changes: dict[str, Any], said: str
) -> None:
    way = Way()
    found = secured(tmp_path, shown, way, **changes)
    (problem,) = found["problems"]
    assert said in problem
    assert f"for gateway.host ({HOST})" in problem
    assert "The API key was not sent" in problem
    assert (found["asked"], way.headers, way.heard) == ([], [], 0)


# -- priorities -----------------------------------------------------------------------------------------------------


class Pod(Engine):
    """Runs two requests at once, for ever."""

    runs = 2

    def __init__(self) -> None:
        super().__init__()
        self.ended = threading.Event()

    @property
    def waiting(self) -> int:
        return max(len(self.asked) - self.runs, 0)

    def get(self, path: str) -> Reply:
        running = len(self.asked) - self.waiting
        metrics = f'vllm:num_requests_running{{a="b"}} {running}\nvllm:num_requests_waiting{{a="b"}} {self.waiting}\n'
        return reply(metrics.encode(), content_type="text/plain")

    def answer(self, question: dict[str, Any]) -> Reply:
        self.asked.append(question)
        self.ended.wait()
        return self.chat(question)


class Sheds(Way):
    """In front of a pod: refuses what has an objective of `refused` while so many requests wait in it."""

    def __init__(self, pod: Pod, refused: tuple[str | None, ...], limit: int = shedding.FULL):
        super().__init__()
        self.pod, self.refused, self.limit = pod, refused, limit
        self.decided: list[tuple[str | None, bool]] = []
        """Of each request while the pod was full: its objective, and whether it was refused."""

    def answer(self, question: dict[str, Any]) -> Reply:
        objective = self.headers[-1].get(OBJECTIVE)
        refuses = objective in self.refused and self.pod.waiting >= self.limit
        if self.pod.waiting >= shedding.FULL:
            self.decided.append((objective, refuses))
        return reply(b"sheddable request dropped", 429) if refuses else super().answer(question)


WANTED = {
    "objectives": [
        {"name": "batch", "header": "validate-g2-batch", "priority": -1},
        {"name": "chat", "header": "validate-g2-chat", "priority": 10},
    ],
    "pods": ["127.0.0.1"],
}


def shed(way: Sheds, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    with served(way.pod) as pod:
        monkeypatch.setattr(names, "PORT", int(pod.rpartition(":")[2]))
        try:
            return asked(way, shedding=WANTED)
        finally:
            way.pod.ended.set()


def test_with_queues_what_matters_least_is_refused_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Sheds(Pod(), ("validate-g2-batch",))
    found = shed(way, monkeypatch)
    assert (found["problems"], found["warnings"]) == ([], [])
    assert (found["shed"]["refused"], found["shed"]["served"], found["shed"]["pods"]) == (["batch"], ["", "chat"], 1)
    assert found["shed"]["waiting"] >= shedding.FULL
    assert found["shed"]["requests"] >= len(way.pod.asked) > shedding.FULL
    assert {question["max_tokens"] for question in way.pod.asked} == {256}
    assert all(question["ignore_eos"] for question in way.pod.asked)
    assert {(None, False), ("validate-g2-chat", False)} < set(way.decided)
    assert (way.decided[0], way.decided[-1]) == (("validate-g2-batch", True), ("validate-g2-batch", True))


def test_one_that_refuses_nothing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(Sheds):
        def answer(self, question: dict[str, Any]) -> Reply:
            answer = super().answer(question)
            if self.decided:
                monkeypatch.setattr(shedding, "SECONDS", 0.0)  # The queue is there: it has had its time.
            return answer

    found = shed(Careless(Pod(), ()), monkeypatch)
    (problem,) = found["problems"]
    assert (
        "requests and more waited in every pod, and a request of the objective batch, priority -1, was not" in problem
    )
    assert found["shed"]["refused"] == []
    assert found["shed"]["waiting"] >= shedding.FULL


def test_one_that_refuses_everybody_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    (problem,) = shed(Sheds(Pod(), (None, "validate-g2-batch", "validate-g2-chat")), monkeypatch)["problems"]
    assert problem.startswith("priorities: a request of no objective was refused (429)")
    (problem,) = shed(Sheds(Pod(), ("validate-g2-batch", "validate-g2-chat")), monkeypatch)["problems"]
    assert problem.startswith("priorities: a request of the objective chat (priority 10) was refused (429)")


def test_one_that_refuses_while_nobody_waits_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shedding, "SECONDS", 0.0)
    (problem,) = shed(Sheds(Pod(), ("validate-g2-batch",), limit=0), monkeypatch)["problems"]
    assert "was refused (429) for 0 s although nobody waits" in problem


def test_an_engine_that_never_has_a_queue_shows_nothing_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fast(Pod):
        runs = 1_000_000

    monkeypatch.setattr(shedding, "_MOST", 64)
    found = shed(Sheds(Fast(), ("validate-g2-batch",)), monkeypatch)
    assert found["problems"] == []
    (warning,) = found["warnings"]
    assert "with 64 requests at once, 0 waited in the pod with the shortest of 1 queues, and 10 were to" in warning
    assert (found["shed"]["requests"], found["shed"]["refused"]) == (64, [])
    assert found["shed"]["not_shown"] in warning


def test_what_is_not_to_be_shown_is_said() -> None:
    assert asked(Way(), not_shown="no objective has a priority below 0")["shed"] == {
        "not_shown": "no objective has a priority below 0"
    }


def test_what_could_not_be_seen_is_a_warning_of_the_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    way = Sheds(Pod(), ())
    way.pod.get = lambda path: reply(b"", 500)  # type: ignore[method-assign]
    with served(way.pod) as pod, served(way) as url, served(Way()) as direct:
        monkeypatch.setattr(names, "PORT", int(pod.rpartition(":")[2]))
        through = {"url": url, "headers": HEADER, "reach_seconds": 0, "shedding": WANTED}
        found = asyncio.run(verdict(plan(direct, adapters=["korean"], through=through), None, lambda line: None))
        way.pod.ended.set()
    assert (found["passed"], found["through"]["problems"]) == (True, [])
    assert any(
        "refused by their priority was not seen: /metrics of 127.0.0.1 answered 500" in w for w in found["warnings"]
    )


# -- the verdict ----------------------------------------------------------------------------------------------------


def test_the_load_balancer_is_asked_last_and_is_no_reason_against_the_release() -> None:
    class Away(Way):
        def get(self, path: str) -> Reply:
            return reply(b"", 503)

    with served(Way()) as url, served(Away()) as way:
        through = {"url": way, "headers": HEADER, "reach_seconds": 0}
        found = asyncio.run(verdict(plan(url, adapters=["korean"], through=through), None, lambda line: None))
        assert (found["passed"], found["reasons"]) == (True, [])
        assert found["through"]["problems"] == ["/v1/models answered 503 Service Unavailable: nothing"]


def test_a_release_that_failed_is_not_asked_through_anything() -> None:
    with served(Engine()) as url:
        through = {"url": "http://127.0.0.1:9", "headers": HEADER, "reach_seconds": 0}
        found = asyncio.run(verdict(plan(url, adapters=["nobody"], through=through), None, lambda line: None))
    assert (found["passed"], found["through"]) == (False, None)
