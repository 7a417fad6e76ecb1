"""A run stopped in the middle: by Ctrl-C, by kill -9, by a second run, by a wrong request."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for

from tests.scenarios.command import PATIENCE_SECONDS, Run, processes_below

STEPS = [
    "resolve_model",
    "ensure_access",
    "download_weights",
    "deploy_server",
    "validate_server",
    "promote_generation",
    "collect_garbage",
]


def run_on(state: Path, folder: Path, *arguments: str) -> Run:
    return Run("--state", str(state), *arguments, folder=folder)


@pytest.mark.timeout(3600)
def test_a_run_killed_in_any_step_is_completed_by_the_next_one(tmp_path):
    """Each run begins on what the one before left when it was killed one step earlier; the last one is let through.

    Every other one is interrupted from the keyboard instead, which must end with one line and exit code 130.
    """
    state = tmp_path / "state"
    for number, step in enumerate(STEPS):
        # Another length each time: another generation, so that no run finds its work done.
        run = run_on(state, tmp_path, "--set", f"engine.max_model_len={1024 * (number + 1)}")
        run.wait_for(f"{step}: started")
        time.sleep(0.1 * number)
        if number % 2:
            assert run.stop(signal.SIGINT) == 130, step
        else:
            assert run.stop(signal.SIGKILL) == -signal.SIGKILL
        assert wait_for(lambda: not processes_below(state), 120), (step, processes_below(state))

    result = run_on(state, tmp_path, "--set", "engine.max_model_len=1024").finish()
    assert result["status"] == "succeeded"
    assert list((tmp_path / "tmp").iterdir()) == []

    again = run_on(state, tmp_path, "--set", "engine.max_model_len=1024").finish()
    assert again["status"] == "unchanged", "nothing was left over"


def test_an_interrupted_run_without_a_state_leaves_nothing(tmp_path):
    run = Run(folder=tmp_path)
    run.wait_for("download_weights: started")
    stderr = Path(run._stderr.name)
    assert run.stop(signal.SIGINT) == 130
    assert "Traceback" not in stderr.read_text()
    assert stderr.read_text().endswith("interrupted\n")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert processes_below(tmp_path) == []


def test_a_step_that_is_killed_is_tried_again(tmp_path):
    run = Run(folder=tmp_path)
    run.wait_for("deploy_server: started")
    os.kill(_process_of_the_step(tmp_path), signal.SIGKILL)
    result = run.finish()
    assert result["status"] == "succeeded"


@pytest.mark.parametrize("emulator", ["storage", "hub"])
def test_an_emulator_that_dies_ends_the_run_at_once_with_its_name(emulator, tmp_path):
    # What the steps leave may lie in a bucket of its own.
    run = run_on(tmp_path / "state", tmp_path, "--set", "pipeline_root=gs://runs-bucket/gemma")
    run.wait_for("ensure_access: started" if emulator == "storage" else "resolve_model: started")
    os.kill(_process(tmp_path, f"-m emulated_cloud.{emulator} "), signal.SIGKILL)
    killed = time.monotonic()
    result = run.finish(code=1)
    assert time.monotonic() - killed < PATIENCE_SECONDS, "nobody waits for what has gone"
    words = f"emulated_cloud.{emulator} was ended by SIGKILL. Its logs are in {tmp_path / 'state' / 'logs'}. Run again"
    assert result["error"]["type"] == "InconclusiveError"
    assert result["error"]["message"] == words
    assert result["status"] == "failed"
    # What the steps had left is in the result, though the bucket answers nobody any more.
    assert [step["name"] for step in result["steps"]] == (["resolve_model"] if emulator == "storage" else [])
    assert run._text().splitlines()[-1].endswith(words)
    assert processes_below(tmp_path / "state") == []


def _process_of_the_step(folder: Path) -> int:
    """The python process that runs a step now."""
    return _process(folder, "kfp.dsl.executor_main")


def _process(folder: Path, words: str) -> int:
    """The one process of a run whose command line has these words."""
    found = [line for line in processes_below(folder) if words in line and ": sh " not in line]
    assert len(found) == 1, found
    return int(found[0].split(":")[0])


def test_a_second_run_on_the_same_state_waits_for_the_first_and_finds_its_work_done(tmp_path):
    state = tmp_path / "state"
    first = run_on(state, tmp_path)
    first.wait_for("resolve_model: started")
    second = run_on(state, tmp_path)
    second.wait_for("waiting for it to end")
    assert f"process {first.popen.pid}" in second.stderr
    assert first.finish()["status"] == "succeeded"
    assert second.finish()["status"] == "unchanged"


@pytest.mark.parametrize(
    ("spoil", "arguments", "words"),
    [
        (lambda weights: None, ["--set", "revision=v9"], "v9"),
        (lambda weights: [path.unlink() for path in weights.glob("*.safetensors*")], [], "safetensors"),
        (lambda weights: (weights / "config.json").write_text('{"architectures": ["BertModel"]}'), [], "BertModel"),
    ],
    ids=["unknown revision", "no safetensors", "an architecture that vLLM does not serve"],
)
def test_a_release_that_cannot_be_served_is_a_wrong_request_before_a_byte_moves(
    spoil, arguments, words, tmp_path, tiny_gemma3
):
    weights = Path(shutil.copytree(tiny_gemma3, tmp_path / "weights"))
    spoil(weights)
    run = Run("--weights", str(weights), *arguments, folder=tmp_path)
    assert run.finish(code=2) == {}
    stderr = run._text()
    assert words in stderr.splitlines()[-1]
    assert "Traceback" not in stderr
    assert "download_weights" not in stderr
