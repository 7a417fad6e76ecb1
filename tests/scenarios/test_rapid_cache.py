"""Scenario 03 with Rapid Cache: made and read into before the pods start, left alone, and given up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.scenarios.command import Run, requests

ZONES = ("us-central1-a", "us-central1-b")


def run(folder: Path, *, rapid_cache: bool, keep: bool = False) -> Run:
    section = {"profile": "manual", "rapid_cache": rapid_cache, "rapid_cache_zones": list(ZONES)}
    given = (f"gcs_fuse.{key}={json.dumps(value)}" for key, value in section.items())
    settings = [argument for each in given for argument in ("--set", each)]
    return Run("--state", str(folder / "state"), *settings, *(["--keep"] if keep else []), folder=folder)


def caches(folder: Path) -> dict[str, str]:
    bucket = json.loads((folder / "state" / "buckets" / "demo-bucket" / "bucket.json").read_text())
    return {zone: cache["state"] for zone, cache in bucket["caches"].items()}


def step(folder: Path, result: dict[str, Any], name: str) -> dict[str, Any]:
    objects = folder / "state" / "buckets" / "demo-bucket" / "objects"
    found: dict[str, Any] = json.loads(
        (objects / "pipelines" / result["run_id"] / "steps" / f"{name}.json").read_text()
    )
    return found


def test_weights_are_in_the_caches_of_the_serving_zones_before_the_pods_start(folder: Path):
    running = run(folder, rapid_cache=True, keep=True)
    result = running.result()
    read = [entry["path"] for entry in requests(folder / "state", "storage") if "alt=media" in entry["path"]]
    running.stop()
    assert result["status"] == "succeeded"
    assert caches(folder) == dict.fromkeys(ZONES, "RUNNING")
    warmed = step(folder, result, "deploy_server")["rapid_cache"]
    assert set(warmed) == set(ZONES)
    (manifest,) = (folder / "state" / "buckets").rglob("_MANIFEST.json")
    files = json.loads(manifest.read_text())["files"]
    sizes = sum(file["size"] for file in files)
    assert all((found["files"], found["bytes"]) == (len(files), sizes) for found in warmed.values())
    shard = next(file["path"] for file in files if file["path"].endswith(".safetensors"))
    assert len([path for path in read if shard in path]) >= len(ZONES)


def test_caches_as_they_should_be_are_left_alone(folder: Path):
    assert run(folder, rapid_cache=True).finish()["status"] == "unchanged"


def test_without_the_setting_the_caches_are_disabled(folder: Path):
    result = run(folder, rapid_cache=False).finish()
    assert result["status"] == "succeeded"
    assert step(folder, result, "collect_garbage")["caches"] == list(ZONES)
    assert caches(folder) == dict.fromkeys(ZONES, "DISABLED")
