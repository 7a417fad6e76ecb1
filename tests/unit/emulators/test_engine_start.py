"""What the emulated vLLM takes and what it refuses, in vLLM's words, before its port opens."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from emulated_cloud.engine.__main__ import main, precompile
from emulated_cloud.engine.architectures import required_tensors
from emulated_cloud.engine.args import parse
from emulated_cloud.engine.checkpoint import BadModel, load_weights, open_config
from emulated_cloud.engine.draft import load_draft, open_draft
from emulated_cloud.hub import models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "model"
    models.write_gemma3(folder)
    return folder


@pytest.fixture
def broken(tiny, tmp_path):
    """A copy to break."""
    shutil.copytree(tiny, tmp_path / "broken")
    return tmp_path / "broken"


@pytest.fixture
def refused(capsys, monkeypatch):
    """What an engine that does not start says on stderr."""
    for name in ("VLLM_API_KEY", "VLLM_PLUGINS", "VLLM_ALLOW_LONG_MAX_MODEL_LEN", "EMULATED_ENGINE_START_SECONDS"):
        monkeypatch.delenv(name, raising=False)

    def start(*args):
        assert main([*map(str, args)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return start


def root_cause(said):
    """The engine core's exception; that the front end says what vLLM's says is checked on the way."""
    *_, cause, last = said.splitlines()
    assert last == "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
    match = re.fullmatch(r"\(EngineCore pid=\d+\) ERROR \d\d-\d\d \d\d:\d\d:\d\d \[core\.py:\d+\] (.*)", cause)
    assert match, cause
    return match[1]


@pytest.mark.parametrize(
    "gone",
    [
        ["--swap-space", "4"],
        ["--swap_space=4"],
        ["--num-scheduler-steps", "8"],
        ["--disable-log-requests"],
        ["--device", "cuda"],
        ["--task", "generate"],
        ["--use-v2-block-manager"],
        ["--max-model", "8"],
    ],
)
def test_flags_that_vllm_does_not_have_are_refused(gone, capsys):
    with pytest.raises(SystemExit) as end:
        parse(["/model", *gone])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: vllm serve [model_tag] [options]\n")
    assert f"vllm serve: error: unrecognized arguments: {gone[0].replace('_', '-')}" in said


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--tensor-parallel-size", "two"], "argument --tensor-parallel-size/-tp: invalid int value: 'two'"),
        (["--max-model-len", "long"], "argument --max-model-len: invalid human_readable_int_or_auto value: 'long'"),
        (["--max-num-batched-tokens", "1.5K"], "Decimals are not allowed with binary suffixes like K"),
        (["--dtype", "int4"], "argument --dtype: invalid choice: 'int4'"),
        (["--speculative-config", "{model"], "argument --speculative-config/-sc: invalid loads value: '{model'"),
        (["--lora-modules", "just-a-name"], "Invalid JSON format for --lora-modules: just-a-name"),
        (["--lora-modules", '{"name": "x"}'], "Invalid fields for --lora-modules"),
        (["--port"], "argument --port: expected one argument"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(given, words, capsys):
    with pytest.raises(SystemExit) as end:
        parse(["/model", *given])
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_a_model_must_be_named(capsys):
    with pytest.raises(SystemExit):
        parse(["--port", "8000"])
    assert "the following arguments are required: model_tag" in capsys.readouterr().err


def test_both_spellings_and_both_forms():
    args = parse(
        ["--model", "/model", "--max_model_len=32K", "--tensor_parallel_size", "2", "--no-enable-log-requests"]
    )
    assert (args.model, args.max_model_len, args.tensor_parallel_size) == ("/model", 32768, 2)
    assert args.enable_log_requests is False
    args = parse(["/model", "--served-model-name", "a", "b", "--max-model-len", "auto", "--limit-mm-per-prompt={}"])
    assert (args.served_model_name, args.max_model_len, args.limit_mm_per_prompt) == (["a", "b"], -1, {})
    args = parse(["/model", "--lora-modules", "a=/x", '{"name": "b", "path": "/y"}', "--max-num-batched-tokens", "8k"])
    assert args.lora_modules == [{"name": "a", "path": "/x"}, {"name": "b", "path": "/y"}]
    assert args.max_num_batched_tokens == 8000
    # An underscore in a value stays.
    assert parse(["/model", "--tool-call-parser=my_parser"]).tool_call_parser == "my_parser"


def test_nothing_there(refused, tmp_path):
    said = refused(tmp_path / "nothing")
    assert said == (
        "huggingface_hub.errors.HFValidationError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
        f"'{tmp_path / 'nothing'}'. Use `repo_type` argument if needed.\n"
    )
    (tmp_path / "nothing").mkdir()
    said = refused(tmp_path / "nothing")
    assert f"Invalid repository ID or local directory specified: '{tmp_path / 'nothing'}'." in said


def test_a_config_that_is_not_json(refused, broken):
    (broken / "config.json").write_text("{")
    assert "is not a valid JSON file" in refused(broken)


@pytest.mark.parametrize("architectures", [["Gemma9ForCausalLM"], [], None])
def test_an_architecture_that_is_not_supported(refused, broken, architectures):
    config = json.loads((broken / "config.json").read_bytes())
    (broken / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    said = refused(broken)
    assert f"Model architectures {architectures or []} are not supported for now. Supported architectures: " in said
    assert "Gemma4UnifiedForConditionalGeneration" in said


def test_a_context_longer_than_the_model_has(refused, tiny, monkeypatch):
    said = refused(tiny, "--max-model-len", "32769")
    assert (
        "User-specified max_model_len (32769) is greater than the derived max_model_len "
        "(max_position_embeddings=32768 or model_max_length=None in model's config.json)"
    ) in said


def test_a_shard_that_was_cut(refused, broken):
    models.truncate_shard(broken)
    words = root_cause(refused(broken))
    assert words.startswith("safetensors._safetensors_rust.SafetensorError: Error while deserializing header: ")


def test_a_shard_that_is_missing(refused, broken):
    models.drop_shard(broken)
    missing = {str(broken / "model-00002-of-00002.safetensors")}
    assert root_cause(refused(broken)) == f"FileNotFoundError: Weight files referenced in index but missing: {missing}"


def test_all_shards_missing(refused, broken):
    for file in broken.glob("*.safetensors*"):
        file.unlink()
    assert root_cause(refused(broken)) == f"RuntimeError: Cannot find any model weights with `{broken}`"


def test_a_config_that_does_not_match(refused, broken):
    models.mismatch_config(broken)
    assert root_cause(refused(broken)) == (
        "RuntimeError: The size of tensor a (256) must match the size of tensor b (128) at non-singleton dimension 1"
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 7), ("num_attention_heads", 8), ("num_key_value_heads", 2), ("vocab_size", 4000)],
)
def test_a_config_of_other_sizes(refused, broken, key, value):
    config = json.loads((broken / "config.json").read_bytes())
    (broken / "config.json").write_text(json.dumps({**config, key: value}))
    assert root_cause(refused(broken)).startswith(("AssertionError: ", "ValueError: Following weights"))


def test_a_tokenizer_that_is_broken(refused, broken):
    (broken / "tokenizer.json").write_text("{}")
    assert "OSError: Can't load tokenizer for" in refused(broken)


def test_a_chat_template_that_is_not_there(refused, tiny):
    assert "looks like a file path, but it failed to be opened" in refused(tiny, "--chat-template", "no.jinja")


def test_tool_choice_without_a_parser(refused, tiny):
    assert "TypeError: Error: --enable-auto-tool-choice requires --tool-call-parser" in refused(
        tiny, "--enable-auto-tool-choice"
    )


def test_an_adapter_of_too_high_a_rank(refused, tiny, tmp_path):
    models.write_lora_adapter(tmp_path / "wide", tiny, rank=32)
    said = refused(tiny, "--enable-lora", "--lora-modules", f"wide={tmp_path / 'wide'}")
    assert "ValueError: Call to add_lora method failed: LoRA rank 32 is greater than max_lora_rank 16." in said


def test_an_adapter_of_another_base(refused, tiny, tmp_path):
    models.write_gemma4(tmp_path / "base")
    models.write_lora_adapter(tmp_path / "adapter", tmp_path / "base")
    said = refused(tiny, "--enable-lora", "--lora-modules", f"x={tmp_path / 'adapter'}")
    assert "has shape" in said


def test_an_adapter_without_the_flag(refused, tiny, tmp_path):
    said = refused(tiny, "--lora-modules", f"x={tmp_path}")
    assert "LoRA is not enabled. Use --enable-lora to enable LoRA." in said


def test_an_adapter_that_vllm_does_not_do(refused, tiny, tmp_path):
    models.write_lora_adapter(tmp_path / "adapter", tiny)
    path = tmp_path / "adapter" / "adapter_config.json"
    config = json.loads(path.read_bytes())
    path.write_text(json.dumps({**config, "use_dora": True, "modules_to_save": ["lm_head"], "rank_pattern": {"q": 64}}))
    said = refused(tiny, "--enable-lora", "--lora-modules", f"x={tmp_path / 'adapter'}")
    assert "vLLM does not yet support DoRA. LoRA rank 64 is greater than max_lora_rank 16." in said
    assert "Unsupported modules_to_save: ['lm_head']" in said


# -- a draft model ----------------------------------------------------------------------------------------------------


def drafted(**config):
    return "--speculative-config", json.dumps(config)


def test_a_draft_model_is_opened_as_the_model_is(refused, tiny, broken):
    models.truncate_shard(broken)
    said = refused(tiny, *drafted(model=str(broken), num_speculative_tokens=2))
    assert root_cause(said).endswith("incomplete metadata, file not fully covered")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_speculative_tokens": 2}, "num_speculative_tokens was provided but without speculative model."),
        ({"model": "TINY"}, "`num_speculative_tokens` was not provided"),
        (
            {"model": "TINY", "num_speculative_tokens": 0},
            "Expected num_speculative_tokens to be greater than zero (0).",
        ),
    ],
)
def test_a_speculative_config_that_says_too_little(refused, tiny, config, words):
    said = refused(tiny, *drafted(**{key: str(tiny) if value == "TINY" else value for key, value in config.items()}))
    assert f"1 validation error for SpeculativeConfig\n  Value error, {words}" in said.replace(
        "A speculative model was provided, but ", ""
    )


def test_a_draft_model_that_is_not_there(refused, tiny, tmp_path):
    assert "Repo id must be in the form" in refused(
        tiny, *drafted(model=str(tmp_path / "no"), num_speculative_tokens=2)
    )


def test_a_draft_model_of_another_vocabulary(refused, tiny, broken):
    path = broken / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "vocab_size": 8}))
    said = refused(tiny, *drafted(model=str(broken), num_speculative_tokens=2))
    assert "Target model vocab_size=4096. Draft model vocab_size=8." in said


def test_a_draft_model_whose_layers_attend_in_two_ways(refused, tiny):
    said = root_cause(refused(tiny, *drafted(model=str(tiny), num_speculative_tokens=2)))
    assert said == "AssertionError: All drafting layers should belong to the same kv cache group"


@pytest.fixture
def assistant(tmp_path):
    models.write_gemma4_assistant(tmp_path / "assistant")
    return tmp_path / "assistant"


def test_gemma_4s_assistant_drafts(assistant, tiny):
    """Loaded by vLLM 0.32 as well, and drafts there."""
    draft = open_draft({"model": str(assistant)}, open_config(str(tiny)))
    load_draft(draft)
    assert draft.architecture == "Gemma4AssistantForCausalLM"
    assert draft.tensors["post_projection.weight"].shape == (128, 64)


def test_an_assistant_for_a_model_of_another_width(refused, tiny, assistant):
    path = assistant / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "backbone_hidden_size": 256}))
    said = root_cause(refused(tiny, *drafted(model=str(assistant), num_speculative_tokens=2)))
    assert (
        said
        == "AssertionError: Attempted to load weight (torch.Size([64, 256])) into parameter (torch.Size([64, 512]))"
    )


# -- safetensors, made by hand --------------------------------------------------------------------------------------

GEMMA_4 = {
    "architectures": ["Gemma4ForConditionalGeneration"],
    "text_config": {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 4,
        "global_head_dim": 8,
        "num_global_key_value_heads": 1,
        "attention_k_eq_v": True,
        "num_kv_shared_layers": 1,
        "use_double_wide_mlp": True,
        "hidden_size_per_layer_input": 2,
        "vocab_size_per_layer_input": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        "enable_moe_block": True,
        "num_experts": 3,
        "moe_intermediate_size": 5,
    },
}


def write(folder, config, tensors, dtype="BF16", size=2):
    """A checkpoint of one file; tensors: name → shape."""
    folder.mkdir()
    header, offset = {}, 0
    for name, shape in tensors.items():
        length = size
        for side in shape:
            length *= side
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + length]}
        offset += length
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + b"\1" * offset)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def expected(config, prefix):
    """name → (shape, optional), under one of the prefixes that transformers has written."""
    names = {f"{prefix}embed_tokens.weight"}
    found = required_tensors(config, config["architectures"][0], names)
    return {tensor.name: (tensor.shape, tensor.optional) for tensor in found}


def load(folder):
    checkpoint = open_config(str(folder))
    load_weights(checkpoint)
    return checkpoint


def test_shapes_of_gemma_4():
    tensors = expected(GEMMA_4, "model.language_model.")
    shapes = {name.removeprefix("model.language_model."): shape for name, (shape, _) in tensors.items()}
    assert shapes["layers.0.self_attn.q_proj.weight"] == (16, 8)
    assert shapes["layers.0.self_attn.k_proj.weight"] == (8, 8)
    # Full attention: heads of another size, keys that are the values, too.
    assert shapes["layers.1.self_attn.q_proj.weight"] == (32, 8)
    assert shapes["layers.1.self_attn.k_proj.weight"] == (8, 8)
    assert "layers.1.self_attn.v_proj.weight" not in shapes
    # The last layer shares earlier keys and values, and its MLP is wider.
    assert tensors["model.language_model.layers.3.self_attn.k_proj.weight"][1]
    assert shapes["layers.3.mlp.up_proj.weight"] == (32, 8)
    assert shapes["layers.2.experts.gate_up_proj"] == (3, 10, 8)
    assert shapes["embed_tokens_per_layer.weight"] == (32, 8)


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_a_multimodal_checkpoint(tmp_path, prefix):
    tensors = {name: shape for name, (shape, _) in expected(GEMMA_4, prefix).items()}
    vision = {"model.vision_tower.patch_embedder.weight": (3, 3)}
    checkpoint = load(write(tmp_path / "model", GEMMA_4, {**tensors, **vision}))
    assert checkpoint.max_position_embeddings == 131072
    assert not checkpoint.padding_only
    required = {name: shape for name, (shape, optional) in expected(GEMMA_4, prefix).items() if not optional}
    load(write(tmp_path / "least", GEMMA_4, required))
    required.pop(f"{prefix}norm.weight")
    with pytest.raises(BadModel, match=re.escape(f"{{'{prefix}norm.weight'}}")):
        load(write(tmp_path / "short", GEMMA_4, required))


def test_packed_weights_have_shapes_of_their_own(tmp_path):
    prefix = "model.language_model."
    tensors = {name: shape for name, (shape, _) in expected(GEMMA_4, prefix).items()}
    layer = f"{prefix}layers.0.mlp.up_proj."
    tensors.pop(layer + "weight")
    packed = {**tensors, layer + "weight_packed": (16, 1), layer + "weight_scale": (16, 1)}
    load(write(tmp_path / "packed", {**GEMMA_4, "quantization_config": {}}, packed))
    with pytest.raises(BadModel, match=r"named .layers.0.mlp.up_proj.weight_packed. in Gemma4Model"):
        load(write(tmp_path / "unsaid", GEMMA_4, packed))


def damaged(folder, change):
    file = folder / "model.safetensors"
    file.write_bytes(change(file.read_bytes()))
    return folder


def in_header(data, old, new):
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(old, new)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:5], "header too small"),
        (lambda data: b"\xff" * 8 + data[8:], "header too large"),
        (lambda data: (10**6).to_bytes(8, "little") + data[8:], "invalid header length"),
        (lambda data: data[:8] + b"[" + data[9:], "invalid JSON in header"),
        (lambda data: data[:-1], "incomplete metadata, file not fully covered"),
        (lambda data: data + b"\0", "incomplete metadata, file not fully covered"),
        (lambda data: in_header(data, b"[0, 512]", b"[2, 514]"), "invalid offset for tensor"),
        (lambda data: in_header(data, b'"shape": [32, 8]', b'"shape": [32, 9]'), "invalid shape, data type, or offset"),
        (lambda data: in_header(data, b"BF16", b"BF17"), "unknown variant `BF17`"),
    ],
)
def test_damaged_headers(tmp_path, change, words):
    tensors = {name: shape for name, (shape, _) in expected(GEMMA_4, "model.").items()}
    folder = write(tmp_path / "model", GEMMA_4, tensors)
    load(folder)
    with pytest.raises(BadModel, match=re.escape(words)):
        load(damaged(folder, change))


def test_the_digest_knows_other_weights_and_nothing_else(tiny, broken):
    same = load(broken).digest
    assert same == load(tiny).digest
    (broken / "README.md").write_text("Other words")
    assert load(broken).digest == same
    models.write_gemma3(broken, seed=1)
    assert load(broken).digest != same


def test_zero_embeddings_are_noticed(tiny, broken):
    assert not load(tiny).padding_only
    models.zero_weights(broken)
    assert load(broken).padding_only


def test_on_a_tpu_every_shape_is_compiled_and_kept_before_the_port_opens(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VLLM_XLA_CACHE_PATH", str(tmp_path / "cache" / "xla"))
    precompile()
    said = capsys.readouterr().err
    assert "Precompile backbone --> {'num_tokens': 16}" in said
    assert "Compilation finished in" in said
    assert len(list((tmp_path / "cache" / "xla").iterdir())) == 3
