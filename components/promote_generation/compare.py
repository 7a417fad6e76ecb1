"""What two generations' own figures say of each other while both serve: the part of a canary that runs in the cluster.

A pod's engine counts since it started, so a step's figures are differences: each of the pods that there were when the
step began counts from the first look at it to the last, and one that started again, from nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from components.promote_generation.plan import WORSE, Plan
from serving.clients import engine
from serving.clients.engine import Served

if TYPE_CHECKING:
    import httpx

_BY_CHANCE = 3.0
"""Standard deviations."""
_UNNOTICED_SECONDS = 0.05
"""Who has a first token as soon as that has not waited. Of so short a time, what else its machine does is the larger
part: with small models on a busy one it is many times the other's."""
_SAY_TIMES = 20
"""Lines of progress in a step, at most one every two seconds."""


class Side:
    """One generation's figures since the first look."""

    def __init__(self, addresses: list[str]):
        self._addresses = addresses
        self._first: dict[str, Served] = {}
        self._last: dict[str, Served] = {}

    def look(self, client: httpx.Client) -> None:
        """Asks every pod. One that does not answer keeps what it said last: its end is the step's to see."""
        for address in self._addresses:
            try:
                now = engine.served(client, address)
            except engine.BadAnswer as error:
                print(error, flush=True)
                continue
            if now is None:
                continue  # Nobody is there.
            if now.is_before(self._last.get(address)):
                self._first[address] = Served()  # It started again.
            self._first.setdefault(address, now)
            self._last[address] = now

    @property
    def seen(self) -> bool:
        """Whether any of its pods has answered."""
        return bool(self._last)

    @property
    def served(self) -> Served:
        """All its pods together."""
        found = Served()
        for address, last in self._last.items():
            found = found.plus(last.minus(self._first[address]))
        return found


def compare(plan: Plan, *, look_every: float = 1.0, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Looks until the step is over, or the candidate is worse. Returns `{"verdict": passed | failed | too-little,
    "reasons", "step", "percent", "seconds", "candidate", "live"}`, the last two each `{"requests", "errors",
    "first_tokens", "p95_first_token_ms"}`.

    Raises SystemExit when a generation never answered.
    """
    started, said_at = time.monotonic(), 0.0
    live, candidate = Side(plan.pods[plan.live]), Side(plan.pods[plan.candidate])
    reasons: list[str] = []
    with engine.direct() as client:
        while True:
            live.look(client)
            candidate.look(client)
            now = time.monotonic()
            elapsed = now - started
            reasons = worse(plan, candidate.served, live.served)
            if reasons:
                say(WORSE + "; ".join(reasons))
                break
            if elapsed >= plan.seconds:
                break
            if now - said_at >= max(2.0, plan.held / _SAY_TIMES):
                say(progress(plan, elapsed, candidate.served, live.served))
                said_at = now
            # vLLM's metrics can only be asked, not watched.
            time.sleep(min(look_every, max(0.05, plan.seconds - elapsed)))
    for name, side in ((plan.candidate, candidate), (plan.live, live)):
        if not side.seen:
            there = ", ".join(plan.pods[name]) or "it has none"
            raise SystemExit(f"no pod of {name} answered with its metrics: {there}")
    verdict = "failed" if reasons else "passed"
    if not reasons and (reasons := too_little(plan, candidate.served, live.served)):
        verdict = "too-little"
    return {
        "verdict": verdict,
        "reasons": reasons,
        "step": plan.step,
        "percent": plan.percent,
        "seconds": round(plan.held - plan.seconds + time.monotonic() - started, 1),
        "candidate": figures(candidate.served),
        "live": figures(live.served),
    }


def figures(served: Served) -> dict[str, Any]:
    """A generation's figures, p95 null without a first token."""
    p95 = served.first_token(0.95)
    return {
        "requests": served.requests,
        "errors": served.errors,
        "first_tokens": served.first_tokens,
        "p95_first_token_ms": None if p95 is None else round(1000 * p95, 1),
    }


def worse(plan: Plan, candidate: Served, live: Served) -> list[str]:
    """In what the candidate is worse than the plan allows, in words; empty when it is not, or too little was seen.

    Both are looked at again and again, and a good release is not to be rejected by chance: what three standard
    deviations of such a sample explain is not worse, nor what nobody notices. Errors tell before `min_requests` have
    come when they are too many even if all others until then go well.
    """
    found = []
    of_live = live.errors / live.requests if live.requests else 0.0
    allowed, count = min(1.0, plan.max_error_rate + of_live), max(candidate.requests, plan.min_requests)
    if candidate.errors > allowed * count + _BY_CHANCE * math.sqrt(allowed * (1 - allowed) * count):
        found.append(
            f"{candidate.errors} of its {candidate.requests} requests failed, and {live.errors} of "
            f"{live.requests} of {plan.live}; canary.max_error_rate allows {plan.max_error_rate:.1%} more"
        )
    own, other, most = candidate.first_token(0.95), live.first_token(0.95), plan.max_p95_first_token_ratio
    least = candidate.first_token(0.95, deviations=-_BY_CHANCE)
    highest = live.first_token(0.95, deviations=_BY_CHANCE)
    enough = min(candidate.first_tokens, live.first_tokens) >= plan.min_requests
    if most and enough and own and own > _UNNOTICED_SECONDS and other and least and highest and least > most * highest:
        found.append(
            f"95 in 100 of its requests have their first token within {1000 * own:.0f} ms, {own / other:.1f} times the "
            f"{1000 * other:.0f} ms of {plan.live}; canary.max_p95_first_token_ratio allows {most:g}"
        )
    return found


def too_little(plan: Plan, candidate: Served, live: Served) -> list[str]:
    """What there was too little of to tell, in words."""
    fewer = f"fewer than canary.min_requests ({plan.min_requests})"
    if candidate.requests < plan.min_requests:
        return [f"{plan.candidate} had {candidate.requests} requests, {fewer}"]
    if plan.max_p95_first_token_ratio:
        for name, side in ((plan.candidate, candidate), (plan.live, live)):
            if side.first_tokens < plan.min_requests:
                words = f"{name} had {side.first_tokens} requests with a first token"
                return [f"{words}, {fewer}: latencies are not compared"]
    return []


def progress(plan: Plan, elapsed: float, candidate: Served, live: Served) -> str:
    """10 % to g2: 3 min of 10 min, 120 requests, 0 errors, first token p95 21 ms against 20 ms"""
    own, other = candidate.first_token(0.95), live.first_token(0.95)
    latency = f", first token p95 {1000 * own:.0f} ms" if own is not None else ""
    latency += f" against {1000 * other:.0f} ms" if own is not None and other is not None else ""
    passed = plan.held - plan.seconds + elapsed
    return (
        f"{plan.percent} % to {plan.candidate}: {_time(passed)} of {_time(plan.held)}, {candidate.requests} requests, "
        f"{candidate.errors} errors{latency}"
    )


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
