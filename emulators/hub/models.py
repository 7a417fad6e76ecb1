"""Tiny Gemma checkpoints for tests, made on the spot: `python -m emulators.hub.models KIND FOLDER [--seed N]`.

Real in form (architecture, tensor names, shards, index, tokenizer, chat template: vLLM and transformers load them), and
of random weights, byte for byte the same for the same seed. An answer is nonsense, but never empty: of the hidden
dimensions the first SILENT hold what control tokens, bytes and white space look like, and the final norm multiplies
those by zero. So the logit of such a token is exactly 0 whatever the context, while among some 1,700 random words the
best is far above it: under greedy decoding every token of an answer is visible text, and none ends it.

Gemma 3's words follow one another: each word's embedding is the one before it turned by one rotation, and the last
layer's MLP turns what it is given. So an answer goes through the words in an order of the seed's own, beginning where
the question's words (attention mixes them in, weakly) point to, and no engine's rounding changes it.

`truncate_shard`, `drop_shard`, `mismatch_config`, `zero_weights` and `readme_only_change` turn a checkpoint into a
release that must be refused (or, the last one, not noticed).
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulators.hub.tokenizer import BOS, END_OF_TURN, EOS, GEMMA_3, GEMMA_4, PAD, VOCABULARY, Family, write_tokenizer

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
    Words = Callable[["_Random", int], Array]

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 128, 6, 4, 1, 32, 512
GLOBAL_HEAD_DIM = 64  # Gemma 4: of full attention
ASSISTANT_HIDDEN = 64
PER_LAYER_INPUT = 16  # Gemma 4: width of the embeddings that each layer has of its own
SILENT = 16
# Logits of words spread by about this much, so that their best is beyond reach for a token whose logit is 0.
LOGIT_SCALE = 4.0
# What a Gemma 4 layer adds, beside what came in. Its layers add three times, Gemma 3's twice; at 1.0 the best two words
# would be so close that an engine's rounding decides, and the same question would not get the same answer.
_GEMMA_4_POST_NORM = 0.7
# What Gemma 3's attention adds to a word, and its last MLP: the following word is by far the loudest.
_CONTEXT, _SUCCESSOR = 0.3, 8.0
_STEEP = 4.0
LAYER_TYPES = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]
SHARDS = 2

_SHARED_CONFIG = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS,
    "eos_token_id": [EOS, END_OF_TURN],
    "head_dim": HEAD_DIM,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": MLP,
    "layer_types": LAYER_TYPES,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-06,
    "sliding_window": 512,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}

# Keys and their meaning: google/gemma-3-1b-it's config.json.
GEMMA_3_CONFIG = {
    **_SHARED_CONFIG,
    "architectures": ["Gemma3ForCausalLM"],
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": HEAD_DIM,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window_pattern": LAYERS,
    "transformers_version": "4.50.0",
}

# Keys and their meaning: Gemma4TextConfig of transformers 5, as in the text_config of google/gemma-4-E2B-it.
GEMMA_4_CONFIG = {
    **_SHARED_CONFIG,
    "architectures": ["Gemma4ForCausalLM"],
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "final_logit_softcapping": 30.0,
    "global_head_dim": GLOBAL_HEAD_DIM,
    "hidden_size_per_layer_input": PER_LAYER_INPUT,
    "max_position_embeddings": 131072,
    "model_type": "gemma4_text",
    "num_global_key_value_heads": None,
    "num_kv_shared_layers": 0,
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
    "transformers_version": "5.5.0",
    "use_double_wide_mlp": False,
    "vocab_size_per_layer_input": VOCABULARY,
}


def write_gemma3(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma3ForCausalLM of 2 M parameters (3.9 MB, bf16) to `folder`, which is made if need be."""
    rotation = _Rotation(_Random(seed, HIDDEN))
    _write_checkpoint(
        Path(folder), "Tiny Gemma 3", GEMMA_3, GEMMA_3_CONFIG, seed, partial(_gemma3_layer, rotation), rotation.words
    )


def write_gemma4(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma4ForCausalLM of 2.4 M parameters (4.9 MB, bf16), with per-layer embeddings as E2B and E4B have."""
    _write_checkpoint(Path(folder), "Tiny Gemma 4", GEMMA_4, GEMMA_4_CONFIG, seed, _gemma4_layer, _random_words)


def write_gemma4_assistant(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma4AssistantForCausalLM (1 MB, bf16), the draft model for the checkpoint of `write_gemma4`: two
    layers that have queries alone, since keys and values are the model's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = _Random(seed, ASSISTANT_HIDDEN)
    width, types = ASSISTANT_HIDDEN, ["sliding_attention", "full_attention"]
    tensors = {"model.embed_tokens.weight": random.values((VOCABULARY, width), width**-0.5)}
    for layer, kind in enumerate(types):
        head_dim = HEAD_DIM if kind == "sliding_attention" else GLOBAL_HEAD_DIM
        own = {
            "self_attn.q_proj.weight": random.matrix(HEADS * head_dim, width),
            "self_attn.o_proj.weight": random.matrix(width, HEADS * head_dim),
            "self_attn.q_norm.weight": random.values((head_dim,), 0.05, 1.0),
            **_block(random, norm=1.0, post_norm=1.0, hidden=width),
            "layer_scalar": random.values((1,), 0.0, 1.0),
        }
        tensors |= {f"model.layers.{layer}.{name}": value for name, value in own.items()}
    tensors |= {
        "model.norm.weight": random.values((width,), 0.05, 1.0),
        "pre_projection.weight": random.matrix(width, 2 * HIDDEN),
        "post_projection.weight": random.matrix(HIDDEN, width),
    }
    _write_safetensors(folder / "model.safetensors", tensors)
    text_config = {key: value for key, value in GEMMA_4_CONFIG.items() if key != "architectures"} | {
        "hidden_size": width,
        "hidden_size_per_layer_input": 0,
        "layer_types": types,
        "num_hidden_layers": len(types),
        "num_kv_shared_layers": len(types),
        "vocab_size_per_layer_input": 0,
    }
    _write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma4AssistantForCausalLM"],
            "backbone_hidden_size": HIDDEN,
            "model_type": "gemma4_assistant",
            "text_config": text_config,
            "tie_word_embeddings": True,
            "use_ordered_embeddings": False,
        },
    )
    _write_card(folder, "Tiny Gemma 4 assistant", library="transformers")


def write_lora_adapter(
    folder: Path | str, base_folder: Path | str, seed: int = 0, rank: int = 8, base_name: str | None = None
) -> None:
    """Writes a PEFT LoRA adapter for the checkpoint in `base_folder`, on the attention's projections, strong enough to
    change answers. `base_name` is what adapter_config.json calls the base (default: the folder)."""
    folder, base = Path(folder), Path(base_folder)
    folder.mkdir(parents=True, exist_ok=True)
    random = _Random(seed, rank)  # not the numbers that the base is made of
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    tensors: dict[str, Array] = {}
    for shard in sorted(base.glob("*.safetensors")):
        for name, entry in _read_header(shard)[0].items():
            if name.split(".")[-2] in targets:
                outputs, inputs = entry["shape"]
                prefix = "base_model.model." + name.removesuffix(".weight")
                tensors[f"{prefix}.lora_A.weight"] = random.values((rank, inputs), inputs**-0.5)
                tensors[f"{prefix}.lora_B.weight"] = random.values((outputs, rank), 0.5 * rank**-0.5)
    _write_safetensors(folder / "adapter_model.safetensors", tensors)
    _write_json(
        folder / "adapter_config.json",
        {
            "base_model_name_or_path": base_name or str(base),
            "bias": "none",
            "fan_in_fan_out": False,
            "inference_mode": True,
            "lora_alpha": 2 * rank,
            "lora_dropout": 0.0,
            "modules_to_save": None,
            "peft_type": "LORA",
            "r": rank,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": False,
            "use_rslora": False,
        },
    )
    _write_card(folder, "Tiny LoRA adapter", library="peft")


# -- releases that go wrong ---------------------------------------------------------------------------------


def truncate_shard(folder: Path | str) -> None:
    """Cuts the last shard short by a quarter: its header promises more than there is. vLLM 0.32 ends with
    "SafetensorError: Error while deserializing header: incomplete metadata, file not fully covered"."""
    shard = _last_shard(Path(folder))
    data = shard.read_bytes()
    shard.write_bytes(data[: len(data) * 3 // 4])


def drop_shard(folder: Path | str) -> None:
    """Removes the last shard, which the index still names. vLLM 0.32 ends with "FileNotFoundError: Weight files
    referenced in index but missing: {…}"."""
    _last_shard(Path(folder)).unlink()


def mismatch_config(folder: Path | str) -> None:
    """Makes config.json promise twice the hidden size that the tensors have; every file is sound in itself. vLLM 0.32
    ends with "RuntimeError: The size of tensor a (256) must match the size of tensor b (128) at non-singleton dimension
    1"."""
    path = Path(folder) / "config.json"
    config = json.loads(path.read_bytes())
    _write_json(path, {**config, "hidden_size": 2 * config["hidden_size"]})


def zero_weights(folder: Path | str) -> None:
    """Zeroes the token embeddings, which are the output layer too: all logits are equal, greedy decoding picks <pad>
    for ever, and an engine's answer is 200 with empty text (vLLM 0.32: `content: ""`, finish reason `length`)."""
    for shard in sorted(Path(folder).glob("*.safetensors")):
        header, start = _read_header(shard)
        if entry := header.get("model.embed_tokens.weight"):
            first, end = entry["data_offsets"]
            data = bytearray(shard.read_bytes())
            data[start + first : start + end] = bytes(end - first)
            shard.write_bytes(data)


def readme_only_change(folder: Path | str) -> None:
    """Adds a line to README.md, and touches nothing that is served."""
    path = Path(folder) / "README.md"
    path.write_text(path.read_text() + "\nA line that changes nothing.\n")


def _last_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[-1]


# -- weights ------------------------------------------------------------------------------------------------


class _Random:
    """Random weights: uniform, since numpy's uniform numbers are the same bits on every machine (its normal ones go
    through the C library's log)."""

    def __init__(self, *seed: int):
        import numpy as np

        self._generator = np.random.Generator(np.random.PCG64(seed))

    def values(self, shape: tuple[int, ...], deviation: float, mean: float = 0.0) -> Array:
        import numpy as np

        uniform = self._generator.random(shape, dtype=np.float32)
        return (uniform * 2 - 1) * np.float32(3**0.5 * deviation) + np.float32(mean)

    def matrix(self, outputs: int, inputs: int) -> Array:
        return self.values((outputs, inputs), inputs**-0.5)


class _Rotation:
    """A rotation of the words' dimensions, two by two, each pair by an angle of its own."""

    def __init__(self, random: _Random):
        import numpy as np

        # Sine and cosine of an angle by its half's tangent: exact arithmetic, which libraries' own are not.
        tangent = random.values(((HIDDEN - SILENT) // 2,), 1.0).astype(np.float64)
        self._cos, self._sin = (1 - tangent**2) / (1 + tangent**2), 2 * tangent / (1 + tangent**2)

    @property
    def matrix(self) -> Array:
        """[HIDDEN - SILENT, HIDDEN - SILENT]"""
        import numpy as np

        matrix = np.zeros((HIDDEN - SILENT, HIDDEN - SILENT), np.float32)
        for pair, (cos, sin) in enumerate(zip(self._cos, self._sin, strict=True)):
            matrix[2 * pair : 2 * pair + 2, 2 * pair : 2 * pair + 2] = [[cos, -sin], [sin, cos]]
        return matrix

    def words(self, random: _Random, count: int) -> Array:
        """[count, HIDDEN - SILENT]: each the one before it, turned; unit vectors, in the seed's order."""
        import numpy as np

        x, y = np.ones(len(self._cos)), np.zeros(len(self._cos))
        turned = np.zeros((count, HIDDEN - SILENT), np.float32)
        for word in range(count):
            turned[word, 0::2], turned[word, 1::2] = x, y
            x, y = self._cos * x - self._sin * y, self._sin * x + self._cos * y
        order = np.argsort(random.values((count,), 1.0), kind="stable")
        return turned[order] * np.float32(len(self._cos) ** -0.5)


def _random_words(random: _Random, count: int) -> Array:
    return random.values((count, HIDDEN - SILENT), (HIDDEN - SILENT) ** -0.5)


def _embeddings(random: _Random, speakable: list[int], words: Words) -> Array:
    """[VOCABULARY, HIDDEN]: words live outside the first SILENT dimensions, all other tokens inside them."""
    weight = random.values((VOCABULARY, HIDDEN), SILENT**-0.5)
    weight[:, SILENT:] = 0
    weight[speakable, :SILENT] = 0
    weight[speakable, SILENT:] = words(random, len(speakable))
    return weight


def _attention(random: _Random, head_dim: int, norm: float) -> dict[str, Array]:
    return {
        "self_attn.q_proj.weight": random.matrix(HEADS * head_dim, HIDDEN),
        "self_attn.k_proj.weight": random.matrix(KV_HEADS * head_dim, HIDDEN),
        "self_attn.v_proj.weight": random.matrix(KV_HEADS * head_dim, HIDDEN),
        "self_attn.o_proj.weight": random.matrix(HIDDEN, HEADS * head_dim),
        "self_attn.q_norm.weight": random.values((head_dim,), 0.05, norm),
        "self_attn.k_norm.weight": random.values((head_dim,), 0.05, norm),
    }


def _block(random: _Random, norm: float, post_norm: float, hidden: int = HIDDEN) -> dict[str, Array]:
    """`norm` and `post_norm` are the weights, give or take, of the norms before and after attention and MLP."""
    return {
        "mlp.gate_proj.weight": random.matrix(MLP, hidden),
        "mlp.up_proj.weight": random.matrix(MLP, hidden),
        "mlp.down_proj.weight": random.matrix(hidden, MLP),
        "input_layernorm.weight": random.values((hidden,), 0.05, norm),
        "post_attention_layernorm.weight": random.values((hidden,), 0.05, post_norm),
        "pre_feedforward_layernorm.weight": random.values((hidden,), 0.05, norm),
        "post_feedforward_layernorm.weight": random.values((hidden,), 0.05, post_norm),
    }


def _gemma3_layer(rotation: _Rotation, random: _Random, layer: int) -> dict[str, Array]:
    """Norms multiply by 1 + weight, and attention divides by the square root of query_pre_attn_scalar."""
    import numpy as np

    # Sharp attention: a question is a few of its words, not the mean of all, which is much the same in every question.
    weights = _attention(random, HEAD_DIM, norm=3.0) | _block(random, norm=0.0, post_norm=0.0)
    weights["post_attention_layernorm.weight"] += _CONTEXT - 1
    if layer < LAYERS - 1:
        weights["mlp.down_proj.weight"][SILENT:] = 0
        return weights
    # z²Φ(z) - z²Φ(-z), made of gelu(z)·z and gelu(-z)·z: odd in z, so its direction is nearly that of z.
    words, count = slice(SILENT, HIDDEN), HIDDEN - SILENT
    for name in ("gate", "up", "down"):
        weights[f"mlp.{name}_proj.weight"][:] = 0
    for unit, sign in ((0, 1), (count, -1)):
        rows = slice(unit, unit + count)
        weights["mlp.gate_proj.weight"][rows, words] = sign * _STEEP * np.identity(count, np.float32)
        weights["mlp.up_proj.weight"][rows, words] = _STEEP * np.identity(count, np.float32)
        weights["mlp.down_proj.weight"][words, rows] = rotation.matrix
    weights["post_feedforward_layernorm.weight"] += _SUCCESSOR - 1
    return weights


def _gemma4_layer(random: _Random, layer: int) -> dict[str, Array]:
    """Norms multiply by the weight, and attention does not scale: the norms of queries and keys do it."""
    import numpy as np

    head_dim = HEAD_DIM if LAYER_TYPES[layer] == "sliding_attention" else GLOBAL_HEAD_DIM
    return {
        **_attention(random, head_dim, norm=head_dim**-0.25),
        **_block(random, norm=1.0, post_norm=_GEMMA_4_POST_NORM),
        "per_layer_input_gate.weight": random.matrix(PER_LAYER_INPUT, HIDDEN),
        "per_layer_projection.weight": random.matrix(HIDDEN, PER_LAYER_INPUT),
        "post_per_layer_input_norm.weight": random.values((HIDDEN,), 0.05, _GEMMA_4_POST_NORM),
        "layer_scalar": np.ones(1, np.float32),
    }


def _write_checkpoint(
    folder: Path,
    title: str,
    family: Family,
    config: dict[str, Any],
    seed: int,
    make_layer: Callable[[_Random, int], dict[str, Array]],
    words: Words,
) -> None:
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    random = _Random(seed)
    speakable = write_tokenizer(folder, family, config["max_position_embeddings"])
    tensors = {"model.embed_tokens.weight": _embeddings(random, speakable, words)}
    if family is GEMMA_4:
        width = LAYERS * PER_LAYER_INPUT
        tensors |= {
            "model.embed_tokens_per_layer.weight": random.values((VOCABULARY, width), PER_LAYER_INPUT**-0.5),
            "model.per_layer_model_projection.weight": random.values((width, HIDDEN), 1.0),
            "model.per_layer_projection_norm.weight": random.values((PER_LAYER_INPUT,), 0.05, 1.0),
        }
    for layer in range(LAYERS):
        tensors |= {f"model.layers.{layer}.{name}": value for name, value in make_layer(random, layer).items()}
    final_norm = np.full(HIDDEN, LOGIT_SCALE, np.float32)
    final_norm[:SILENT] = 0
    tensors["model.norm.weight"] = final_norm - 1 if family is GEMMA_3 else final_norm

    half = f"model.layers.{LAYERS // 2}."
    boundary = next(index for index, name in enumerate(tensors) if name.startswith(half))
    items = list(tensors.items())
    weight_map: dict[str, str] = {}
    for number, shard in enumerate((items[:boundary], items[boundary:]), start=1):
        name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        _write_safetensors(folder / name, dict(shard))
        weight_map |= {tensor: name for tensor, _ in shard}
    parameters = sum(value.size for value in tensors.values())
    _write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_parameters": parameters, "total_size": 2 * parameters}, "weight_map": weight_map},
    )
    _write_json(folder / "config.json", config)
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": BOS,
            "do_sample": True,
            "eos_token_id": [EOS, END_OF_TURN],
            "pad_token_id": PAD,
            "top_k": 64,
            "top_p": 0.95,
            "transformers_version": config["transformers_version"],
        },
    )
    _write_card(folder, title, library="transformers")


# -- files --------------------------------------------------------------------------------------------------


def _write_safetensors(path: Path, tensors: dict[str, Array]) -> None:
    """u64 length of the header, the header in JSON (padded to 8 bytes with spaces), then the data, in bf16."""
    import numpy as np

    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, value in tensors.items():
        header[name] = {"dtype": "BF16", "shape": value.shape, "data_offsets": [offset, offset + 2 * value.size]}
        offset += 2 * value.size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for value in tensors.values():
            bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
            # To the nearest, ties to even; weights are finite.
            rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
            file.write(rounded.astype("<u2").tobytes())


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors file's tensors by name, and where its data begin."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def _write_card(folder: Path, title: str, library: str) -> None:
    (folder / "README.md").write_text(
        f"---\nlicense: gemma\nlibrary_name: {library}\npipeline_tag: text-generation\ntags:\n- tiny\n---\n\n"
        f"# {title}\n\nRandom weights in the form of a real release, for tests.\n"
    )
    (folder / ".gitattributes").write_text(
        "*.safetensors filter=lfs diff=lfs merge=lfs -text\ntokenizer.json filter=lfs diff=lfs merge=lfs -text\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a tiny checkpoint.")
    parser.add_argument("kind", choices=("gemma3", "gemma4", "gemma4-assistant", "lora"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=Path, help="lora: the folder of the checkpoint that it adapts")
    parser.add_argument("--base-name", help="lora: what it calls that checkpoint (default: the folder)")
    options = parser.parse_args()
    if options.kind == "lora":
        if options.base is None:
            parser.error("lora needs --base FOLDER")
        write_lora_adapter(options.folder, options.base, options.seed, base_name=options.base_name)
    else:
        write = {"gemma3": write_gemma3, "gemma4": write_gemma4, "gemma4-assistant": write_gemma4_assistant}
        write[options.kind](options.folder, options.seed)


if __name__ == "__main__":
    main()
