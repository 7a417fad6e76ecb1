"""The gemma-pipelines command as a user runs it, and a client that calls the endpoint meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx

from serving.scenarios import Scenario

REAL = os.environ.get("GEMMA_PIPELINES_TEST_REAL", "")
"""The real parts that every run of these tests uses (`--real`); tests/real sets it."""
SECONDS = 900
"""A run that takes longer hangs, however busy the machine."""
PATIENCE_SECONDS = 600
"""What a step waits for an API that is away, unless the settings say otherwise."""
MODEL = "google/gemma-3-4b-it"
"""What a run without settings serves."""


class Run:
    """`gemma-pipelines run SCENARIO --json …`, started; `finish()` waits for its result.

    within: a command that runs it elsewhere. variables: what its environment has beside this process's.
    """

    def __init__(
        self,
        *arguments: str,
        folder: Path,
        scenario: str = "03",
        command: tuple[str, ...] = (),
        within: tuple[str, ...] = (),
        variables: Mapping[str, str] = MappingProxyType({}),
    ):
        command = command or ("run", scenario, "--json")
        self.folder = folder
        if REAL and command[0] == "run":
            arguments = ("--real", REAL, *arguments)
            if "vllm" in REAL:
                # A processor computes a hundred tokens a second, and shares itself with the generation before.
                arguments = (*arguments, "--set", "validation.requests_per_concurrency=4")
        places = {"TMPDIR": str(folder / "tmp"), "XDG_STATE_HOME": str(folder / "xdg")}
        self.environment = {**os.environ, **places, **variables}
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self._stderr = open(folder / f"stderr-{time.monotonic_ns()}", "w+")  # noqa: SIM115
        self.popen = subprocess.Popen(
            [*within, sys.executable, "-m", "pipelines.cli", *command, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=self.environment,
            cwd=folder,
        )
        assert self.popen.stdout
        self._stdout = self.popen.stdout

    @property
    def stderr(self) -> str:
        self._stderr.flush()
        return Path(self._stderr.name).read_text()

    def wait_for(self, text: str) -> None:
        """Until stderr says `text`."""
        deadline = time.monotonic() + SECONDS
        while text not in self.stderr:
            assert time.monotonic() < deadline, f"never said {text!r}:\n{self.stderr}"
            assert self.popen.poll() is None, f"ended without saying {text!r}:\n{self.stderr}"
            time.sleep(0.02)

    def result(self) -> dict[str, Any]:
        """The JSON object, as soon as it is printed (with --keep the run goes on)."""
        line = self._stdout.readline()
        assert line, f"no result; stderr:\n{self.stderr}"
        return json.loads(line)

    def finish(self, code: int = 0) -> dict[str, Any]:
        """The result of a run that ends by itself with this exit code."""
        out = self.finish_with_text(code)
        return json.loads(out) if out else {}

    def finish_with_text(self, code: int = 0) -> str:
        """What a command that ends by itself with this exit code printed."""
        out, _ = self.popen.communicate(timeout=SECONDS)
        self._stderr.close()
        assert self.popen.returncode == code, f"exit code {self.popen.returncode}:\n{out}\n{self._text()}"
        return out

    def stop(self, with_signal: int = signal.SIGINT) -> int:
        """Signals the run and returns its exit code."""
        self.popen.send_signal(with_signal)
        code = self.popen.wait(timeout=SECONDS)
        self._stdout.close()
        self._stderr.close()
        return code

    def _text(self) -> str:
        return Path(self._stderr.name).read_text()


@dataclass(frozen=True)
class Site:
    """A state folder that many runs of one scenario share."""

    folder: Path
    scenario: Scenario
    given: tuple[str, ...] = ()
    """Arguments of every run."""

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def endpoint(self) -> Path:
        """The file with the address of what serves, while something does."""
        return self.state / "endpoint"

    def run(self, weights: Path, *arguments: str) -> Run:
        """A run on the state, with these weights in the hub."""
        given = ("--state", str(self.state), "--weights", str(weights), *self.given, *arguments)
        return Run(*given, folder=self.folder, scenario=self.scenario.name)

    def refresh(self, weights: Path, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The result of a run that ends by itself."""
        return self.run(weights, *arguments).finish(code)

    def by_hand(self, verb: str, *arguments: str, code: int = 0) -> str:
        """What another command printed, on the same state."""
        return Run("--state", str(self.state), *arguments, folder=self.folder, command=(verb,)).finish_with_text(code)


@dataclass
class Traffic:
    """Clients that ask the endpoint all the time, half of them in streams, until they are told to stop."""

    endpoint_file: Path
    model: str
    clients: int = 2
    max_tokens: int = 64
    pause: float = 0.05
    """Seconds between a client's requests."""
    answers: list[tuple[float, str]] = field(default_factory=list)
    """(time, text) of each whole answer."""
    errors: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        for number in range(self.clients):
            thread = threading.Thread(target=self._ask, args=(number % 2 == 1,))
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, streaming: bool) -> None:
        while not self.endpoint_file.exists() and not self._stop.is_set():
            time.sleep(0.02)
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": "Say something."}],
            "max_tokens": self.max_tokens,
            "temperature": 0,
            "stream": streaming,
        }
        while not self._stop.is_set():
            try:
                url = self.endpoint_file.read_text().strip() + "/v1/chat/completions"
                # A connection a request: that is what moves when the Service does. (No TLS: not its certificates each
                # time, which would take more of a processor than the run that is watched.)
                with httpx.Client(timeout=30, trust_env=False, verify=False) as client:
                    response = client.post(url, json=body)
                    response.raise_for_status()
                    text = (
                        _streamed(response.text) if streaming else response.json()["choices"][0]["message"]["content"]
                    )
                assert text
                self.answers.append((time.time(), text))
            except Exception as error:  # noqa: BLE001 (any failure at all is what the test is about)
                self.errors.append(f"{time.strftime('%H:%M:%S')} {error!r}")
            time.sleep(self.pause)


def _streamed(body: str) -> str:
    lines = [line.removeprefix("data: ") for line in body.split("\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]", f"a stream was cut: {lines[-1]}"
    chunks = [json.loads(line) for line in lines[:-1]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def requests(state: Path, emulator: str) -> list[dict[str, Any]]:
    """What an emulator of a running command was asked."""
    return [json.loads(line) for line in (state / "tmp" / f"{emulator}.requests").read_text().splitlines()]


def processes_below(folder: Path) -> list[str]:
    """Command lines of processes that speak of a folder: what a run left behind."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes().decode(errors="replace")
            except OSError:
                continue
            # A container with a root of its own knows neither TMPDIR nor any other path of this machine.
            places = (f"TMPDIR={folder}", f"CONTAINER_ROOT={folder}")
            if str(folder) in command or any(place in environment for place in places):
                found.append(f"{entry.name}: {command}")
    return found
