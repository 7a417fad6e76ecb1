"""Adapters that come, go and are replaced while the server runs: one generation, the same pods, never a restart."""

from __future__ import annotations

import json
from pathlib import Path

from emulated_cloud.hub import models

from tests.scenarios.command import Run
from tests.scenarios.test_adapters import ask

MODEL = "google/gemma-3-1b-it"
KOREAN, LEGAL = "someone/gemma-ko-lora", "someone/gemma-legal-lora"
WITH = {
    "korean": ("--set", f"adapters.korean.model={KOREAN}"),
    "legal": ("--set", f"adapters.legal.model={LEGAL}"),
}


def run(folder: Path, *adapters: str) -> Run:
    arguments = ("--set", f"model={MODEL}", "--set", "features=[live-adapters]")
    named = [word for adapter in adapters for word in WITH[adapter]]
    return Run("--state", str(folder / "state"), *arguments, *named, "--keep", folder=folder)


def pods_started(result: dict) -> str:
    return result["generation"]


def step(result: dict, name: str) -> str:
    return next(each["status"] for each in result["steps"] if each["name"] == name)


def manifests(folder: Path) -> list[list[str]]:
    """The parts of every set of weights in the bucket."""
    found = (json.loads(path.read_text()) for path in (folder / "state" / "buckets").rglob("_MANIFEST.json"))
    return sorted([each["role"] for each in known["repositories"]] for known in found)


def test_they_come_change_and_go_in_place(folder: Path):
    running = run(folder, "korean")
    first = running.result()
    base, korean = (ask(first["endpoint"], name) for name in (MODEL, "korean"))
    running.stop()
    assert first["status"] == "succeeded"
    assert base != korean
    assert manifests(folder) == [["base"], ["korean"]]

    running = run(folder, "korean", "legal")
    second = running.result()
    answers = [ask(second["endpoint"], name) for name in (MODEL, "korean", "legal")]
    running.stop()
    assert (second["status"], second["generation"]) == ("succeeded", first["generation"])
    assert answers[:2] == [base, korean]
    assert answers[2] not in (base, korean)
    # The adapters' set alone moved, and the one before is collected.
    assert 0 < second["bytes_transferred"] < first["bytes_transferred"]
    assert manifests(folder) == [["base"], ["korean", "legal"]]


def test_one_that_does_not_fit_is_taken_back(folder: Path):
    place = folder / "state" / "models" / "adapters" / LEGAL
    models.write_lora_adapter(place, folder / "state" / "models" / MODEL, rank=32, base_name=MODEL)
    config = json.loads((place / "adapter_config.json").read_text())
    (place / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    running = run(folder, "korean", "legal")
    result = running.result()
    assert result["status"] == "failed"
    assert result["error"]["step"] == "deploy_server"
    assert "the adapter legal: " in result["error"]["message"]
