"""What a checkpoint's tensors take in the cards' memory: by the safetensors headers, before a byte of them has moved.

Source: vLLM's models (vllm/model_executor/models/gemma3*.py, gemma4*.py) and its quantization on loading
(vllm/config/quantization.py), which changes linear layers, or experts alone, and nothing else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from serving.sizing.architecture import Architecture

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.(.+)")
_ENCODER = re.compile(r"(?:^|\.)(vision|audio|embed_vision|embed_audio|multi_modal_projector)")
_BYTES = 2
"""Of a number in the model's own type, bfloat16: what is published in float32 is loaded in it too."""
_WIDE = {"F16", "BF16", "F32", "F64"}
_NARROW = {"I64": 8, "U64": 8, "I32": 4, "U32": 4, "I16": 2, "U16": 2}
_STORED = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8, **_NARROW}
"""Bytes of a number in a shard, where it is more than one."""
_PACKED_IN_32 = 8
"""Weights of 4 bits in a whole number of 32."""


class Tensor(NamedTuple):
    name: str
    dtype: str
    """As safetensors writes it: BF16."""
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Weights:
    """Bytes of a model's tensors once they are loaded as they were published, by what becomes of them."""

    linear: int = 0
    """Linear layers of the text model: split over the cards, halved by quantization to 8 bits."""
    experts: int = 0
    """Experts: split, and halved by quantization of experts alone too."""
    fixed: int = 0
    """Embeddings, and what is quantized already: split over the cards, no smaller for any quantization."""
    encoders: int = 0
    """Encoders for images and sound: whole on every card, and not there at all where only text is served."""
    encoder_linear: int = 0
    """Their linear layers, which are part of `encoders`."""
    adapter_width: int = 0
    """Inputs and outputs of all linear layers together: an adapter of rank r has r numbers for each."""
    largest: int = field(default=0, compare=False)
    """The largest tensor as it lies in its shard; 0 where nobody has read the headers."""

    def card_bytes(self, cards: int, halved: Iterable[str], *, text_only: bool, encoders_quantize: bool) -> int:
        """Bytes on each card. `halved`: which of `linear` and `experts` are quantized to 8 bits on loading."""
        kinds = set(halved)
        split = self.fixed + sum(
            size // 2 if kind in kinds else size for kind, size in (("linear", self.linear), ("experts", self.experts))
        )
        whole = 0 if text_only else self.encoders
        if whole and encoders_quantize and "linear" in kinds:
            whole -= self.encoder_linear // 2
        return split // cards + whole


def of_tensors(tensors: Iterable[Tensor], architecture: Architecture) -> Weights:
    """The weights that the tensors of all shards make."""
    linear = experts = fixed = encoders = encoder_linear = width = 0
    tensors = list(tensors)
    there = {tensor.name for tensor in tensors}
    for tensor in tensors:
        size, is_linear = _loaded_bytes(tensor), len(tensor.shape) == 2 and tensor.dtype in _WIDE
        layer = _LAYER.search(tensor.name)
        if _ENCODER.search(tensor.name):
            encoders += size
            encoder_linear += size if is_linear and layer else 0
            continue
        if tensor.name.endswith("lm_head.weight") and architecture.tied:
            continue
        if not layer:
            # What stands beside the layers is embeddings, but for Gemma 4's projection of those of each layer.
            projection = is_linear and "embed" not in tensor.name and "lm_head" not in tensor.name
            linear, fixed = (linear + size, fixed) if projection else (linear, fixed + size)
            width += sum(tensor.shape) if projection else 0
            continue
        index, rest = int(layer[1]), layer[2]
        if index >= architecture.first_sharing_layer and re.search(r"self_attn\.[kv]_proj", rest):
            continue  # Some checkpoints have them, and no engine reads them.
        # Where keys are values too, the engine loads the projection of keys twice.
        if re.search(r"self_attn\.k_proj", rest) and tensor.name.replace(".k_proj", ".v_proj") not in there:
            size *= 2
        if "experts." in rest and len(tensor.shape) >= 2:
            experts += size if tensor.dtype in _WIDE else 0
            fixed += 0 if tensor.dtype in _WIDE else size
            width += _width(tensor)
        elif is_linear and not rest.endswith("_scale"):
            linear += size
            width += _width(tensor)
        else:
            fixed += size
            width += _width(tensor) if rest.endswith(("weight_packed", ".weight")) else 0
    largest = max((math.prod(tensor.shape) * _STORED.get(tensor.dtype, 1) for tensor in tensors), default=0)
    return Weights(linear, experts, fixed, encoders, encoder_linear, width, largest)


def _loaded_bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * (_BYTES if tensor.dtype in _WIDE else _NARROW.get(tensor.dtype, 1))


def _width(tensor: Tensor) -> int:
    """Inputs and outputs of a linear layer, or of all that are stacked in one tensor."""
    if len(tensor.shape) < 2:
        return 0
    *stacked, outputs, inputs = tensor.shape
    if tensor.dtype in ("I32", "U32"):
        inputs *= _PACKED_IN_32
    return math.prod(stacked) * (outputs + inputs)
