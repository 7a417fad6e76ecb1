"""A step that is forked is the process that it would be if it were started: to itself, and to who started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for

from pipelines import forked

STEP = """
import os, signal, sys, time

def told():
    print("pid", os.getpid())
    print("folder", os.getcwd())
    print("variable", os.environ.get("OF_THE_STEP"), os.environ.get("NOT_OF_THE_STEP"))
    print("read", sys.stdin.readline().strip())
    print("has", "google.cloud.storage" in sys.modules, "components.deploy_server.step" in sys.modules)
    print("on stderr", file=sys.stderr)

def failing():
    raise SystemExit(7)

def broken():
    raise ValueError("broken")

def killed():
    os.kill(os.getpid(), signal.SIGKILL)

def lasting():
    import atexit, threading
    atexit.register(print, "in the end")
    threading.Thread(target=lambda: (time.sleep(0.3), print("of a thread"))).start()

def ending():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
    print(os.getpid(), flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # Longer than the name of a socket may be.
    folder = tmp_path_factory.mktemp("work") / ("long" * 30)
    folder.mkdir()
    (folder / "step.py").write_text(STEP)
    with forked.server(folder) as words:
        yield words


def start(python: str, function: str, folder: Path, **variables: str) -> subprocess.Popen[str]:
    """A step as kfp.local's command starts it."""
    module = Path(python.split()[-1]) / "step.py"
    given = {"inputs": {}, "outputs": {"outputFile": str(folder / "output.json")}}
    arguments = ("--component_module_path", str(module), "--function_to_execute", function)
    command = f'exec {python} -m kfp.dsl.executor_main "$@"'
    return subprocess.Popen(
        ["sh", "-ec", command, "sh", *arguments, "--executor_input", json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **variables},
    )


def test_it_has_its_own_files_folder_and_environment_and_finds_imported_what_steps_import(python: str, tmp_path: Path):
    step = start(python, "told", tmp_path, OF_THE_STEP="1")
    said, errors = step.communicate("what it reads\n")
    told = dict(line.split(" ", 1) for line in said.splitlines() if line.split(" ")[0] in STEP)
    assert step.returncode == 0, errors
    assert told["folder"] == str(tmp_path)
    assert told["variable"] == "1 None"
    assert told["read"] == "what it reads"
    assert told["has"] == "True True"
    assert errors == "on stderr\n"
    assert int(told["pid"]) != step.pid


@pytest.mark.parametrize(("function", "code"), [("failing", 7), ("broken", 1), ("killed", -signal.SIGKILL)])
def test_it_ends_as_its_fork_does(python: str, function: str, code: int, tmp_path: Path):
    step = start(python, function, tmp_path)
    _, errors = step.communicate()
    assert step.returncode == code
    assert ("ValueError: broken" in errors) == (function == "broken")


def test_it_ends_after_its_threads_and_what_it_put_off(python: str, tmp_path: Path):
    step = start(python, "lasting", tmp_path)
    said, errors = step.communicate()
    assert step.returncode == 0, errors
    assert said.splitlines()[-2:] == ["of a thread", "in the end"]


def test_what_it_is_told_its_fork_hears(python: str, tmp_path: Path):
    step = start(python, "ending", tmp_path)
    assert pid_of(step)
    step.terminate()
    step.communicate()
    assert step.returncode == 5


def test_who_kills_it_kills_its_fork(python: str, tmp_path: Path):
    step = start(python, "ending", tmp_path)
    pid = pid_of(step)
    step.kill()
    step.communicate()
    assert wait_for(lambda: not Path(f"/proc/{pid}").exists(), 120)


def test_what_is_no_step_is_started(python: str):
    words = subprocess.run(["sh", "-c", f"{python} -c 'print(1)'"], capture_output=True, text=True, check=True)
    assert words.stdout == "1\n"


def test_nothing_is_left_when_the_pipeline_is_over(tmp_path: Path):
    before = servers()
    with forked.server(tmp_path):
        assert len(servers() - before) == 1
    assert servers() == before


def servers() -> set[str]:
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "pipelines.forked"], capture_output=True, text=True)
    return set(found.stdout.split())


def pid_of(step: subprocess.Popen[str]) -> int:
    """What a step says of itself, after kfp's lines."""
    assert step.stdout
    return next(int(line) for line in step.stdout if line.strip().isdigit())
