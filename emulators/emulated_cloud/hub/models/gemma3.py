"""The tiny Gemma 3, whose words follow one another.

Each word's embedding is the one before it turned by one rotation, and the last layer's MLP turns what it is given. So
an answer goes through the words in an order of the seed's own, beginning where the question's words (attention mixes
them in, weakly) point to, and no engine's rounding changes it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulated_cloud.hub.models.checkpoint import SHARED_CONFIG, write_checkpoint
from emulated_cloud.hub.models.tokenizer import GEMMA_3, write_tokenizer
from emulated_cloud.hub.models.weights import (
    HEAD_DIM,
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

# What attention adds to a word, and the last MLP: the following word is by far the loudest.
_CONTEXT, _SUCCESSOR = 0.3, 8.0
_STEEP = 4.0

# Keys and their meaning: google/gemma-3-1b-it's config.json.
_CONFIG: dict[str, Any] = {
    **SHARED_CONFIG,
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


def write_gemma3(folder: Path | str, seed: int = 0) -> None:
    """Writes a Gemma3ForCausalLM of 2 M parameters (3.9 MB, bf16) to `folder`, which is made if need be."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    speakable = write_tokenizer(folder, GEMMA_3, _CONFIG["max_position_embeddings"])
    random, rotation = Random(seed), _Rotation(Random(seed, HIDDEN))
    tensors = {
        "model.embed_tokens.weight": embeddings(random, speakable, rotation.words),
        **layers(LAYERS, partial(_layer, random, rotation)),
        "model.norm.weight": final_norm() - 1,
    }
    write_checkpoint(folder, "Tiny Gemma 3", _CONFIG, tensors)


class _Rotation:
    """A rotation of the words' dimensions, two by two, each pair by an angle of its own."""

    def __init__(self, random: Random):
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

    def words(self, random: Random, count: int) -> Array:
        """[count, HIDDEN - SILENT]: each the one before it, turned; unit vectors, in the seed's order."""
        import numpy as np

        x, y = np.ones(len(self._cos)), np.zeros(len(self._cos))
        turned = np.zeros((count, HIDDEN - SILENT), np.float32)
        for word in range(count):
            turned[word, 0::2], turned[word, 1::2] = x, y
            x, y = self._cos * x - self._sin * y, self._sin * x + self._cos * y
        order = np.argsort(random.values((count,), 1.0), kind="stable")
        return turned[order] * np.float32(len(self._cos) ** -0.5)


def _layer(random: Random, rotation: _Rotation, layer: int) -> dict[str, Array]:
    """Norms multiply by 1 + weight, and attention divides by the square root of query_pre_attn_scalar."""
    import numpy as np

    # Sharp attention: a question is a few of its words, not the mean of all, which is much the same in every question.
    weights = attention(random, HEAD_DIM, norm=3.0) | block(random, norm=0.0, post_norm=0.0)
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
