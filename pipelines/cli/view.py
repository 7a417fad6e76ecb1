"""The steps of a run as they go on: a live table in a terminal, a line for each of their log entries elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.cli.output import Output, can_show
from serving.scenarios import Scenario

_MARKS = {"running": "…", "succeeded": "✓", "skipped": "–", "failed": "✗", "inconclusive": "?"}
_PLAIN_MARKS = {"running": ".", "succeeded": "+", "skipped": "-", "failed": "x", "inconclusive": "?"}
"""For a terminal whose character set (EUC-KR, ISO-8859-1) has not those."""
_COLOURS = {"succeeded": "green", "skipped": "dim", "failed": "red", "inconclusive": "yellow", "running": "cyan"}


class Step:
    """One step as the reader sees it."""

    def __init__(self, name: str):
        self.name, self.status, self.message = name, "running", ""
        self.started, self.ended = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return (self.ended or time.monotonic()) - self.started


class View:
    """Shows log entries of steps (serving/log.py) as they come, while it is up."""

    def __init__(self, out: Output, scenario: Scenario):
        self._out, self._scenario = out, scenario
        self._steps: dict[str, Step] = {}
        self._marks = _MARKS if can_show("".join(_MARKS.values())) else _PLAIN_MARKS
        self._phase = ""
        self._watched = False

    @contextmanager
    def up(self, phase: str) -> Iterator[None]:
        """`phase` is what is being done before the first step begins."""
        self._phase = phase
        with self._out.live(self._table) as self._watched:
            if not self._watched:
                self._out.say(phase)
            yield

    def wait(self, phase: str) -> None:
        """`phase` is what is being done from now on, as far as no step shows it."""
        self._phase = phase
        if not self._watched:
            self._out.say(phase)

    def show(self, entry: dict[str, Any]) -> None:
        """Takes one log entry of a step; `seconds` in it is how long the step took so far, where that is known
        elsewhere."""
        step = self._steps.get(entry["step"])
        status = entry.get("status")
        if step is None or (status == "running" and step.ended):
            step = self._steps[entry["step"]] = Step(entry["step"])
        if "seconds" in entry:
            step.started = time.monotonic() - entry["seconds"]
        if status in (None, "running"):
            step.message = entry["message"] if status is None else step.message
        else:
            step.status, step.message, step.ended = status, entry["message"], time.monotonic()
        if not self._watched:
            mark = f" {status} in {step.seconds:.1f} s:" if step.ended else ""
            self._out.say(f"{step.name}:{mark} {entry['message']}")

    def _table(self, columns: int) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None, padding=(0, 1), title=f"{self._scenario.number} {self._scenario.name}", title_justify="left"
        )
        for justify in ("left", "left", "right", "left"):
            table.add_column(justify=justify, no_wrap=True)
        table.show_header = False
        if not self._steps:
            table.add_row(self._marks["running"], self._phase, self._out.clock, "")
        # Rich would shorten every column of a line that is too long: only the message is to be cut.
        room = columns - max(map(len, self._steps), default=0) - len("… 9999.9 s") - 8
        for step in self._steps.values():
            style = _COLOURS[step.status]
            message = Text(step.message.split("\n")[0], "dim")
            message.truncate(max(room, 1), overflow="ellipsis")
            table.add_row(Text(self._marks[step.status], style), Text(step.name), f"{step.seconds:.1f} s", message)
        return table
