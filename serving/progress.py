"""Work on many files at once, and how far it has come, in words."""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from serving.log import Say


class Sized(Protocol):
    """A file whose size in bytes is known."""

    @property
    def size(self) -> int: ...


Passed = Callable[[int], None]
"""Hears of so many bytes more that are done with; of fewer than none, when they have to be done again."""

F = TypeVar("F", bound=Sized)
R = TypeVar("R")


class _NotWanted(Exception):
    """Another file has failed."""


def of_files(
    files: Sequence[F], work: Callable[[F, Passed], R], *, threads: int, say: Say, report_seconds: float = 3.0
) -> list[R]:
    """What `work` makes of each file, in their order; the largest are begun first, since the last thread to end then
    has least left to do. `say` hears how far it is, every `report_seconds`.

    Raises what the first of them to fail has raised; the others end at the next bytes they tell of. The threads are
    daemons: one that waits for a silent server holds up nobody who wants to end.
    """
    todo: queue.SimpleQueue[int] = queue.SimpleQueue()
    ended: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()
    results: dict[int, R] = {}
    passed, failed = [0] * threads, threading.Event()

    def run(thread: int) -> None:
        def count(more: int) -> None:
            if failed.is_set():
                raise _NotWanted
            passed[thread] += more

        while not failed.is_set():
            try:
                number = todo.get_nowait()
            except queue.Empty:
                return
            try:
                results[number] = work(files[number], count)
                ended.put(None)
            except Exception as error:  # noqa: BLE001 (it is raised again where it can be told)
                ended.put(error)

    for number in sorted(range(len(files)), key=lambda number: -files[number].size):
        todo.put(number)
    for thread in range(threads):
        threading.Thread(target=run, args=(thread,), daemon=True).start()
    started = reported = time.monotonic()
    done, total = 0, sum(file.size for file in files)
    try:
        while done < len(files):
            try:
                error = ended.get(timeout=report_seconds)
            except queue.Empty:
                pass
            else:
                if error:
                    raise error
                done += 1
            if time.monotonic() - reported >= report_seconds:
                reported, there = time.monotonic(), sum(passed)
                say(line(done, len(files), there, total, there, reported - started))
    finally:
        failed.set()
    return [results[number] for number in range(len(files))]


# -- in words -----------------------------------------------------------------------------------------------


def size(count: float) -> str:
    """A number of bytes for a reader: decimal units, as networks and disks count them."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def line(files_done: int, files: int, there: int, total: int, sent: int, seconds: float) -> str:
    """One line: `there` of `total` bytes are where they belong, `sent` of them since `seconds` ago."""
    rate = sent / seconds if seconds > 0 else 0.0
    left = f", {duration((total - there) / rate)} left" if rate and there < total else ""
    return f"{files_done}/{files} files, {size(there)} of {size(total)}, {size(rate)}/s{left}"


def duration(seconds: float) -> str:
    """`42 s`, `3 min 5 s`, `1 h 2 min`."""
    whole = math.ceil(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
