"""What a generation has to show, in order, and the verdict: every reason against it in words."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from contextlib import AbstractAsyncContextManager
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.validate_server import through
from components.validate_server.load import run_round
from components.validate_server.through import Through
from serving.clients import engine
from serving.clients.engine import Answer, BadAnswer, Server
from serving.log import Say
from serving.settings import Prompt, Thresholds, Validation, in_seconds

REACH_SECONDS = 30.0
"""How long a Service's new endpoint may take to be known on every node."""
_SHOWN = 20
"""Reasons and answers that the verdict holds at most: it is one line of a log (serving/deployment/job.py)."""
_SHOWN_LENGTH = 600


class Live(BaseModel):
    """What the live generation's own validation measured under the same load (serving/deployment/record.py)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    generation: str
    tokens_per_second: float
    p95_time_to_first_token_ms: float
    p95_inter_token_latency_ms: float


class Plan(BaseModel):
    """What the Job is asked to do: its one argument, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """The generation's own Service."""
    model: str
    """The name that the engine must go by."""
    adapters: list[str] = []
    """The names of its LoRA adapters, each a model of the same server."""
    in_service: bool = False
    """It serves users already: one question, and no load beside theirs."""
    request_seconds: float
    """The longest that a request may take."""
    validation: Validation
    live: Live | None = None
    """What the thresholds that are relative are relative to."""
    through: Through | None = None
    """The load balancer that it is asked through as well; None where clients come in by none."""
    reach_seconds: float = REACH_SECONDS


async def verdict(plan: Plan, api_key: str | None, say: Say) -> dict[str, Any]:
    """Judges the server: `{"passed", "reasons": [words], "undecided": [words], "warnings": [words], "answer":
    {"prompt", "text"} | None, "figures": {"chat": [{"prompt", "text", "finish_reason", "completion_tokens"}],
    "adapters": [the same, "name" and "differs"], "streaming": {"ttft_ms", "chunks", …} | None, "load": [row of
    load.py]}, "through": what through.ask says | None}`. `reasons` are against the release, `undecided` is what the
    settings did not let it show. The load runs only against a server that has answered well so far, and the load
    balancer is asked for one that has shown all."""
    checks = _Checks(plan, say)
    try:
        async with asyncio.timeout(in_seconds(plan.validation.timeout)), connected(plan, api_key) as servers:
            await checks.run(servers)
    except TimeoutError:
        checks.reasons.append(
            f"the checks were not done after validation.timeout ({plan.validation.timeout}), but at: {checks.at}"
        )
    by_the_way = None
    if plan.through and not checks.reasons and not checks.undecided:
        by_the_way = await through.ask(
            plan.through,
            plan.model,
            plan.adapters,
            api_key=api_key,
            request_seconds=plan.request_seconds,
            direct=checks.streamed,
            say=say,
        )
        checks.warnings += by_the_way["warnings"]
    return {
        "passed": not checks.reasons and not checks.undecided,
        **{
            key: [_cut(words) for words in getattr(checks, key)[:_SHOWN]]
            for key in ("reasons", "undecided", "warnings")
        },
        "answer": checks.answer,
        "figures": checks.figures,
        "through": by_the_way,
    }


def connected(plan: Plan, api_key: str | None) -> AbstractAsyncContextManager[list[Server]]:
    """The server, over as many clients as there will be streams at once."""
    clients = 1 if plan.in_service else max(plan.validation.concurrencies)
    return engine.connected(plan.url, plan.model, api_key=api_key, seconds=plan.request_seconds, clients=clients)


class _Checks:
    def __init__(self, plan: Plan, say: Say):
        self._plan, self._say = plan, say
        self.at = ""
        self.reasons: list[str] = []
        self.undecided: list[str] = []
        self.warnings: list[str] = []
        self.answer: dict[str, str] | None = None
        self.figures: dict[str, Any] = {"chat": [], "adapters": [], "streaming": None, "load": []}
        self.streamed: Answer | None = None
        self._of_base: list[Answer] = []

    async def run(self, servers: list[Server]) -> None:
        wanted, server = self._plan.validation, servers[0]
        try:
            self._begin("/health")
            await self._reach(server)
            self._begin("/v1/models")
            await server.models()
        except BadAnswer as error:
            self.reasons.append(str(error))
            return  # What does not answer, or is another model, has nothing more to show.
        in_service = self._plan.in_service
        for prompt in wanted.prompts[:1] if in_service else wanted.prompts:
            self._begin(f"the prompt {_cut(prompt.content, 60)!r}")
            try:
                await self._ask(server, prompt)
            except BadAnswer as error:
                self.reasons.append(f"{_cut(prompt.content, 60)!r}: {error}")
        for name in self._plan.adapters:
            self._begin(f"the adapter {name}")
            try:
                await self._ask_adapter(server.named(name), name)
            except BadAnswer as error:
                self.reasons.append(f"the adapter {name}: {error}")
        if self.reasons or self.undecided or in_service:
            return
        for concurrency in wanted.concurrencies:
            self._begin(f"load: {concurrency} at once")
            row = await run_round(
                servers[:concurrency],
                [prompt.content for prompt in wanted.prompts],
                requests=wanted.requests_per_concurrency,
                max_tokens=wanted.load_max_tokens,
                say=self._say,
            )
            row["failures"] = [_cut(failure) for failure in row["failures"]]
            self.figures["load"].append(row)
            self._say(
                f"load: {concurrency} at once, {row['tokens_per_second']:.0f} tokens/s, first token "
                f"{row['ttft_ms']['p95']:.1f} ms, next {row['itl_ms']['p95']:.2f} ms (p95), {row['errors']} errors"
            )
        self.reasons += broken(wanted.thresholds, self.figures["load"], self._plan.live)

    def _begin(self, what: str) -> None:
        self.at = what
        self._say(what)

    async def _reach(self, server: Server) -> None:
        """/health, with patience for a Service that is new."""
        give_up = time.monotonic() + self._plan.reach_seconds
        while True:
            try:
                return await server.health()
            except BadAnswer:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.5)  # There is no way to be told.

    async def _ask(self, server: Server, prompt: Prompt) -> None:
        """One prompt: whole, again, and as a stream. Raises BadAnswer.

        Each has to be an answer, not the same one: without batch invariance vLLM promises no more, since other
        kernels (a prefix from the cache, other requests in the batch) tip near ties between two tokens.
        """
        max_tokens, question = self._plan.validation.max_tokens, _cut(prompt.content, 60)
        answer, again = [await server.chat(prompt.content, max_tokens) for _ in range(2)]
        self._show(prompt, answer)
        self._of_base.append(answer)
        streamed = await server.stream(prompt.content, max_tokens)
        self.streamed = self.streamed or streamed
        for other, how in ((again, "asked again"), (streamed, "streamed")):
            if (other.text, other.thought) != (answer.text, answer.thought):
                self._warn(
                    f"{question!r}: {how} at temperature 0, the answer is another one: {_cut(_said(other), 80)!r}, "
                    f"not {_cut(_said(answer), 80)!r}"
                )
                break
        thinking = f"{question!r}: the model was still thinking when validation.max_tokens ({max_tokens}) cut it short"
        if prompt.pattern and not answer.text:
            self.undecided.append(f"{thinking}, so that nothing could match {prompt.pattern!r}: raise it")
        elif not answer.text:
            self._warn(f"{thinking}; more of them show an answer")
        elif prompt.pattern and not re.search(prompt.pattern, answer.text):
            raise BadAnswer(f"the answer does not match {prompt.pattern!r}: {_cut(answer.text, 200)!r}")
        self.figures["streaming"] = self.figures["streaming"] or {
            "ttft_ms": round(streamed.ttft * 1000, 3),
            "mean_itl_ms": round(1000 * sum(streamed.itl) / len(streamed.itl), 3) if streamed.itl else 0.0,
            "chunks": len(streamed.times),
            "completion_tokens": streamed.completion_tokens,
        }

    async def _ask_adapter(self, server: Server, name: str) -> None:
        """The questions, whose patterns are for the model itself, until one is answered otherwise than by the model.
        Raises BadAnswer.

        An adapter that answers all of them as the model does may still be a good one: it is told, and no more.
        """
        await server.models()
        differs = False
        for prompt, of_base in zip(self._plan.validation.prompts, self._of_base, strict=False):
            answer = await server.chat(prompt.content, self._plan.validation.max_tokens)
            differs = (answer.text, answer.thought) != (of_base.text, of_base.thought)
            if differs:
                break
        if not self._of_base:
            prompt = self._plan.validation.prompts[0]
            answer = await server.chat(prompt.content, self._plan.validation.max_tokens)
        elif not differs:
            self._warn(f"the adapter {name} answers each of the prompts as the model does: it may do nothing to them")
        if len(self.figures["adapters"]) < _SHOWN:
            self.figures["adapters"].append({"name": name, "differs": differs, **_shown(prompt, answer)})

    def _warn(self, words: str) -> None:
        self.warnings.append(words)
        self._say(f"warning: {words}")

    def _show(self, prompt: Prompt, answer: Answer) -> None:
        shown = _shown(prompt, answer)
        self.answer = self.answer or {key: shown[key] for key in ("prompt", "text")}
        if len(self.figures["chat"]) < _SHOWN:
            self.figures["chat"].append(shown)


def _shown(prompt: Prompt, answer: Answer) -> dict[str, Any]:
    return {
        "prompt": _cut(prompt.content),
        "text": _cut(_said(answer)),
        "finish_reason": answer.finish_reason,
        "completion_tokens": answer.completion_tokens,
    }


def _said(answer: Answer) -> str:
    return answer.text or f"(thinking) {answer.thought}"


def load_of(validation: Validation) -> str:
    """Digest of the load at the highest concurrency: figures of another one compare with nothing."""
    load = [max(validation.concurrencies), validation.requests_per_concurrency, validation.load_max_tokens]
    text = json.dumps([*load, *(prompt.content for prompt in validation.prompts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def measured(validation: Validation, rows: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What the record keeps of the load, at the highest concurrency; None where there was none."""
    if not rows:
        return None
    row = max(rows, key=lambda row: row["concurrency"])
    return {
        "load": load_of(validation),
        "tokens_per_second": row["tokens_per_second"],
        "p95_time_to_first_token_ms": row["ttft_ms"]["p95"],
        "p95_inter_token_latency_ms": row["itl_ms"]["p95"],
    }


def broken(thresholds: Thresholds, rows: list[dict[str, Any]], live: Live | None = None) -> list[str]:
    """The thresholds that the load broke: errors in any round, the rest at the highest concurrency."""
    reasons = []
    for row in rows:
        if row["errors"] / row["requests"] > thresholds.max_error_rate:
            reasons.append(
                f"{row['errors']} of {row['requests']} requests failed with {row['concurrency']} at once "
                f"(max_error_rate {thresholds.max_error_rate:g}): " + "; ".join(row["failures"])
            )
    row = max(rows, key=lambda row: row["concurrency"])
    at_once = f"with {row['concurrency']} at once"
    fastest = thresholds.min_tokens_per_second
    if fastest is not None and row["tokens_per_second"] < fastest:
        reasons.append(
            f"{row['tokens_per_second']:.1f} tokens a second {at_once}, fewer than min_tokens_per_second ({fastest:g})"
        )
    share = thresholds.min_tokens_per_second_ratio
    if live and share is not None and row["tokens_per_second"] < share * live.tokens_per_second:
        reasons.append(
            f"{row['tokens_per_second']:.1f} tokens a second {at_once}, and {live.generation}, which is live, brought "
            f"{live.tokens_per_second:.1f}: fewer than min_tokens_per_second_ratio ({share:g}) allows"
        )
    for what, took, name in (
        ("the first token", row["ttft_ms"]["p95"], "p95_time_to_first_token"),
        ("the next token", row["itl_ms"]["p95"], "p95_inter_token_latency"),
    ):
        limit = getattr(thresholds, f"max_{name}_ms")
        if limit is not None and took > limit:
            reasons.append(f"{what} took {took:.1f} ms at p95 {at_once}, more than max_{name}_ms ({limit:g})")
        ratio, of_live = getattr(thresholds, f"max_{name}_ratio"), live and getattr(live, f"{name}_ms")
        # Where there was nothing to measure, answers of one token say, its figure is 0.
        if live and ratio is not None and of_live and took > ratio * of_live:
            reasons.append(
                f"{what} took {took:.1f} ms at p95 {at_once}, and {of_live:.1f} ms of {live.generation}, which is "
                f"live: more than max_{name}_ratio ({ratio:g}) allows"
            )
    return reasons


def _cut(text: str, length: int = _SHOWN_LENGTH) -> str:
    return text if len(text) <= length else text[:length] + "…"
