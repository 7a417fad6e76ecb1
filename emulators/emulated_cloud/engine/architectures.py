"""Which tensors, of which shapes, a Gemma's config.json implies.

Sources: the Gemma 3 and Gemma 4 configuration and modelling code of transformers 5 and vLLM's loaders. Of multimodal
checkpoints the language model is checked. Names below `model.`; the prefix depends on architecture and on the
transformers version that wrote the file, and vLLM maps each to its own (`hf_to_vllm_mapper` of each model).
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

SUPPORTED = (
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Gemma4ForCausalLM",
    "Gemma4ForConditionalGeneration",
    "Gemma4UnifiedForConditionalGeneration",
)

ASSISTANT = "Gemma4AssistantForCausalLM"
"""A draft model that reads keys and values from its target's cache (vllm/model_executor/models/gemma4_mtp.py)."""

# What the classes of transformers assume where a config.json is silent (Google's multimodal ones are, widely).
GEMMA_3 = {
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}
GEMMA_4 = GEMMA_3 | {
    "vocab_size": 262_144,
    "num_hidden_layers": 30,
    "vocab_size_per_layer_input": 262_144,
    "hidden_size_per_layer_input": 256,
    "global_head_dim": 512,
    "num_global_key_value_heads": None,
    "attention_k_eq_v": False,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
    "enable_moe_block": False,
    "layer_types": None,
}


_OF_GEMMA_4 = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_", "vision_"),
    ("model.audio_", "audio_"),
    ("model.embed_vision", "embed_vision"),
    ("model.embed_audio", "embed_audio"),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "Gemma3ForConditionalGeneration": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "Gemma4ForCausalLM": (("model.language_model.", "model."),),
    "Gemma4ForConditionalGeneration": _OF_GEMMA_4,
    "Gemma4UnifiedForConditionalGeneration": _OF_GEMMA_4,
}
TOWERS = ("vision_tower", "vision_embedder", "multi_modal_projector", "audio_tower", "embed_vision", "embed_audio")
UNUSED = ("rotary_pos_emb.inv_freq", "rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


@dataclass
class Expected:
    """A tensor that a checkpoint should hold. key: its name below the prefix, name: in this checkpoint."""

    key: str
    name: str
    shape: tuple[int, ...]
    optional: bool


def text_config(config: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The language model's settings, defaults filled in."""
    own = config.get("text_config") or config
    # Tied embeddings are said on either level.
    tied = {key: config[key] for key in ("tie_word_embeddings",) if key in config}
    return (GEMMA_4 if architecture.startswith("Gemma4") else GEMMA_3) | tied | own


def renamed(name: str, architecture: str) -> str:
    """What vLLM calls a tensor, or an adapter's module, of a checkpoint."""
    for theirs, ours in RENAMED.get(architecture, ()):
        if name.startswith(theirs):
            return ours + name[len(theirs) :]
    return name


def unexpected(config: dict[str, Any], architecture: str, tensors: Container[str], names: Iterable[str]) -> str:
    """What vLLM says of the first tensor that its model has no place for; empty when there is none.

    Of quantized checkpoints no more is known than where their tensors may begin.
    """
    keys = {expected.key for expected in required_tensors(config, architecture, tensors)}
    places = {key.rsplit(".", cut)[0] for key in keys for cut in range(key.count(".") + 1)}
    multimodal = architecture.endswith("ForConditionalGeneration")
    language = "language_model." if multimodal else ""
    roots = {f"{language}model".split(".")[0], f"{language}lm_head".split(".")[0], *(TOWERS if multimodal else ())}
    for name in names:
        ours = renamed(name, architecture)
        if name.endswith(UNUSED) or (not multimodal and architecture.startswith("Gemma4") and _of_a_tower(name)):
            continue
        root, _, rest = ours.partition(".")
        if root not in roots:
            return no_place(root, architecture, sorted(roots))
        key = rest.removeprefix("model.") if multimodal else rest
        if root in TOWERS or ours.startswith(f"{language}lm_head.") or "quantization_config" in config or key in keys:
            continue
        parts = key.split(".")
        paths = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        return no_place(next(path for path in paths if path not in places), f"{architecture[:6]}Model", sorted(keys))
    return ""


def _of_a_tower(name: str) -> bool:
    return any(f"{tower}." in name for tower in TOWERS)


def no_place(name: str, where: str, known: list[str]) -> str:
    return (
        f"There is no module or parameter named {name!r} in {where}. The available parameters belonging to  ({where}) "
        f"are: {{{', '.join(map(repr, known))}}}"
    )


def prefix_of(tensors: Container[str]) -> str:
    """Where the language model's tensors lie: as transformers writes them today, as it did before 4.52, text only."""
    for prefix in ("model.language_model.", "language_model.model."):
        if f"{prefix}embed_tokens.weight" in tensors:
            return prefix
    return "model."


def required_tensors(config: dict[str, Any], architecture: str, tensors: Container[str]) -> Iterator[Expected]:
    """Every tensor of the language model; the optional ones may be absent, but not of another shape."""
    text = text_config(config, architecture)
    prefix = prefix_of(tensors)

    def expect(key: str, *shape: int, optional: bool = False) -> Expected:
        return Expected(key, prefix + key, shape, optional)

    yield expect("embed_tokens.weight", text["vocab_size"], text["hidden_size"])
    if architecture == ASSISTANT:
        hidden, target = text["hidden_size"], config.get("backbone_hidden_size", text["hidden_size"])
        yield expect("norm.weight", hidden)
        yield Expected("pre_projection.weight", "pre_projection.weight", (hidden, 2 * target), False)
        yield Expected("post_projection.weight", "post_projection.weight", (target, hidden), False)
        return
    for layer in range(text["num_hidden_layers"]):
        layer_tensors = gemma4_layer(text, layer) if architecture.startswith("Gemma4") else gemma3_layer(text)
        for name, shape, optional in layer_tensors:
            yield expect(f"layers.{layer}.{name}", *shape, optional=optional)
    yield expect("norm.weight", text["hidden_size"])
    if architecture.startswith("Gemma4") and text["hidden_size_per_layer_input"]:
        width = text["num_hidden_layers"] * text["hidden_size_per_layer_input"]
        yield expect("embed_tokens_per_layer.weight", text["vocab_size_per_layer_input"], width)
        yield expect("per_layer_model_projection.weight", width, text["hidden_size"])
        yield expect("per_layer_projection_norm.weight", text["hidden_size_per_layer_input"])
    if not text["tie_word_embeddings"]:
        yield Expected("lm_head.weight", "lm_head.weight", (text["vocab_size"], text["hidden_size"]), False)


LayerTensors = Iterator[tuple[str, tuple[int, ...], bool]]


def gemma3_layer(text: dict[str, Any]) -> LayerTensors:
    yield from norms(text["hidden_size"])
    yield from attention(text, text["head_dim"], text["num_key_value_heads"])
    yield from mlp(text["hidden_size"], text["intermediate_size"])


def gemma4_layer(text: dict[str, Any], layer: int) -> LayerTensors:
    """Full-attention layers have heads of another size, and may take keys for values; the last layers may share the
    keys and values of earlier ones, and have a wider MLP."""
    hidden = text["hidden_size"]
    first_shared = text["num_hidden_layers"] - text["num_kv_shared_layers"]
    shared = 0 < first_shared <= layer
    full = is_full_attention(text, layer)
    keys_are_values = full and text["attention_k_eq_v"]
    kv_heads = (text["num_global_key_value_heads"] if keys_are_values else None) or text["num_key_value_heads"]
    yield from norms(hidden)
    yield from attention(
        text,
        (text["global_head_dim"] if full else None) or text["head_dim"],
        kv_heads,
        keys_are_values=keys_are_values,
        shared=shared,
    )
    wide = 2 if text["use_double_wide_mlp"] and shared else 1
    yield from mlp(hidden, text["intermediate_size"] * wide)
    yield "layer_scalar", (1,), True
    if width := text["hidden_size_per_layer_input"]:
        yield "per_layer_input_gate.weight", (width, hidden), False
        yield "per_layer_projection.weight", (hidden, width), False
        yield "post_per_layer_input_norm.weight", (hidden,), False
    if text["enable_moe_block"]:
        experts, inner = text["num_experts"], text["moe_intermediate_size"]
        yield "router.proj.weight", (experts, hidden), False
        yield "router.scale", (hidden,), False
        yield "router.per_expert_scale", (experts,), False
        yield "experts.gate_up_proj", (experts, 2 * inner, hidden), False
        yield "experts.down_proj", (experts, hidden, inner), False
        for norm in ("post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"):
            yield f"{norm}.weight", (hidden,), False


def is_full_attention(text: dict[str, Any], layer: int) -> bool:
    """By default every sixth layer; the last one always."""
    if layer == text["num_hidden_layers"] - 1:
        return True
    if text["layer_types"]:
        return text["layer_types"][layer] == "full_attention"
    return (layer + 1) % 6 == 0


def norms(hidden: int) -> LayerTensors:
    for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
        yield f"{name}_layernorm.weight", (hidden,), False


def attention(
    text: dict[str, Any], head_dim: int, kv_heads: int, keys_are_values: bool = False, shared: bool = False
) -> LayerTensors:
    hidden, queries, keys = text["hidden_size"], text["num_attention_heads"] * head_dim, kv_heads * head_dim
    yield "self_attn.q_proj.weight", (queries, hidden), False
    yield "self_attn.k_proj.weight", (keys, hidden), shared
    if not keys_are_values:
        yield "self_attn.v_proj.weight", (keys, hidden), shared
    yield "self_attn.o_proj.weight", (hidden, queries), False
    yield "self_attn.q_norm.weight", (head_dim,), False
    yield "self_attn.k_norm.weight", (head_dim,), shared


def mlp(hidden: int, inner: int) -> LayerTensors:
    yield "mlp.gate_proj.weight", (inner, hidden), False
    yield "mlp.up_proj.weight", (inner, hidden), False
    yield "mlp.down_proj.weight", (hidden, inner), False
