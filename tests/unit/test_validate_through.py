"""What a generation has to show through the load balancer, and that what fails there alone is not its fault."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from components.validate_server.checks import verdict
from components.validate_server.through import Through, ask
from serving.clients.engine import OBJECTIVE, Answer
from tests.unit import engine as engines
from tests.unit.engine import MODEL, Engine, Reply, reply, served
from tests.unit.test_validate_server import plan

HEADER = {"x-gemma-generation": "g2"}


class Way(Engine):
    """A load balancer with a server behind it that knows the model and one adapter."""

    knows = (MODEL, "korean")

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


def test_requests_that_matter_least_are_answered_or_refused_with_429_and_nothing_else() -> None:
    class Busy(Way):
        def __init__(self, status: int):
            super().__init__()
            self.status = status

        def answer(self, question: dict[str, Any]) -> Reply:
            is_least = self.headers[-1].get(OBJECTIVE) == "batch"
            return reply(b"sheddable request dropped", self.status) if is_least else super().answer(question)

    found = asked(Busy(429), objective="batch")
    assert (found["problems"], found["shed"]) == ([], 3)
    (problem,) = asked(Busy(500), objective="batch")["problems"]
    assert problem.startswith("the objective batch: /v1/chat/completions answered 500")
    assert asked(Way(), objective="batch")["shed"] == 0


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
