"""The entrypoint of the two containers of gpu-or-tpu, run: it serves where its device is, and idles anywhere else."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.features.gpu_or_tpu import entrypoint

SHELLS = [shell for shell in ("sh", "bash", "dash") if shutil.which(shell)]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    return tmp_path / "dev" / "nvidia0"


@pytest.fixture(params=SHELLS)
def start(request: pytest.FixtureRequest, device: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(*command: str) -> subprocess.Popen[str]:
        argv = [request.param, "-c", entrypoint(), "serve-on", str(device), *command]
        started.append(
            subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        )
        return started[-1]

    yield begin
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def said_first(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


def test_where_its_device_is_the_command_runs_in_its_place_with_every_argument(start: Start, device: Path):
    device.parent.mkdir()
    device.touch()
    arguments = ["", "two words", "$HOME", "*", '{"model": "/model/assistant"}', "--flag=가"]
    process = start(sys.executable, "-c", "import os, sys; print(os.getpid(), sys.argv[1:])", *arguments)
    said, _ = process.communicate(timeout=120)
    assert said == f"{process.pid} {arguments!r}\n"
    assert process.returncode == 0


def test_the_commands_end_and_signals_are_its_own(start: Start, device: Path):
    device.parent.mkdir()
    device.touch()
    assert start("sh", "-c", "exit 7").wait(timeout=120) == 7
    program = (
        "import signal, sys; signal.signal(signal.SIGTERM, lambda *_: sys.exit(42)); print('up', flush=True); "
        "signal.pause()"
    )
    process = start(sys.executable, "-c", program)
    assert said_first(process) == "up\n"
    process.terminate()
    assert process.wait(timeout=120) == 42


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_on_the_wrong_node_it_idles_until_it_is_told_to_end(start: Start, device: Path, told: signal.Signals):
    device.parent.mkdir()
    (device.parent / "nvidiactl").touch()
    process = start("touch", str(device.parent / "served"))
    assert f"there is no {device} on this node: idle" in said_first(process)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    process.send_signal(told)
    assert process.wait(timeout=120) == 0
    assert not (device.parent / "served").exists()


def test_a_device_that_comes_late_is_served_by_the_next_start(start: Start, device: Path):
    process = start("echo", "served")
    assert "idle" in said_first(process)
    device.parent.mkdir()
    device.touch()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 1
    assert said.startswith(f"serve-on: {device} has come")
    assert start("echo", "served").communicate(timeout=120)[0] == "served\n"


def test_kubernetes_leaves_the_program_as_it_is():
    assert not re.search(r"\$\$|\$\(", entrypoint())
