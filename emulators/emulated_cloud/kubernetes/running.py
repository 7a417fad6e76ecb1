"""How an asyncio process of the cluster runs: the contract of emulated_cloud/process.py on an event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from emulated_cloud.process import announce, when_told_to_end


async def run_until_told(url: str, starting: Coroutine[Any, Any, None]) -> None:
    """Awaits `starting`, announces `url`, and returns on SIGTERM, SIGINT or when stdin closes, even before that."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    told = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell() -> None:
        loop.call_soon_threadsafe(told.set)

    when_told_to_end(tell)
    start = asyncio.create_task(starting)
    end = asyncio.create_task(told.wait())
    await asyncio.wait([start, end], return_when=asyncio.FIRST_COMPLETED)
    if start.done():
        start.result()
        announce(url)
        await end
    start.cancel()
