"""Scenario 03 with vLLM too: a first run, a release under traffic, and one that vLLM refuses. What other scenarios do
differently, no engine sees, nor a run that changes nothing."""

from __future__ import annotations

import pytest

from .scenarios import passes

REAL = "control-plane,gcsfuse,vllm"


@pytest.mark.timeout(3600)
def test_refreshes(parts: None) -> None:
    passes("test_refresh.py", REAL, "-k", "gcs-fuse and (first_run or other_weights)")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_config_that_does_not_match_fails_in_vllms_own_words(parts: None) -> None:
    """What vLLM says of such a release, and of every other, test_bad_weights.py asks it without a cluster."""
    passes("test_broken_releases.py", REAL, "-k", "mismatch")
