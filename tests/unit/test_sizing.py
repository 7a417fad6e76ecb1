"""The rule of sizing, held to what a real engine did, and what is read of a checkpoint for it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from serving import catalog, sizing
from serving.clients.digest import ServedFile
from serving.errors import ReleaseError, RequestError
from serving.sizing import Model, Sizing, Tensor, Weights, Wish
from serving.weights import checkpoint, weighing
from tests.unit import checkpoints

ROWS = catalog.measured()
STARTED = [row for row in ROWS if row["kv_tokens"]]
REFUSED = [row for row in ROWS if not row["kv_tokens"]]
BIG = "google/gemma-4-31B-it"


def row_id(row: dict[str, Any]) -> str:
    return f"{row['model'].partition('/')[2]}-{row['count']}-{row['accelerator']}-{row['quantization'] or 'published'}"


def size(model: str, accelerator: str, **wishes: Any) -> Sizing:
    return sizing.size(sizing.of_catalog(model), Wish(accelerator, **wishes))


def refusal(model: str, accelerator: str, **wishes: Any) -> str:
    with pytest.raises(RequestError) as caught:
        sizing.judged(sizing.of_catalog(model), Wish(accelerator, **wishes))
    return str(caught.value)


# -- what a real engine did ---------------------------------------------------------------------------------


def test_all_that_was_seen_is_in_the_catalog():
    assert (len(ROWS), len(STARTED), len(REFUSED)) == (25, 22, 3)


@pytest.mark.parametrize("row", STARTED, ids=row_id)
def test_the_rule_comes_to_what_a_real_engine_found(row: dict[str, Any]):
    found = sizing.replayed(row)
    assert found.starts
    assert found.kv_gib == pytest.approx(row["kv_gib"], rel=0.05)
    assert found.kv_tokens == pytest.approx(row["kv_tokens"], rel=0.05)


@pytest.mark.parametrize("row", STARTED, ids=row_id)
def test_of_the_memory_that_a_real_engine_found_its_kv_cache_holds_as_many_tokens(row: dict[str, Any]):
    """Blocks, groups and windows alone, without weights and overhead: to the three digits that are logged of a GiB."""
    made = sizing.of_catalog(row["model"]).architecture
    batch = 8192 if catalog.card(row["accelerator"]).batch == "large" else 2496 if made.whole_videos else 2048
    blocks, size = made.request_blocks(row["max_model_len"], batch, row["count"])
    held = row["kv_gib"] * 2**30 // size / blocks * row["max_model_len"]
    assert held == pytest.approx(row["kv_tokens"], rel=0.005 / row["kv_gib"] + 1e-3)


@pytest.mark.parametrize("row", REFUSED, ids=row_id)
def test_the_rule_refuses_what_a_real_engine_refused(row: dict[str, Any]):
    found = sizing.replayed(row)
    assert found.starts is False
    if row["kv_gib"] is not None:
        assert found.kv_gib == pytest.approx(row["kv_gib"], rel=0.05)


@pytest.mark.parametrize(
    ("accelerator", "quantization", "needs_gib", "longest"),
    [("nvidia-h100-80gb", None, 15.79, 11872), ("nvidia-a100-40gb", "fp8_per_tensor", 5.85, 3552)],
)
def test_what_was_lacking_is_what_the_engine_said(
    accelerator: str, quantization: str | None, needs_gib: float, longest: int
):
    (row,) = [row for row in REFUSED if (row["accelerator"], row["quantization"]) == (accelerator, quantization)]
    made = sizing.of_catalog(BIG).architecture
    batch = 8192 if accelerator == "nvidia-h100-80gb" else 2496
    blocks, block_bytes = made.request_blocks(row["max_model_len"], batch, 1)
    assert blocks * block_bytes / 2**30 == pytest.approx(needs_gib, abs=0.005)
    assert sizing.replayed(row).longest == pytest.approx(longest, rel=0.05)
    assert made.longest(int(row["kv_gib"] * 2**30), 1, batch, 1) == pytest.approx(longest, rel=0.005)


def test_a_card_that_cannot_hold_the_output_layer_while_the_model_is_built_is_refused_for_that():
    found = size(f"{BIG}-qat-w4a16-ct", "nvidia-l4", max_model_len=16384)
    assert found.lacks_while_building_gib > 0
    # With all of the card its weights and a small KV cache would find room.
    said = refusal(f"{BIG}-qat-w4a16-ct", "nvidia-l4", share=1.0)
    assert "while it is built it lacks 0.1 GiB for its output layer" in said


def test_the_default_for_31b_on_an_h100_starts_with_smaller_batches():
    found = size(BIG, "nvidia-h100-80gb", max_model_len=32768)
    assert (found.starts, found.max_num_batched_tokens, found.max_num_seqs) == (True, 2496, 256)
    assert found.kv_gib == pytest.approx(12.0, abs=0.1)
    assert found.longest == pytest.approx(97_000, rel=0.01)


def test_where_vllms_own_batches_do_none_are_set():
    found = size("google/gemma-3-4b-it", "nvidia-h100-80gb")
    assert (found.max_model_len, found.max_num_batched_tokens, found.max_num_seqs) == (131072, None, None)


@pytest.mark.parametrize(
    ("model", "accelerator", "quantization", "context"),
    [
        ("google/gemma-3-12b-it", "nvidia-l4", "fp8_per_tensor", 32768),
        ("google/gemma-3-4b-it", "nvidia-l4", None, 131072),
        ("google/gemma-4-E2B-it", "nvidia-l4", None, 131072),
        ("google/gemma-4-E4B-it", "nvidia-l4", None, 131072),
        ("google/gemma-4-12B-it", "nvidia-l4", "fp8_per_tensor", 131072),
        ("google/gemma-4-12B-it-qat-w4a16-ct", "nvidia-l4", None, 131072),
        ("google/gemma-4-26B-A4B-it", "nvidia-h100-80gb", None, 131072),
        (BIG, "nvidia-rtx-pro-6000", None, 131072),
    ],
)
def test_contexts_that_were_refused_and_fit_are_allowed(
    model: str, accelerator: str, quantization: str | None, context: int
):
    assert size(model, accelerator, quantization=quantization, max_model_len=context).starts


# -- what is read of a checkpoint ---------------------------------------------------------------------------


@pytest.mark.parametrize("model", catalog.models())
def test_what_the_catalog_says_of_a_model_is_what_its_files_say(model: str):
    known = sizing.of_catalog(model)
    made = sizing.of_config("config.json", checkpoints.config(model))
    assert made == known.architecture
    assert sizing.of_tensors(checkpoints.tensors(model), made) == known.weights


@pytest.mark.parametrize(
    ("model", "full", "sliding", "window"),
    [
        ("google/gemma-3-1b-it", 4, 24, 512),
        ("google/gemma-3-4b-it", 20, 120, 1024),
        ("google/gemma-3-12b-it", 64, 320, 1024),
        ("google/gemma-3-27b-it", 80, 480, 1024),
        ("google/gemma-4-E2B-it", 6, 12, 512),
        ("google/gemma-4-E4B-it", 16, 40, 512),
        ("google/gemma-4-12B-it", 16, 320, 1024),
        ("google/gemma-4-26B-A4B-it", 20, 200, 1024),
        (BIG, 80, 800, 1024),
    ],
)
def test_a_request_takes_what_full_and_sliding_layers_keep(model: str, full: int, sliding: int, window: int):
    """KiB of a token; blocks that are not full, and one more of each sliding group, come on top."""
    made, batch = sizing.of_catalog(model).architecture, 2048
    for context in (2048, 16384, 32768):
        blocks, size = made.request_blocks(context, batch, 1)
        rule = full * context + sliding * min(context, window - 1 + 2 * batch)
        assert rule <= blocks * size / 1024 <= rule + 2 * 32 * (full + sliding)


def test_key_and_value_heads_split_over_cards_and_the_last_one_does_not():
    made = sizing.of_catalog("google/gemma-4-12B-it").architecture  # 8 heads, and one in full layers
    (alone, one), (together, two) = made.request_blocks(65536, 2496, 1), made.request_blocks(65536, 2496, 2)
    full = [layer for layer in made.layers if layer.window is None]
    assert {layer.token_bytes(1, 2) for layer in full} == {layer.token_bytes(2, 2) for layer in full} == {2048}
    assert alone * one / 2 < together * two < alone * one


@pytest.mark.parametrize(("sliding", "groups"), [(4, 2), (5, 2), (6, 3)])
def test_layers_share_a_block_as_the_rarest_kind_or_as_one_with_few_more(sliding: int, groups: int):
    kinds = ["full_attention"] * 4 + ["sliding_attention"] * sliding
    changes = {"num_hidden_layers": len(kinds), "layer_types": kinds, "sliding_window": 17}
    made = sizing.of_config("config.json", checkpoints.config("google/gemma-3-1b-it") | changes)
    # Of one block's tokens in full layers; in each group of the sliding ones one more.
    assert made.request_blocks(16, 2048, 1)[0] == 1 + 2 * (groups - 1)


def test_what_newer_versions_of_transformers_write_means_the_same():
    config = checkpoints.config(BIG)
    text = dict(config["text_config"])
    heads, size = text.pop("num_global_key_value_heads"), text.pop("global_head_dim")
    every = {"head_dim": size, "num_key_value_heads": heads}
    layers = {str(index): every for index, kind in enumerate(text["layer_types"]) if kind == "full_attention"}
    newer = config | {"text_config": text | {"per_layer_config": layers}}
    assert sizing.of_config("config.json", newer) == sizing.of_config("config.json", config)


def test_a_projection_that_no_engine_reads_weighs_nothing_and_one_that_it_reads_twice_weighs_twice():
    sharing = sizing.of_config("config.json", checkpoints.config("google/gemma-4-E2B-it"))
    idle = Tensor("model.language_model.layers.34.self_attn.k_proj.weight", "BF16", (256, 1536))
    assert sizing.of_tensors([idle], sharing) == Weights()
    made = sizing.of_config("config.json", checkpoints.config(BIG))
    keys = Tensor("model.language_model.layers.5.self_attn.k_proj.weight", "BF16", (2048, 5376))
    values = keys._replace(name=keys.name.replace("k_proj", "v_proj"))
    alone, both = sizing.of_tensors([keys], made), sizing.of_tensors([keys, values], made)
    assert alone.linear == both.linear == 2 * 2 * 2048 * 5376


def test_float32_is_loaded_as_bfloat16_and_a_tied_output_layer_is_not_loaded_again():
    made = sizing.of_config("config.json", checkpoints.config("google/gemma-3-1b-it"))
    wide = [tensor._replace(dtype="F32") for tensor in checkpoints.tensors("google/gemma-3-1b-it")]
    output = Tensor("lm_head.weight", "BF16", (262144, 1152))
    assert sizing.of_tensors([*wide, output], made) == sizing.of_catalog("google/gemma-3-1b-it").weights


def test_a_checkpoint_of_8_bits_weighs_half_and_takes_adapters_of_the_same_width():
    made = sizing.of_config("config.json", checkpoints.config(BIG))
    wide = Tensor("model.language_model.layers.5.mlp.up_proj.weight", "BF16", (21504, 5376))
    scale = Tensor("model.language_model.layers.5.mlp.up_proj.weight_scale", "F32", (1,))
    published = sizing.of_tensors([wide], made)
    quantized = sizing.of_tensors([wide._replace(dtype="F8_E4M3"), scale], made)
    assert quantized == Weights(fixed=published.linear // 2 + 2, adapter_width=published.adapter_width)


def test_a_folder_is_read_by_its_config_and_the_headers_of_its_shards(tmp_path: Path):
    checkpoints.write(tmp_path, BIG)
    found = weighing.in_folder(tmp_path)
    known = sizing.of_catalog(BIG)
    assert (found.architecture, found.weights) == (known.architecture, known.weights)


def test_an_index_may_name_shards_in_folders(tmp_path: Path):
    checkpoints.write(tmp_path, BIG)
    (tmp_path / "parts").mkdir()
    (tmp_path / "model.safetensors").rename(tmp_path / "parts" / "model.safetensors")
    places = {tensor.name: "parts/model.safetensors" for tensor in checkpoints.tensors(BIG)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert weighing.in_folder(tmp_path).weights == sizing.of_catalog(BIG).weights


def test_pickles_weigh_what_their_files_do():
    pickled = [ServedFile("pytorch_model.bin", 1 << 30)]
    found = weighing.weigh("a/b", "x", checkpoints.config("google/gemma-3-1b-it"), pickled, lambda file, length: b"")
    assert found
    assert found.weights == Weights(fixed=1 << 30)


def shard(entries: Any, size: int = 0) -> bytes:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", b'{"architectures": [', "/config.json is not JSON: "),
        ("config.json", b"[1]", "/config.json is not a JSON object"),
        ("config.json", b'{"a":' * 100_000, "/config.json is nested deeper"),
        ("config.json", b"{}", "/config.json names no architecture"),
        (
            "config.json",
            b'{"architectures": ["LlamaForCausalLM"]}',
            "names LlamaForCausalLM: .* Known: Gemma3ForCausal",
        ),
        ("config.json", b'{"architectures": ["Gemma3ForCausalLM"]}', "/config.json: num_hidden_layers is None"),
        ("model.safetensors.index.json", b"{", "model.safetensors.index.json is not JSON"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}', "b.safetensors"),
        ("model.safetensors", b"", "model.safetensors is cut short"),
        ("model.safetensors", (1 << 63).to_bytes(8, "little"), "model.safetensors is cut short"),
        ("model.safetensors", shard(b'{"a":' * 100_000), "the header of model.safetensors is nested deeper"),
        ("model.safetensors", shard({"a": {"dtype": "BF16", "shape": [1000] * 300}}, 9000), "larger than the file"),
        ("model.safetensors", shard({"a": {"dtype": "BF16", "shape": [1000, 1000]}}, 9000), "larger than the file"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(tmp_path: Path, file: str, content: bytes, words: str):
    checkpoints.write(tmp_path, "google/gemma-3-1b-it")
    (tmp_path / file).write_bytes(content)
    with pytest.raises(RequestError, match=words) as caught:
        weighing.in_folder(tmp_path)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_file_that_no_model_has_is_not_read(tmp_path: Path):
    checkpoints.write(tmp_path, "google/gemma-3-1b-it")
    with (tmp_path / "config.json").open("wb") as hole:
        hole.truncate(8 << 30)
    with pytest.raises(RequestError, match="has 8589934592 bytes: none that describes a model is so large"):
        weighing.in_folder(tmp_path)


def test_an_architecture_that_nobody_has_measured_is_left_to_the_engine():
    assert weighing.weigh("a/b", "x", {"architectures": ["NewForCausalLM"]}, [], lambda file, length: b"") is None
    left = sizing.unknown("a/b", Wish("nvidia-l4"))
    assert (left.max_model_len, left.starts, left.gpu_memory_utilization) == (None, None, 0.92)
    assert left.in_words == "nobody knows what this takes: how long a context finds room the engine finds out"
    asked = sizing.unknown("a/b", Wish("nvidia-l4", max_model_len=4096))
    assert asked.in_words == "nobody knows what this takes: whether 4096 tokens find room the engine finds out"


@pytest.mark.parametrize(
    "header",
    [
        {"x": {}},
        {"x": 3},
        {"x": {"dtype": "BF16", "shape": 3}},
        {"x": {"dtype": "BF16", "shape": ["many"]}},
        {"x": {"dtype": "BF16", "shape": [-1]}},
        {"x": {"dtype": "BF16", "shape": [10**30]}},
        {"x": {"dtype": "BF16", "shape": [1000, 1000]}},
        {"x": {"dtype": "BF16", "shape": [float("inf")]}},
    ],
)
def test_a_header_that_describes_no_tensors_is_the_releases_fault(header: dict[str, Any]):
    with pytest.raises(ReleaseError, match=r"header (describe|does not describe)"):
        checkpoint.described(ServedFile("x.safetensors", 1000), json.dumps(header).encode())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": "many"}, "num_hidden_layers is 'many', not a whole number that a model could have"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000, more than a model could have"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ({"head_dim": 1e300}, "head_dim is 1e\\+300"),
        ({"num_attention_heads": True}, "num_attention_heads is True"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000"),
        ({"sliding_window_pattern": "6"}, "'6' is not a whole number"),
        ({"layer_types": ["full_attention"]}, "layer_types are not one of"),
        ({"num_hidden_layers": 1, "layer_types": [{}]}, "layer_types are not one of"),
        ({"text_config": 3}, "text_config is not a mapping"),
    ],
)
def test_a_config_that_could_be_no_model_is_refused(changes: dict[str, Any], words: str):
    config = checkpoints.config("google/gemma-3-1b-it") | changes
    with pytest.raises(ReleaseError, match=words):
        sizing.of_config("config.json", {key: value for key, value in config.items() if value is not None})


@pytest.mark.parametrize(
    "changes",
    [
        {"vision_config": [1]},
        {"quantization_config": "fp8"},
        {"rope_parameters": 7},
        {"rope_scaling": {"rope_type": "linear", "factor": float("nan")}},
        {"per_layer_config": {"²": {"head_dim": 1}, "9" * 5000: {"head_dim": 1}, "1": "wide"}},
    ],
)
def test_what_a_config_says_in_another_shape_says_nothing(changes: dict[str, Any]):
    config = {key: value for key, value in checkpoints.config("google/gemma-3-1b-it").items() if key not in changes}
    assert sizing.of_config("config.json", config | changes) == sizing.of_config("config.json", config)


# -- what follows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("requests", [1, 4, 16])
def test_auto_is_the_longest_context_that_so_many_requests_find_room_with(requests: int):
    found = size("google/gemma-4-12B-it", "nvidia-a100-40gb", requests=requests)
    assert found.max_model_len
    assert found.requests_at_once
    assert found.requests_at_once >= requests
    if found.max_model_len < 262144:
        longer = size("google/gemma-4-12B-it", "nvidia-a100-40gb", max_model_len=found.max_model_len + 1024)
        assert longer.requests_at_once is not None
        assert longer.requests_at_once < requests
        assert found.max_model_len % 1024 == 0


def test_a_context_is_not_made_uselessly_short_for_the_sake_of_more_requests():
    found = size(BIG, "nvidia-a100-40gb", quantization="fp8")
    assert (found.starts, found.max_model_len) == (True, 2048)
    assert found.requests_at_once == pytest.approx(1.7, abs=0.1)


def test_what_is_left_is_said_in_words():
    said = size(BIG, "nvidia-a100-80gb", max_model_len=16384).in_words
    assert said == "12.0 GiB for KV cache: 33,636 tokens, 2.1 requests of 16384 (one alone: up to 97152)"


def test_adapters_and_an_assistant_take_their_part():
    plain = size("google/gemma-3-4b-it", "nvidia-l4", max_model_len=8192)
    adapted = size("google/gemma-3-4b-it", "nvidia-l4", max_model_len=8192, adapter_rank=64, adapters_at_once=8)
    assert plain.kv_gib
    assert adapted.kv_gib
    # Of each linear layer, rank × (inputs + outputs), in bfloat16, for each that a batch may mix.
    assert plain.kv_gib - adapted.kv_gib == pytest.approx(8 * 64 * 2 * 1_862_656 / 2**30, abs=0.02)
    drafted = size("google/gemma-3-4b-it", "nvidia-l4", max_model_len=8192, assistant_bytes=1 << 30)
    assert drafted.kv_gib == pytest.approx(plain.kv_gib - 1, abs=0.02)


def test_text_alone_needs_no_encoders_and_no_batch_for_a_video():
    whole, text = (size(BIG, "nvidia-a100-80gb", max_model_len=16384, text_only=only) for only in (False, True))
    assert whole.weights_gib is not None
    assert text.weights_gib is not None
    assert whole.weights_gib - text.weights_gib == pytest.approx(1.07, abs=0.01)
    assert size(BIG, "nvidia-h100-80gb", text_only=True, max_model_len=32768).max_num_batched_tokens == 2048


def test_more_cards_have_more_overhead_each_with_every_batch():
    for batch in catalog.batches():
        assert batch.overhead_gib(2560, 2) == batch.overhead_gib(2560, 8) > batch.overhead_gib(2560, 1)


def test_batches_that_the_settings_ask_for_are_judged_and_not_replaced():
    found = size(BIG, "nvidia-h100-80gb", batch_tokens=8192)
    assert found.max_num_batched_tokens is None
    assert found.longest == pytest.approx(11872, rel=0.05)
    # Fewer tokens alone leave vLLM's 1024 requests, whose overhead is that of the large batch.
    fewer = size(BIG, "nvidia-h100-80gb", batch_tokens=2496)
    both = size(BIG, "nvidia-h100-80gb", batch_tokens=2496, batch_requests=256)
    assert fewer.kv_gib == found.kv_gib
    assert both.kv_gib == size(BIG, "nvidia-h100-80gb").kv_gib
    # On a small card, more than its own.
    more = size("google/gemma-4-E4B-it", "nvidia-l4", batch_tokens=8192)
    own = size("google/gemma-4-E4B-it", "nvidia-l4")
    assert more.kv_gib is not None
    assert own.kv_gib is not None
    assert more.kv_gib < own.kv_gib - 2


def test_a_batch_too_small_for_a_video_is_refused():
    assert "less than the 2496 tokens of a video" in refusal(BIG, "nvidia-a100-80gb", batch_tokens=2048)
    assert size(BIG, "nvidia-a100-80gb", batch_tokens=2048, text_only=True).starts


def test_fp8_goes_by_both_of_its_names():
    assert size(BIG, "nvidia-a100-80gb", quantization="fp8") == size(
        BIG, "nvidia-a100-80gb", quantization="fp8_per_tensor"
    )


def test_a_quantized_checkpoint_is_not_quantized_again():
    said = refusal("google/gemma-4-E4B-it-qat-w4a16-ct", "nvidia-l4", quantization="fp8")
    assert "is quantized already (compressed-tensors): leave fp8 out" in said


def test_a_quantization_that_nobody_has_weighed_is_left_to_the_engine():
    found = size("google/gemma-3-12b-it", "nvidia-l4", quantization="awq", max_model_len=8192)
    assert (found.kv_gib, found.starts, found.max_model_len) == (None, None, 8192)


@pytest.mark.parametrize(
    ("model", "accelerator", "wishes", "context", "warns"),
    [
        ("google/gemma-3-27b-it", "tpu-v6e-slice", {"count": 8}, 16384, ""),
        ("google/gemma-3-27b-it", "tpu-v6e-slice", {"count": 8, "max_model_len": 32768}, 32768, ""),
        ("google/gemma-3-27b-it", "tpu-v6e-slice", {"count": 4}, 4096, "it is known to be served on 8 of them"),
        ("google/gemma-3-4b-it", "tpu-v6e-slice", {}, 4096, "to serve google/gemma-3-4b-it on 1 × tpu-v6e-slice. Only"),
        ("google/gemma-4-26B-A4B-it", "tpu-v6e-slice", {"count": 4}, 16384, ""),
        ("google/gemma-4-31B-it", "tpu7x", {}, 4096, ""),
    ],
)
def test_where_nobody_knows_the_overhead_it_is_the_context_that_somebody_serves(
    model: str, accelerator: str, wishes: dict[str, Any], context: int, warns: str
):
    found = size(model, accelerator, **wishes)
    assert (found.max_model_len, found.starts, found.kv_gib) == (context, None, None)
    assert "nobody knows what this takes" in found.in_words
    said = sizing.warning(model, Wish(accelerator, **wishes))
    assert (warns in said) if warns else said == ""


def test_weights_that_alone_are_more_than_the_chips_hold_do_not_start():
    said = refusal("google/gemma-3-27b-it", "tpu-v6e-slice")
    assert "on 1 × tpu-v6e-slice cannot start: its weights take 51.4 GiB a card, and it lacks 22.6 GiB" in said
    assert said.endswith("What can: 8 × tpu-v6e-slice"), "what another feature would do is not said"


def test_a_chip_of_two_cores_has_the_model_split_over_both():
    halves = size("google/gemma-4-31B-it", "tpu7x").weights_gib
    assert halves == pytest.approx(size("google/gemma-4-31B-it", "tpu-v6e-slice", count=1).weights_gib / 2, rel=0.1)
    with pytest.raises(RequestError, match="the 4 attention heads of google/gemma-3-1b-it do not split over 8 cards"):
        size("google/gemma-3-1b-it", "tpu7x", count=4)


def test_a_fine_tune_on_tpus_is_warned_of():
    assert "nobody is known to serve acme/mine" in sizing.warning("acme/mine", Wish("tpu7x"))
    assert sizing.warning("acme/mine", Wish("nvidia-l4")) == ""


def test_a_refusal_names_what_starts():
    said = refusal(BIG, "nvidia-a100-40gb", quantization="fp8", max_model_len=16384)
    assert "2.9 GiB of KV cache a card hold one request of 3,440 tokens at most, and max_model_len is 16,384" in said
    assert "1 × nvidia-a100-40gb with engine.max_model_len: 3440" in said
    assert "4 × nvidia-l4; 2 × nvidia-a100-40gb; 1 × nvidia-a100-80gb" in said
    said = refusal("google/gemma-3-12b-it", "nvidia-l4")
    assert "its weights take 23.3 GiB a card, and it lacks 4.8 GiB a card at gpu_memory_utilization 0.92" in said
    assert "2 × nvidia-l4; 1 × nvidia-l4 with engine.quantization: fp8_per_tensor; 1 × nvidia-a100-40gb" in said


def test_a_refusal_names_what_the_settings_have_made_worse():
    said = refusal(BIG, "nvidia-h100-80gb", max_model_len=32768, batch_tokens=8192)
    assert "1 × nvidia-h100-80gb without --max-num-batched-tokens and --max-num-seqs in engine.extra_args; " in said
    assert "without engine.gpu_memory_utilization" not in said
    said = refusal("google/gemma-3-4b-it", "nvidia-l4", share=0.3)
    assert "What can: 1 × nvidia-l4 without engine.gpu_memory_utilization; " in said
    assert "without --max-num" not in said


def test_what_a_refusal_names_does_start():
    known = sizing.of_catalog(BIG)
    found = sizing.size(known, Wish("nvidia-a100-40gb", quantization="fp8"))
    assert found.longest
    assert sizing.size(known, Wish("nvidia-a100-40gb", quantization="fp8", max_model_len=found.longest)).starts
    too_long = Wish("nvidia-a100-40gb", quantization="fp8", max_model_len=found.longest + 32)
    assert not sizing.size(known, too_long).starts


@pytest.mark.parametrize(
    ("model", "count", "words"),
    [
        (
            "google/gemma-3-1b-it",
            8,
            "the 4 attention heads of google/gemma-3-1b-it do not split over 8 cards, but over 1 or 2 or 4",
        ),
        ("acme/odd", 4, "the 6 key and value heads of acme/odd do not split over 4 cards, but over 1 or 2"),
    ],
)
def test_heads_have_to_split_over_the_cards(model: str, count: int, words: str):
    known = sizing.of_catalog("google/gemma-3-1b-it")
    if model.startswith("acme"):
        layers = tuple(dataclasses.replace(layer, heads=6) for layer in known.architecture.layers)
        known = Model(model, dataclasses.replace(known.architecture, heads=12, layers=layers), known.weights)
    with pytest.raises(RequestError, match=words):
        sizing.size(known, Wish("nvidia-l4", count=count))


# -- what fits where ----------------------------------------------------------------------------------------


def test_every_way_of_running_a_model_is_there_once_with_what_was_seen():
    rows = list(sizing.everywhere(sizing.of_catalog(BIG)))
    ways = [(fit.accelerator, fit.count, fit.quantization) for fit in rows]
    assert len(set(ways)) == len(ways)
    assert {fit.accelerator for fit in rows} == set(catalog.accelerators())
    seen = {(fit.accelerator, fit.quantization) for fit in rows if fit.measured}
    # With vLLM's own batches it was refused on an H100 and started on an RTX PRO 6000: nobody has seen smaller ones.
    assert seen == {("nvidia-a100-80gb", None)}
    for fit in rows:
        assert (fit.starts is not False) == (fit.max_model_len is not None)
        assert bool(fit.starts) == (fit.requests_at_once is not None)
    unknown = {(fit.accelerator, fit.count): fit.warning for fit in rows if fit.starts is None}
    assert unknown.keys() == {("tpu-v6e-slice", 4), ("tpu-v6e-slice", 8), ("tpu7x", 1), ("tpu7x", 4)}
    assert [way for way, warning in unknown.items() if warning] == [("tpu-v6e-slice", 8), ("tpu7x", 4)]


def test_cards_over_which_the_heads_do_not_split_are_left_out():
    counts = {fit.count for fit in sizing.everywhere(sizing.of_catalog("google/gemma-3-1b-it"), "nvidia-l4")}
    assert counts == {1, 2, 4}


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
        (BIG, "nvidia-h100-80gb", 1),
        (f"{BIG}-qat-w4a16-ct", "nvidia-a100-40gb", 1),
    ],
)
def test_what_the_guide_and_google_run_starts(model: str, accelerator: str, count: int):
    assert size(model, accelerator, count=count).starts


@pytest.mark.parametrize("model", ["google/gemma-4-12B-it", "google/gemma-4-26B-A4B-it", BIG, "google/gemma-3-27b-it"])
def test_the_large_ones_are_refused_on_one_l4(model: str):
    assert "cannot start" in refusal(model, "nvidia-l4")
