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


def run(folder: Path, *adapters: str, keep: bool = False) -> Run:
    arguments = ("--set", f"model={MODEL}", "--set", "features=[live-adapters]", *(["--keep"] if keep else []))
    named = [word for adapter in adapters for word in WITH[adapter]]
    return Run("--state", str(folder / "state"), *arguments, *named, folder=folder)


def manifests(folder: Path) -> list[list[str]]:
    """The parts of every set of weights in the bucket."""
    found = (json.loads(path.read_text()) for path in (folder / "state" / "buckets").rglob("_MANIFEST.json"))
    return sorted([each["role"] for each in known["repositories"]] for known in found)


def test_they_come_change_and_go_in_place(folder: Path):
    running = run(folder, "korean", keep=True)
    first = running.result()
    base, korean = (ask(first["endpoint"], name) for name in (MODEL, "korean"))
    running.stop()
    assert first["status"] == "succeeded"
    assert base != korean
    assert manifests(folder) == [["base"], ["korean"]]

    running = run(folder, "korean", "legal", keep=True)
    second = running.result()
    answers = [ask(second["endpoint"], name) for name in (MODEL, "korean", "legal")]
    running.stop()
    assert (second["status"], second["generation"]) == ("succeeded", first["generation"])
    assert answers[:2] == [base, korean]
    assert answers[2] not in (base, korean)
    # The adapters' set alone moved, and the one before is collected.
    assert 0 < second["bytes_transferred"] < first["bytes_transferred"]
    assert manifests(folder) == [["base"], ["korean", "legal"]]


def test_the_same_adapters_are_left_alone(folder: Path):
    assert run(folder, "korean", "legal").finish()["status"] == "unchanged"


def test_one_that_does_not_fit_is_taken_back_and_not_tried_again(folder: Path):
    place = folder / "state" / "models" / "adapters" / LEGAL
    models.write_gemma3(folder / "another")
    models.write_lora_adapter(place, folder / "another", rank=128, base_name=MODEL)
    config = json.loads((place / "adapter_config.json").read_text())
    # Its tensors have another rank than it says: only an engine sees that.
    (place / "adapter_config.json").write_text(json.dumps({**config, "r": 8}))
    result = run(folder, "korean", "legal").finish(code=1)
    assert result["status"] == "failed"
    assert result["error"]["step"] == "deploy_server"
    assert "the adapter legal: Call to add_lora method failed" in result["error"]["message"]

    again = run(folder, "korean", "legal").finish(code=1)
    assert again["error"]["step"] == "resolve_model"
    assert "were rejected at" in again["error"]["message"]

    # What served before serves on, without another run having moved anything.
    running = run(folder, "korean", keep=True)
    answer = ask(running.result()["endpoint"], "korean")
    running.stop()
    assert answer
    assert manifests(folder) == [["base"], ["korean"]]
