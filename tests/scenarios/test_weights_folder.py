"""A folder of weights that takes long to read, and one that holds more than files."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for

from tests.scenarios.command import Run, processes_below

HUGE = 1 << 40
"""Bytes, of which the disk holds none: hours of hashing."""


@pytest.fixture
def reading(tmp_path: Path) -> Run:
    """A run that is reading a huge folder."""
    weights = tmp_path / "weights"
    weights.mkdir()
    with open(weights / "model.safetensors", "wb") as file:
        file.truncate(HUGE)
    run = Run("--weights", str(weights), folder=tmp_path)
    run.wait_for("google/gemma-3-4b-it: hashed ")
    return run


def test_ctrl_c_ends_it_while_the_folder_is_read(tmp_path: Path, reading: Run):
    assert "of 1099.5 GB, " in reading.stderr
    assert reading.stop(signal.SIGINT) == 130
    assert reading._text().endswith("interrupted\n")
    assert processes_below(tmp_path) == []
    assert list((tmp_path / "tmp").iterdir()) == []


def test_nothing_goes_on_when_it_is_killed_while_the_folder_is_read(tmp_path: Path, reading: Run):
    assert reading.stop(signal.SIGKILL) == -signal.SIGKILL
    assert wait_for(lambda: not processes_below(tmp_path), 120), processes_below(tmp_path)


def test_only_regular_files_are_served(tmp_path: Path, tiny_gemma3: Path):
    """As by the hub's own client, which uploads files alone."""
    weights = Path(shutil.copytree(tiny_gemma3, tmp_path / "weights"))
    os.mkfifo(weights / "pipe")
    (weights / "nowhere").symlink_to("/nowhere")
    (weights / "above").symlink_to(weights)
    (weights / "null").symlink_to("/dev/null")
    assert Run("--weights", str(weights), folder=tmp_path).finish()["status"] == "succeeded"


def test_a_folder_without_a_file_of_a_release_is_one_error(tmp_path: Path):
    """Only what no repository has: the hub itself says so."""
    weights = tmp_path / "weights"
    (weights / ".git").mkdir(parents=True)
    (weights / ".git" / "HEAD").touch()
    run = Run("--weights", str(weights), folder=tmp_path)
    assert run.finish(1) == {}
    (words,) = [line for line in run._text().splitlines() if line.startswith("error: ")]
    assert f"emulated_cloud.hub ended with exit code 2: nothing to commit in {weights}" in words
    assert "usage" not in run._text()
