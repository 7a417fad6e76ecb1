"""What a command says, and where: data on stdout, the rest on stderr. The one module of the command line that prints.

A person reads words, live in a terminal and as lines in a log; with `--json` a program reads one object. `--quiet`
leaves of stderr only what went wrong.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.errors import PipelineError

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

    def result(self, data: dict[str, Any] | list[dict[str, Any]], words: str) -> None:
        """What the command came to: `data` for a program, `words` (if any) for a person. Ends what is live."""
        self._end_live()
        text = json.dumps(data, ensure_ascii=False) if self._as_json else words.removesuffix("\n")
        if text:
            _write(text)

    # -- stderr ---------------------------------------------------------------------------------------------

    def say(self, message: str) -> None:
        """One line of progress, which stays."""
        if self._quiet:
            return
        if self._live:
            self._live.console.print(message, style="dim", highlight=False, markup=False)
        elif self._in_place:
            _tell(message)
        else:
            _tell(f"{self.clock}  {message}")

    def hint(self, message: str) -> None:
        """What to do next, or to know, after success."""
        if not self._quiet:
            _tell(message)

    @contextmanager
    def progress(self, first: str) -> Iterator[tuple[Say, float]]:
        """What shows how far the block is, and how often in seconds it wants to hear: in place in a terminal, else as
        lines of a log. `first` is shown until then."""
        if not self._in_place:
            self.say(first)
            yield self.say, 3.0
            return
        with _console().status(first, spinner="dots") as status:
            yield status.update, 0.25

    @contextmanager
    def live(self, table: Callable[[int], Any]) -> Iterator[bool]:
        """Shows `table(columns)`, something that Rich renders, again and again while the block runs.

        Yields whether anybody watches: not in a log, nor when quiet.
        """
        if not self._in_place:
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

    @property
    def _in_place(self) -> bool:
        """Whether a line can be written over: not in a log, nor in a terminal that cannot move its cursor."""
        return not self._quiet and sys.stderr.isatty() and not _console().is_dumb_terminal

    def _end_live(self) -> None:
        """Leaves what is live as it is now."""
        if self._live:
            self._live.stop()
            self._live = None


def settle() -> None:
    """Gives both streams an encoding: UTF-8 for a file or a program, the terminal's own for a person, who gets a `?`
    for what it cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        else:
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


def let_go() -> None:
    """After a failed write: nothing is left that Python would complain about when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def can_show(text: str) -> bool:
    """Whether a terminal has these characters."""
    try:
        text.encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return False
    return True


def complain(message: str) -> None:
    """What went wrong, on stderr, in every mode."""
    _tell(message)


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> str:
    """Rows as lines of text, each column as wide as its longest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows)
    return "\n".join(f"{indent}{'  '.join(row)}".rstrip() for row in padded)


def _write(text: str) -> None:
    try:
        print(text, flush=True)
    except OSError as error:
        if error.errno == errno.EPIPE:  # Its reader has enough, and needs no words.
            raise
        raise PipelineError(f"cannot write to stdout: {error.strerror}") from error


def _tell(message: str) -> None:
    try:
        print(message, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        # A log on a full disk is no reason to end a run whose result goes elsewhere.


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)
