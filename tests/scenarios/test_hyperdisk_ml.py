"""Scenario 04: volumes that are filled, read back, spread over zones, and taken away when nobody needs them."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub import models

from serving.scenarios import Scenario, find
from tests.scenarios.command import MODEL, Traffic, processes_below

ZONES = ["us-central1-a", "us-central1-b", "us-central1-c"]


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return find("04")


def disks(state: Path) -> set[str]:
    """The disks that there are, one name for all zones, and the images: what is paid for."""
    folder = state / "disks"
    return {path.name for path in [*folder.glob("[!.]*"), *folder.glob(".images/*")]}


def step_of(state: Path, result: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step of a run left."""
    file = state / "buckets" / "demo-bucket" / "objects" / "pipelines" / result["run_id"] / "steps" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def script(state: Path, **faults: Any) -> Path:
    """Has disks fail from now on. Returns the file that tells which faults were met."""
    configuration = state / "tmp" / "gke.json"
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "disk_faults": faults}))
    return configuration.with_name("gke.json.consumed")


def test_a_run_that_is_killed_while_it_fills_a_volume_is_completed_by_the_next_and_leaves_one_disk(site, weights):
    run = site.run(weights)
    run.wait_for("hydrate_volume: applied VolumeSnapshot/")
    assert run.stop(signal.SIGKILL) == -signal.SIGKILL
    assert wait_for(lambda: not processes_below(site.state), 120)

    result = site.refresh(weights)
    assert result["status"] == "succeeded"
    hydrated = step_of(site.state, result, "hydrate_volume")
    assert sorted(hydrated["read"]) == ZONES
    assert {figures["files"] for figures in hydrated["read"].values()} == {9}
    assert len(disks(site.state)) == 1, "the one that serves"


def test_the_populator_fills_the_next_one_and_its_pods_read_the_disks_of_their_zones(site, weights):
    before = disks(site.state)
    changes = ("hyperdisk_ml.method=populator", "serving.replicas=2", "keep_previous=0")
    run = site.run(weights, "--keep", *(word for change in changes for word in ("--set", change)))
    result = run.result()
    # A claim's disk goes after the claim, by the driver: for that the cluster has to be there.
    assert wait_for(lambda: len(disks(site.state)) == 1, 120), disks(site.state)
    run.stop()
    assert result["status"] == "succeeded"
    placement = step_of(site.state, result, "verify_placement")["placement"]
    assert [len(pods) for pods in placement.values()] == [1, 1]
    assert not disks(site.state) & before, "the old generation's went with it"


def test_bytes_that_changed_on_the_way_to_one_zones_disk_never_serve(site, weights):
    before = disks(site.state)
    shutil.rmtree(weights)
    models.write_gemma3(weights, seed=1)
    run = site.run(weights)
    run.wait_for("download_weights: started")
    consumed = script(site.state, corrupt=[ZONES[1]])
    with Traffic(site.endpoint, MODEL) as traffic:
        run.wait_for("discard_generation: started")
    met = json.loads(consumed.read_text())
    result = run.finish(code=1)
    assert traffic.errors == []
    assert (result["error"]["step"], result["error"]["type"]) == ("hydrate_volume", "ReleaseError")
    assert result["error"]["message"].startswith(f"{ZONES[1]}: ")
    assert "reads otherwise" in result["error"]["message"]
    assert met == {"corrupt": {ZONES[1]: 1}}
    # Whatever the cluster had not yet done when the run ended it does in the next one.
    assert site.refresh(weights, code=1)["error"]["type"] == "RejectedBeforeError"
    assert disks(site.state) == before
