"""What settings accept and refuse, and that they mean the same after the pipeline language has had them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from serving import catalog, sizing
from serving.errors import RequestError
from serving.features import nodes
from serving.rendering import engine, generation, render
from serving.settings import EXPLICIT, Settings, from_parameters, validated
from serving.weights.release import Release

BASE: dict[str, Any] = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}


RELEASE = Release(
    run_id="run-1",
    model="google/gemma-3-4b-it",
    commit="c" * 40,
    weights_key="0123456789abcdef",
    weights_uri="gs://demo-bucket/models/google/gemma-3-4b-it/0123456789abcdef",
    generation="g0123456789",
)


def settings(**changes: Any) -> Settings:
    return validated(Settings, {**BASE, **changes})


def refusal(**changes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        settings(**changes)
    return str(caught.value)


def as_floats(value: Any) -> Any:
    """What a struct parameter does to its numbers on the way to a step."""
    if isinstance(value, dict):
        return {key: as_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_floats(item) for item in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def generation_of(config: Settings) -> str:
    in_its_bucket = f"gs://{config.bucket}/models/{config.model}/{RELEASE.weights_key}"
    sized = sizing.judged(sizing.of_catalog(config.model), config.wish())
    return generation.name(config, RELEASE.model_copy(update={"weights_uri": in_its_bucket, "sizing": sized}))


def test_the_shortest_settings_say_where_and_take_the_guides_defaults():
    config = settings()
    assert (config.model, config.accelerator.type, config.accelerator.count) == ("google/gemma-3-4b-it", "nvidia-l4", 1)
    assert config.pipeline_root == "gs://demo-bucket/pipelines"


def test_integers_that_became_floats_are_integers_again_and_name_the_same_generation():
    before = settings(
        serving={"replicas": 3, "drain_seconds": 30},
        engine={"max_model_len": 8192, "extra_args": ["--max-num-seqs", "64"]},
        validation={"concurrencies": [1, 8], "max_tokens": 32},
        patches=[{"kind": "Deployment", "spec": {"template": {"spec": {"priority": 7}}}}],
    )
    travelled = json.loads(json.dumps(as_floats(before.model_dump())))
    explicit = {key: travelled.pop(key) for key in EXPLICIT}
    after = from_parameters(travelled, **explicit)
    assert after == before
    assert json.dumps(after.model_dump()) == json.dumps(before.model_dump())
    assert generation_of(after) == generation_of(before)
    assert after.serving.replicas == 3
    assert type(after.patches[0]["spec"]["template"]["spec"]["priority"]) is int


def test_a_patch_may_delete_and_still_travels_as_a_struct():
    config = settings(patches=[{"kind": "Deployment", "spec": {"template": {"spec": {"tolerations": None}}}}])
    struct = json.dumps(config.as_struct())
    assert "null" not in struct
    assert validated(Settings, json.loads(struct)) == config
    spec = render.render(config, RELEASE).generation[-1]["spec"]["template"]["spec"]
    assert "tolerations" not in spec


def test_what_changes_in_place_keeps_the_generation():
    in_place: list[dict[str, Any]] = [
        {"serving": {"replicas": 4}},
        {"engine": {"api_key_secret": "projects/p/secrets/s/versions/1"}},
        {"validation": {"max_tokens": 9}},
        {"labels": {"team": "a"}},
        {"keep_previous": 3},
    ]
    assert {generation_of(settings(**changes)) for changes in in_place} == {generation_of(settings())}


def test_what_makes_another_server_makes_another_generation():
    other: list[dict[str, Any]] = [
        {},
        {"engine": {"image": "vllm/vllm-openai:v0.33.1"}},
        {"engine": {"max_model_len": 4096}},
        {"engine": {"quantization": "fp8"}},
        {"engine": {"text_only": True}},
        {"engine": {"concurrent_requests": 8}},
        {"engine": {"extra_args": ["--enforce-eager"]}},
        {"capacity": "spot"},
        {"capacity": "reservation", "reservation": {"name": "ours"}},
        {"capacity": "reservation", "reservation": {"name": "theirs"}},
        {"accelerator": {"memory": "24Gi"}},
        {"accelerator": {"type": "nvidia-a100-40gb"}},
        {"gcs_fuse": {"profile": "manual"}},
        {"images": {"registry": "mirror.example.com/all"}},
        # What cannot be changed in a live volume makes another one.
        {"patches": [{"kind": "PersistentVolume", "spec": {"mountOptions": ["debug"]}}]},
        {"bucket": "another-bucket"},
    ]
    assert len({generation_of(settings(**changes)) for changes in other}) == len(other)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "g50633a8877"),
        ({"gcs_fuse": {"profile": "manual"}}, "g442f12767b"),
        ({"model": "google/gemma-3-1b-it"}, "ga1949ee4e8"),
        ({"model": "google/gemma-3-12b-it", "accelerator": {"count": 2}}, "g584b6b0b31"),
        ({"model": "google/gemma-4-E4B-it"}, "g24117642a7"),
        ({"accelerator": {"type": "nvidia-a100-40gb"}, "capacity": "spot"}, "gca369769f9"),
        ({"engine": {"max_model_len": 4096, "extra_args": ["--max-num-seqs", "64"]}}, "g08eef807b1"),
        ({"adapters": {"legal": {"model": "someone/legal"}}}, "g3e8e924326"),
        ({"images": {"registry": "eu-docker.pkg.dev/p/mirror"}}, "gba284e1e57"),
        ({"name": "chat", "namespace": "serving", "bucket": "another-bucket"}, "gb987e6bcdb"),
    ],
)
def test_a_new_version_of_this_tool_rolls_nothing(changes: dict[str, Any], expected: str):
    """A change here makes every deployment of these settings load its weights into new servers: it has to be meant."""
    assert generation_of(settings(**changes)) == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"volume": {"profile": "manual"}}, "volume: is now gcs_fuse: volume.profile is gcs_fuse.profile"),
        (
            {"features": ["tpus"]},
            "features: 'tpus' is no feature. Did you mean tpu? There are: gcs-fuse, hyperdisk-ml, streamed, "
            "live-adapters, gpu, tpu",
        ),
        ({"features": ["-gpu"]}, "features: -gpu: no deployment is without accelerator: gpu, tpu"),
        ({"features": ["gcs-fuse", "gcs-fuse"]}, "are both for the column weights: a deployment has one"),
        ({"bukket": "x"}, "bukket: unknown key; did you mean bucket?"),
        ({"hub": {"token": "hf_abc"}}, "hub.token: unknown key; there are endpoint, token_secret, allow_pickles"),
        ({"project": None}, "project: must be a text"),
        ({"serving": {"replicas": "3"}}, "serving.replicas: must be a whole number, not '3'"),
        ({"serving": {"replicas": True}}, "serving.replicas: must be a whole number, not True"),
        ({"serving": {"replicas": 2.5}}, "serving.replicas: must be a whole number, not 2.5"),
        ({"serving": {"replicas": 0}}, "serving.replicas: must be greater than or equal to 1, not 0"),
        ({"serving": 3}, "serving: must be a mapping, not 3"),
        ({"serving": {"exposure": "internl"}}, "serving.exposure: must be internal or public, not 'internl'"),
        ({"serving": {"capacity_timeout": "30 min"}}, "write a number and s, m or h, like 90s or 30m"),
        ({"accelerator": {"memory": "20GB"}}, "accelerator.memory: '20GB' is not a Kubernetes quantity"),
        ({"accelerator": {"spot": True}}, "accelerator.spot: is now `capacity: spot`"),
        ({"capacity": "yes"}, "capacity: must be on-demand, spot or reservation, not 'yes'"),
        ({"reservation": {"name": "ours"}}, "reservation: capacity is on-demand, which takes none"),
        ({"capacity": "reservation", "reservation": {"project": "theirs-1"}}, "name the reservation in it, too"),
        ({"accelerator": {"type": "tpu7x"}}, "tpu7x is none of the feature gpu. Set features: [tpu], or leave"),
        ({"features": ["tpu"], "accelerator": {"type": "nvidia-l4"}}, "nvidia-l4 is none of the feature tpu"),
        (
            {"features": ["tpu"], "accelerator": {"count": 16}},
            "accelerator.count: GKE puts 1 (1x1), 4 (2x2), 8 (2x4) of tpu-v6e-slice on a node, not 16. A slice of "
            "several nodes is one server in several pods, which come and go together: that is not to be had here",
        ),
        ({"features": ["tpu"], "model": "google/gemma-3-27b-it"}, "on 1 × tpu-v6e-slice cannot start: its weights"),
        (
            {"accelerator": {"memory": "120Gi"}},
            "a pod asks for 2 processors and 120Gi of memory, and GKE leaves pods 31.8 and 118Gi on g2-standard-32, "
            "the largest machine with 1 × nvidia-l4. Set accelerator.cpu or accelerator.memory to less",
        ),
        ({"accelerator": {"cpu": "32"}}, "a pod asks for 32 processors and 20Gi of memory, and GKE leaves pods 31.8"),
        ({"features": ["tpu"], "accelerator": {"memory": "0.17Ti"}}, "43.8 and 165Gi on ct6e-standard-1t, the largest"),
        ({"features": ["tpu"], "accelerator": {"count": 4, "cpu": "180"}}, "GKE leaves pods 179.4 and 698Gi on ct6e-"),
        ({"accelerator": {"count": 0}}, "accelerator.count: must be greater than or equal to 1, not 0"),
        ({"namespace": "Gemma_1"}, "namespace: 'Gemma_1' is not a Kubernetes name"),
        ({"namespace": "n" * 64}, "has 64 characters; a Kubernetes name"),
        ({"name": "n" * 41}, "has 41 characters; a deployment's name"),
        ({"bucket": "b" * 64}, "has 64 characters; a bucket's name"),
        ({"bucket": "gs://demo-bucket"}, "bucket: 'gs://demo-bucket' is not a bucket's name"),
        ({"bucket": "googles-bucket"}, "is a name that Cloud Storage gives to nobody"),
        ({"cluster": "-gemma"}, "cluster: '-gemma' is not a cluster's name"),
        ({"location": "Iowa"}, "location: 'Iowa' is not a region or zone, like us-central1"),
        ({"model": "gemma-3-4b-it"}, "model: 'gemma-3-4b-it' is not a model of the hub"),
        ({"images": {"registry": "https://mirror.example.com"}}, "(no https://)"),
        ({"pipeline_root": "gs://bucket/runs/"}, "no / at its end"),
        (
            {"validation": {"prompts": [{"content": "x", "pattern": "("}]}},
            "prompts.0.pattern: '(' is not a regular exp",
        ),
        ({"validation": {"prompts": []}}, "validation.prompts: needs 1 or more"),
        ({"validation": {"prompts": [{"contnt": "x"}]}}, "prompts.0.contnt: unknown key; did you mean content?"),
        ({"validation": {"concurrencies": [0]}}, "concurrencies.0: must be greater than or equal to 1"),
        ({"labels": {"a b": "c"}}, "labels.a b: 'a b' is not a key of Kubernetes metadata"),
        ({"labels": {"team": "a b"}}, "labels.team: 'a b' is not a label's value"),
        ({"labels": {"team": 5}}, "labels.team: must be a text"),
        ({"annotations": {"gemma-pipelines/run": "x"}}, "keys under gemma-pipelines/ are how the project finds"),
        ({"patches": [{"spec": {}}]}, "patches: patch 1 needs the `kind`"),
        ({"patches": [{"kind": "Service", "metadata": {"name": "gemma"}}]}, "patch 1 (Service) changes nothing"),
        ({"patches": ["x"]}, "patches.0: must be a mapping"),
        ({"engine": {"extra_args": ["--swap-space=4"]}}, "--swap-space is not for extra_args: vLLM has dropped it"),
        ({"engine": {"extra_args": ["--api-key", "secret"]}}, "set engine.api_key_secret"),
        ({"engine": {"extra_args": ["--max-model-len=9"]}}, "set engine.max_model_len"),
        (
            {"serving": {"exposure": "public"}},
            "serving.exposure public needs a key that clients have to show: set engine.api_key_secret",
        ),
        ({"serving": {"exposure": "gateway"}}, "serving.exposure: must be internal or public, not 'gateway'"),
        ({"model": "google/gemma-3-12b-it"}, "cannot start"),
        ({"engine": {"max_model_len": 500000}}, "was made for 131072 tokens of context, not 500000"),
        ({"engine": {"max_model_len": 64}}, "max_model_len: write a number of tokens, 128 or more, or auto, not 64"),
        ({"engine": {"max_model_len": "long"}}, "write a number of tokens, 128 or more, or auto, not 'long'"),
        ({"engine": {"extra_args": ["--language-model-only"]}}, "set engine.text_only"),
        ({"gcs_fuse": {"rapid_cache": True}}, "gcs_fuse.rapid_cache: the profile serving makes caches of its own"),
        (
            {"gcs_fuse": {"profile": "manual", "rapid_cache": True, "rapid_cache_zones": ["us-east1-b"]}},
            "gcs_fuse.rapid_cache_zones: us-east1-b is not where the cluster is (us-central1)",
        ),
        ({"gcs_fuse": {"rapid_cache_ttl": "30m"}}, "a cache keeps what nobody reads for 1h to 168h, not for 30m"),
        ({"accelerator": {"type": "l4"}}, "accelerator.type: l4 is not one of nvidia-l4, "),
        ({"accelerator": {"count": 3}}, "accelerator.count: GKE puts 1, 2, 4, 8 of nvidia-l4 on a node, not 3"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_to_do(changes: dict[str, Any], words: str):
    assert words in refusal(**changes)


def test_everything_that_is_wrong_is_said_at_once():
    lines = refusal(namespace="A", location="B", serving={"replicas": 0}).splitlines()
    assert {line.partition(":")[0] for line in lines} == {"namespace", "location", "serving.replicas"}


@pytest.mark.parametrize("value", ["hf_verysecret", 12345])
@pytest.mark.parametrize("where", [("hub", "token_secret"), ("engine", "api_key_secret")])
def test_a_secret_that_was_written_into_the_settings_is_not_repeated(where: tuple[str, str], value: Any):
    said = refusal(**{where[0]: {where[1]: value}})
    assert str(value) not in said
    assert ".".join(where) in said


def test_a_fine_tune_needs_no_word_about_its_size():
    config = settings(model="acme/gemma-3-4b-support")
    sized = sizing.size(sizing.of_catalog("google/gemma-3-4b-it"), config.wish())
    release = RELEASE.model_copy(update={"sizing": sized})
    assert engine.accelerator(config, release) == engine.accelerator(settings(), release)
    assert "acme/gemma-3-4b-support" in engine.engine_flags(config, release)


def test_what_said_how_large_a_fine_tune_is_says_that_it_is_gone():
    assert "engine.sizing_like: is now gone: the model's own files say" in refusal(engine={"sizing_like": "a/b"})


@pytest.mark.parametrize(("given", "means"), [("auto", "auto"), (None, "auto"), (4096, 4096), (4096.0, 4096)])
def test_a_context_is_a_number_of_tokens_or_auto(given: Any, means: Any):
    assert settings(engine={"max_model_len": given}).engine.max_model_len == means


@pytest.mark.parametrize(
    ("given", "tokens"),
    [
        (["--max-num-batched-tokens", "4096"], 4096),
        (["--max-num-batched-tokens=4K"], 4096),
        (["--max_num_batched_tokens=4k"], 4000),
        (["--max-num-batched-tokens", "1", "--max-num-batched-tokens=2"], 2),
        (["--max-num-batched-tokens", "2.5k"], 2500),
        (["--max-num-batched-tokens=1G"], 1 << 30),
        (["--max-num-batched-tokens", " 4_096 "], 4096),
        (["--enforce-eager"], None),
        ([], None),
    ],
)
def test_the_flags_that_memory_depends_on_are_read(given: list[str], tokens: int | None):
    assert settings(engine={"extra_args": given}).wish().batch_tokens == tokens


@pytest.mark.parametrize(
    "given",
    [
        ["--max-num-batched-tokens"],
        ["--max-num-batched-tokens="],
        ["--max-num-batched-tokens", "many"],
        ["--max-num-batched-tokens", "0"],
        ["--max-num-batched-tokens", "-1"],
        ["--max-num-batched-tokens", "1.5K"],
        ["--max-num-batched-tokens", "9" * 5000],
        ["--max-num-seqs", "1K"],
        ["--max-loras", "some"],
    ],
)
def test_a_number_that_vllm_would_not_read_is_refused(given: list[str]):
    said = refusal(engine={"extra_args": given})
    assert said == f"engine.extra_args: {given[0].removesuffix('=')} takes a whole number, 1 or more"


@pytest.mark.parametrize("short", ["--max-num", "--max-num-b", "--max_num_s=4", "--kv-cache"])
def test_a_flag_that_memory_depends_on_is_written_out(short: str):
    assert "item 1 may be short for --" in refusal(engine={"extra_args": [short, "1"]})


def test_adapters_at_once_are_the_users_own_where_they_say_so():
    adapters = {"a": {"model": "x/a"}, "b": {"model": "x/b"}}
    assert settings(adapters=adapters).wish(16).adapters_at_once == 2
    assert settings(adapters=adapters, engine={"extra_args": ["--max-loras", "4"]}).wish(16).adapters_at_once == 4


def test_what_is_asked_of_the_engine_reaches_the_rule():
    asked = {"text_only": True, "gpu_memory_utilization": 0.8, "quantization": "fp8", "concurrent_requests": 2}
    wish = settings(engine=asked | {"extra_args": ["--max-num-seqs", "64"]}).wish(16, 1 << 20)
    assert (wish.text_only, wish.share, wish.quantization, wish.requests) == (True, 0.8, "fp8", 2)
    assert (wish.batch_tokens, wish.batch_requests) == (None, 64)
    assert (wish.adapter_rank, wish.assistant_bytes) == (16, 1 << 20)


def test_a_narrow_kv_cache_holds_twice_as_much():
    wish = settings(engine={"extra_args": ["--kv-cache-dtype", "fp8_e4m3"]}).wish()
    assert (wish.narrow_kv, settings().wish().narrow_kv) == (True, False)


def test_settings_cannot_be_changed_in_passing():
    with pytest.raises(Exception, match="frozen"):
        settings().name = "other"


def test_no_machine_is_too_small_by_default_for_what_starts_on_its_cards():
    for model in catalog.models():
        for fit in sizing.everywhere(sizing.of_catalog(model)):
            if fit.starts and not fit.warning:
                features = {"gpu": [], "tpu": ["tpu"]}[catalog.card(fit.accelerator).kind.name]
                found = settings(
                    model=model,
                    features=features,
                    accelerator={"type": fit.accelerator, "count": fit.count},
                    engine={"quantization": fit.quantization, "max_model_len": "auto"},
                )
                nodes.hold(found, nodes.host(found))


def test_a_machine_with_less_memory_than_the_model_usually_gets_gives_what_it_has():
    one = settings(
        model="google/gemma-3-27b-it", accelerator={"type": "nvidia-a100-40gb"}, engine={"quantization": "fp8"}
    )
    assert (nodes.host(one).memory, nodes.host(settings()).memory) == ("74Gi", "20Gi")
