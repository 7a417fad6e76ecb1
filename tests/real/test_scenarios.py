"""Scenario 03 on real parts: tests/scenarios as they are, with `--real` in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def passes(real: str, *arguments: str, seconds: int) -> None:
    """Runs tests in a process of their own, with these parts real."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", f"--timeout={seconds}", *arguments],
        env={**os.environ, "GEMMA_PIPELINES_TEST_REAL": real},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.timeout(1500)
def test_every_refresh_on_a_real_control_plane_and_real_mounts(parts: None) -> None:
    passes("control-plane,gcsfuse", str(SCENARIOS / "test_gcs_fuse_refresh.py"), seconds=600)


@pytest.mark.timeout(1500)
def test_refreshes_with_real_vllm_too(parts: None) -> None:
    """First run, unchanged, promoted under traffic, and a config that does not match, in vLLM's own words."""
    wanted = "first_run or second_run or other_weights or mismatch or nothing_is_left"
    passes("control-plane,gcsfuse,vllm", str(SCENARIOS / "test_gcs_fuse_refresh.py"), "-k", wanted, seconds=900)
