"""The time of the service: this machine's, until a test moves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


class Clock:
    def __init__(self) -> None:
        self._ahead = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def set(self, time: datetime) -> None:
        """It is `time` now, and goes on from there."""
        self._ahead = time - datetime.now(UTC)
