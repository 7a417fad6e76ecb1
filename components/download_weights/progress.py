"""Progress of a transfer in words."""

from __future__ import annotations

import math


def size(count: float) -> str:
    """A number of bytes for a reader: decimal units, as networks and disks count them."""
    units = iter(("B", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 999.5 and unit != "TB":
        count, unit = count / 1000, next(units)
    return f"{count:.0f} {unit}" if unit == "B" or count >= 99.95 else f"{count:.1f} {unit}"


def line(files_done: int, files: int, there: int, total: int, sent: int, seconds: float) -> str:
    """One line: `there` of `total` bytes are in the bucket, `sent` of them since `seconds` ago."""
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
