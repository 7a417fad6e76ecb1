"""Scenario 02: nodes that start with the engine's image, from the registry to the words of the nodes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.scenarios import find
from tests.scenarios.command import MODEL, Site, Traffic, processes_below, requests


@pytest.fixture(scope="module")
def scenario() -> Any:
    return find("02")


def in_compute(state: Path) -> set[str]:
    """What Compute Engine holds beside the network: disks, machines, images."""
    folder = state / "compute"
    found = {str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.json")}
    return {path for path in found if "/subnetworks/" not in path}


def step_of(state: Path, result: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step of a run left."""
    file = state / "buckets" / "demo-bucket" / "objects" / "pipelines" / result["run_id"] / "steps" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def what_nodes_found(state: Path, result: dict[str, Any]) -> tuple[int, int]:
    """(layers that the one node of a generation found on its disk, layers of the image)."""
    (said,) = step_of(state, result, "verify_image_cache")["nodes"]
    return said["disk"], said["layers"]


def test_another_engine_image_is_another_disk_and_the_old_one_goes_with_its_generation(site: Site, weights: Path):
    first = site.refresh(weights, "--set", "keep_previous=0")
    assert first["status"] == "succeeded"
    disk = step_of(site.state, first, "resolve_model")["disk_image"]
    assert in_compute(site.state) == {f"global/images/{disk}"}, "no machine, no disk"
    found, layers = what_nodes_found(site.state, first)
    assert found == layers > 0

    # It comes by a ComputeClass this time.
    changes = ("engine.image=vllm/vllm-openai:v0.34.0", "secondary_boot_disk.form=compute-class", "keep_previous=0")
    run = site.run(weights, "--keep", *(word for change in changes for word in ("--set", change)))
    second = run.result()
    asked = {request["path"] for request in requests(site.state, "apiserver") if request["method"] == "PATCH"}
    run.stop()
    assert second["status"] == "succeeded"
    assert second["generation"] != first["generation"]
    other = step_of(site.state, second, "resolve_model")["disk_image"]
    assert in_compute(site.state) == {f"global/images/{other}"}
    assert step_of(site.state, second, "collect_garbage")["disk_images"] == [disk]
    found, layers = what_nodes_found(site.state, second)
    assert found == layers > 0
    assert any("/computeclasses/" in path for path in asked)


def test_a_node_that_does_not_find_the_image_keeps_the_generation_out_of_service(site: Site, weights: Path):
    before = in_compute(site.state)
    run = site.run(weights, "--set", "engine.image=vllm/vllm-openai:v0.35.0")
    run.wait_for("download_weights: started")
    configuration = site.state / "tmp" / "gke.json"
    configuration.write_text(json.dumps({**json.loads(configuration.read_text()), "uncached_layers": 1}))
    with Traffic(site.endpoint, MODEL) as traffic:
        run.wait_for("discard_generation: started")
    result = run.finish(code=1)
    assert traffic.errors == []
    assert (result["error"]["step"], result["error"]["type"]) == ("verify_image_cache", "ReleaseError")
    assert "below secondary_boot_disk.threshold (100%)" in result["error"]["message"]
    found, layers = what_nodes_found(site.state, result)
    assert found == layers - 1, "the fault was met"
    assert in_compute(site.state) == before, "the disk of what was discarded is gone, that of what serves is not"
    assert processes_below(site.state) == []
