"""What a server has to show through the load balancer in front of it, when it has answered well without.

What fails here and did not there says nothing about the release: it is told as a problem of the way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from serving.clients import engine
from serving.clients.engine import Answer, BadAnswer, Server
from serving.log import Say

_UNKNOWN = "gemma-pipelines-knows-no-such-model"
_SHOWS_SECONDS = 0.1
"""A stream that took less than this from its first piece to its last cannot show whether somebody held it back."""
_HELD_BACK = 0.2
"""A stream whose pieces come within this share of the time that they took without the load balancer was held back."""


class Through(BaseModel):
    """The way through a load balancer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    headers: dict[str, str] = {}
    """By which it sends requests to this generation; none where it sends all of them there."""
    trusted: bool = True
    """Whether its certificate says who it is. Where it does not, since it is for a name and not for the address, it is
    never given the API key."""
    closed: list[str] = []
    """Paths that it is to let nobody through to."""
    objective: str = ""
    """An objective of a priority below 0: its requests are answered, or refused with 429, and nothing else."""
    reach_seconds: float
    """How long a load balancer may take to hear of a generation."""


async def ask(
    through: Through,
    model: str,
    adapters: list[str],
    *,
    api_key: str | None,
    request_seconds: float,
    direct: Answer | None,
    say: Say,
) -> dict[str, Any]:
    """Asks a generation through its load balancer: `{"problems": [words], "asked": [names], "stream_ms": {"direct",
    "through"} | None, "shed": 0, "key": "sent" | "withheld" | "none"}`. `direct`: the stream that came without it;
    `shed`: requests of the objective that were refused with 429."""
    key = api_key if through.trusted else None
    found: dict[str, Any] = {"problems": [], "asked": [], "stream_ms": None, "shed": 0}
    found["key"] = "none" if not api_key else "sent" if key else "withheld"
    connected = engine.connected(
        through.url,
        model,
        api_key=key,
        seconds=request_seconds,
        clients=1,
        headers=through.headers,
        trusted=through.trusted,
    )
    async with connected as (server,):
        try:
            await _reach(server, through.reach_seconds, withheld=found["key"] == "withheld")
        except BadAnswer as error:
            found["problems"].append(str(error))
            return found
        for path in through.closed:
            await _note(found, f"{path} is to be closed", server.refuses(path, 404))
        if found["key"] == "withheld":
            return found
        for name in (model, *adapters):
            say(f"through the load balancer: {name}")
            await _note(found, name, server.named(name).chat("What is a pod?", 16))
            found["asked"].append(name)
        await _note(found, "a model that nobody serves", server.named(_UNKNOWN).is_unknown())
        await _note(found, "a stream", _stream(server, direct, found))
        if through.objective:
            await _note(found, f"the objective {through.objective}", _shed(server, through.objective, found))
    return found


async def _reach(server: Server, seconds: float, *, withheld: bool) -> None:
    """/v1/models, with patience for a load balancer that has not heard of the generation yet. Without its key an engine
    answers 401: that it does shows the way to it."""
    give_up = time.monotonic() + seconds
    while True:
        try:
            return await (server.refuses(engine.MODELS, 401) if withheld else server.models())
        except BadAnswer:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(1)  # There is no way to be told.


async def _note(found: dict[str, Any], what: str, asking: Any) -> None:
    try:
        await asking
    except BadAnswer as error:
        found["problems"].append(f"{what}: {error}")


async def _stream(server: Server, direct: Answer | None, found: dict[str, Any]) -> None:
    """A stream arrives as it is made. Raises BadAnswer for one that came all at once, which did not without."""
    tokens = max(16, direct.completion_tokens) if direct else 16
    came = await server.stream("What is a pod?", tokens, ignore_eos=True)
    if direct is None:
        return
    there, here = (answer.times[-1] - answer.times[0] for answer in (direct, came))
    found["stream_ms"] = {"direct": round(there * 1000, 1), "through": round(here * 1000, 1)}
    if there >= _SHOWS_SECONDS and here < _HELD_BACK * there:
        raise BadAnswer(
            f"its {len(came.times)} pieces came within {here * 1000:.0f} ms, and took {there * 1000:.0f} ms without "
            "the load balancer: it holds streams back"
        )


async def _shed(server: Server, objective: str, found: dict[str, Any]) -> None:
    """Requests of a priority below 0 are answered, or refused with 429 while every pod has a queue."""
    for _ in range(3):
        found["shed"] += await server.sheds("What is a pod?", 8, objective)
