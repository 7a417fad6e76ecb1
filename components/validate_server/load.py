"""The load: streams at several concurrencies, and what `vllm bench serve` would say of them.

Throughput counts tokens as the server's usage does, not chunks. TTFT, ITL, TPOT and end-to-end latency are defined in
serving/clients/engine.py; percentiles interpolate linearly between the closest ranks (numpy's default, which vLLM
uses), over all good answers of a round; as there, 0 stands for "nothing to measure". One core keeps up with some 15,000
tokens a second (`python -m tests.bench.load`), so below that the figures are the server's.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from serving.clients.engine import Answer, BadAnswer, Server
from serving.log import Say

PERCENTILES = (50, 95, 99)


async def run_round(
    servers: Sequence[Server], prompts: Sequence[str], *, requests: int, max_tokens: int, say: Say
) -> dict[str, Any]:
    """One round: `requests` streams (at least one for each place), as many at once as there are `servers`, all of them
    the same one over a client each.

    Every request has a question of its own, or the prefix cache would answer; and its answer has `max_tokens` tokens,
    the end-of-sequence token ignored, so that rounds are comparable. Returns a row of figures (`row`).
    """
    concurrency = len(servers)
    requests = max(requests, concurrency)
    numbers = iter(range(requests))
    answers: list[Answer] = []
    failures: Counter[str] = Counter()

    async def work(server: Server) -> None:
        for number in numbers:
            prompt = f"{number + 1} of {requests}, {concurrency} at once. {prompts[number % len(prompts)]}"
            try:
                answers.append(await server.stream(prompt, max_tokens, ignore_eos=True))
            except BadAnswer as error:
                failures[str(error)] += 1

    async def report() -> None:
        while True:
            await asyncio.sleep(3)
            say(f"load: {concurrency} at once, {len(answers) + failures.total()} of {requests} requests")

    reporting = asyncio.create_task(report())
    started = time.perf_counter()
    try:
        await asyncio.gather(*map(work, servers))
    finally:
        reporting.cancel()
    return row(concurrency, answers, failures, time.perf_counter() - started)


def row(concurrency: int, answers: list[Answer], failures: Counter[str], seconds: float) -> dict[str, Any]:
    """The figures of a round that took `seconds`; `*_ms` are {p50, p95, p99} in milliseconds."""
    tokens = sum(answer.completion_tokens for answer in answers)
    return {
        "concurrency": concurrency,
        "requests": len(answers) + failures.total(),
        "errors": failures.total(),
        "failures": [f"{words} ({times} times)" for words, times in failures.most_common(3)],
        "seconds": round(seconds, 3),
        "output_tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "ttft_ms": milliseconds(answer.ttft for answer in answers),
        "itl_ms": milliseconds(gap for answer in answers for gap in answer.itl),
        "tpot_ms": milliseconds(answer.tpot for answer in answers if answer.tpot is not None),
        "e2e_ms": milliseconds(answer.e2e for answer in answers),
    }


def milliseconds(samples: Iterator[float]) -> dict[str, float]:
    """p50, p95 and p99 of times in seconds, in milliseconds."""
    values = list(samples) or [0.0]
    # quantiles() wants two values at least; one value doubled has the percentiles of the one.
    cuts = statistics.quantiles(values if len(values) > 1 else values * 2, n=100, method="inclusive")
    return {f"p{percentile}": round(cuts[percentile - 1] * 1000, 3) for percentile in PERCENTILES}
