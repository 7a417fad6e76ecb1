"""A step's process on this machine without its start: it is forked from one that has imported what all steps import.

A step's start is a second of a processor, and most of a run here. `server` is up while a pipeline runs; what it yields
stands where kfp.local's command has `python3`, and is this file as a program. That hands its arguments, environment,
folder and files over to a fork, tells it to end when it is told so itself, and ends as the fork does. Whoever kills it
kills the fork.

On Vertex AI, emulated or not, every step is started: nothing here hides what a step forgot to import.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_STEP = ["-m", "kfp.dsl.executor_main"]
_SOCKET = "forks"


@contextlib.contextmanager
def server(folder: Path) -> Iterator[str]:
    """Forks steps while the block runs, for who may open `folder`. Yields shell words that take `python3`'s place."""
    with _at(str(folder), lambda unconnected: unconnected.bind(_SOCKET)) as listener:
        # Who asks before all is imported waits in this queue.
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.forked", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env={**os.environ, "_KFP_RUNTIME": "true"},
        )
    with process:
        try:
            yield shlex.join([sys.executable, "-IS", __file__, str(folder)])
        finally:
            process.kill()


def _serve(listener: socket.socket) -> dict[str, Any]:
    """Returns in every fork, with what it is to do."""
    _import()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        connection, _ = listener.accept()
        if os.fork():
            connection.close()
            continue
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        _, files, _, _ = socket.recv_fds(connection, 1, 3)
        with connection.makefile() as asked:
            request: dict[str, Any] = json.loads(asked.readline())
        if pid := os.fork():
            _attend(connection, pid)
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        return request


def _attend(connection: socket.socket, pid: int) -> None:
    """Tells who asked for a fork how it is called and how it ended; when nobody is there to be told, it ends."""

    def end_with_asker() -> None:
        connection.recv(1)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    connection.sendall(f"{pid}\n".encode())
    threading.Thread(target=end_with_asker, daemon=True).start()
    _, status = os.waitpid(pid, 0)
    with contextlib.suppress(OSError):
        connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def _import() -> None:
    """Imports what steps do, and what they come to in their course."""
    import gc
    import importlib
    import pkgutil

    import components
    from serving import clients

    gc.disable()
    importlib.import_module(_STEP[1])
    for step in pkgutil.iter_modules(components.__path__):
        importlib.import_module(f"components.{step.name}.step")
    clients.load()
    # What is shared with the forks stays so when they collect.
    gc.freeze()
    gc.enable()


def _end() -> None:
    """Ends as Python does, as far as anybody can see: to take apart a thousand modules that it shares with the process
    it was forked from would copy them first, and take as long as a short step."""
    threading._shutdown()  # type: ignore[attr-defined] # As multiprocessing ends its forks: no thread is cut off.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _ask(folder: str, arguments: list[str]) -> int:
    """Has a fork run, and returns its exit code: below 0, the signal that ended it."""
    # Told to end before there is a fork, it tells that one as soon as it is there.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    connection = _at(folder, lambda unconnected: unconnected.connect(_SOCKET))
    request = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(connection, [b"\n"], [0, 1, 2])
    connection.sendall(json.dumps(request).encode() + b"\n")
    answers = connection.makefile()
    pid = int(answers.readline())
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    return int(answers.readline() or 1)


def _at(folder: str, do: Any) -> socket.socket:
    """A socket in `folder`, whose whole path may be longer than a socket's name."""
    made, before = socket.socket(socket.AF_UNIX), os.getcwd()
    os.chdir(folder)
    do(made)
    os.chdir(before)
    return made


def main() -> None:
    first, *arguments = sys.argv[1:]
    if not arguments:
        request = _serve(socket.socket(fileno=int(first)))
        from kfp.dsl import executor_main

        sys.argv[1:] = request["arguments"]
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        executor_main.executor_main()
        _end()
    elif arguments[:2] != _STEP:
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 (it stands for this very program)
    elif (code := _ask(first, arguments[2:])) < 0:
        with contextlib.suppress(OSError):  # What cannot be caught is as it was.
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    else:
        sys.exit(code)


if __name__ == "__main__":
    main()
