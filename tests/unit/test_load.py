"""The load's figures: the definitions of `vllm bench serve`, computed by hand here."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest

from components.validate_server.checks import Plan, connected
from components.validate_server.load import milliseconds, row, run_round
from serving.clients.engine import Answer
from serving.settings import Validation
from tests.unit.engine import MODEL, WORDS, Engine, Reply, served


def answer(*times: float, sent: float = 10.0, tokens: int | None = None) -> Answer:
    return Answer("text", "length", 5, len(times) if tokens is None else tokens, sent, [sent + time for time in times])


def test_the_times_of_one_answer() -> None:
    one = answer(0.5, 0.6, 0.9)
    assert one.ttft == pytest.approx(0.5)
    assert one.itl == pytest.approx([0.1, 0.3])
    assert one.e2e == pytest.approx(0.9)
    assert one.tpot == pytest.approx(0.2)


def test_time_per_token_counts_tokens_and_not_chunks() -> None:
    assert answer(0.5, 0.9, tokens=5).tpot == pytest.approx(0.1)
    assert answer(0.5).tpot is None


def test_a_row_is_over_all_good_answers() -> None:
    figures = row(2, [answer(0.1, 0.2), answer(0.3, 0.5)], Counter({"broke off": 2, "500": 1}), 2.0)
    assert (figures["requests"], figures["errors"]) == (5, 3)
    assert figures["failures"] == ["broke off (2 times)", "500 (1 times)"]
    assert (figures["output_tokens"], figures["tokens_per_second"]) == (4, 2.0)
    assert figures["ttft_ms"]["p50"] == pytest.approx(200)
    assert figures["itl_ms"]["p50"] == pytest.approx(150)


def test_a_round_without_an_answer_has_zeros() -> None:
    figures = row(1, [], Counter({"500": 4}), 1.0)
    assert (figures["errors"], figures["tokens_per_second"]) == (4, 0.0)
    assert figures["e2e_ms"] == {"p50": 0.0, "p95": 0.0, "p99": 0.0}


@pytest.mark.parametrize("count", [1, 2, 3, 20, 999])
def test_percentiles_are_numpys(count: int) -> None:
    values = np.random.default_rng(count).lognormal(size=count)
    expected = {f"p{p}": pytest.approx(np.percentile(values, p) * 1000, abs=1e-3) for p in (50, 95, 99)}
    assert milliseconds(iter(values.tolist())) == expected


class Watched(Engine):
    """Counts the streams that are open at once."""

    pause = 0.05

    def __init__(self, gather: int = 1) -> None:
        super().__init__()
        self.lock, self.open, self.most = threading.Lock(), 0, 0
        self.gathered = threading.Barrier(gather, timeout=60)
        """No stream goes on before so many are open."""

    def stream(self, question: dict[str, Any]) -> Reply:
        status, kind, pieces = super().stream(question)

        def counted() -> Any:
            with self.lock:
                self.open += 1
                self.most = max(self.most, self.open)
            self.gathered.wait()
            yield from pieces[:-1]
            with self.lock:
                self.open -= 1
            yield pieces[-1]

        return status, kind, counted()


def load(engine: Engine, *, concurrency: int = 4, requests: int = 12) -> dict[str, Any]:
    async def run(url: str) -> dict[str, Any]:
        plan = Plan(url=url, model=MODEL, request_seconds=60, validation=Validation(concurrencies=[concurrency]))
        async with connected(plan, None) as servers:
            return await run_round(servers, ["Why?"], requests=requests, max_tokens=8, say=lambda line: None)

    with served(engine) as url:
        return asyncio.run(run(url))


def test_a_round_keeps_its_places_taken() -> None:
    engine = Watched()
    figures = load(engine)
    assert engine.most == 4
    assert (figures["requests"], figures["output_tokens"]) == (12, 12 * len(WORDS))
    # The engine writes a piece every 50 ms at best; the first, its role, counts as the first token's arrival.
    assert figures["itl_ms"]["p50"] >= 40
    assert figures["e2e_ms"]["p50"] >= figures["ttft_ms"]["p50"] + len(WORDS) * 40


def test_a_round_has_a_request_for_every_place() -> None:
    engine = Watched(gather=6)
    assert load(engine, concurrency=6, requests=2)["requests"] == 6
    assert engine.most == 6
