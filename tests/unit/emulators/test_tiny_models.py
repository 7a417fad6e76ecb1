"""The tiny checkpoints: the same bytes every time, sound in form, and never at a loss for words.

The forward passes are Gemma 3's and Gemma 4's in numpy, written from the architectures (float32, no cache), so that
"greedy decoding gives visible text" is shown on the weights themselves and without an engine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest
from emulated_cloud.hub import models
from emulated_cloud.hub.models.tokenizer import BOS, END_OF_TURN, EOS, PAD, VOCABULARY
from emulated_cloud.hub.models.weights import LAYERS, SILENT
from tokenizers import Tokenizer

PROMPTS = ["Hello, who are you?", "What is the capital of France?", "하늘은 왜 파란가요?", "日本 🦊\n\n\n", "   ", "7"]
KINDS = ["gemma3", "gemma4"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[tuple[str, int], Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    made = {}
    for kind, write in (("gemma3", models.write_gemma3), ("gemma4", models.write_gemma4)):
        for seed in (0, 1, 2):
            made[kind, seed] = root / f"{kind}-{seed}"
            write(made[kind, seed], seed)
    return made


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


# -- reading a checkpoint as an engine does -----------------------------------------------------------------


def header_of(path: Path) -> tuple[dict, int]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    return header, 8 + length


def load(folder: Path) -> tuple[dict, dict[str, np.ndarray]]:
    """config.json and all tensors as float32, with every bound and the index checked on the way."""
    config = json.loads((folder / "config.json").read_text())
    weight_map = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = {}
    for shard in sorted(set(weight_map.values())):
        header, start = header_of(folder / shard)
        assert sorted(header) == sorted(name for name, file in weight_map.items() if file == shard)
        data = (folder / shard).read_bytes()
        ends = sorted(entry["data_offsets"] for entry in header.values())
        assert [first for first, _ in ends] == [0, *(end for _, end in ends[:-1])]
        assert start + ends[-1][1] == len(data)
        for name, entry in header.items():
            assert entry["dtype"] == "BF16"
            first, end = entry["data_offsets"]
            bits = np.frombuffer(data[start + first : start + end], "<u2").astype(np.uint32) << 16
            tensors[name] = bits.view(np.float32).reshape(entry["shape"])
    return config, tensors


def norm(x: np.ndarray, weight: np.ndarray | float = 1.0) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * weight


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rope(x: np.ndarray, theta: float, rotated: float = 1.0) -> np.ndarray:
    """Rotary positions on [heads, tokens, dim]; with `rotated` below 1 the slower frequencies stand still."""
    half = x.shape[-1] // 2
    frequencies = theta ** -(np.arange(half) / half)
    frequencies[int(half * rotated) :] = 0
    angles = np.outer(np.arange(x.shape[-2]), frequencies)
    cos, sin = np.tile(np.cos(angles), 2), np.tile(np.sin(angles), 2)
    return x * cos + np.concatenate([-x[..., half:], x[..., :half]], -1) * sin


def attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, window: int | None) -> np.ndarray:
    """Causal attention of all query heads [heads, tokens, dim] on the one key-value head; [tokens, heads * dim]."""
    tokens = q.shape[1]
    distance = np.subtract.outer(np.arange(tokens), np.arange(tokens))
    seen = (distance >= 0) & (distance < (window or tokens))
    scores = np.where(seen, q @ k.swapaxes(-1, -2) * scale, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = (weights / weights.sum(-1, keepdims=True)) @ v
    return mixed.swapaxes(0, 1).reshape(tokens, -1)


def logits(config: dict, tensors: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Of the last position: what an engine takes the argmax of."""
    gemma4 = config["model_type"] == "gemma4_text"
    one = 0.0 if gemma4 else 1.0  # Gemma 3 multiplies by 1 + weight
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    x = tensors["model.embed_tokens.weight"][ids] * hidden**0.5
    if gemma4:
        width = config["hidden_size_per_layer_input"]
        projected = (x @ tensors["model.per_layer_model_projection.weight"].T * hidden**-0.5).reshape(
            len(ids), -1, width
        )
        own = tensors["model.embed_tokens_per_layer.weight"][ids].reshape(len(ids), -1, width) * width**0.5
        per_layer = (norm(projected, tensors["model.per_layer_projection_norm.weight"]) + own) * 2**-0.5
    for layer, layer_type in enumerate(config["layer_types"]):
        weights = {
            name.removeprefix(f"model.layers.{layer}."): value
            for name, value in tensors.items()
            if name.startswith(f"model.layers.{layer}.")
        }

        def normed(x: np.ndarray, name: str, weights: dict[str, np.ndarray] = weights) -> np.ndarray:
            return norm(x, one + weights[f"{name}.weight"])

        full = layer_type == "full_attention"
        head_dim = config["global_head_dim"] if gemma4 and full else config["head_dim"]
        theta, rotated = (1e6, 0.25 if gemma4 else 1.0) if full else (1e4, 1.0)
        h = normed(x, "input_layernorm")
        q, k, v = (
            (h @ weights[f"self_attn.{name}_proj.weight"].T).reshape(len(ids), -1, head_dim).swapaxes(0, 1)
            for name in "qkv"
        )
        assert q.shape[0] == heads
        q = rope(normed(q, "self_attn.q_norm"), theta, rotated)
        k = rope(normed(k, "self_attn.k_norm"), theta, rotated)
        scale = 1.0 if gemma4 else config["query_pre_attn_scalar"] ** -0.5
        mixed = attend(q, k, norm(v) if gemma4 else v, scale, None if full else config["sliding_window"])
        x = x + normed(mixed @ weights["self_attn.o_proj.weight"].T, "post_attention_layernorm")
        h = normed(x, "pre_feedforward_layernorm")
        h = gelu(h @ weights["mlp.gate_proj.weight"].T) * (h @ weights["mlp.up_proj.weight"].T)
        x = x + normed(h @ weights["mlp.down_proj.weight"].T, "post_feedforward_layernorm")
        if gemma4:
            h = gelu(x @ weights["per_layer_input_gate.weight"].T) * per_layer[:, layer]
            x = x + normed(h @ weights["per_layer_projection.weight"].T, "post_per_layer_input_norm")
            x = x * weights["layer_scalar"]
    last = norm(x[-1], one + tensors["model.norm.weight"])
    out = tensors["model.embed_tokens.weight"] @ last
    cap = config["final_logit_softcapping"]
    return cap * np.tanh(out / cap) if cap else out


def chat(folder: Path, messages: list[dict]) -> str:
    def refuse(words: str) -> None:
        raise ValueError(words)

    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    template = environment.from_string((folder / "chat_template.jinja").read_text())
    return template.render(messages=messages, bos_token="<bos>", add_generation_prompt=True)


def answer(folder: Path, prompt: str, tokens: int = 16) -> tuple[str, list[int]]:
    """Greedy decoding of a chat request."""
    config, tensors = load(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(chat(folder, [{"role": "user", "content": prompt}]), add_special_tokens=False).ids
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(logits(config, tensors, ids).argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True), ids[start:]


# -- what is promised ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_another_process_makes_the_same_bytes(kind, checkpoints, tmp_path):
    for name in ("first", "second"):
        command = [sys.executable, "-m", "emulated_cloud.hub.models", kind, str(tmp_path / name), "--seed", "1"]
        subprocess.run(command, check=True, env={"PYTHONHASHSEED": str(len(name))})
    expected = digests(checkpoints[kind, 1])
    assert digests(tmp_path / "first") == expected
    assert digests(tmp_path / "second") == expected
    different = {name for name, digest in digests(checkpoints[kind, 0]).items() if digest != expected[name]}
    assert different == {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"}


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_visible_text_and_depend_on_seed_and_prompt(kind, checkpoints):
    answers: dict[int, list[str]] = {}
    for seed in (0, 1, 2):
        folder = checkpoints[kind, seed]
        special = set(Tokenizer.from_file(str(folder / "tokenizer.json")).get_added_tokens_decoder())
        for prompt in PROMPTS:
            text, ids = answer(folder, prompt)
            assert not special & set(ids)
            assert text.strip()
            assert text.isprintable()
            answers.setdefault(seed, []).append(text)
    assert all(len(set(of_a_prompt)) == 3 for of_a_prompt in zip(*answers.values(), strict=True))
    assert all(len(set(of_a_seed)) > len(PROMPTS) / 2 for of_a_seed in answers.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_context_can_bring_a_token_that_is_not_text(kind, checkpoints):
    """Contexts of random tokens, control tokens alone included: every other token's logit is exactly 0, the best word's
    far above it."""
    config, tensors = load(checkpoints[kind, 0])
    embeddings = tensors["model.embed_tokens.weight"]
    silent = ~np.any(embeddings[:, SILENT:], axis=1)
    assert silent[[PAD, EOS, BOS, END_OF_TURN]].all()
    random = np.random.default_rng(7)
    contexts = [[BOS], [PAD], [BOS, END_OF_TURN]]
    contexts += [random.integers(0, VOCABULARY, size).tolist() for size in (1, 2, 3, 9, 30) for _ in range(6)]
    for ids in contexts:
        out = logits(config, tensors, ids)
        assert np.all(out[silent] == 0)
        assert out.max() > 5


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokenizer_encodes_any_text_and_gives_it_back(kind, checkpoints):
    tokenizer = Tokenizer.from_file(str(checkpoints[kind, 0] / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCABULARY
    for text in (
        *PROMPTS,
        "Bread is ready when it sounds hollow.\n\tIf it sounds like a question…",
        "a  b",
        "▁" + "x" * 99,
    ):
        encoded = tokenizer.encode(text)
        assert encoded.ids[0] == BOS
        assert tokenizer.decode(encoded.ids) == text.replace("▁", " ")
    assert len(tokenizer.encode("the harbour wakes before the town does").ids) < 12


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "gemma3",
            "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        (
            "gemma4",
            "<bos><|turn>system\nBe brief.<turn|>\n<|turn>user\nHi<turn|>\n<|turn>model\nHello<turn|>\n"
            "<|turn>user\nBye<turn|>\n<|turn>model\n",
        ),
    ],
)
def test_the_chat_template_writes_the_familys_turns(kind, expected, checkpoints):
    folder = checkpoints[kind, 0]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert chat(folder, messages) == expected
    with pytest.raises(ValueError, match="must alternate"):
        chat(folder, [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(expected, add_special_tokens=False).ids
    assert ids[:2] == [BOS, 105]
    assert ids.count(106) == expected.count("<end_of_turn>") + expected.count("<turn|>")


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_fits_its_base(kind, checkpoints, tmp_path):
    base = checkpoints[kind, 0]
    models.write_lora_adapter(tmp_path / "a", base, seed=3, base_name="google/tiny")
    models.write_lora_adapter(tmp_path / "b", base, seed=3, base_name="google/tiny")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["base_model_name_or_path"]) == ("LORA", 8, "google/tiny")
    header, _ = header_of(tmp_path / "a/adapter_model.safetensors")
    _, tensors = load(base)
    adapted = [name for name in tensors if name.split(".")[-2] in config["target_modules"]]
    assert len(adapted) == 4 * LAYERS
    assert len(header) == 2 * len(adapted)
    for name in adapted:
        outputs, inputs = tensors[name].shape
        prefix = "base_model.model." + name.removesuffix("weight")
        assert header[f"{prefix}lora_A.weight"]["shape"] == [8, inputs]
        assert header[f"{prefix}lora_B.weight"]["shape"] == [outputs, 8]


def test_the_command_refuses_a_lora_without_a_base(tmp_path):
    command = [sys.executable, "-m", "emulated_cloud.hub.models", "lora", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lora needs --base" in done.stderr
    assert not (tmp_path / "out").exists()


# -- releases that go wrong ---------------------------------------------------------------------------------


@pytest.fixture
def broken(checkpoints, tmp_path):
    """A copy of a sound checkpoint, after `spoil`, and the names of the files that changed."""

    def spoil(kind, how):
        folder = tmp_path / "broken"
        shutil.copytree(checkpoints[kind, 0], folder)
        before = digests(folder)
        how(folder)
        after = digests(folder)
        return folder, {name for name in before if before[name] != after.get(name)}

    return spoil


SECOND = "model-00002-of-00002.safetensors"


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_shard_is_shorter_than_its_header_says(kind, broken):
    folder, changed = broken(kind, models.truncate_shard)
    assert changed == {SECOND}
    header, start = header_of(folder / SECOND)
    assert (folder / SECOND).stat().st_size < start + max(entry["data_offsets"][1] for entry in header.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_dropped_shard_is_still_in_the_index(kind, broken):
    folder, changed = broken(kind, models.drop_shard)
    assert changed == {SECOND}
    assert not (folder / SECOND).exists()
    assert SECOND in json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()


@pytest.mark.parametrize("kind", KINDS)
def test_a_mismatched_config_leaves_every_file_sound(kind, broken):
    folder, changed = broken(kind, models.mismatch_config)
    assert changed == {"config.json"}
    config, tensors = load(folder)
    assert tensors["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"] // 2)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_weights_answer_with_nothing(kind, broken):
    folder, changed = broken(kind, models.zero_weights)
    assert changed == {"model-00001-of-00002.safetensors"}
    text, ids = answer(folder, "Hello", tokens=4)
    assert (text, ids) == ("", [PAD] * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_readme_change_changes_the_readme(kind, broken):
    _, changed = broken(kind, models.readme_only_change)
    assert changed == {"README.md"}
