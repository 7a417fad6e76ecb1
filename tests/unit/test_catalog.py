"""The catalog: what is known by name, with the closest for what is not, and what an image can serve."""

from __future__ import annotations

from typing import Any

import pytest
from emulated_cloud.kubernetes.gke import machines

from serving import catalog, sizing
from serving.errors import RequestError
from serving.values import in_units


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        (lambda: sizing.of_catalog("google/gemma-3-4b"), "Did you mean google/gemma-3-4b-it"),
        (lambda: sizing.of_catalog("acme/thing"), "It knows google/gemma-3-1b-it, "),
        (lambda: catalog.card("l4"), "accelerator.type: l4 is not one of nvidia-l4, "),
        (lambda: catalog.card("nvidia-l4", 3), "GKE puts 1, 2, 4, 8 of nvidia-l4 on a node, not 3"),
    ],
)
def test_what_the_catalog_does_not_know_is_named_with_the_closest(ask: Any, words: str):
    with pytest.raises(RequestError, match=words):
        ask()


def test_a_machine_leaves_to_pods_what_the_cluster_says_of_its_nodes():
    """The emulated cluster has the figures of its own, and from the same pages."""
    there = {machine.name: machine for machine in machines.MACHINE_TYPES if machine.accelerator}
    compared = set()
    for accelerator in catalog.accelerators():
        for known in catalog.card(accelerator).machines:
            if known.name in there:
                node = machines.node_template(there[known.name], "us-central1-a", "c", "p", False, "")["status"]
                assert node["capacity"][catalog.card(accelerator).kind.resource] == str(known.count)
                assert in_units(node["capacity"]["cpu"]) == known.cpu
                assert in_units(node["capacity"]["memory"]) == known.memory_gib * 2**30
                assert in_units(node["allocatable"]["cpu"]) == pytest.approx(known.cpu_of_pods, abs=0.001)
                assert in_units(node["allocatable"]["memory"]) / 2**30 == pytest.approx(known.memory_of_pods, abs=0.01)
                compared.add(known.name)
    assert compared == there.keys()


@pytest.mark.parametrize(
    ("image", "can", "cannot"),
    [
        (catalog.kind("gpu").image, "Gemma4UnifiedForConditionalGeneration", None),
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
    supported = catalog.supported_architectures(catalog.kind("gpu").image)
    assert supported
    for model in catalog.models():
        assert supported.issuperset([sizing.of_catalog(model).architecture.name]), model


@pytest.mark.parametrize(
    ("image", "name", "called"),
    [
        (catalog.kind("gpu").image, "fp8", "fp8_per_tensor"),
        ("eu.example.com/a/vllm-openai:v0.34.1-cu129@sha256:aa", "fp8", "fp8_per_tensor"),
        ("vllm/vllm-openai:v0.32.0", "fp8", "fp8"),
        ("vllm/vllm-openai@sha256:aa", "fp8", "fp8"),
        (catalog.kind("gpu").image, "awq", "awq"),
    ],
)
def test_a_quantization_is_called_what_the_images_vllm_calls_it(image: str, name: str, called: str):
    assert catalog.quantization_flag(name, image) == called


def test_a_model_that_the_catalog_does_not_know_has_the_host_of_the_next_larger_one():
    assert sizing.host("acme/gemma-3-4b-support", 8.57) == catalog.host("google/gemma-3-4b-it")
    largest = catalog.host("google/gemma-4-31B-it")
    assert sizing.host("acme/huge", 500.0) == sizing.host("acme/unknown", None) == largest
    assert sizing.host("acme/tiny", 0.1).memory == "10Gi"
