"""The tiny Gemma 4, with per-layer embeddings as E2B and E4B have, and the assistant that drafts for it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulated_cloud.hub.models.checkpoint import LAYER_TYPES, SHARED_CONFIG, write_checkpoint
from emulated_cloud.hub.models.files import write_card, write_json, write_safetensors
from emulated_cloud.hub.models.tokenizer import GEMMA_4, VOCABULARY, write_tokenizer
from emulated_cloud.hub.models.weights import (
    HEAD_DIM,
    HEADS,
    HIDDEN,
    LAYERS,
    SILENT,
    Random,
    attention,
    block,
    embeddings,
    final_norm,
    layers,
)

if TYPE_CHECKING:
    from emulated_cloud.hub.models.files import Array

GLOBAL_HEAD_DIM = 64  # of full attention
PER_LAYER_INPUT = 16  # width of the embeddings that each layer has of its own
# What a layer adds, beside what came in. These layers add three times, Gemma 3's twice; at 1.0 the best two words
# would be so close that an engine's rounding decides, and the same question would not get the same answer.
_POST_NORM = 0.7

_ASSISTANT_HIDDEN = 64
_ASSISTANT_LAYER_TYPES = ["sliding_attention", "full_attention"]

# Keys and their meaning: Gemma4TextConfig of transformers 5, as in the text_config of google/gemma-4-E2B-it.
_CONFIG: dict[str, Any] = {
    **SHARED_CONFIG,
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


def write_gemma4(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma4ForCausalLM of 2.4 M parameters (4.9 MB, bf16) to `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    speakable = write_tokenizer(folder, GEMMA_4, _CONFIG["max_position_embeddings"])
    random, width = Random(seed), LAYERS * PER_LAYER_INPUT
    tensors = {
        "model.embed_tokens.weight": embeddings(random, speakable, _words),
        "model.embed_tokens_per_layer.weight": random.values((VOCABULARY, width), PER_LAYER_INPUT**-0.5),
        "model.per_layer_model_projection.weight": random.values((width, HIDDEN), 1.0),
        "model.per_layer_projection_norm.weight": random.values((PER_LAYER_INPUT,), 0.05, 1.0),
        **layers(LAYERS, partial(_layer, random)),
        "model.norm.weight": final_norm(),
    }
    write_checkpoint(folder, "Tiny Gemma 4", _CONFIG, tensors)


def _words(random: Random, count: int) -> Array:
    return random.values((count, HIDDEN - SILENT), (HIDDEN - SILENT) ** -0.5)


def _head_dim(layer_type: str) -> int:
    return HEAD_DIM if layer_type == "sliding_attention" else GLOBAL_HEAD_DIM


def _layer(random: Random, layer: int) -> dict[str, Array]:
    """Norms multiply by the weight, and attention does not scale: the norms of queries and keys do it."""
    import numpy as np

    head_dim = _head_dim(LAYER_TYPES[layer])
    return {
        **attention(random, head_dim, norm=head_dim**-0.25),
        **block(random, norm=1.0, post_norm=_POST_NORM),
        "per_layer_input_gate.weight": random.matrix(PER_LAYER_INPUT, HIDDEN),
        "per_layer_projection.weight": random.matrix(HIDDEN, PER_LAYER_INPUT),
        "post_per_layer_input_norm.weight": random.values((HIDDEN,), 0.05, _POST_NORM),
        "layer_scalar": np.ones(1, np.float32),
    }


# -- the assistant ------------------------------------------------------------------------------------------


def write_gemma4_assistant(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma4AssistantForCausalLM (1 MB, bf16), the draft model for the checkpoint of `write_gemma4`: two
    layers that have queries alone, since keys and values are the model's."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    random, width = Random(seed, _ASSISTANT_HIDDEN), _ASSISTANT_HIDDEN
    count = len(_ASSISTANT_LAYER_TYPES)
    tensors = {
        "model.embed_tokens.weight": random.values((VOCABULARY, width), width**-0.5),
        **layers(count, partial(_assistant_layer, random)),
        "model.norm.weight": random.values((width,), 0.05, 1.0),
        "pre_projection.weight": random.matrix(width, 2 * HIDDEN),
        "post_projection.weight": random.matrix(HIDDEN, width),
    }
    write_safetensors(folder / "model.safetensors", tensors)
    text_config = {key: value for key, value in _CONFIG.items() if key != "architectures"} | {
        "hidden_size": width,
        "hidden_size_per_layer_input": 0,
        "layer_types": _ASSISTANT_LAYER_TYPES,
        "num_hidden_layers": count,
        "num_kv_shared_layers": count,
        "vocab_size_per_layer_input": 0,
    }
    write_json(
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
    write_card(folder, "Tiny Gemma 4 assistant", library="transformers")


def _assistant_layer(random: Random, layer: int) -> dict[str, Array]:
    head_dim, width = _head_dim(_ASSISTANT_LAYER_TYPES[layer]), _ASSISTANT_HIDDEN
    return {
        "self_attn.q_proj.weight": random.matrix(HEADS * head_dim, width),
        "self_attn.o_proj.weight": random.matrix(width, HEADS * head_dim),
        "self_attn.q_norm.weight": random.values((head_dim,), 0.05, 1.0),
        **block(random, norm=1.0, post_norm=1.0, hidden=width),
        "layer_scalar": random.values((1,), 0.0, 1.0),
    }
