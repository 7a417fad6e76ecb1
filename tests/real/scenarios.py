"""Runs tests/scenarios as they are, with `--real` in every run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCENARIOS = Path(__file__).parents[1] / "scenarios"


def passes(file: str, real: str, *arguments: str) -> None:
    """Runs a file's tests in a process of their own, with these parts real."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "", str(SCENARIOS / file), *arguments],
        env={**os.environ, "GEMMA_PIPELINES_TEST_REAL": real},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
