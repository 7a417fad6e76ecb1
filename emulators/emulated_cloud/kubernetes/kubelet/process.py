"""Processes of containers: started so that they die with this process, waited for without polling.

Every process leads a session of its own, so a container is a process group. PR_SET_PDEATHSIG fires when the thread
that started the process ends, so all are started from one thread that lives as long as this process does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl
_spawner = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


class StartError(Exception):
    """The command cannot be started: the words of the container runtime."""


class ContainerProcess:
    """One started process; `exited` is done, with its exit code as a shell gives it (137 for SIGKILL), when it ends."""

    def __init__(self, popen: subprocess.Popen[bytes], output: asyncio.Task[None]):
        loop = asyncio.get_running_loop()
        self.pid = popen.pid
        self.exited: asyncio.Future[int] = loop.create_future()
        self._popen, self._output = popen, output
        self._pidfd = os.pidfd_open(popen.pid)
        loop.add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._popen.wait()
        # What the process has left behind goes too, as the processes of a container do.
        self.signal(signal.SIGKILL)
        self._ending = asyncio.ensure_future(self._finish(128 - code if code < 0 else code))

    async def _finish(self, code: int) -> None:
        """The log is complete before anyone hears of the end."""
        await asyncio.wait([self._output], timeout=1.0)
        self._output.cancel()
        if not self.exited.done():
            self.exited.set_result(code)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    async def stop(self, grace_seconds: float) -> int:
        """SIGTERM, and SIGKILL when the grace is over; the exit code."""
        if not self.exited.done():
            self.signal(signal.SIGTERM)
        await asyncio.wait([self.exited], timeout=grace_seconds)
        if not self.exited.done():
            self.signal(signal.SIGKILL)
        return await asyncio.shield(self.exited)


async def start(
    argv: list[str], env: dict[str, str], cwd: Path, on_output: Callable[[bytes], None]
) -> ContainerProcess:
    """Starts a process whose stdout and stderr go to `on_output` (b"" at the end). Raises StartError. Who is cancelled
    meanwhile leaves none."""
    reading, writing = os.pipe()
    starting = asyncio.get_running_loop().run_in_executor(_spawner, _popen, argv, env, cwd, writing)
    try:
        popen = await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Its thread starts it all the same.
        starting.add_done_callback(lambda _: _undo(starting, reading, writing))
        await asyncio.wait([starting])
        raise
    except OSError as error:
        os.close(reading)
        os.close(writing)
        cause = "executable file not found in $PATH" if isinstance(error, FileNotFoundError) else error.strerror
        words = "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create"
        words += " failed: unable to start container process: error during container init"
        raise StartError(f'{words}: exec: "{argv[0]}": {cause}: unknown') from error
    os.close(writing)
    return ContainerProcess(popen, asyncio.create_task(_read(reading, on_output)))


def _undo(started: asyncio.Future[subprocess.Popen[bytes]], reading: int, writing: int) -> None:
    """Ends what nobody wants any more, if it could be started at all."""
    os.close(reading)
    os.close(writing)
    if started.exception() is None:
        popen = started.result()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)
        popen.wait()


async def _read(reading: int, on_output: Callable[[bytes], None]) -> None:
    """Reads a pipe to its end."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    os.set_blocking(reading, False)

    def readable() -> None:
        try:
            data = os.read(reading, 65536)
        except BlockingIOError:
            return
        on_output(data)
        if not data and not ended.done():
            ended.set_result(None)

    loop.add_reader(reading, readable)
    try:
        await ended
    except asyncio.CancelledError:
        on_output(b"")
    finally:
        loop.remove_reader(reading)
        os.close(reading)


def _popen(argv: list[str], env: dict[str, str], cwd: Path, output: int) -> subprocess.Popen[bytes]:
    # As a container's runtime hands them over, whatever encoding this machine's locale has.
    return subprocess.Popen(
        list(map(_utf8, argv)),
        env={_utf8(name): _utf8(value) for name, value in env.items()},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        # One C call that was resolved before the fork: safe beside other threads.
        preexec_fn=_die_with_parent,
    )


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _die_with_parent() -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def session_memory(sessions: set[int]) -> dict[int, int]:
    """Resident bytes of each session, all its processes together."""
    page = os.sysconf("SC_PAGE_SIZE")
    totals = dict.fromkeys(sessions, 0)
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(encoding="utf-8")
        except OSError:
            continue
        # The command's name, in parentheses, may hold anything.
        fields = stat[stat.rindex(")") + 2 :].split()
        session = int(fields[3])
        if session in totals:
            totals[session] += int(fields[21]) * page
    return totals
