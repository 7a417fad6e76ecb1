"""The feature streamed: what its settings may say, what it renders, what it makes of the streamer's words."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from serving import features, sizing
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError
from serving.features import Symptom, streamed
from serving.rendering import generation, render
from serving.settings import Settings, validated
from serving.values import in_bytes
from tests.unit import checkpoints
from tests.unit.deployment import RELEASE


def settings(section: dict[str, Any] | None = None, **values: Any) -> Settings:
    base = {"scenario": "gcs-fuse", "features": ["streamed"], "project": "demo-project", "bucket": "demo-bucket"}
    return validated(Settings, {**base, **({"streamed": section} if section else {}), **values})


def pod(config: Settings) -> dict[str, Any]:
    (server,) = (item for item in render.generation(config, RELEASE) if item["kind"] == "Deployment")
    found: dict[str, Any] = server["spec"]["template"]["spec"]
    return found


def loader(config: Settings) -> dict[str, Any]:
    args = pod(config)["containers"][0]["args"]
    found: dict[str, Any] = json.loads(args[args.index("--model-loader-extra-config") + 1])
    return found


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ({"concurrency": 0}, {}, "streamed.concurrency"),
        ({"memory": "much"}, {}, "'much' is not a Kubernetes quantity"),
        ({"memory": "20Gi"}, {"accelerator": {"memory": "20Gi"}}, "streamed.memory: 20Gi is all that a pod has"),
        ({"memory": "30Gi"}, {}, "streamed.memory: 30Gi is all that a pod has (accelerator.memory: 20Gi)"),
        ({}, {"hub": {"allow_pickles": True}}, "only safetensors are streamed"),
        ({}, {"gcs_fuse": {"profile": "manual"}}, "gcs_fuse: this deployment has no feature gcs-fuse"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(section: dict[str, Any], values: dict[str, Any], words: str):
    with pytest.raises(RequestError) as refused:
        settings(section, **values)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("quantity", "wanted"),
    [("512", 512), ("1k", 1000), ("3Ki", 3072), ("4Gi", 4 << 30), ("1.5Gi", 3 << 29), ("2T", 2 * 10**12)],
)
def test_quantities_in_bytes(quantity: str, wanted: int):
    assert in_bytes(quantity) == wanted


@pytest.mark.parametrize(
    ("model", "usual"), [("google/gemma-3-4b-it", 4), ("google/gemma-4-E2B-it", 5), ("google/gemma-4-E4B-it", 6)]
)
def test_the_streamer_has_room_for_the_largest_tensor(model: str, usual: int):
    """Gemma 4 E2B and E4B have a table of embeddings of each layer that is larger than the usual."""
    made = sizing.of_tensors(checkpoints.tensors(model), sizing.of_config(model, checkpoints.config(model)))
    judged = sizing.judged(replace(sizing.of_catalog(model), weights=made), settings(model=model).wish())
    release = RELEASE.model_copy(update={"sizing": judged})

    def limit(section: dict[str, Any]) -> int:
        flags = streamed.flags(settings(section, model=model), release)
        found: int = json.loads(flags[flags.index("--model-loader-extra-config") + 1])["memory_limit"]
        return found

    assert made.largest <= limit({}) == usual << 30
    assert limit({"memory": "8Gi"}) == 8 << 30
    assert limit({"memory": str(made.largest)}) == made.largest
    with pytest.raises(RequestError, match="is less than the largest tensor of"):
        limit({"memory": str(made.largest - 1)})


def test_the_engine_streams_and_reads_all_else_where_it_was_brought():
    args = pod(settings({"concurrency": 32, "memory": "6Gi"}))["containers"][0]["args"]
    assert args[0] == RELEASE.weights_uri
    for flag, value in {
        "--tokenizer": "/model",
        "--hf-config-path": "/model",
        "--load-format": "runai_streamer",
    }.items():
        assert args[args.index(flag) + 1] == value
    assert loader(settings({"concurrency": 32, "memory": "6Gi"})) == {"concurrency": 32, "memory_limit": 6 << 30}


def test_several_cards_share_what_they_read():
    assert "distributed" not in loader(settings())
    assert loader(settings(accelerator={"count": 2}))["distributed"] is True


def test_adapters_and_assistant_are_where_the_init_container_brings_them():
    config = settings(
        model="google/gemma-4-E4B-it",
        adapters={"korean": {"model": "someone/ko"}},
        assistant={"model": "google/gemma-4-E4B-it-assistant"},
    )
    args = pod(config)["containers"][0]["args"]
    assert "korean=/model/adapters/korean" in args
    assert json.loads(args[args.index("--speculative-config") + 1])["model"] == "/model/assistant"


def test_the_init_container_is_of_the_component_image_in_the_mirror():
    config = settings(images={"registry": "eu-docker.pkg.dev/demo-project/mirror"})
    (container,) = pod(config)["initContainers"]
    assert container["image"].startswith("eu-docker.pkg.dev/demo-project/mirror/gemma-gke-pipelines/python-components:")
    plan = json.loads(container["args"][-1])
    assert plan == {"weights_uri": RELEASE.weights_uri, "folder": "/model", "patience_seconds": 600.0}
    (model,) = (volume for volume in pod(config)["volumes"] if volume["name"] == "model")
    assert model == {"name": "model", "emptyDir": {}}
    (mount,) = (mount for mount in pod(config)["containers"][0]["volumeMounts"] if mount["name"] == "model")
    assert mount["readOnly"] is True, "only the init container writes there"


def test_what_makes_another_server_and_what_does_not():
    name = generation.name(settings(), RELEASE)
    assert generation.name(settings({"memory": "6Gi"}), RELEASE) != name
    assert generation.name(settings(bucket="other-bucket"), RELEASE) != name
    assert generation.name(settings(features=["gcs-fuse"]), RELEASE) != name
    assert (
        generation.name(settings(images={"components": "eu-docker.pkg.dev/p/r/python-components:2"}), RELEASE) == name
    )
    assert generation.name(settings(patience="1m", serving={"replicas": 3}), RELEASE) == name


def test_another_version_of_the_component_image_is_no_change_by_itself():
    now, later = (
        settings(images={"components": f"eu-docker.pkg.dev/demo-project/r/python-components:{version}"})
        for version in (1, 2)
    )
    assert pod(now)["initContainers"] != pod(later)["initContainers"]
    assert render.render(now, RELEASE).digest == render.render(later, RELEASE).digest
    assert render.render(settings(patience="1m"), RELEASE).digest != render.render(now, RELEASE).digest


def test_pods_may_read_the_objects_and_look_at_the_bucket():
    found = streamed.bindings(settings(), lambda namespace, account: f"{namespace}/{account}")
    assert {(binding.role, binding.member) for binding in found} == {
        ("roles/storage.objectViewer", "gemma/gemma-server"),
        ("roles/storage.bucketViewer", "gemma/gemma-server"),
    }


FORBIDDEN = (
    "google.api_core.exceptions.Forbidden: 403 GET https://storage.googleapis.com/storage/v1/b/demo-bucket?"
    "projection=noAcl&prettyPrint=false: p does not have storage.buckets.get access to the Google Cloud Storage bucket."
)
STREAM = "ValueError: Could not receive response from libstreamer due to: b'File access error'"


@pytest.mark.parametrize(
    ("words", "error", "cure"),
    [
        (FORBIDDEN, AccessError, "roles/storage.bucketViewer"),
        (
            "google.api_core.exceptions.NotFound: 404 GET https://…: The specified bucket does not exist.",
            RequestError,
            "gcloud storage buckets list",
        ),
        ("ModuleNotFoundError: No module named 'runai_model_streamer_gcs'", RequestError, "engine.image"),
        (
            "…RunaiStreamerMemoryLimitException: Memory limit supplied: 1 cannot be smaller than: 2",
            RequestError,
            "streamed.memory",
        ),
        ("google.auth.exceptions.DefaultCredentialsError: Your default", InconclusiveError, "Workload Identity"),
        (STREAM, InconclusiveError, "verify-weights"),
        (
            "RuntimeError: Cannot find any safetensors model weights with `gs://demo-bucket/x`",
            InconclusiveError,
            "verify-weights",
        ),
        (
            "ValueError: Corrupted File: 'gs://demo-bucket/x/model.safetensors' is truncated - header declares 5",
            InconclusiveError,
            "verify-weights",
        ),
    ],
)
def test_what_the_streamer_says_is_never_the_releases_fault(words: str, error: type[PipelineError], cure: str):
    found = streamed.explain(settings(), Symptom("words", "vllm-g2-x", f"INFO something\n{words}\n"))
    assert found
    assert found.error is error
    assert "vllm-g2-x" in found.message or "demo-bucket" in found.message
    assert cure in found.message


@pytest.mark.parametrize(
    "words",
    [
        "ValueError: Following weights were not initialized from checkpoint: {'lm_head.weight'}",
        "AssertionError: Attempted to load weight (torch.Size([4])) into parameter (torch.Size([8]))",
        "torch.OutOfMemoryError: CUDA out of memory",
    ],
)
def test_what_is_the_releases_own_is_left_alone(words: str):
    assert streamed.explain(settings(), Symptom("words", "vllm-g2-x", words)) is None


@pytest.mark.parametrize("feature", ["streamed", "gcs-fuse"])
@pytest.mark.parametrize(
    ("region", "told"), [("europe-west4", True), ("us-central1", False), ("", False), (None, False)]
)
def test_a_bucket_far_away_is_why_a_start_takes_long(
    feature: str, region: str | None, told: bool, monkeypatch: pytest.MonkeyPatch
):
    def region_of(bucket: str) -> str:
        if region is None:
            raise AccessError(f"{bucket}: no")
        return region

    monkeypatch.setattr("serving.clients.storage.region_of", region_of)
    found = features.explain(settings(features=[feature]), Symptom("slow", "p"))
    assert bool(found) is told
    if found:
        assert found.error is InconclusiveError
        assert "is in europe-west4 and the pods are in us-central1" in found.message


def test_want_of_memory_is_told_by_container():
    engine = streamed.explain(settings(), Symptom("out-of-memory", "p", container="vllm"))
    init = streamed.explain(settings(), Symptom("out-of-memory", "p", container="weights"))
    assert engine
    assert init
    assert "the streamer takes 4Gi or what the largest tensor does (streamed.memory)" in engine.message
    assert "`patches`" in init.message
