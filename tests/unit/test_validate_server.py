"""What a server must answer to pass, and that each kind of nonsense which comes with a 200 does not."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from typing import Any

import pytest

from components.validate_server.checks import Live, Plan, broken, load_of, measured, verdict
from serving.settings import Prompt, Thresholds, Validation
from tests.unit import engine as engines
from tests.unit.engine import CUT, EVENTS, MODEL, Engine, Reply, event, reply, served, usage

QUICK = Validation(
    prompts=[Prompt(content="What is a pod?"), Prompt(content="쿠버네티스 파드란 무엇인가요?", pattern="containers")],
    max_tokens=16,
    concurrencies=[1, 3],
    requests_per_concurrency=4,
    load_max_tokens=8,
)


def plan(url: str, **changes: Any) -> Plan:
    values = {"url": url, "model": MODEL, "request_seconds": 60, "validation": QUICK, "reach_seconds": 0}
    return Plan.model_validate({**values, **changes})


def judged(engine: Engine, api_key: str | None = None, **changes: Any) -> dict[str, Any]:
    with served(engine) as url:
        return asyncio.run(verdict(plan(url, **changes), api_key, lambda line: None))


def changed(**validation: Any) -> Validation:
    return QUICK.model_copy(update=validation)


def test_a_good_server_passes() -> None:
    found = judged(Engine())
    assert (found["passed"], found["reasons"], found["undecided"], found["warnings"]) == (True, [], [], [])
    assert found["answer"] == {"prompt": "What is a pod?", "text": "".join(engines.WORDS)}
    assert [row["concurrency"] for row in found["figures"]["load"]] == [1, 3]
    assert all(row["requests"] == 4 and row["errors"] == 0 for row in found["figures"]["load"])
    assert all(row["output_tokens"] == 4 * len(engines.WORDS) for row in found["figures"]["load"])
    assert found["figures"]["streaming"]["chunks"] == 1 + len(engines.WORDS)


def test_questions_are_asked_at_temperature_0_and_every_request_of_the_load_is_another_one() -> None:
    engine = Engine()
    judged(engine)
    assert {question["temperature"] for question in engine.asked} == {0}
    assert {question["model"] for question in engine.asked} == {MODEL}
    load = [question for question in engine.asked if question.get("ignore_eos")]
    assert len({question["messages"][0]["content"] for question in load}) == len(load) == 8


def test_the_key_is_shown_when_there_is_one() -> None:
    with_key, without = Engine(), Engine()
    judged(with_key, "secret")
    judged(without)
    assert with_key.keys == {"Bearer secret"}
    assert without.keys == {None}


# -- adapters -----------------------------------------------------------------------------------------------


class WithAdapters(Engine):
    """Serves two adapters as well; `spoilt` says nothing."""

    def models(self) -> Reply:
        return reply({"object": "list", "data": [{"id": name} for name in (MODEL, "korean", "spoilt")]})

    def chat(self, question: dict[str, Any]) -> Reply:
        completion = self.completion(question) | {"model": question["model"]}
        if question["model"] == "korean" and "파드" in question["messages"][0]["content"]:
            completion["choices"][0]["message"]["content"] = "파드는 컨테이너 묶음이다."
        if question["model"] == "spoilt":
            completion["choices"][0]["message"]["content"] = ""
        return reply(completion)


def test_an_adapter_is_asked_under_its_own_name_until_it_answers_otherwise_than_the_model() -> None:
    engine = WithAdapters()
    found = judged(engine, adapters=["korean"])
    assert (found["reasons"], found["warnings"]) == ([], [])
    assert [question["model"] for question in engine.asked].count("korean") == 2
    (answer,) = found["figures"]["adapters"]
    assert (answer["name"], answer["differs"], answer["text"]) == ("korean", True, "파드는 컨테이너 묶음이다.")


def test_an_adapter_that_answers_as_the_model_does_is_told_and_no_more() -> None:
    found = judged(WithAdapters(), adapters=["korean"], validation=changed(prompts=[QUICK.prompts[0]]))
    assert found["passed"]
    assert found["warnings"] == [
        "the adapter korean answers each of the prompts as the model does: it may do nothing to them"
    ]
    assert not found["figures"]["adapters"][0]["differs"]


def test_a_broken_adapter_is_a_reason_and_spares_the_load() -> None:
    found = judged(WithAdapters(), adapters=["korean", "spoilt"])
    assert found["reasons"] == ["the adapter spoilt: the answer has no text"]
    assert found["figures"]["load"] == []


def test_an_adapter_that_is_not_served_is_a_reason() -> None:
    (reason,) = judged(WithAdapters(), adapters=["legal"])["reasons"]
    assert reason == f"the adapter legal: /v1/models does not show legal; it shows {MODEL}, korean, spoilt"


# -- nonsense -----------------------------------------------------------------------------------------------


class Sick(Engine):
    def health(self) -> Reply:
        return reply(b"", 503)


class AnotherModel(Engine):
    def models(self) -> Reply:
        return reply({"object": "list", "data": [{"id": "meta/other"}]})


class NoList(Engine):
    def models(self) -> Reply:
        return reply({"message": "welcome"})


class Page(Engine):
    def chat(self, question: dict[str, Any]) -> Reply:
        return reply(b"<!doctype html>\n<p>Welcome", content_type="text/html")


class Array(Engine):
    def chat(self, question: dict[str, Any]) -> Reply:
        return reply([1, 2])


class Refusing(Engine):
    def chat(self, question: dict[str, Any]) -> Reply:
        return reply({"error": {"message": "EngineCore encountered an issue"}}, 500)


class ErrorInside(Engine):
    def chat(self, question: dict[str, Any]) -> Reply:
        return reply({"error": {"message": "boom"}})


class Spoiled(Engine):
    """Puts a value somewhere into the completion."""

    def __init__(self, value: Any, *path: Any):
        super().__init__()
        self.value, self.path = value, path

    def completion(self, question: dict[str, Any]) -> dict[str, Any]:
        body = super().completion(question)
        place: Any = body
        for key in self.path[:-1]:
            place = place[key]
        place[self.path[-1]] = self.value
        return body


def spoiled_text(text: Any) -> Spoiled:
    return Spoiled(text, "choices", 0, "message", "content")


class Stream(Engine):
    """Answers a stream with these pieces."""

    def __init__(self, *pieces: bytes, content_type: str = EVENTS):
        super().__init__()
        self.pieces, self.content_type = list(pieces), content_type

    def stream(self, question: dict[str, Any]) -> Reply:
        return 200, self.content_type, self.pieces


CHUNKS = [event(chunk) for chunk in Engine().chunks({})]
DONE = event(b"[DONE]")
OTHER = json.loads(CHUNKS[1][6:])


def with_delta(content: str, finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    return event({**OTHER, "choices": [choice], **more})


NONSENSE: dict[str, tuple[Engine, str]] = {
    "unhealthy": (Sick(), "/health answered 503 Service Unavailable: nothing"),
    "another model's list": (AnotherModel(), f"/v1/models does not show {MODEL}; it shows meta/other"),
    "a list that is none": (NoList(), "/v1/models answered something that is no list of models"),
    "a page": (
        Page(),
        "/v1/chat/completions answered 200 with something that is not JSON (text/html): <!doctype html>",
    ),
    "an array": (Array(), "no JSON object: [1, 2]"),
    "an error": (Refusing(), "answered 500 Internal Server Error"),
    "an error inside": (ErrorInside(), 'the server told an error: {"message": "boom"}'),
    "no text": (spoiled_text(""), "the answer has no text"),
    "null": (spoiled_text(None), "the answer has no text"),
    "blanks": (spoiled_text(" \n\t\u200b"), "nothing but white space"),
    "replacement characters": (spoiled_text("\ufffd \ufffd"), "nothing but white space and replacement characters"),
    "one token for ever": (spoiled_text("!" * 40), "one character over and over"),
    "another model": (Spoiled("meta/other", "model"), "comes from the model 'meta/other'"),
    "another object": (Spoiled("text_completion", "object"), "a text_completion came"),
    "no choices": (Spoiled([], "choices"), "no chat completion"),
    "another speaker": (Spoiled("user", "choices", 0, "message", "role"), "comes from 'user'"),
    "no finish": (Spoiled(None, "choices", 0, "finish_reason"), "for the reason None"),
    "another finish": (Spoiled("error", "choices", 0, "finish_reason"), "for the reason 'error'"),
    "no usage": (Spoiled(None, "usage"), "the usage is not consistent"),
    "no tokens": (Spoiled(usage(0), "usage"), "the usage is not consistent"),
    "too many tokens": (Spoiled(usage(17), "usage"), "with at most 16 tokens allowed"),
    "a wrong sum": (Spoiled({**usage(), "total_tokens": 3}, "usage"), "the usage is not consistent"),
    "a page for a stream": (
        Stream(b"<p>hello", content_type="text/html"),
        "a stream was asked for, and text/html came",
    ),
    "a page as a stream": (Stream(b"<p>hello\n"), "a line that is no event: <p>hello"),
    "an empty stream": (Stream(), "it ended without [DONE]"),
    "no end": (Stream(*CHUNKS), "it ended without [DONE]"),
    "a stream cut between chunks": (Stream(*CHUNKS[:4], CUT), "the stream broke off"),
    "a stream that stops half-way": (Stream(*CHUNKS[:4]), "the stream broke off after 4 chunks"),
    "a stream cut in a chunk": (Stream(*CHUNKS[:3], CHUNKS[4][:30]), "broke off in the middle of a line"),
    "a stream without a finish": (Stream(*CHUNKS[:-2], CHUNKS[-1], DONE), "ended without a finish reason"),
    "a stream without usage": (Stream(*CHUNKS[:-1], DONE), "ended without usage"),
    "a stream of no JSON": (Stream(CHUNKS[0], event(b"{oops"), DONE), "holds something that is no chunk: {oops"),
    "a stream of no chunks": (Stream(event(b"7"), DONE), "holds something that is no chunk: 7"),
    "an error in a stream": (Stream(CHUNKS[0], event({"error": {"message": "died"}}), DONE), '{"message": "died"}'),
    "another model's stream": (Stream(with_delta("x", model="meta/other"), DONE), "from the model 'meta/other'"),
    "more after the finish": (Stream(*CHUNKS[:-1], CHUNKS[2], DONE), "goes on after its finish reason"),
    "more after the end": (Stream(*CHUNKS, DONE, CHUNKS[2]), "goes on after [DONE]"),
    "a stream of blanks": (Stream(with_delta(" "), with_delta(" ", "stop"), CHUNKS[-1], DONE), "but white space"),
}


@pytest.mark.parametrize("kind", NONSENSE)
def test_nonsense_does_not_pass(kind: str) -> None:
    engine, words = NONSENSE[kind]
    found = judged(engine)
    assert not found["passed"]
    assert words in found["reasons"][0]
    assert found["figures"]["load"] == [], "a server that answers nonsense is not loaded"


def test_a_server_that_is_away_does_not_pass() -> None:
    with served(Engine()) as url:
        pass
    found = asyncio.run(verdict(plan(url), None, lambda line: None))
    assert "/health: ConnectError" in found["reasons"][0]


def test_a_service_that_is_new_is_waited_for() -> None:
    class Late(Engine):
        looks = 0

        def health(self) -> Reply:
            self.looks += 1
            return reply(b"", 200 if self.looks > 2 else 502)

    engine = Late()
    assert judged(engine, reach_seconds=60)["passed"]
    assert engine.looks == 3


def test_an_answer_that_takes_too_long_does_not_pass() -> None:
    engine = Engine()
    engine.pause = 0.1
    found = judged(engine, request_seconds=0.3)
    assert "did not finish its answer within 0.3 s" in found["reasons"][0]


def test_checks_that_take_too_long_do_not_pass() -> None:
    engine = Engine()
    engine.pause = 0.1
    found = judged(engine, validation=changed(timeout="1s"))
    (reason,) = found["reasons"]
    # At which of them it is by then, the machine's speed decides.
    assert reason.startswith("the checks were not done after validation.timeout (1s), but at: ")


# -- good servers that look strange -------------------------------------------------------------------------


class Moody(Engine):
    """Never says the same twice: without batch invariance vLLM does not promise it."""

    def completion(self, question: dict[str, Any]) -> dict[str, Any]:
        body = super().completion(question)
        body["choices"][0]["message"]["content"] += str(len(self.asked))
        return body


class OtherStream(Stream):
    def __init__(self) -> None:
        words = [with_delta(word) for word in "abcdefg"]
        super().__init__(CHUNKS[0], *words, with_delta("h", "stop"), CHUNKS[-1], DONE)


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        (Moody(), "'What is a pod?': asked again at temperature 0, the answer is another one: 'A pod is a group"),
        (OtherStream(), "'What is a pod?': streamed at temperature 0, the answer is another one: 'abcdefgh', not 'A"),
    ],
)
def test_another_answer_to_the_same_question_is_a_warning(engine: Engine, words: str) -> None:
    said: list[str] = []
    with served(engine) as url:
        found = asyncio.run(verdict(plan(url, validation=changed(prompts=[QUICK.prompts[0]])), None, said.append))
    assert (found["passed"], found["reasons"]) == (True, [])
    (warning,) = found["warnings"]
    assert warning.startswith(words)
    assert f"warning: {warning}" in said


class Thinking(Engine):
    """Thinks until max_tokens end it, as Gemma 4 does with a reasoning parser; `field` is vLLM's name for that."""

    finish_reason = "length"
    content: str | None = None

    def __init__(self, field: str = "reasoning") -> None:
        super().__init__()
        self.field = field

    def completion(self, question: dict[str, Any]) -> dict[str, Any]:
        body = super().completion(question)
        message = body["choices"][0]["message"]
        message[self.field], message["content"] = message["content"], self.content
        return body

    def chunks(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        first, *chunks, last = super().chunks(question)
        for chunk in chunks:
            delta = chunk["choices"][0]["delta"]
            delta[self.field] = delta.pop("content")
        return [first, *chunks, last]


PLAIN = changed(prompts=[Prompt(content="Why?")])
PATTERNED = changed(prompts=[Prompt(content="Why?", pattern="containers")])


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_thinking_that_max_tokens_cut_short_is_an_answer(field: str) -> None:
    found = judged(Thinking(field), validation=PLAIN)
    assert (found["passed"], found["reasons"], found["undecided"]) == (True, [], [])
    assert found["answer"] == {"prompt": "Why?", "text": "(thinking) " + "".join(engines.WORDS)}
    assert found["warnings"] == [
        "'Why?': the model was still thinking when validation.max_tokens (16) cut it short; more of them show an answer"
    ]
    assert [row["errors"] for row in found["figures"]["load"]] == [0, 0]


def test_thinking_that_was_cut_short_decides_nothing_about_a_pattern() -> None:
    found = judged(Thinking(), validation=PATTERNED)
    assert (found["passed"], found["reasons"]) == (False, [])
    (words,) = found["undecided"]
    assert words.startswith("'Why?': the model was still thinking when validation.max_tokens (16) cut it short")
    assert found["figures"]["load"] == []


class Thought(Thinking):
    """Thinks, and then answers."""

    finish_reason = "stop"
    content = "".join(engines.WORDS)

    def chunks(self, question: dict[str, Any]) -> list[dict[str, Any]]:
        *_, last = Engine.chunks(self, question)
        thoughts = [{**OTHER, "choices": [{"index": 0, "delta": {"reasoning": word}}]} for word in engines.WORDS]
        return [*thoughts, *Engine.chunks(self, question)[1:-1], last]


def test_thinking_that_comes_to_an_answer_is_no_matter() -> None:
    found = judged(Thought(), validation=PATTERNED)
    assert (found["passed"], found["reasons"], found["warnings"]) == (True, [], [])
    assert found["answer"]["text"] == "".join(engines.WORDS)


def test_a_model_that_thinks_and_then_says_nothing_does_not_pass() -> None:
    class Silent(Thinking):
        finish_reason = "stop"

    assert judged(Silent(), validation=PLAIN)["reasons"] == ["'Why?': the answer has no text"]


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_in_a_text_is_text(separator: str) -> None:
    class Separated(Engine):
        words = (f"One{separator}", f"two{separator}", "containers")  # type: ignore[assignment]

    with served(Separated()) as url:
        ended = job(plan(url, validation=changed(prompts=[Prompt(content=f"Why{separator}?")])).model_dump_json())
    assert ended.returncode == 0, ended.stderr
    *_, last = ended.stdout.splitlines()
    result = json.loads(last)
    assert result["passed"]
    assert result["answer"] == {"prompt": f"Why{separator}?", "text": f"One{separator}two{separator}containers"}


def test_a_server_that_serves_already_is_asked_one_question_of_each_model_and_not_loaded() -> None:
    engine = WithAdapters()
    found = judged(engine, in_service=True, adapters=["korean"])
    assert (found["passed"], found["figures"]["load"]) == (True, [])
    assert {question["messages"][0]["content"] for question in engine.asked} == {"What is a pod?"}
    asked = [question["model"] for question in engine.asked]
    assert asked == [MODEL, MODEL, MODEL, "korean"], "whole, again, and as a stream"


def test_a_server_that_serves_already_is_judged_all_the_same() -> None:
    assert judged(spoiled_text(""), in_service=True)["reasons"] == ["'What is a pod?': the answer has no text"]


def test_comments_in_a_stream_are_passed_over() -> None:
    assert judged(Stream(b": ping\n\n", *CHUNKS, DONE))["passed"]


def test_chunks_are_put_together_wherever_the_network_cuts_them() -> None:
    whole = b"".join([*CHUNKS, DONE]).replace(b"\n", b"\r\n")
    assert judged(Stream(*(whole[at : at + 7] for at in range(0, len(whole), 7))))["passed"]


def test_a_pattern_decides_where_there_is_one() -> None:
    found = judged(Engine(), validation=changed(prompts=[Prompt(content="Capital?", pattern="Seoul|서울")]))
    assert found["reasons"] == ["'Capital?': the answer does not match 'Seoul|서울': 'A pod is a group of containers.'"]


# -- thresholds ---------------------------------------------------------------------------------------------


class Slow(Engine):
    pause = 0.01


@pytest.mark.parametrize(
    ("thresholds", "words"),
    [
        ({"min_tokens_per_second": 1e6}, "tokens a second with 3 at once, fewer than min_tokens_per_second (1e+06)"),
        ({"max_p95_time_to_first_token_ms": 0.5}, "more than max_p95_time_to_first_token_ms (0.5)"),
        ({"max_p95_inter_token_latency_ms": 0.5}, "the next token took"),
    ],
)
def test_a_server_that_is_too_slow_does_not_pass(thresholds: dict[str, float], words: str) -> None:
    found = judged(Slow(), validation=changed(thresholds=Thresholds.model_validate(thresholds)))
    assert not found["passed"]
    (reason,) = found["reasons"]
    assert words in reason


def test_a_server_that_is_fast_enough_passes() -> None:
    limits = Thresholds(
        min_tokens_per_second=1, max_p95_time_to_first_token_ms=5000, max_p95_inter_token_latency_ms=5000
    )
    assert judged(Slow(), validation=changed(thresholds=limits))["passed"]


ROUND = {
    "concurrency": 3,
    "requests": 4,
    "errors": 0,
    "tokens_per_second": 90.0,
    "ttft_ms": {"p95": 120.0},
    "itl_ms": {"p95": 12.0},
}
LIVE = Live(generation="g1", tokens_per_second=100, p95_time_to_first_token_ms=100, p95_inter_token_latency_ms=10)


@pytest.mark.parametrize(
    ("name", "bad", "good", "words"),
    [
        ("min_tokens_per_second_ratio", 0.95, 0.9, "g1, which is live, brought 100.0: fewer than min_tokens"),
        ("max_p95_time_to_first_token_ratio", 1.1, 1.2, "120.0 ms at p95 with 3 at once, and 100.0 ms of g1"),
        ("max_p95_inter_token_latency_ratio", 1.1, 1.2, "the next token took 12.0 ms"),
    ],
)
def test_a_release_is_held_to_the_live_generation(name: str, bad: float, good: float, words: str) -> None:
    (reason,) = broken(Thresholds.model_validate({name: bad}), [ROUND], LIVE)
    assert words in reason
    assert f"{name} ({bad})" in reason
    assert broken(Thresholds.model_validate({name: good}), [ROUND], LIVE) == []
    assert broken(Thresholds.model_validate({name: bad}), [ROUND]) == []


def test_a_figure_that_live_has_not_is_held_against_nobody() -> None:
    answers_of_one_token = LIVE.model_copy(update={"p95_inter_token_latency_ms": 0.0})
    assert broken(Thresholds(max_p95_inter_token_latency_ratio=1.1), [ROUND], answers_of_one_token) == []


def test_the_job_compares_with_what_it_is_told_of_live() -> None:
    fast = LIVE.model_copy(update={"tokens_per_second": 1e9})
    (reason,) = judged(Engine(), live=fast, validation=changed(thresholds=Thresholds(min_tokens_per_second_ratio=0.5)))[
        "reasons"
    ]
    assert "fewer than min_tokens_per_second_ratio (0.5) allows" in reason


def test_what_is_measured_is_the_highest_concurrency_and_says_of_which_load() -> None:
    assert measured(QUICK, [{**ROUND, "concurrency": 1}, {**ROUND, "tokens_per_second": 7.0}]) == {
        "load": load_of(QUICK),
        "tokens_per_second": 7.0,
        "p95_time_to_first_token_ms": 120.0,
        "p95_inter_token_latency_ms": 12.0,
    }
    assert measured(QUICK, []) is None
    for change in (
        {"concurrencies": [4]},
        {"requests_per_concurrency": 5},
        {"load_max_tokens": 9},
        {"prompts": QUICK.prompts[:1]},
    ):
        assert load_of(changed(**change)) != load_of(QUICK)
    assert load_of(changed(concurrencies=[3, 2])) == load_of(QUICK)


class Overloaded(Engine):
    """Cuts every fourth stream of the load short."""

    def stream(self, question: dict[str, Any]) -> Reply:
        status, kind, pieces = super().stream(question)
        loaded = sum(1 for asked in self.asked if asked.get("ignore_eos"))
        return status, kind, [*pieces[:3], CUT] if loaded % 4 == 1 else pieces


def test_errors_under_load_do_not_pass() -> None:
    found = judged(Overloaded())
    assert len(found["reasons"]) == 2
    assert found["reasons"][0].startswith(
        "1 of 4 requests failed with 1 at once (max_error_rate 0): the stream broke off"
    )
    assert [row["errors"] for row in found["figures"]["load"]] == [1, 1]


def test_as_many_errors_as_are_allowed_pass() -> None:
    assert judged(Overloaded(), validation=changed(thresholds=Thresholds(max_error_rate=0.25)))["passed"]


# -- the Job ------------------------------------------------------------------------------------------------


def job(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.validate_server", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(("engine", "passed"), [(Engine(), True), (AnotherModel(), False)])
def test_the_jobs_last_line_is_the_verdict_and_either_is_a_success(engine: Engine, passed: bool) -> None:
    with served(engine) as url:
        ended = job(plan(url).model_dump_json())
    assert (ended.returncode, ended.stderr) == (0, "")
    *progress, last = ended.stdout.splitlines()
    assert json.loads(last)["passed"] is passed
    assert progress[:2] == ["/health", "/v1/models"]
    assert not any(line.startswith("{") for line in progress)


def test_a_job_that_is_asked_wrongly_crashes() -> None:
    assert job('{"url": "http://127.0.0.1:1"}').returncode == 2


def test_a_verdict_stays_one_line_that_a_log_can_hold() -> None:
    class Talkative(Engine):
        words = ("대한민국 " * 2_000,)  # type: ignore[assignment]

    prompts = [Prompt(content=f"{number} " + "질문 " * 1000) for number in range(24)]
    found = judged(Talkative(), validation=changed(prompts=prompts, concurrencies=[1]))
    assert found["passed"]
    assert len(json.dumps(found)) < 300_000
    patterned = [prompt.model_copy(update={"pattern": "[0-9]" * 500}) for prompt in prompts]
    found = judged(Talkative(), validation=changed(prompts=patterned))
    assert not found["passed"]
    assert len(json.dumps(found)) < 300_000
