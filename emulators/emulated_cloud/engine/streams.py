"""Server-sent events, and several sequences of one request in one stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from aiohttp import web

from emulated_cloud.engine.core import EngineCore, Sequence
from emulated_cloud.engine.sampling import Output

DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> str:
    """JSON as pydantic writes it: no spaces, characters as they are."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def event(value: Any) -> bytes:
    return f"data: {dumps(value)}\n\n".encode()


async def open_stream(request: web.Request) -> web.StreamResponse:
    """An answered request whose events are yet to come."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    return response


async def merged(core: EngineCore, runs: list[tuple[Sequence, Any]]) -> AsyncGenerator[tuple[int, Output], None]:
    """The outputs of all sequences as they come, each with its sequence's index."""
    if len(runs) == 1:
        async with aclosing(core.generate(*runs[0])) as outputs:
            async for output in outputs:
                yield 0, output
        return
    queue: asyncio.Queue[tuple[int, Output] | BaseException] = asyncio.Queue(maxsize=len(runs))

    async def run(index: int) -> None:
        try:
            async with aclosing(core.generate(*runs[index])) as outputs:
                async for output in outputs:
                    await queue.put((index, output))
        except Exception as error:  # noqa: BLE001 - told to the reader, who raises it
            await queue.put(error)

    tasks = [asyncio.create_task(run(index)) for index in range(len(runs))]
    try:
        unfinished = len(runs)
        while unfinished:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            unfinished -= item[1].finish_reason is not None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def collected(core: EngineCore, runs: list[tuple[Sequence, Any]]) -> list[list[Output]]:
    """All outputs of all sequences."""
    results: list[list[Output]] = [[] for _ in runs]
    async with aclosing(merged(core, runs)) as outputs:
        async for index, output in outputs:
            results[index].append(output)
    return results
