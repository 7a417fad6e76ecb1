"""Scenario 03 and broken releases, one after the other on one state: each fails, and what is live never stops."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulated_cloud.hub import models

from tests.scenarios.command import MODEL, Run, Traffic, by_hand, refresh


@pytest.fixture(scope="module")
def live(folder: Path, state: Path, weights: Path) -> str:
    """The generation that serves when the broken releases come."""
    return refresh(folder=folder, state=state, weights=weights)["generation"]


@pytest.mark.parametrize(
    ("break_it", "step", "words"),
    [
        (models.truncate_shard, "download_weights", "model-00002-of-00002.safetensors"),
        (models.drop_shard, "download_weights", "model-00002-of-00002.safetensors"),
        (models.mismatch_config, "deploy_server", "size of tensor"),
        (models.zero_weights, "validate_server", "the answer has no text"),
    ],
)
def test_a_broken_release_fails_and_the_old_generation_never_stops_serving(
    break_it, step, words, folder, state, tiny_gemma3, live
):
    broken = Path(shutil.copytree(tiny_gemma3, folder / break_it.__name__))
    break_it(broken)
    run = Run("--state", str(state), "--weights", str(broken), folder=folder)
    with Traffic(state / "endpoint", MODEL) as traffic:
        run.wait_for("discard_generation: started")
    result = run.finish(code=1)
    assert result["status"] == "failed"
    assert result["error"]["step"] == step
    assert words in result["error"]["message"]
    assert traffic.errors == []
    assert len({text for _, text in traffic.answers}) == 1
    assert result["generation"] != live

    again = refresh(folder=folder, state=state, weights=broken, code=1)
    assert again["error"]["type"] == "RejectedBeforeError"
    assert "--retry" in again["error"]["message"]
    assert again["bytes_transferred"] == 0

    retried = refresh("--retry", folder=folder, state=state, weights=broken, code=1)
    assert retried["error"]["step"] == step


def test_after_a_rejected_release_the_good_one_is_still_unchanged(folder, state, weights, live):
    result = refresh(folder=folder, state=state, weights=weights)
    assert (result["status"], result["generation"]) == ("unchanged", live)


def test_a_rejected_release_is_nothing_to_roll_back_to(folder, state, live):
    assert by_hand("rollback", folder=folder, state=state, code=2) == ""
