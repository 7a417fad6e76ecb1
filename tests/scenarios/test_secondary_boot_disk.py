"""Scenario 02: nodes that start with the engine's image, from the registry to the words of the nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.scenarios import find
from tests.scenarios.command import Site, processes_below, requests


@pytest.fixture(scope="module")
def scenario() -> Any:
    return find("02")


def in_compute(state: Path) -> set[str]:
    """What Compute Engine holds: disks, machines, images."""
    folder = state / "compute"
    return {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.json")}


def step_of(state: Path, result: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step of a run left."""
    file = state / "buckets" / "demo-bucket" / "objects" / "pipelines" / result["run_id"] / "steps" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_another_engine_image_is_another_disk_and_the_old_one_goes_with_its_generation(site: Site, weights: Path):
    keep_none = ("--set", "keep_previous=0")
    first = site.refresh(weights, *keep_none)
    assert first["status"] == "succeeded"
    disk = step_of(site.state, first, "resolve_model")["disk_image"]
    assert in_compute(site.state) == {f"global/images/{disk}"}
    (said,) = step_of(site.state, first, "verify_image_cache")["nodes"]
    assert said["disk"] == said["layers"] > 0

    second = site.refresh(weights, *keep_none, "--set", "engine.image=vllm/vllm-openai:v0.34.0")
    assert second["status"] == "succeeded"
    assert second["generation"] != first["generation"]
    other = step_of(site.state, second, "resolve_model")["disk_image"]
    assert in_compute(site.state) == {f"global/images/{other}"}
    assert other != disk
    assert step_of(site.state, second, "collect_garbage")["disk_images"] == [disk]

    flags = ("--set", "engine.image=vllm/vllm-openai:v0.34.0", "--set", "engine.max_model_len=4096")
    third = site.refresh(weights, *keep_none, *flags)
    assert third["status"] == "succeeded"
    assert step_of(site.state, third, "bake_disk_image")["status"] == "skipped", "it is there already"
    assert in_compute(site.state) == {f"global/images/{other}"}


def test_a_node_that_does_not_find_the_image_keeps_the_generation_out_of_service(site: Site, weights: Path):
    live = site.refresh(weights)["generation"]
    run = site.run(weights, "--set", "engine.image=vllm/vllm-openai:v0.35.0")
    run.wait_for("download_weights: started")
    configuration = site.state / "tmp" / "gke.json"
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "uncached_layers": 1}))
    result = run.finish(code=1)
    assert result["error"]["step"] == "verify_image_cache"
    assert result["error"]["type"] == "ReleaseError"
    assert "below secondary_boot_disk.threshold (100%)" in result["error"]["message"]
    (said,) = step_of(site.state, result, "verify_image_cache")["nodes"]
    assert said["disk"] == said["layers"] - 1, "the fault was met"
    # What served serves on, on nodes with its own disk, and the disk of what was discarded is gone.
    discarded = step_of(site.state, result, "resolve_model")["disk_image"]
    assert f"global/images/{discarded}" not in in_compute(site.state)
    after = site.refresh(weights)
    assert (after["status"], after["generation"]) == ("unchanged", live)


def test_a_compute_class_brings_the_disk_too(site: Site, weights: Path):
    run = site.run(weights, "--keep", "--set", "secondary_boot_disk.form=compute-class")
    result = run.result()
    assert result["status"] == "succeeded"
    (said,) = step_of(site.state, result, "verify_image_cache")["nodes"]
    assert said["disk"] == said["layers"] > 0
    made = {request["path"] for request in requests(site.state, "apiserver") if request["method"] == "PATCH"}
    assert any("/computeclasses/" in path for path in made)
    run.stop()
    assert processes_below(site.state) == []
