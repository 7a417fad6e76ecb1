"""A deployment as a person looks at it and takes it away: what it leaves is what was there before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving.scenarios import Scenario, find


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return find("03")


def stored(state: Path) -> set[str]:
    """What the bucket has, without what runs left to be read."""
    root = state / "buckets" / "demo-bucket" / "objects"
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith("pipelines/")}


def test_what_was_made_is_told_and_then_goes_and_a_second_time_there_is_nothing(site, weights):
    run = site.run(weights, "--keep")
    result = run.result()
    told = json.loads(site.by_hand("status", "--json"))
    assert (told["live"]["generation"], told["live"]["commit"]) == (result["generation"], result["revision"])
    assert told["live"]["pods"] == {"wanted": 1, "ready": 1}
    assert told["live"]["validated"]["passed"]
    assert [run["id"] for run in told["runs"]] == [result["run_id"]]
    assert told["drift"] == []

    gone = json.loads(site.by_hand("destroy", "03", "--yes", "--weights", "--json"))
    assert f"Deployment/vllm-{result['generation']}" in gone["removed"]
    assert result["weights"] in gone["removed"]
    assert stored(site.state) == set()
    assert json.loads(site.by_hand("destroy", "03", "--yes", "--weights", "--json")) == {"removed": [], "kept": []}
    assert json.loads(site.by_hand("status", "--json"))["live"] is None
    assert run.stop() == 0
