"""What the machine that bakes says on its serial port, as far as its own script says it.

The script (images/disk-builder) writes lines; the machine's system puts words of its own before each, and between them.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field

_WORD = re.compile(
    r"GP-BAKE (?:heartbeat (?P<heartbeat>\d+)|progress (?P<percent>\d{1,3}) (?P<words>.*)"
    r"|done (?P<done>[0-9a-f]{64})|failed\b ?(?P<failed>.*))"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[^\x20-\x7e\t\u00a0-\U0010ffff]")
"""Colours and cursors of a console."""
_SHOWN_LINES = 40
_LONGEST_LINE = 500
_LONGEST_PART = 1 << 16


@dataclass
class Serial:
    """All that a machine has said so far."""

    heartbeats: int = 0
    """Signs of life."""
    percent: int = 0
    words: str = ""
    """What it is at, in its own words."""
    done: str = ""
    """The sha256 of snapshots.metadata on the finished disk."""
    failed: str = ""
    """Why it gave up."""
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=_SHOWN_LINES))
    _part: str = ""

    def take(self, text: str) -> None:
        """Further output, which may end in the middle of a line."""
        *lines, self._part = (self._part + text).replace("\r", "\n").split("\n")
        # Nobody promises that a line ever ends.
        self._part = self._part[-_LONGEST_PART:]
        for line in lines:
            self._line(_CONTROL.sub("", line).strip())

    def _line(self, line: str) -> None:
        if not line:
            return
        self.last_lines.append(line[:_LONGEST_LINE])
        found = _WORD.search(line)
        if not found:
            return
        self.heartbeats += 1
        if found["percent"]:
            self.percent, self.words = min(100, int(found["percent"])), found["words"].strip()
        # Its first last word counts: what comes after it is nobody's.
        if not self.done and not self.failed:
            self.done, self.failed = found["done"] or "", (found["failed"] or "").strip()
            if found["failed"] is not None and not self.failed:
                self.failed = "it does not say why"

    @property
    def tail(self) -> str:
        """Its last lines, for a reader."""
        return "\n".join(self.last_lines) or "(nothing)"
