"""How an emulator runs as a process of its own, and how it is started, found and ended.

The contract of every `python -m emulated_cloud.<name>`: it binds `--port` (0: any free one) on `--host`, prints one
JSON line `{"url": …}` on stdout when it answers, and ends on SIGTERM, SIGINT or when its stdin closes: so it goes when
whoever started it dies, `kill -9` included, without anybody having to look for it. One that has much to do first tells
how far it is, in lines `{"progress": words}` before that one.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emulated_cloud.http import EmulatorServer


class EmulatorFailed(Exception):
    """An emulator did not come up, or ended although nobody told it to: its name, its last words."""


_OF_THE_MACHINE = {
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "TZ", "LANG", "LANGUAGE", "TERM", "COLUMNS", "NO_COLOR"),
    *("LD_LIBRARY_PATH", "VIRTUAL_ENV", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"),
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"),
}
_FAMILIES_OF_THE_MACHINE = ("LC_", "PYTHON", "PYTEST_", "COVERAGE_", "EMULATED_")


def machine_environment() -> dict[str, str]:
    """What of this process's environment a program needs to run here, and nothing that any client of a cloud reads:
    what reaches for an emulator must not be led elsewhere by a variable that nobody thought of."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _OF_THE_MACHINE or name.startswith(_FAMILIES_OF_THE_MACHINE)
    }


@dataclass
class Process:
    """A started emulator."""

    name: str
    popen: subprocess.Popen[str]
    log: Path
    log_start: int
    """Where its own words begin in the log, which goes on from run to run."""
    url: str = field(default="", init=False)

    def wait_for_url(self, say: Callable[[str], None]) -> None:
        """Returns when it answers; `say` hears how far it is. Raises EmulatorFailed, with the log's last lines, when it
        ends instead."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            told = json.loads(line)
            if "url" in told:
                self.url = told["url"]
                return
            say(told["progress"])
        self.popen.wait()
        raise EmulatorFailed(self.end)

    @property
    def end(self) -> str:
        """How it ended, with its last words; empty while it runs."""
        code = self.popen.poll()
        if code is None:
            return ""
        words = self.log.read_bytes()[self.log_start :].decode(errors="replace").strip().splitlines()[-5:]
        return how_it_ended(self.name, code, " / ".join(words))

    def stop(self, seconds: float = 30.0) -> None:
        """Ends it, gently first; ends it for certain."""
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(seconds)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()


def start(module: str, *args: str, log: Path, env: dict[str, str] | None = None, within: Sequence[str] = ()) -> Process:
    """Starts it (launch) and returns when it answers. Raises EmulatorFailed when it ends instead."""
    process = launch(module, *args, log=log, env=env, within=within)
    try:
        process.wait_for_url(lambda _: None)
    except BaseException:
        process.stop()
        raise
    return process


def launch(
    module: str, *args: str, log: Path, env: dict[str, str] | None = None, within: Sequence[str] = ()
) -> Process:
    """Starts `python -m module args…`, whose stderr goes to `log`; `within` is a command that runs it elsewhere."""
    with open(log, "a", encoding="utf-8") as stderr:
        log_start = stderr.tell()
        popen = subprocess.Popen(
            # -P: what lies in the folder that we happen to be in is not what a module here imports.
            [*within, sys.executable, "-P", "-m", module, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            encoding="utf-8",
            # Whom an emulator trusts it is told. To read this machine's authorities would be a quarter of its start.
            env={**machine_environment(), "SSL_CERT_FILE": os.devnull, **(env or {})},
            # Ctrl-C in the terminal is for whoever started us, who then ends us in the right order.
            start_new_session=True,
            # Pods read what emulators write, as users of their own; who may come near says the folder it all lies in.
            umask=0o022,
        )
    return Process(module, popen, log, log_start)


_PR_SET_PDEATHSIG = 1
_prctl = ctypes.CDLL(None).prctl


def dies_with_its_parent() -> None:
    """A `preexec_fn`: one C call that was resolved before the fork. It fires when the thread that starts it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def how_it_ended(name: str, code: int, words: str) -> str:
    """The end of a process for a reader; what it said before a signal ended it has nothing to do with that."""
    if code < 0:
        return f"{name} was ended by {signal.Signals(-code).name}"
    return f"{name} ended with exit code {code}{': ' if words else ''}{words}"


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with what every emulator takes: --host, --port, --request-log."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--request-log", type=Path, help="one JSON object a request is appended here")
    return parser


def announce(url: str) -> None:
    """Tells whoever started this process that it answers."""
    print(json.dumps({"url": url}), flush=True)


def tell_progress(words: str) -> None:
    """Tells whoever started this process how far it is."""
    print(json.dumps({"progress": words}), flush=True)


_ends: list[Callable[[], None]] = []


def when_told_to_end(end: Callable[[], None]) -> None:
    """Calls `end` once, from a thread of its own, on SIGTERM, SIGINT or when stdin closes. The last `end` given counts:
    a process that has much to do before it serves ends otherwise until then."""
    _ends.append(end)
    if len(_ends) > 1:
        return
    told = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: told.set())

    def watch_stdin() -> None:
        while os.read(0, 4096):
            pass
        told.set()

    def wait() -> None:
        told.wait()
        _ends[-1]()

    threading.Thread(target=watch_stdin, daemon=True).start()
    threading.Thread(target=wait, daemon=True).start()


def serve(server: EmulatorServer) -> None:
    """Serves until told to end: the main function of a threaded emulator."""
    when_told_to_end(server.shutdown)
    announce(server.url)
    try:
        server.serve_forever(poll_interval=0.05)
    finally:
        server.server_close()
