"""What two generations' figures say of each other: errors, first tokens, too little traffic, pods that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import httpx
import pytest

from components.promote_generation import compare as comparing
from components.promote_generation.compare import Side, compare
from components.promote_generation.plan import WORSE, Plan
from serving.clients import engine
from serving.clients.engine import Served

PLAN = Plan(
    step=1,
    percent=10,
    live="g1",
    candidate="g2",
    pods={"g1": ["10.0.0.1"], "g2": ["10.0.0.2"]},
    seconds=0.3,
    held=0.3,
    max_error_rate=0.02,
    max_p95_first_token_ratio=2.0,
    min_requests=50,
)


def page(
    *,
    finished: int = 0,
    errors: int = 0,
    answered: int = 0,
    refused: int = 0,
    rejected: int = 0,
    fast: int = 0,
    slow: int = 0,
) -> str:
    """Metrics of an engine: `fast` first tokens within 20 ms, `slow` ones within 250 ms."""
    own = 'engine="0",model_name="m"'
    return f"""# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{own}}} 1.0
vllm:request_success_total{{{own},finished_reason="stop"}} {finished - errors}.0
vllm:request_success_total{{{own},finished_reason="error"}} {errors}.0
vllm:admission_rejections_total{{model_name="m",reason="max_num_queued_reqs"}} {rejected}.0
http_requests_total{{handler="/v1/chat/completions",method="POST",status="2xx"}} {answered - refused}.0
http_requests_total{{handler="/v1/chat/completions",method="POST",status="5xx"}} {refused}.0
http_requests_total{{handler="/v1/models",method="GET",status="2xx"}} 1000.0
http_requests_total{{handler="/tokenize",method="POST",status="5xx"}} 1000.0
vllm:time_to_first_token_seconds_bucket{{{own},le="0.01"}} 0.0
vllm:time_to_first_token_seconds_bucket{{{own},le="0.02"}} {fast}.0
vllm:time_to_first_token_seconds_bucket{{{own},le="0.1"}} {fast}.0
vllm:time_to_first_token_seconds_bucket{{{own},le="0.25"}} {fast + slow}.0
vllm:time_to_first_token_seconds_bucket{{{own},le="+Inf"}} {fast + slow}.0
vllm:time_to_first_token_seconds_count{{{own}}} {fast + slow}.0
"""


def client(pages: dict[str, Iterator[str | Exception]]) -> httpx.Client:
    def answer(request: httpx.Request) -> httpx.Response:
        found = next(pages[request.url.host])
        if isinstance(found, Exception):
            raise found
        return httpx.Response(200, text=found)

    return httpx.Client(transport=httpx.MockTransport(answer))


def always(text: str) -> Iterator[str]:
    return (text for _ in count())


def served(text: str) -> Served:
    with client({"10.0.0.1": always(text)}) as http:
        found = engine.served(http, "10.0.0.1")
    assert found
    return found


def test_a_request_that_both_parts_of_the_engine_count_is_one():
    found = served(page(finished=100, errors=3, answered=101, refused=4))
    assert (found.requests, found.errors) == (101, 4)
    assert served(page(finished=100, errors=3)).errors == 3, "a stream that breaks off has answered 200"
    assert (served(page(finished=10, rejected=5)).requests, served(page(finished=10, rejected=5)).errors) == (15, 5)


def test_a_percentile_lies_inside_of_its_bucket():
    found = served(page(fast=90, slow=10))
    assert found.first_tokens == 100
    assert found.first_token(0.5) == pytest.approx(0.01 + 0.01 * 50 / 90)
    assert found.first_token(0.95) == pytest.approx(0.1 + 0.15 * 0.5)
    assert served(page()).first_token(0.95) is None
    assert Served(below=((0.01, 0), (float("inf"), 9))).first_token(0.95) == 0.01


def look(side: Side, *pages: str | Exception) -> Served:
    with client({"10.0.0.1": iter(pages)}) as http:
        for _ in pages:
            side.look(http)
    return side.served


def test_what_was_counted_before_the_step_does_not_count():
    found = look(
        Side(["10.0.0.1"]), page(finished=100, errors=50, fast=100), page(finished=130, errors=51, fast=129, slow=1)
    )
    assert (found.requests, found.errors, found.first_tokens) == (30, 1, 30)


def test_a_pod_that_started_again_counts_from_nothing():
    found = look(Side(["10.0.0.1"]), page(finished=100, fast=100), page(finished=7, errors=2, fast=5))
    assert (found.requests, found.errors, found.first_tokens) == (7, 2, 5)


def test_a_pod_that_is_gone_keeps_what_it_said_last():
    gone = httpx.ConnectError("[Errno 111] Connection refused")
    found = look(Side(["10.0.0.1"]), page(), page(finished=20), gone)
    assert found.requests == 20


OTHER = served(page(finished=1000, fast=1000))


@pytest.mark.parametrize(
    ("candidate", "live", "words"),
    [
        (page(finished=100, errors=6, fast=94), OTHER, ""),
        (page(finished=100, errors=7, fast=93), OTHER, "7 of its 100 requests failed, and 0 of 1000 of g1"),
        (page(finished=5, errors=3), OTHER, ""),
        (page(finished=5, errors=4), OTHER, "4 of its 5 requests failed"),
        (page(answered=5, refused=5), OTHER, "5 of its 5 requests failed"),
        (page(finished=100, errors=15), served(page(finished=1000, errors=80)), ""),
        (page(finished=10_000, errors=300), OTHER, "300 of its 10000 requests failed"),
        (page(fast=100, slow=3, finished=103), OTHER, ""),
        (page(fast=80, slow=20, finished=100), OTHER, r"first token within 213 ms, 10.9 times the 20 ms of g1"),
        (page(fast=93, slow=7, finished=100), OTHER, ""),
        (page(fast=20, slow=20, finished=40), OTHER, ""),
        (page(fast=80, slow=20, finished=100), served(page(fast=10, finished=10)), ""),
    ],
    ids=[
        "as many errors as allowed, and as chance explains",
        "more",
        "a few, and others may go well",
        "too many whatever comes",
        "before the engine has them",
        "no worse than the live one",
        "of many requests chance explains little",
        "a few slow ones",
        "slow",
        "slow by chance",
        "slow, too few to tell",
        "slow, too few to compare with",
    ],
)
def test_worse(candidate: str, live: Served, words: str):
    found = comparing.worse(PLAN, served(candidate), live)
    assert len(found) == (1 if words else 0), found
    if words:
        assert words in found[0]


@pytest.mark.parametrize(("longer", "reasons"), [(1, 0), (10, 1)])
def test_a_first_token_that_nobody_waits_for_is_not_late(longer: int, reasons: int):
    """20 ms instead of 2 are what a busy machine does to a small model; 200 ms instead of 20 are another matter."""
    late = Served(finished=100, below=((0.002 * longer, 0), (0.02 * longer, 100), (float("inf"), 100)))
    live = Served(finished=100, below=((0.001 * longer, 0), (0.002 * longer, 100), (float("inf"), 100)))
    assert len(comparing.worse(PLAN, late, live)) == reasons


def test_latency_is_not_judged_where_nobody_asks_for_it():
    plan = PLAN.model_copy(update={"max_p95_first_token_ratio": 0.0})
    assert comparing.worse(plan, served(page(fast=80, slow=20, finished=100)), OTHER) == []
    assert comparing.too_little(plan, served(page(finished=100)), served(page())) == []


def run(monkeypatch: pytest.MonkeyPatch, live: Iterator[str], candidate: Iterator[str]) -> tuple[dict, list[str]]:
    monkeypatch.setattr(engine, "direct", lambda: client({"10.0.0.1": live, "10.0.0.2": candidate}))
    said: list[str] = []
    return compare(PLAN, look_every=0.01, say=said.append), said


def growing(**each: int) -> Iterator[str]:
    return (page(**{key: number * value for key, value in each.items()}) for number in count())


def test_a_step_without_a_difference_passes_with_its_figures(monkeypatch: pytest.MonkeyPatch):
    result, said = run(monkeypatch, growing(finished=90, fast=90), growing(finished=10, fast=10))
    assert result["verdict"] == "passed"
    assert result["reasons"] == []
    assert result["candidate"]["requests"] >= 50
    assert result["candidate"]["p95_first_token_ms"] == result["live"]["p95_first_token_ms"] == 19.5
    assert said[0].startswith("10 % to g2: 0 s of 0 s, 0 requests, 0 errors")


def test_a_breach_ends_the_step_at_once(monkeypatch: pytest.MonkeyPatch):
    plan = PLAN.model_copy(update={"seconds": 60.0, "held": 60.0})
    sides = {"10.0.0.1": growing(finished=9, fast=9), "10.0.0.2": growing(finished=2, errors=1, fast=1)}
    monkeypatch.setattr(engine, "direct", lambda: client(sides))  # type: ignore[arg-type]
    said: list[str] = []
    result = compare(plan, look_every=0.01, say=said.append)
    assert result["verdict"] == "failed"
    assert result["seconds"] < 5
    assert said[-1] == WORSE + "; ".join(result["reasons"])
    assert "4 of its 8 requests failed" in said[-1]


def test_too_little_traffic_is_no_verdict(monkeypatch: pytest.MonkeyPatch):
    result, _ = run(monkeypatch, growing(finished=9, fast=9), always(page(finished=40, fast=40)))
    assert result["verdict"] == "too-little"
    assert result["reasons"] == ["g2 had 0 requests, fewer than canary.min_requests (50)"]


def test_a_generation_that_never_answered_teaches_nothing(monkeypatch: pytest.MonkeyPatch):
    gone = (httpx.ConnectError("refused") for _ in count())
    with pytest.raises(SystemExit, match=r"no pod of g2 answered with its metrics: 10\.0\.0\.2"):
        run(monkeypatch, growing(finished=9), gone)  # type: ignore[arg-type]
