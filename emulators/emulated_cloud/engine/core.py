"""The engine core's outside: which sequences run, which wait, how fast tokens come, and what the metrics say of it."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from emulated_cloud.engine.metrics import Metrics
from emulated_cloud.engine.sampling import Output

BLOCK = 16
KV_CACHE_TOKENS = 1 << 18
"""Tokens that the emulated KV cache holds (a longer model's context fits once)."""


class QueueOverflow(Exception):
    """More requests are in flight than `--max-num-queued-reqs` allows."""


@dataclass(eq=False)
class Sequence:
    """One answer in the making. adapter: the LoRA adapter's name, or None for the base model."""

    prompt_ids: list[int]
    max_tokens: int
    adapter: str | None = None
    n: int = 1
    generated: int = 0
    slot: asyncio.Future[None] | None = None
    arrived: float = 0.0


class EngineCore:
    """Runs at most `max_num_seqs` sequences, of at most `max_loras` adapters, at once; the rest wait in order.

    tokens_per_second: of each sequence; 0 is as fast as the machine can.
    """

    def __init__(
        self,
        metrics: Metrics,
        max_num_seqs: int,
        max_queued: int | None,
        max_loras: int,
        max_model_len: int,
        tokens_per_second: float,
        prefix_caching: bool,
    ):
        self.metrics = metrics
        self.max_num_seqs, self.max_queued, self.max_loras = max_num_seqs, max_queued, max_loras
        self.tokens_per_second = tokens_per_second
        self.kv_blocks = max(KV_CACHE_TOKENS, max_model_len) // BLOCK
        self.running: set[Sequence] = set()
        self.waiting: deque[Sequence] = deque()
        self.in_flight = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.prefixes: OrderedDict[int, None] | None = OrderedDict() if prefix_caching else None
        metrics.running.set_function(lambda: len(self.running))
        metrics.waiting.set_function(lambda: len(self.waiting))
        metrics.waiting_for_capacity.set_function(lambda: len(self.waiting) - self.deferred())
        metrics.waiting_deferred.set_function(self.deferred)
        metrics.kv_usage.set_function(self.kv_usage)
        metrics.adapters = lambda: (self.adapters_of(self.running), self.adapters_of(self.waiting))

    @staticmethod
    def adapters_of(sequences: set[Sequence] | deque[Sequence]) -> set[str]:
        return {sequence.adapter for sequence in sequences if sequence.adapter}

    def deferred(self) -> int:
        """How many of the waiting would run, had their adapter a place."""
        if len(self.running) >= self.max_num_seqs:
            return 0
        return len(self.waiting)

    def kv_usage(self) -> float:
        """The share of the KV cache that running sequences hold, 0 to 1."""
        blocks = sum(-(-(len(sequence.prompt_ids) + sequence.generated) // BLOCK) for sequence in self.running)
        return min(blocks / self.kv_blocks, 1.0)

    @contextmanager
    def admitted(self, sequences: int) -> Iterator[None]:
        """Counts a request as in flight (once for each of its sequences, as vLLM does). Raises QueueOverflow."""
        if self.max_queued is not None and self.in_flight + sequences > self.max_queued:
            self.metrics.rejections.inc()
            raise QueueOverflow(
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance."
            )
        self.in_flight += sequences
        self.idle.clear()
        try:
            yield
        finally:
            self.in_flight -= sequences
            if not self.in_flight:
                self.idle.set()

    async def generate(self, sequence: Sequence, outputs: Iterator[Output]) -> AsyncGenerator[Output, None]:
        """The outputs, each when it is due. Closing the iterator aborts the sequence."""
        metrics, period = self.metrics, 1 / self.tokens_per_second if self.tokens_per_second else 0.0
        sequence.arrived = time.monotonic()
        try:
            await self._slot(sequence)
            scheduled = last = time.monotonic()
            metrics.queue_time.observe(scheduled - sequence.arrived)
            self._prefill(sequence)
            first = 0.0
            for output in outputs:
                # Sleeping for nothing lets the other sequences have their turn.
                await asyncio.sleep(max(scheduled + (sequence.generated + 1) * period - time.monotonic(), 0))
                now = time.monotonic()
                sequence.generated += 1
                metrics.generation_tokens.inc()
                if sequence.generated == 1:
                    first = now
                    metrics.time_to_first_token.observe(now - sequence.arrived)
                else:
                    metrics.inter_token_latency.observe(now - last)
                last = now
                if output.finish_reason:
                    self._finished(sequence, output.finish_reason, scheduled, first, now)
                yield output
        finally:
            self._release(sequence)

    async def _slot(self, sequence: Sequence) -> None:
        """Waits until the sequence may run."""
        sequence.slot = asyncio.get_running_loop().create_future()
        self.waiting.append(sequence)
        self._schedule()
        await sequence.slot

    def _schedule(self) -> None:
        """Lets waiting sequences run, in order; one whose adapter has no place lets others pass."""
        adapters = self.adapters_of(self.running)
        skipped: deque[Sequence] = deque()
        while self.waiting and len(self.running) < self.max_num_seqs:
            sequence = self.waiting.popleft()
            if sequence.adapter and len(adapters | {sequence.adapter}) > self.max_loras:
                skipped.append(sequence)
                continue
            if sequence.adapter:
                adapters.add(sequence.adapter)
            self.running.add(sequence)
            if sequence.slot and not sequence.slot.done():
                sequence.slot.set_result(None)
        self.waiting.extendleft(reversed(skipped))

    def _release(self, sequence: Sequence) -> None:
        self.running.discard(sequence)
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        self._schedule()

    def _prefill(self, sequence: Sequence) -> None:
        """Counts the prompt, and which of its full blocks were seen before."""
        metrics, prompt = self.metrics, sequence.prompt_ids
        metrics.prompt_tokens.inc(len(prompt))
        if self.prefixes is None:
            return
        metrics.prefix_queries.inc(len(prompt))
        key = hash(sequence.adapter)
        for start in range(0, len(prompt) - BLOCK, BLOCK):
            key = hash((key, *prompt[start : start + BLOCK]))
            if key in self.prefixes:
                metrics.prefix_hits.inc(BLOCK)
                self.prefixes.move_to_end(key)
            else:
                self.prefixes[key] = None
        while len(self.prefixes) > self.kv_blocks:
            self.prefixes.popitem(last=False)

    def _finished(self, sequence: Sequence, reason: str, scheduled: float, first: float, now: float) -> None:
        metrics = self.metrics
        metrics.finished[reason].inc()
        metrics.request_prompt_tokens.observe(len(sequence.prompt_ids))
        metrics.request_generation_tokens.observe(sequence.generated)
        metrics.request_max_tokens.observe(sequence.max_tokens)
        metrics.request_n.observe(sequence.n)
        metrics.e2e.observe(now - sequence.arrived)
        metrics.inference_time.observe(now - scheduled)
        metrics.prefill_time.observe(first - scheduled)
        metrics.decode_time.observe(now - first)
        if sequence.generated > 1:
            metrics.time_per_output_token.observe((now - first) / (sequence.generated - 1))
