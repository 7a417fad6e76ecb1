"""More and more requests at once, until some of them wait, and then as many as keep it so."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

from pydantic import BaseModel, ConfigDict

from serving.clients import engine
from serving.clients.engine import BadAnswer, Server
from serving.log import Say

_FIRST = 16
"""Requests at once to begin with; doubled when all of them are under way and too few wait."""
_OF_ONE_CLIENT = 16
_IN_VAIN = 30
"""Looks without a queue, and with nothing left to try, after which it is clear that there will be none."""
_TOKENS = 256


class Plan(BaseModel):
    """What the Job is asked to do: its one argument, as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    """The generation's own Service."""
    model: str
    addresses: list[str]
    """Its pods when the load began, whose queues are looked at."""
    waiting: int
    """Requests that are to wait, in all of these pods together."""
    requests: int
    """Requests at once, at most."""
    request_seconds: float
    look_seconds: float = 2.0


async def press(plan: Plan, api_key: str | None, say: Say) -> dict[str, Any]:
    """Loads the server until it is cancelled. Returns only when there is no queue to be had: `{"silent": words}` when
    the engine does not say how many wait, `{"waiting": the most that were seen to, "requests": at once}` when too few
    do though all requests are made that may be."""
    under_way: set[int] = set()
    streams: list[asyncio.Task[None]] = []
    most, silent, in_vain = 0, 0, 0
    async with AsyncExitStack() as stack:
        stack.callback(lambda: [stream.cancel() for stream in streams])
        while True:
            try:
                waiting, silent = await asyncio.to_thread(_waiting, plan.addresses), 0
                most = max(most, waiting)
                say(f"{len(under_way)} requests at once, {waiting} of them wait")
                if waiting >= plan.waiting:
                    in_vain = 0
                elif len(under_way) == len(streams) < plan.requests:
                    more, in_vain = min(max(_FIRST, len(streams)), plan.requests - len(streams)), 0
                    clients = -(-more // _OF_ONE_CLIENT)
                    connected = engine.connected(
                        plan.url, plan.model, api_key=api_key, seconds=plan.request_seconds, clients=clients
                    )
                    servers = await stack.enter_async_context(connected)
                    for place in range(len(streams), len(streams) + more):
                        asking = _ask(servers[place % clients], place, under_way)
                        streams.append(asyncio.create_task(asking))
                else:
                    in_vain += 1
            except BadAnswer as error:
                silent += 1
                say(str(error))
                if silent >= _IN_VAIN:
                    return {"silent": str(error)}
            if in_vain >= _IN_VAIN:
                return {"waiting": most, "requests": len(streams)}
            await asyncio.sleep(plan.look_seconds)  # vLLM's metrics can only be asked, not watched.


def _waiting(addresses: list[str]) -> int:
    with engine.direct() as client:
        return sum(engine.waiting(client, address) for address in addresses)


async def _ask(server: Server, place: int, under_way: set[int]) -> None:
    """One question after the other, each its own, or the prefix cache would answer."""
    number = 0
    while True:
        number += 1
        under_way.add(place)
        try:
            await server.chat(f"{place}.{number}: tell a long story.", _TOKENS, ignore_eos=True)
        except BadAnswer:
            under_way.discard(place)
            await asyncio.sleep(1)  # What a server under load answers is not what is looked at here.
