"""Scripted failures: what a test tells an emulator to do wrong, and whether it happened.

A fault matches requests by method and path and is used up after `times` of them. A test that scripts one must
also assert that it was consumed: `GET /_emulator/faults` tells.
"""

from __future__ import annotations

import re
import threading
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Action = Literal["status", "reset", "stall", "truncate", "corrupt", "unanswered", "slow", "outcome"]


@dataclass
class Fault:
    """One failure to act out.

    action: `status` answers `status`, `headers`, `body` instead of the real answer; `unanswered` does all that was
    asked and drops the connection instead of saying so. The others happen after `after_bytes` bytes of the body
    that is being moved (the answer's of a GET, else the request's): `reset` and `truncate` drop the connection (RST,
    FIN), `stall` goes silent for `seconds`, `corrupt` flips one byte. `slow` is a network far away: the answer begins
    `seconds` later, and a file in it comes at `bytes_per_second`.

    All these are about an exchange. `outcome` is about what the service does after its answer, beside any other fault:
    what can be said in `outcome` is that service's (google/compute/__init__.py).
    """

    action: Action
    method: str = ""
    path: str = ""
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    after_bytes: int = 0
    seconds: float = 3600.0
    bytes_per_second: float = 0.0
    """0: as fast as it can."""
    outcome: dict[str, Any] = field(default_factory=dict)
    times: int = 1
    taken: int = 0
    """Requests that it is waiting to happen to, or has happened to."""
    consumed: int = 0
    """Requests that it has happened to."""

    def matches(self, method: str, path: str) -> bool:
        return (
            self.taken < self.times
            and re.fullmatch(self.method or ".*", method) is not None
            and re.search(self.path, path) is not None
        )


class Faults:
    """The faults of one emulator, in the order in which they were scripted."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._replaced = threading.Condition(self._lock)

    def script(self, faults: list[dict[str, Any]]) -> None:
        """Replaces what was scripted. Raises TypeError for a key that a fault does not have."""
        made = [Fault(**fault) for fault in faults]
        with self._replaced:
            self._faults = made
            self._replaced.notify_all()

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that matches, for this request alone; None when all is to go well."""
        return self._take(method, path, of_the_outcome=False)

    def take_outcome(self, method: str, path: str) -> Fault | None:
        """The first that says what comes of this request after its answer."""
        return self._take(method, path, of_the_outcome=True)

    def is_scripted(self, fault: Fault) -> bool:
        """Whether no other script has taken the place of the one that the fault is in."""
        return any(fault is each for each in self._faults)

    def wait_until_replaced(self, fault: Fault) -> None:
        with self._replaced:
            self._replaced.wait_for(lambda: not self.is_scripted(fault))

    def _take(self, method: str, path: str, of_the_outcome: bool) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if (fault.action == "outcome") is of_the_outcome and fault.matches(method, path):
                    fault.taken += 1
                    return fault
        return None

    def consume(self, fault: Fault) -> None:
        """It happens now."""
        with self._lock:
            fault.consumed += 1

    def give_back(self, fault: Fault) -> None:
        """The request ended before the fault could happen (its body was shorter, say): the next one gets it."""
        with self._lock:
            fault.taken -= 1

    def as_list(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._faults]
