"""A model with a LoRA adapter and an assistant: served, left alone, and one that does not fit rejected."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from emulated_cloud.hub import models

from tests.scenarios.command import Run

MODEL = "google/gemma-4-E4B-it"
ADAPTER = "someone/gemma-ko-lora"
SETTINGS = (
    *("--set", f"model={MODEL}"),
    *("--set", f"adapters.korean.model={ADAPTER}"),
    *("--set", f"assistant.model={MODEL}-assistant"),
)


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    """The folder that the hub shows as the adapter's repository, from the first run on."""
    return folder / "state" / "models" / "adapters" / ADAPTER


def run(folder: Path, *arguments: str) -> Run:
    return Run("--state", str(folder / "state"), *SETTINGS, *arguments, folder=folder)


def ask(endpoint: str, model: str) -> str:
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Say something."}],
        "max_tokens": 32,
        "temperature": 0,
    }
    with httpx.Client(timeout=60, trust_env=False) as client:
        response = client.post(f"{endpoint}/v1/chat/completions", json=body)
    response.raise_for_status()
    found = response.json()
    assert found["model"] == model
    return found["choices"][0]["message"]["content"]


def manifest(folder: Path) -> dict:
    (path,) = (folder / "state" / "buckets").rglob("_MANIFEST.json")
    return json.loads(path.read_text())


def test_an_adapter_is_a_model_of_the_same_endpoint(folder: Path):
    running = run(folder, "--keep")
    result = running.result()
    base, korean = (ask(result["endpoint"], name) for name in (MODEL, "korean"))
    running.stop()
    assert result["status"] == "succeeded"
    assert base
    assert korean
    assert base != korean
    known = manifest(folder)
    assert [each["role"] for each in known["repositories"]] == ["base", "korean", "assistant"]
    assert all(len(each["commit"]) == 40 for each in known["repositories"])
    paths = {file["path"] for file in known["files"]}
    assert {"config.json", "adapters/korean/adapter_model.safetensors", "assistant/config.json"} <= paths


def test_an_adapters_readme_changes_nothing(folder: Path, adapter: Path):
    models.readme_only_change(adapter)
    assert run(folder).finish()["status"] == "unchanged"


def test_an_adapter_that_does_not_fit_is_rejected_in_the_engines_words(folder: Path, adapter: Path):
    models.write_gemma3(folder / "another")
    models.write_lora_adapter(adapter, folder / "another", base_name=MODEL)
    result = run(folder).finish(code=1)
    assert result["status"] == "failed"
    assert result["error"]["step"] == "deploy_server"
    assert "/adapters/korean failed: " in result["error"]["message"]
    assert "has shape [128, 8], expected [256, 8]" in result["error"]["message"]
