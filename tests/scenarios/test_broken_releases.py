"""Broken releases, one after the other on one state: each fails, and what is live never stops.

No feature has a part in it, so one scenario is enough. What validation finds, and what the engine finds in weights that
come to it in another way, is in test_refresh.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from emulated_cloud.hub import models

from serving.scenarios import Scenario, find
from tests.scenarios.command import MODEL, Site, Traffic


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return find("03")


@pytest.fixture(scope="module")
def live(site: Site, weights: Path) -> str:
    """The generation that serves when the broken releases come."""
    return site.refresh(weights)["generation"]


@pytest.mark.parametrize(
    ("break_it", "step", "words"),
    [
        (models.truncate_shard, "download_weights", "model-00002-of-00002.safetensors"),
        (models.drop_shard, "download_weights", "model-00002-of-00002.safetensors"),
        (models.mismatch_config, "deploy_server", "size of tensor"),
    ],
)
def test_a_broken_release_fails_and_the_old_generation_never_stops_serving(
    break_it, step, words, site, tiny_gemma3, live
):
    broken = Path(shutil.copytree(tiny_gemma3, site.folder / break_it.__name__))
    break_it(broken)
    run = site.run(broken)
    with Traffic(site.endpoint, MODEL) as traffic:
        run.wait_for("discard_generation: started")
    result = run.finish(code=1)
    assert result["status"] == "failed"
    assert result["error"]["step"] == step
    assert words in result["error"]["message"]
    assert traffic.errors == []
    assert len({text for _, text in traffic.answers}) == 1
    assert result["generation"] != live


def test_a_rejected_release_is_tried_again_only_when_somebody_asks_for_it(site, live):
    """The mismatched one: what the tests before left of it."""
    broken = site.folder / models.mismatch_config.__name__
    again = site.refresh(broken, code=1)
    assert again["error"]["type"] == "RejectedBeforeError"
    assert "--retry" in again["error"]["message"]
    assert again["bytes_transferred"] == 0

    retried = site.refresh(broken, "--retry", code=1)
    assert retried["error"]["step"] == "deploy_server"


def test_after_a_rejected_release_the_good_one_is_still_unchanged(site, weights, live):
    result = site.refresh(weights)
    assert (result["status"], result["generation"]) == ("unchanged", live)


def test_a_rejected_release_is_nothing_to_roll_back_to(site, live):
    assert site.by_hand("rollback", code=2) == ""
