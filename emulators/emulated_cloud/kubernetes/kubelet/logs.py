"""Container logs: files in the format of the CRI (`time stream F text`), and reading them back.

PODS/<pod uid>/logs/<container>/<restart>.log
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from pathlib import Path

# A longer line is written in parts (CRI: tag P), as containerd does.
MAX_LINE = 16 * 1024


class LogFile:
    """Writes one run of a container."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115
        self._pending = b""

    def write(self, data: bytes) -> None:
        """Takes output as it comes; b"" ends it."""
        if not data:
            self._write([self._pending] if self._pending else [])
            self._file.close()
            return
        *lines, self._pending = (self._pending + data).split(b"\n")
        self._write(lines)

    def _write(self, lines: list[bytes]) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f000Z").encode()
        text = b""
        for line in lines:
            while len(line) > MAX_LINE:
                text += b"%s stdout P %s\n" % (now, line[:MAX_LINE])
                line = line[MAX_LINE:]
            text += b"%s stdout F %s\n" % (now, line)
        self._file.write(text)


def log_path(pods: Path, uid: str, container: str, restart: int) -> Path:
    return pods / uid / "logs" / container / f"{restart}.log"


def latest_log(pods: Path, uid: str, container: str, previous: bool = False) -> Path | None:
    """The file of the container's latest run, or of the one before it."""
    folder = pods / uid / "logs" / container
    runs = sorted((int(path.stem) for path in folder.glob("*.log")), reverse=True)
    wanted = runs[1:] if previous else runs
    return folder / f"{wanted[0]}.log" if wanted else None


def render(line: bytes, timestamps: bool) -> bytes:
    """A line as `kubectl logs` prints it."""
    time, _, tag, text = line.rstrip(b"\n").split(b" ", 3)
    text += b"" if tag == b"P" else b"\n"
    return time + b" " + text if timestamps else text


def since(lines: Iterator[bytes], time: datetime.datetime | None) -> Iterator[bytes]:
    """The lines from `time` on."""
    limit = time.strftime("%Y-%m-%dT%H:%M:%S.%f").encode() if time else b""
    return (line for line in lines if line.split(b" ", 1)[0] >= limit)


def last_words(path: Path, lines: int = 80, size: int = 2048) -> str:
    """The end of a log: what terminationMessagePolicy FallbackToLogsOnError shows."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - 4 * size))
        tail = file.read().split(b"\n")[-lines - 1 :]
    text = b"".join(render(line, False) for line in tail if line.count(b" ") >= 3)
    return text[-size:].decode(errors="replace")
