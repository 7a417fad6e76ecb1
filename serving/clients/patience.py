"""Patience with who is away or busy: how long it is waited for, one figure for the whole process.

It is the setting `patience`. Every client waits by it, and none of them waits for what no waiting can heal.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from serving.errors import InconclusiveError
from serving.values import in_seconds

DEFAULT = "10m"
"""As long as the upgrade of a zonal cluster's control plane takes."""

LONGEST_PAUSE = 10.0
"""Seconds between two tries."""

_TOLD_AFTER_SECONDS = 5.0
"""So long nobody is told that something is waited for: most of it heals by then."""
_END_SECONDS = 10.0
"""What all waiting together may still take in a process that was told to end: it is killed soon."""

_seconds = in_seconds(DEFAULT)
_ends_at = math.inf  # Of time.monotonic.


class Interrupted(Exception):
    """What may heal when it is tried again: a broken or silent connection, a server that is busy.

    `after`: seconds that the server asked to be left alone.
    """

    def __init__(self, message: str, after: float | None = None):
        super().__init__(message)
        self.after = after


class Stopped(Exception):
    """Somebody else has failed, and this work is wanted no more."""


@contextmanager
def lasting(seconds: float) -> Iterator[None]:
    """While the block runs, everything in this process waits so long."""
    global _seconds, _ends_at
    before = _seconds, _ends_at
    _seconds = seconds
    try:
        yield
    finally:
        _seconds, _ends_at = before


def end_soon() -> None:
    """This process was told to end: whatever waits now, or later, gives up within seconds (until the block of `lasting`
    ends)."""
    global _ends_at
    _ends_at = time.monotonic() + _END_SECONDS


def left() -> float:
    """Seconds that who begins to wait now may wait."""
    return max(0.0, min(_seconds, _ends_at - time.monotonic()))


@dataclass
class Patience:
    """One wait, with pauses that grow: given up when nothing has got any further for `seconds` (None: the process's)
    since it first failed."""

    seconds: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    first_pause: float = 0.2
    failures: int = 0
    _since: float = 0.0
    _told: bool = False

    def progress(self) -> None:
        """It got further: what failed before is forgotten."""
        self.failures = 0

    def wait(self, what: str, error: Interrupted) -> None:
        """Pauses before the next attempt. Raises InconclusiveError when there is to be none, Stopped when told."""
        now = time.monotonic()
        if not self.failures:
            self._since, self._told = now, False
        self.failures += 1
        after = error.after or 0.0
        pause = min(LONGEST_PAUSE, self.first_pause * 2 ** min(self.failures - 1, 10))
        pause = max(after, pause * random.uniform(0.5, 1))  # noqa: S311
        give_up = min(self._since + (_seconds if self.seconds is None else self.seconds), _ends_at)
        if now + pause > give_up:
            asked = f"; it asks for {after:.0f} s of patience" if after else ""
            attempts = f"{self.failures} attempt{'s' if self.failures > 1 else ''}"
            raise InconclusiveError(
                f"{what}: {error} ({attempts} in {now - self._since:.0f} s{asked}). Run again later"
            ) from error
        if not self._told and now + pause - self._since > _TOLD_AFTER_SECONDS:
            self._told = True
            logging.getLogger(__name__).warning("%s: %s; tried again for %.0f s", what, error, give_up - now)
        if self.stop.wait(pause):
            raise Stopped

    def until_it_works(self, what: str, attempt: Callable[[], Any]) -> Any:
        """The result of `attempt`, which may raise Interrupted a few times."""
        while True:
            try:
                return attempt()
            except Interrupted as error:
                self.wait(what, error)
