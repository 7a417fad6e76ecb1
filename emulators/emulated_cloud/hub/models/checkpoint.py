"""A whole model's checkpoint: two shards and their index, config.json, generation_config.json, the model card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulated_cloud.hub.models.files import write_card, write_json, write_safetensors
from emulated_cloud.hub.models.tokenizer import BOS, END_OF_TURN, EOS, PAD, VOCABULARY
from emulated_cloud.hub.models.weights import HEAD_DIM, HEADS, HIDDEN, KV_HEADS, LAYERS, MLP

if TYPE_CHECKING:
    from emulated_cloud.hub.models.files import Array

LAYER_TYPES = ["sliding_attention"] * (LAYERS - 1) + ["full_attention"]
SHARDS = 2

# What the config.json of both families says.
SHARED_CONFIG = {
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


def write_checkpoint(folder: Path, title: str, config: dict[str, Any], tensors: dict[str, Array]) -> None:
    """Writes all but the tokenizer; the second shard begins with the layer in the middle."""
    half = f"model.layers.{LAYERS // 2}."
    boundary = next(index for index, name in enumerate(tensors) if name.startswith(half))
    items = list(tensors.items())
    weight_map: dict[str, str] = {}
    for number, shard in enumerate((items[:boundary], items[boundary:]), start=1):
        name = f"model-{number:05}-of-{SHARDS:05}.safetensors"
        write_safetensors(folder / name, dict(shard))
        weight_map |= {tensor: name for tensor, _ in shard}
    parameters = sum(value.size for value in tensors.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_parameters": parameters, "total_size": 2 * parameters}, "weight_map": weight_map},
    )
    write_json(folder / "config.json", config)
    write_json(
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
    write_card(folder, title, library="transformers")
