"""Adapters and an assistant: their settings, the flags that they make, and what names a set of weights."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from typing import Any

import google_crc32c
import pytest
from emulated_cloud.engine import args as engine

from serving.clients import digest
from serving.clients.digest import ServedFile
from serving.errors import ReleaseError, RequestError
from serving.rendering import render
from serving.rendering.engine import accelerator, engine_flags
from serving.settings import Settings, from_parameters, override, validated
from serving.sizing import Sizing
from serving.weights import adapter, identity, repositories
from serving.weights.release import Release
from tests.unit.deployment import RELEASE

BASE: dict[str, Any] = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
ADAPTERS = {"legal": {"model": "someone/legal"}, "korean": {"model": "someone/ko"}}


def settings(*assignments: str, **values: Any) -> Settings:
    return validated(Settings, override({**BASE, **values}, assignments))


def refusal(*assignments: str, **values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        settings(*assignments, **values)
    return str(caught.value)


# -- settings -----------------------------------------------------------------------------------------------


def test_the_command_line_names_an_adapter_and_its_key():
    found = settings("adapters.korean.model=someone/ko", "adapters.korean.revision=v2", "assistant.model=a/b",
                     "assistant.num_speculative_tokens=3")  # fmt: skip
    assert found.adapters["korean"].model == "someone/ko"
    assert found.adapters["korean"].revision == "v2"
    assert found.assistant is not None
    assert found.assistant.num_speculative_tokens == 3
    assert settings("assistant=null", assistant={"model": "a/b", "num_speculative_tokens": 3}).assistant is None


def test_they_mean_the_same_after_the_pipeline_language():
    found = settings(adapters=ADAPTERS, assistant={"model": "a/b", "num_speculative_tokens": 3})
    struct = json.loads(json.dumps(found.as_struct()), parse_int=float)
    assert from_parameters(struct) == found


@pytest.mark.parametrize(
    ("assignments", "values", "words"),
    [
        (["adapters.korean=x/y"], {}, "--set adapters.korean: name one of its keys (model, revision, source)"),
        (["adapters.korean.modle=x/y"], {}, "--set adapters.korean.modle: unknown key modle; did you mean model?"),
        (["assistant.modle=x/y"], {}, "--set assistant.modle: unknown key modle; did you mean model?"),
        ([], {"adapters": {"korean": {"modle": "x/y"}}}, "adapters.korean.modle: unknown key; did you mean model?"),
        ([], {"adapters": {"korean": {}}}, "adapters.korean.model: is missing"),
        ([], {"assistant": {"mode": "x/y"}}, "assistant.mode: unknown key; did you mean model?"),
        ([], {"adapters": {"Korean": {"model": "x/y"}}}, "lower-case letters, digits and -"),
        ([], {"adapters": {"base": {"model": "x/y"}}}, "'base' is what the record calls another part"),
        ([], {"adapters": {"assistant": {"model": "x/y"}}}, "give the adapter another name"),
        (
            [],
            {"adapters": {f"a{n}": {"model": "x/y"} for n in range(33)}},
            "adapters: Dictionary should have at most 32",
        ),
        ([], {"assistant": {"model": "x/y"}}, "assistant.num_speculative_tokens is needed: the catalog knows none for"),
        (["engine.extra_args=[--lora-modules]"], {}, "--lora-modules is not for extra_args: set `adapters`"),
        (["engine.extra_args=['-sc={}']"], {}, "-sc is not for extra_args: set `assistant`"),
        (["source=gs://bkt"], {}, "'gs://bkt' is not a folder of a bucket, gs://BUCKET/FOLDER"),
        (["source=gs://bkt/f/"], {}, "no / at its end"),
        (["source=gs://bkt/f", "revision=v2"], {}, "revision 'v2' means nothing for gs://bkt/f, which has no commits"),
        (
            [],
            {"adapters": {"a": {"model": "x/y", "source": "gs://bkt/f", "revision": "v"}}},
            "adapters.a: revision 'v'",
        ),
        (["hub.endpoint=ftp://h"], {}, "'ftp://h' is not the address of a hub, like https://hub.example.com"),
        (["hub.endpoint=https://h/?a=b"], {}, "is not the address of a hub"),
        (["hub.endpoint=h.example.com"], {}, "is not the address of a hub"),
    ],
)
def test_what_is_wrong_is_said_where_it_is(assignments: list[str], values: dict[str, Any], words: str):
    assert words in refusal(*assignments, **values)


def test_a_password_in_an_endpoint_is_not_repeated():
    said = refusal("hub.endpoint=https://me:s3cret@h")
    assert "hub.endpoint: holds a user or a password" in said
    assert "s3cret" not in said


def test_an_endpoint_has_no_slash_at_its_end():
    assert settings("hub.endpoint=https://h/hub/").hub.endpoint == "https://h/hub"


# -- flags --------------------------------------------------------------------------------------------------


def flags(config: Settings, max_lora_rank: int = 0) -> list[str]:
    return engine_flags(config, RELEASE.model_copy(update={"max_lora_rank": max_lora_rank}))


def test_without_adapters_and_assistant_the_flags_are_those_of_old():
    assert not {"--enable-lora", "--lora-modules", "--max-loras", "--speculative-config"} & {*flags(settings())}


def test_the_engine_takes_the_flags_and_finds_the_folders():
    config = settings(model="google/gemma-4-E4B-it", adapters=ADAPTERS, assistant={"model": "a/b"})
    parsed = engine.parse(["/model", *flags(config, 16)])
    assert parsed.enable_lora
    assert (parsed.max_lora_rank, parsed.max_loras, parsed.max_cpu_loras) == (16, 2, None)
    assert parsed.lora_modules == [
        {"name": "korean", "path": "/model/adapters/korean"},
        {"name": "legal", "path": "/model/adapters/legal"},
    ]
    # The catalog's figure for this model.
    assert parsed.speculative_config == {"model": "/model/assistant", "num_speculative_tokens": 4}
    folders = {each.role: f"/model/{each.folder}" for each in repositories.of(config)}
    assert folders == {
        "base": "/model/",
        "korean": "/model/adapters/korean/",
        "legal": "/model/adapters/legal/",
        "assistant": "/model/assistant/",
    }


def test_text_alone_is_a_flag():
    assert "--language-model-only" in flags(settings(engine={"text_only": True}))
    assert "--language-model-only" not in flags(settings())


def test_the_host_of_a_fine_tune_is_by_the_weights_of_all_cards():
    config = settings(model="acme/tuned", accelerator={"count": 4})
    release = RELEASE.model_copy(update={"sizing": Sizing(weights_gib=15.0)})
    assert accelerator(config, release)["memory"] == "128Gi"
    assert accelerator(settings(model="acme/tuned"), release)["memory"] == "64Gi"


def test_many_adapters_are_kept_ready_and_few_are_mixed():
    many = {f"a{n}": {"model": "x/y"} for n in range(12)}
    parsed = engine.parse(["/model", *flags(settings(adapters=many), 8)])
    assert (parsed.max_loras, parsed.max_cpu_loras) == (8, 12)


def test_the_order_of_adapters_makes_no_new_generation():
    backwards = dict(reversed(ADAPTERS.items()))
    assert flags(settings(adapters=ADAPTERS), 8) == flags(settings(adapters=backwards), 8)


def test_a_manifest_has_the_releases_rank():
    config = settings(adapters=ADAPTERS)
    rank = RELEASE.model_copy(update={"max_lora_rank": 64})
    (deployment,) = (i for i in render.render(config, rank).generation if i["kind"] == "Deployment")
    flags = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert flags[flags.index("--max-lora-rank") + 1] == "64"


def test_a_release_is_the_same_after_the_pipeline_language():
    made = RELEASE.model_copy(update={"max_lora_rank": 64, "commits": {"korean": "d" * 40}})
    assert Release.model_validate(json.loads(json.dumps(made.model_dump()), parse_int=float)) == made


@pytest.mark.parametrize(("ranks", "flag"), [([], 0), ([1], 1), ([2, 8], 8), ([9], 16), ([257], 320), ([512], 512)])
def test_the_engines_rank_is_the_next_that_it_allows(ranks: list[int], flag: int):
    assert adapter.max_lora_rank(ranks) == flag


def test_every_rank_is_one_that_the_engine_takes():
    for rank in adapter.RANKS:
        assert engine.parse(["/model", "--max-lora-rank", str(rank)]).max_lora_rank == rank
    with pytest.raises(SystemExit):
        engine.parse(["/model", "--max-lora-rank", "4"])


# -- an adapter's tensors -----------------------------------------------------------------------------------

GEMMA_3, GEMMA_3_MM, GEMMA_4, GEMMA_4_MM = (
    "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration",
)  # fmt: skip
QUERY = "layers.0.self_attn.q_proj"


def lora(*modules: str) -> list[str]:
    """An adapter's tensors for modules, as PEFT names them."""
    return [f"base_model.model.{module}.lora_{side}.weight" for module in modules for side in "AB"]


@pytest.mark.parametrize(
    ("architecture", "base", "module"),
    [
        (GEMMA_3, "model.", f"model.{QUERY}"),
        (GEMMA_3_MM, "language_model.model.", f"model.language_model.{QUERY}"),
        (GEMMA_3_MM, "model.language_model.", f"language_model.model.{QUERY}"),
        (GEMMA_4, "model.language_model.", f"model.{QUERY}"),
        (GEMMA_4, "model.", f"model.language_model.{QUERY}"),
        (GEMMA_4_MM, "model.language_model.", f"model.{QUERY}"),
        (GEMMA_4_MM, "model.language_model.", "model.language_model.layers.0.experts.base_layer"),
        (GEMMA_4_MM, "model.language_model.", "model.language_model.layers.0.experts.3.gate_proj"),
        ("FutureForCausalLM", "transformer.", "h.0.attn"),
    ],
)
def test_an_adapter_fits_by_the_names_that_the_engine_gives_to_modules(architecture: str, base: str, module: str):
    theirs = [f"{base}{QUERY}.weight", f"{base}layers.0.experts.down_proj", f"{base}embed_tokens.weight"]
    adapter.check_tensors(lora(module), theirs, architecture)
    packed = [f"{base}{QUERY}.weight_packed", f"{base}{QUERY}.weight_scale", f"{base}layers.0.experts.down_proj"]
    adapter.check_tensors(lora(module), packed, architecture)
    adapter.check_tensors(lora(module), [], architecture)


def test_an_adapter_may_have_modules_beside_its_own_and_no_prefix():
    base = ["model.layers.0.self_attn.q_proj.weight"]
    adapter.check_tensors(lora(f"model.{QUERY}", "model.layers.1.self_attn.q_proj"), base, GEMMA_3)
    adapter.check_tensors([name.removeprefix("base_model.model.") for name in lora(f"model.{QUERY}")], base, GEMMA_3)
    copies = ["base_model.model.model.embed_tokens.base_layer.weight"]
    adapter.check_tensors([*lora(f"model.{QUERY}"), *copies], base, GEMMA_3)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "it holds no LoRA weights"),
        (["base_model.model.model.embed_tokens.base_layer.weight"], "it holds no LoRA weights"),
        (lora("model.layers.9.self_attn.q_proj"), r"none of its modules \(model.layers.9.self_attn.q_proj is"),
        (lora(f"language_model.model.{QUERY}"), "has none of its modules .* it was made for another"),
        (lora(f"model.{QUERY}", "model.layers.0.self_attn.c_attn"), "vLLM adapts no c_attn of a Gemma3ForCausalLM"),
        (lora(f"model.{QUERY}", "lm_head"), "it adapts lm_head, and vLLM adapts no lm_head of a Gemma3ForCausalLM"),
        (lora(f"model.{QUERY}")[:1], f"of its model.{QUERY} only lora_A is there"),
        (lora(f"model.{QUERY}")[1:], f"of its model.{QUERY} only lora_B is there"),
        (
            [f"base_model.model.model.embed_tokens.lora_embedding_{side}" for side in "AB"],
            "vLLM adapts no embed_tokens of a Gemma3ForCausalLM",
        ),
        (["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"], "is no LoRA weight that vLLM"),
        (["base_model.model.model.layers.0.mlp.up_proj.lora_A.default.weight"], "is no LoRA weight that vLLM"),
        ([f"model.{QUERY}.weight"], "is no LoRA weight that vLLM could load"),
    ],
)  # fmt: skip
def test_tensors_that_the_engine_would_refuse_or_pass_over_are_the_releases_fault(names: list[str], words: str):
    base = [f"model.{QUERY}.weight", "model.embed_tokens.weight", "lm_head.weight"]
    with pytest.raises(ReleaseError, match=words):
        adapter.check_tensors(names, base, GEMMA_3)


# -- what names a file and a set of weights -----------------------------------------------------------------

CONTENT = b"the content of a file"
CRC32C = b64encode(google_crc32c.value(CONTENT).to_bytes(4, "big")).decode()
LISTED = {
    "sha256": {"sha256": hashlib.sha256(CONTENT).hexdigest()},
    "git": {"blob_id": hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()},
    "md5": {"md5": b64encode(hashlib.md5(CONTENT).digest()).decode(), "crc32c": CRC32C},
    "crc32c": {"crc32c": CRC32C},
}


@pytest.mark.parametrize("kind", LISTED)
def test_content_is_known_by_whatever_its_source_lists(kind: str):
    file = ServedFile("a", len(CONTENT), **LISTED[kind])
    assert file.digest.startswith(f"{kind}:")
    assert digest.of(file, CONTENT).is_right()
    assert not digest.of(file, CONTENT[:-1] + b"?").is_right()
    assert not digest.of(file, CONTENT[:-1]).is_right()
    assert digest.of(file, CONTENT).sha256 == LISTED["sha256"]["sha256"]


def test_a_crc32c_names_a_content_together_with_its_size():
    assert ServedFile("a", 1, crc32c="x").digest != ServedFile("a", 2, crc32c="x").digest


def test_a_role_is_part_of_the_key():
    files = [ServedFile("adapter_model.safetensors", 1, sha256="a" * 64)]
    keys = {identity.weights_key([("base", files), (role, files)]) for role in ("assistant", "korean", "legal")}
    assert len(keys) == 3
