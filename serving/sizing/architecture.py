"""What a config.json says about memory: how much KV cache a request takes, and which tensors the engine builds.

Sources: vLLM's KV cache (vllm/v1/core/kv_cache_utils.py: groups of layers that share a pool of blocks;
vllm/v1/kv_cache_interface.py: what a request of each kind of layer holds), and the defaults of transformers'
configuration classes, which the config.json of the hub's Gemma 3 leaves out.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from serving.errors import ReleaseError, RequestError

_BLOCK = 16
"""Tokens of a block of the KV cache, of the layers that need most for one."""
_BATCHES_IN_FLIGHT = 2
"""Batches whose tokens are not yet given back: scheduling is asynchronous."""
_BYTES = 2
"""Of a number in the model's own type, bfloat16."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262208,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
    },
    "gemma4_text": {
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "global_head_dim": 512,
        "vocab_size": 262144,
        "max_position_embeddings": 131072,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
    },
}
_DEFAULTS["gemma4_unified_text"] = _DEFAULTS["gemma4_text"] | {
    "max_position_embeddings": 262144,
    "sliding_window": 1024,
    "use_bidirectional_attention": "vision",
}
_MOST = 1 << 24
"""No dimension of a model is larger, the length of its context among them."""


@dataclass(frozen=True)
class Layer:
    """A layer that keeps keys and values of its own."""

    window: int | None
    """Tokens that it looks back; None: all of them."""
    heads: int
    """Key and value heads."""
    head_size: int

    def token_bytes(self, cards: int, number_bytes: int) -> int:
        """Bytes of one token's keys and values on each card: heads are split, and the last one is on every card."""
        return 2 * max(1, self.heads // cards) * self.head_size * number_bytes


@dataclass(frozen=True)
class Architecture:
    """The text part of a model, and what its other parts mean for it."""

    name: str
    """First entry of config.json's `architectures`."""
    context: int
    """The longest that it was made for, tokens."""
    heads: int
    """Attention heads, which cards have to divide."""
    hidden: int
    layers: tuple[Layer, ...]
    first_sharing_layer: int
    """From this layer on none has keys and values of its own, nor the projections that make them."""
    rotary_bytes: int
    """Tables of the rotary embeddings, on each card."""
    output_bytes: int
    """The output layer, which is built before it is tied to the embeddings."""
    tied: bool
    whole_videos: bool
    """A batch has to hold a whole video, since its tokens look at each other."""
    encoders_quantize: bool
    """Whether the encoders' sizes suit the kernels of quantization on loading."""
    quantization: str | None
    """How the checkpoint is quantized already."""

    def request_blocks(self, context: int, batch: int, cards: int, number_bytes: int = _BYTES) -> tuple[int, int]:
        """(blocks that a request of `context` tokens takes, bytes of a block on each card).

        `batch`: the most tokens that the engine takes at once.
        """
        return _request_blocks(self._kinds(cards, number_bytes), context, batch)

    def longest(self, kv_bytes: int, requests: int, batch: int, cards: int, number_bytes: int = _BYTES) -> int:
        """The longest context of which `kv_bytes` a card hold that many requests at once; 0 when of none."""
        low, high, kinds = 0, self.context, self._kinds(cards, number_bytes)
        while low < high:
            middle = (low + high + 1) // 2
            blocks, size = _request_blocks(kinds, middle, batch)
            low, high = (middle, high) if requests * blocks <= kv_bytes // size else (low, middle - 1)
        return low

    def _kinds(self, cards: int, number_bytes: int) -> Counter[tuple[int | None, int]]:
        """How many layers look back so far, and take so many bytes a token."""
        return Counter((layer.window, layer.token_bytes(cards, number_bytes)) for layer in self.layers)


def _request_blocks(kinds: Counter[tuple[int | None, int]], context: int, batch: int) -> tuple[int, int]:
    page = _BLOCK * max(token for _, token in kinds)
    fewest, most = min(kinds.values()), max(kinds.values())
    # As many layers of one kind share a block as the rarest kind has; where the others have few more, as those.
    together = most if most < 1.5 * fewest else fewest
    blocks = 0
    for (window, token), count in kinds.items():
        size = page // token if page % token == 0 else _BLOCK
        if window is None:
            held = _ceil(context, size)
        else:
            held = _ceil(min(context, window - 1 + _BATCHES_IN_FLIGHT * batch), size) + 1
        blocks += held * _ceil(count, together)
    return blocks, page * together


def named(where: str, config: dict[str, Any]) -> str:
    """The architecture that a config.json names. Raises RequestError when it names none."""
    found = config.get("architectures")
    if not isinstance(found, list) or not found or not isinstance(found[0], str):
        raise RequestError(f"{where} names no architecture: it is not a model that vLLM can load")
    return found[0]


def of_config(where: str, config: dict[str, Any]) -> Architecture:
    """What a config.json (`where` it is) says. Raises ReleaseError for what it does not say, or not as a number."""
    text = config.get("text_config", config)
    if not isinstance(text, dict):
        raise ReleaseError(f"{where}: its text_config is not a mapping")
    text = _DEFAULTS.get(str(text.get("model_type")), {}) | {
        key: value for key, value in text.items() if value is not None
    }

    def number(key: str, default: int | None = None, least: int = 1) -> int:
        value = text.get(key, default)
        if type(value) is not int or not least <= value <= _MOST:
            raise ReleaseError(f"{where}: {key} is {value!r}, not a whole number that a model could have")
        return value

    count = number("num_hidden_layers")
    if count > 10_000:
        raise ReleaseError(f"{where}: num_hidden_layers is {count}, more than a model could have")
    heads, hidden = number("num_attention_heads"), number("hidden_size")
    kinds = _kinds(where, text, count)
    own = count - number("num_kv_shared_layers", 0, least=0)
    size = number("head_dim", hidden // heads or 1)
    every = Layer(
        number("sliding_window") if "sliding_attention" in kinds else None, number("num_key_value_heads"), size
    )
    # Gemma 4's full layers have sizes of their own; with keys for values they also have fewer of them.
    fewer = number("num_global_key_value_heads", every.heads) if text.get("attention_k_eq_v") else every.heads
    full = Layer(None, fewer, number("global_head_dim", size))
    layers = [full if kind == "full_attention" else every for kind in kinds]
    for index, changes in _overrides(text).items():
        if index < count:
            before = layers[index]
            layers[index] = Layer(
                before.window,
                _whole(where, changes.get("num_key_value_heads", before.heads)),
                _whole(where, changes.get("head_dim", before.head_size)),
            )
    context = number("max_position_embeddings")
    vision = _mapping(config.get("vision_config"))
    quantized = _mapping(config.get("quantization_config")) or _mapping(text.get("quantization_config"))
    return Architecture(
        name=named(where, config),
        context=context,
        heads=heads,
        hidden=hidden,
        layers=tuple(layers[: max(own, 1)]),
        first_sharing_layer=max(own, 1),
        rotary_bytes=sum(
            int(context * _rotary_factor(text, kind)) * head_size * _BYTES
            for kind, head_size in {(kind, layer.head_size) for kind, layer in zip(kinds, layers, strict=True)}
        ),
        output_bytes=number("vocab_size") * hidden * _BYTES,
        tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", True))),
        whole_videos=bool(vision) and text.get("use_bidirectional_attention") == "vision",
        encoders_quantize=_divides_by_64(vision.get("hidden_size")) and _divides_by_64(vision.get("intermediate_size")),
        quantization=str(quantized.get("quant_method", "a method of its own")) if quantized else None,
    )


def _kinds(where: str, text: dict[str, Any], count: int) -> list[str]:
    """The kind of attention of every layer."""
    kinds = text.get("layer_types")
    if kinds is None:
        pattern = text.get("sliding_window_pattern")
        if not pattern or not text.get("sliding_window"):
            return ["full_attention"] * count
        pattern = _whole(where, pattern)
        return ["sliding_attention" if (index + 1) % pattern else "full_attention" for index in range(count)]
    known = ("full_attention", "sliding_attention")
    if not isinstance(kinds, list) or len(kinds) != count or any(kind not in known for kind in kinds):
        raise ReleaseError(f"{where}: its layer_types are not one of full_attention, sliding_attention for each layer")
    return kinds


def _overrides(text: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Layers that differ from the rest, as newer versions of transformers write them."""
    found = _mapping(text.get("per_layer_config"))
    return {int(key): value for key, value in found.items() if re.fullmatch("[0-9]{1,5}", key) and _mapping(value)}


def _rotary_factor(text: dict[str, Any], kind: str) -> float:
    """By how much a linear scaling makes the table of rotary embeddings longer: Gemma 3's full layers have one."""
    found = _mapping(text.get("rope_parameters")).get(kind)
    if found is None and kind == "full_attention":
        found = text.get("rope_scaling")
    factor = found.get("factor") if isinstance(found, dict) and found.get("rope_type") == "linear" else None
    return factor if isinstance(factor, (int, float)) and 1 <= factor <= 1024 else 1


def _mapping(value: Any) -> dict[str, Any]:
    """A value of a config.json where it is a mapping; another says nothing."""
    return value if isinstance(value, dict) else {}


def _whole(where: str, value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _MOST:
        raise ReleaseError(f"{where}: {value!r} is not a whole number that a model could have")
    return value


def _divides_by_64(value: Any) -> bool:
    return type(value) is int and value % 64 == 0


def _ceil(value: int, unit: int) -> int:
    return -(-value // unit)
