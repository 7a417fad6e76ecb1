"""What a server has to show through the load balancer in front of it, when it has answered well without.

What fails here and did not there says nothing about the release: it is told as a problem of the way.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from pydantic import BaseModel, ConfigDict

from components.validate_server import shedding
from components.validate_server.shedding import NotForced, Shedding
from serving.clients import engine
from serving.clients.engine import Answer, BadAnswer, Server, Untrusted
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
    """By its address."""
    host: str = ""
    """The name that clients call it by, which its certificate has to be for; empty where they go by the address."""
    authority: str = ""
    """Who may vouch for its certificate, beside whom everybody trusts: certificates, PEM."""
    headers: dict[str, str] = {}
    """By which it sends requests to this generation; none where it sends all of them there."""
    trusted: bool = True
    """Whether it can say who it is. Over https without a `host` it cannot, since its certificate is for a name that
    nobody said, and it is never given the API key."""
    closed: list[str] = []
    """Paths that it is to let nobody through to."""
    shedding: Shedding | None = None
    """What is to be seen of priorities."""
    not_shown: str = ""
    """Why nothing of them is to be seen, where it is not."""
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
    """Asks a generation through its load balancer: `{"problems": [words], "warnings": [words], "asked": [names],
    "stream_ms": {"direct", "through"} | None, "shed": figures of shedding.show, and "not_shown": why, "key": "sent" |
    "withheld" | "none"}`. `direct`: the stream that came without it. A warning is of what could not be seen."""
    key = api_key if through.trusted else None
    found: dict[str, Any] = {"problems": [], "warnings": [], "asked": [], "stream_ms": None}
    found["key"] = "none" if not api_key else "sent" if key else "withheld"
    found["shed"] = {"not_shown": through.not_shown or "the server was not asked"}
    connected = engine.connected(
        through.url,
        model,
        api_key=key,
        seconds=request_seconds,
        clients=1,
        headers=through.headers,
        trusted=through.trusted,
        host=through.host,
        authority=through.authority,
    )
    async with connected as (server,):
        try:
            await _reach(server, through.reach_seconds, withheld=found["key"] == "withheld")
        except Untrusted as error:
            found["problems"].append(
                f"{error}. It has to be for gateway.host ({through.host}), and signed by somebody whom everybody "
                "trusts or gateway.authority names. The API key was not sent"
            )
            return found
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
        if through.shedding:
            await _note(found, "priorities", _shed(server, through.shedding, model, api_key, found, say))
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


async def _shed(
    server: Server, wanted: Shedding, model: str, api_key: str | None, found: dict[str, Any], say: Say
) -> None:
    """Requests are refused by their priority while every pod has a queue. That one could not be made is no problem."""
    found["shed"] = figures = dict[str, Any]()
    try:
        await shedding.show(server, wanted, model, api_key=api_key, figures=figures, say=say)
    except NotForced as error:
        figures["not_shown"] = str(error)
        found["warnings"].append(f"whether requests are refused by their priority was not seen: {error}")
