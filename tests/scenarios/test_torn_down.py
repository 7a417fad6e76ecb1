"""Deployments with all kinds of things beside the cluster, in one project and bucket: `destroy` takes one away while
its schedule is active and a run goes on, and leaves the other; in the end the cloud holds what it held before."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.cloud import wait_for

from tests.scenarios.emulated import Cloud, held, holds, up


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    # Who dies is known as dead soon.
    common = {"lease": {"duration": "30s", "wait": "30m"}, "keep_previous": 0}
    with up(folder, scenario="secondary-boot-disk", namespace="two", **common) as cloud:
        cloud.settings("four.yaml", scenario="hyperdisk-ml", namespace="four", **common)
        assert cloud.command("bootstrap")["ready"]
        yield cloud


def stays(cloud: Cloud, before: set[str]) -> set[str]:
    """Of what there was not before, the bucket's part, by its folders; anything else as it is."""
    more = holds(cloud) - before
    return {each.split("/")[2] if each.startswith("gs://") else each for each in more}


@pytest.mark.timeout(3600)
def test_what_is_left_is_what_was_there(cloud: Cloud):
    before = holds(cloud)
    runs = [cloud.begin("submit", "02", "--wait"), cloud.begin("submit", "04", "--wait", file="four.yaml")]
    two, four = (run.finish()["run"] for run in runs)
    for file in ("gemma.yaml", "four.yaml"):
        assert cloud.command("schedule", "apply", file=file)["state"] == "ACTIVE"
    weights = two["weights"]
    assert four["weights"] == weights, "one set for both"
    of_both = holds(cloud)

    # A run waits for its machine, and the first destroy is killed in the middle.
    cloud.script({"action": "outcome", "path": "/pipelineJobs$", "outcome": {"hold": True}})
    going = cloud.command("submit", "04", "--set", "engine.max_model_len=1024", file="four.yaml")["id"]
    killed = cloud.begin("destroy", "04", "--yes", "--cancel", "--weights", file="four.yaml")
    killed.wait_for("deleted Deployment/")
    said = killed.stderr
    assert "paused the schedule" in said
    assert f"told run {going} to end" in said
    assert cloud.consumed() == [1], "it had stayed PENDING"
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL
    gone = cloud.command("destroy", "04", "--yes", "--weights", file="four.yaml")
    assert "Namespace/four" in gone["removed"]
    assert weights not in gone["removed"], "the other deployment serves them"
    nothing = {"removed": [], "kept": []}
    assert cloud.command("destroy", "04", "--yes", "--weights", file="four.yaml") == nothing

    # A namespace goes by and by.
    assert wait_for(lambda: not [each for each in holds(cloud) - before if "four" in each], 120), holds(cloud) - before
    assert holds(cloud) < of_both
    assert held(cloud, "two")["deployments"] == [f"vllm-{two['generation']}"], "it serves on"
    assert cloud.command("schedule", "show")["state"] == "ACTIVE"

    # Without its weights first; they may go later.
    gone = cloud.command("destroy", "02", "--yes")
    assert gone["kept"] == [weights]
    assert wait_for(lambda: stays(cloud, before) == {"models", "deployments"}, 120), holds(cloud) ^ before
    assert cloud.command("destroy", "02", "--yes") == {"removed": [], "kept": [weights]}
    assert cloud.command("destroy", "02", "--yes", "--weights")["removed"] == [weights]
    assert wait_for(lambda: holds(cloud) == before, 120), holds(cloud) ^ before
    assert cloud.command("destroy", "02", "--yes", "--weights") == nothing
