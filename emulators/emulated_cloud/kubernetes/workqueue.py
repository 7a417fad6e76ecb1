"""The loop of every controller: a queue of keys, each reconciled by one worker at a time, retried with backoff.

A key that is added again while it waits is reconciled once; one that is added while it is being reconciled, once
more afterwards. So a burst of changes costs one pass, and nothing is polled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Object, key_of

log = logging.getLogger(__name__)

# Changes come in bursts (a pod's status, its EndpointSlice, its ReplicaSet): a moment's wait makes one pass of them.
DEBOUNCE_SECONDS = 0.02


class WorkQueue:
    """Calls `reconcile(key)` for keys that were added; `reconcile` returns seconds after which to call it again,
    or None. Conflicts, and answers that never came, are retried with backoff from 20 ms to 10 s."""

    def __init__(self, name: str, reconcile: Callable[[str], Awaitable[float | None]]):
        self.name = name
        self._reconcile = reconcile
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._failures: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: str, after: float = DEBOUNCE_SECONDS) -> None:
        """Reconciles `key` in `after` seconds, or sooner if that is due already."""
        loop = asyncio.get_running_loop()
        timer = self._timers.get(key)
        if timer:
            if timer.when() <= loop.time() + after:
                return
            timer.cancel()
        self._timers[key] = loop.call_later(after, self._start, key)

    def changed(self, _old: Object | None, new: Object | None) -> None:
        """An informer's handler: reconciles what was added or changed."""
        if new is not None:
            self.add(key_of(new))

    def _start(self, key: str) -> None:
        del self._timers[key]
        if key in self._running:
            self._again.add(key)
            return
        self._running.add(key)
        task = asyncio.create_task(self._run(key), name=f"{self.name} {key}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: str) -> None:
        after: float | None = None
        try:
            after = await self._reconcile(key)
            self._failures.pop(key, None)
        except (ApiError, aiohttp.ClientError, TimeoutError) as error:
            after = self._backoff(key)
            expected = isinstance(error, ApiError) and (error.status in (404, 409) or error.namespace_is_going)
            log.log(logging.DEBUG if expected else logging.WARNING, "%s %s: %s", self.name, key, error)
        except Exception:
            after = self._backoff(key)
            log.exception("%s %s", self.name, key)
        finally:
            self._running.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)
        if after is not None:
            self.add(key, after)

    def _backoff(self, key: str) -> float:
        self._failures[key] = failures = self._failures.get(key, 0) + 1
        return min(0.02 * 2**failures, 10.0)

    async def stop(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
