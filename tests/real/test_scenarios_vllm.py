"""Scenario 03 with vLLM too: a first run, an unchanged one, a release under traffic, and one that vLLM refuses. What
other scenarios do differently, no engine sees."""

from __future__ import annotations

import pytest

from .scenarios import passes

REAL = "control-plane,gcsfuse,vllm"


@pytest.mark.timeout(3600)
def test_refreshes(parts: None) -> None:
    passes("test_refresh.py", REAL, "-k", "gcs-fuse and (first_run or second_run or other_weights)")


@pytest.mark.timeout(3600)
def test_a_config_that_does_not_match_fails_in_vllms_own_words(parts: None) -> None:
    passes("test_broken_releases.py", REAL, "-k", "mismatch")
