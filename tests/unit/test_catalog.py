"""The catalog: what can start where, in agreement with what was measured, and what an image can serve."""

from __future__ import annotations

import importlib.resources
from typing import Any

import pytest
import yaml

from serving import catalog
from serving.errors import RequestError

CATALOG: dict[str, Any] = yaml.safe_load(importlib.resources.files("manifests").joinpath("catalog.yaml").read_text())


def refusal(*arguments: Any, **options: Any) -> str:
    with pytest.raises(RequestError) as caught:
        catalog.entry(*arguments, **options)
    return str(caught.value)


def row_id(row: dict[str, Any]) -> str:
    return f"{row['model'].partition('/')[2]}-{row['accelerator']}-{row.get('quantization', 'bf16')}"


@pytest.mark.parametrize("row", CATALOG["measured"], ids=row_id)
def test_the_memory_model_agrees_with_what_was_measured(row: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    """Without the measured rows the model alone comes within 0.6 GiB of each, and to the same verdict."""
    monkeypatch.setattr(catalog, "_catalog", lambda: {**CATALOG, "measured": []})
    sizing = catalog._size(
        row["model"],
        row["accelerator"],
        row["count"],
        row.get("quantization"),
        4096,
        row["gpu_memory_utilization"],
    )
    text_only = sizing.kv_gib + CATALOG["models"][row["model"]].get("encoders_gib", 0)  # type: ignore[operator]
    assert text_only == pytest.approx(row["kv_gib"], abs=0.6)
    assert sizing.starts == (row["kv_gib"] > 0)


@pytest.mark.parametrize("row", CATALOG["measured"], ids=row_id)
def test_a_measured_row_decides(row: dict[str, Any]):
    options = {"gpu_memory_utilization": row["gpu_memory_utilization"], "max_model_len": 4096}
    arguments = (row["model"], row["accelerator"], row["count"], row.get("quantization"))
    if row["kv_gib"] < 0:
        assert "cannot start" in refusal(*arguments, **options)
        return
    sizing = catalog.entry(*arguments, **options)
    encoders = CATALOG["models"][row["model"]].get("encoders_gib", 0)
    assert sizing.kv_gib == pytest.approx(row["kv_gib"] - encoders)


def test_12b_on_one_l4_is_refused_with_what_can_start():
    said = refusal("google/gemma-3-12b-it", "nvidia-l4", 1)
    assert "its weights take 22.6 GiB a card" in said
    assert "2 × nvidia-l4" in said
    assert "1 × nvidia-l4 with engine.quantization: fp8" in said
    assert "1 × nvidia-a100-40gb" in said


def test_12b_on_one_l4_starts_in_fp8():
    sizing = catalog.entry("google/gemma-3-12b-it", "nvidia-l4", 1, "fp8")
    assert (sizing.max_model_len, sizing.gpu_memory_utilization) == (8192, 0.92)
    assert sizing.kv_tokens
    assert sizing.kv_tokens > 8192


@pytest.mark.parametrize(
    "model", ["google/gemma-4-12B-it", "google/gemma-4-26B-A4B-it", "google/gemma-4-31B-it", "google/gemma-3-27b-it"]
)
def test_the_large_ones_are_refused_on_one_l4(model: str):
    assert "cannot start" in refusal(model, "nvidia-l4", 1)


@pytest.mark.parametrize(
    ("model", "accelerator", "count"),
    [
        ("google/gemma-3-1b-it", "nvidia-l4", 1),
        ("google/gemma-3-4b-it", "nvidia-l4", 1),
        ("google/gemma-3-12b-it", "nvidia-l4", 2),
        ("google/gemma-3-27b-it", "nvidia-l4", 8),
        ("google/gemma-3-27b-it", "nvidia-a100-80gb", 1),
        ("google/gemma-3-27b-it", "nvidia-h100-80gb", 1),
        ("google/gemma-3-27b-it", "nvidia-rtx-pro-6000", 1),
        ("google/gemma-4-E2B-it", "nvidia-l4", 1),
        ("google/gemma-4-E4B-it", "nvidia-l4", 1),
        ("google/gemma-4-12B-it", "nvidia-a100-40gb", 1),
        ("google/gemma-4-12B-it-qat-w4a16-ct", "nvidia-l4", 1),
        ("google/gemma-4-26B-A4B-it", "nvidia-l4", 4),
        ("google/gemma-4-31B-it", "nvidia-h100-80gb", 1),
        ("google/gemma-4-31B-it-qat-w4a16-ct", "nvidia-a100-40gb", 1),
    ],
)
def test_what_the_guide_and_google_run_starts(model: str, accelerator: str, count: int):
    assert catalog.entry(model, accelerator, count).starts


def test_a_context_that_the_kv_cache_cannot_hold_is_refused_with_what_it_holds():
    said = refusal("google/gemma-3-4b-it", "nvidia-l4", 1, max_model_len=100_000)
    assert "hold 72794 tokens, fewer than max_model_len 100000" in said


def test_heads_have_to_split_over_the_cards():
    assert "do not split over 8 cards" in refusal("google/gemma-3-1b-it", "nvidia-l4", 8)


def test_a_quantization_that_nobody_has_weighed_is_left_to_the_engine():
    sizing = catalog.entry("google/gemma-3-12b-it", "nvidia-l4", 1, "awq")
    assert (sizing.kv_gib, sizing.kv_tokens, sizing.starts) == (None, None, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("google/gemma-3-4b", "nvidia-l4", 1), "Did you mean google/gemma-3-4b-it"),
        (("acme/thing", "nvidia-l4", 1), "It knows google/gemma-3-1b-it, "),
        (("google/gemma-3-4b-it", "l4", 1), "accelerator.type: l4 is not one of nvidia-l4, "),
        (("google/gemma-3-4b-it", "nvidia-l4", 3), "GKE puts 1, 2, 4, 8 of nvidia-l4 on a node, not 3"),
    ],
)
def test_what_the_catalog_does_not_know_is_named_with_the_closest(arguments: tuple[Any, ...], words: str):
    assert words in refusal(*arguments)


@pytest.mark.parametrize(
    ("image", "can", "cannot"),
    [
        (catalog.engine_image(), "Gemma4UnifiedForConditionalGeneration", None),
        ("vllm/vllm-openai:v0.19.1", "Gemma4ForCausalLM", "Gemma4UnifiedForConditionalGeneration"),
        ("vllm/vllm-openai:v0.9.0", "Gemma3ForCausalLM", "Gemma4ForCausalLM"),
        ("eu.example.com:5000/a/vllm-openai:v0.33.0-cu129@sha256:aa", "Gemma4ForConditionalGeneration", None),
        ("vllm/vllm-openai:v0.7.3", None, "Gemma3ForCausalLM"),
    ],
)
def test_an_image_that_tells_its_version_tells_what_it_serves(image: str, can: str | None, cannot: str | None):
    supported = catalog.supported_architectures(image)
    assert supported is not None
    assert can is None or can in supported
    assert cannot not in supported


@pytest.mark.parametrize("image", ["vllm/vllm-openai@sha256:aa", "vllm/vllm-openai:latest", "acme/server:v1.2.3"])
def test_an_image_that_does_not_tell_is_left_to_the_engine(image: str):
    assert catalog.supported_architectures(image) is None


def test_the_pinned_image_serves_every_model_of_the_catalog():
    supported = catalog.supported_architectures(catalog.engine_image())
    assert supported
    for model in catalog.models():
        assert supported.issuperset(catalog.architectures(model)), model


def test_every_row_of_settings_can_start_in_some_form():
    for model, known in CATALOG["models"].items():
        forms = [None, *(name for name in known["weights_gib"] if name != catalog.AS_PUBLISHED)]
        for accelerator, counts in known.get("settings", {}).items():
            for count in counts:
                assert any(catalog._size(model, accelerator, count, form).starts for form in forms), (model, count)
