"""What a person sees while a run goes on: a live table in a terminal, plain lines in a log. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving.scenarios import Scenario

_MARKS = {"running": "…", "succeeded": "✓", "skipped": "–", "failed": "✗", "inconclusive": "?"}
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
    """Shows log entries of steps (serving/log.py) as they come."""

    def __init__(self, scenario: Scenario):
        self._scenario = scenario
        self._steps: dict[str, Step] = {}
        self._phase = ""
        self._live: Any = None
        self._console: Any = None
        self._began = time.monotonic()

    def __enter__(self) -> View:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            self._console = Console(stderr=True)
            self._live = Live(console=self._console, get_renderable=self._table, refresh_per_second=8, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Leaves the table as it is now."""
        if self._live:
            self._live.stop()
            self._live = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """What is being done before the first step begins."""
        self._phase = name
        if not self._live:
            self.say(name)
        yield

    def say(self, message: str) -> None:
        """One line that stays."""
        if self._live:
            self._live.console.print(message, style="dim", highlight=False, markup=False)
        else:
            print(f"{self._clock()}  {message}", file=sys.stderr, flush=True)

    def show(self, entry: dict[str, Any]) -> None:
        """Takes one log entry of a step."""
        step = self._steps.get(entry["step"])
        status = entry.get("status")
        if step is None or (status == "running" and step.ended):
            step = self._steps[entry["step"]] = Step(entry["step"])
        if status in (None, "running"):
            step.message = entry["message"] if status is None else step.message
        else:
            step.status, step.message, step.ended = status, entry["message"], time.monotonic()
        if not self._live:
            mark = f" {status} in {step.seconds:.1f} s:" if step.ended else ""
            print(f"{self._clock()}  {step.name}:{mark} {entry['message']}", file=sys.stderr, flush=True)

    def _clock(self) -> str:
        return f"{time.monotonic() - self._began:6.1f} s"

    def _table(self) -> Any:
        from rich.table import Table
        from rich.text import Text

        table = Table(
            box=None, padding=(0, 1), title=f"{self._scenario.number} {self._scenario.name}", title_justify="left"
        )
        for justify in ("left", "left", "right", "left"):
            table.add_column(justify=justify, no_wrap=True)
        table.show_header = False
        if not self._steps:
            table.add_row("…", self._phase, self._clock(), "")
        # Rich would shorten every column of a line that is too long: only the message is to be cut.
        room = self._console.width - max(map(len, self._steps), default=0) - len("… 9999.9 s") - 8
        for step in self._steps.values():
            style = _COLOURS[step.status]
            message = Text(step.message.split("\n")[0], "dim")
            message.truncate(max(room, 1), overflow="ellipsis")
            table.add_row(Text(_MARKS[step.status], style), Text(step.name), f"{step.seconds:.1f} s", message)
        return table
