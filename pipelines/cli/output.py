"""What a command says, and where: data on stdout, the rest on stderr. The one module of the command line that prints.

A person reads words, live in a terminal and as lines in a log; with `--json` a program reads one object. `--quiet`
leaves of stderr only what went wrong.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live

    from serving.log import Say


class Output:
    """The output of one command, in the mode that its `--json` and `--quiet` ask for."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False):
        self._as_json, self._quiet = as_json, quiet
        self._began = time.monotonic()
        self._live: Live | None = None

    @property
    def clock(self) -> str:
        """How long the command has been at work."""
        return f"{time.monotonic() - self._began:6.1f} s"

    # -- stdout ---------------------------------------------------------------------------------------------

    def result(self, data: dict[str, Any], words: str) -> None:
        """What the command came to: `data` for a program, `words` (if any) for a person. Ends what is live."""
        self._end_live()
        text = json.dumps(data, ensure_ascii=False) if self._as_json else words.removesuffix("\n")
        if text:
            print(text, flush=True)

    # -- stderr ---------------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """One line of progress, which stays."""
        if self._quiet:
            return
        if self._live:
            self._live.console.print(message, style="dim", highlight=False, markup=False)
        elif sys.stderr.isatty():
            _tell(message)
        else:
            _tell(f"{self.clock}  {message}")

    def hint(self, message: str) -> None:
        """What to do next, or to know, after success."""
        if not self._quiet:
            _tell(message)

    @contextmanager
    def progress(self, first: str) -> Iterator[tuple[Say, float]]:
        """What shows how far the block is, and how often in seconds it wants to hear: in place in a terminal, where it
        shows `first` until then, else as lines of a log."""
        if self._quiet or not sys.stderr.isatty():
            yield self.say, 3.0
            return
        with _console().status(first, spinner="dots") as status:
            yield status.update, 0.25

    @contextmanager
    def live(self, table: Callable[[int], Any]) -> Iterator[bool]:
        """Shows `table(columns)`, something that Rich renders, again and again while the block runs.

        Yields whether anybody watches: not in a log, nor when quiet.
        """
        if self._quiet or not sys.stderr.isatty():
            yield False
            return
        from rich.live import Live

        console = _console()
        self._live = Live(console=console, get_renderable=lambda: table(console.width), refresh_per_second=8)
        self._live.start()
        try:
            yield True
        finally:
            self._end_live()

    def _end_live(self) -> None:
        """Leaves what is live as it is now."""
        if self._live:
            self._live.stop()
            self._live = None


def complain(message: str) -> None:
    """What went wrong, on stderr, in every mode."""
    _tell(message)


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows as lines of text, each column as wide as its longest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"{indent}{'  '.join(row)}".rstrip() for row in padded)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
