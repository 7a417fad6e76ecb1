"""Random weights that always answer in visible text: the sizes, and the tensors that both families have.

Of the hidden dimensions the first SILENT hold what control tokens, bytes and white space look like, and the final norm
multiplies those by zero. So the logit of such a token is exactly 0 whatever the context, while among some 1,700 random
words the best is far above it: under greedy decoding every token of an answer is visible text, and none ends it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulated_cloud.hub.models.tokenizer import VOCABULARY

if TYPE_CHECKING:
    from emulated_cloud.hub.models.files import Array

    Words = Callable[["Random", int], Array]

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, MLP = 128, 6, 4, 1, 32, 512
SILENT = 16
# Logits of words spread by about this much, so that their best is beyond reach for a token whose logit is 0.
LOGIT_SCALE = 4.0


class Random:
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


def embeddings(random: Random, speakable: list[int], words: Words) -> Array:
    """[VOCABULARY, HIDDEN]: words live outside the first SILENT dimensions, all other tokens inside them.

    words(random, count) gives the speakable tokens' part, [count, HIDDEN - SILENT]."""
    weight = random.values((VOCABULARY, HIDDEN), SILENT**-0.5)
    weight[:, SILENT:] = 0
    weight[speakable, :SILENT] = 0
    weight[speakable, SILENT:] = words(random, len(speakable))
    return weight


def layers(count: int, make_layer: Callable[[int], dict[str, Array]]) -> dict[str, Array]:
    """The tensors of all layers, by their names in a checkpoint; make_layer(index) gives one layer's."""
    return {
        f"model.layers.{layer}.{name}": value for layer in range(count) for name, value in make_layer(layer).items()
    }


def attention(random: Random, head_dim: int, norm: float) -> dict[str, Array]:
    return {
        "self_attn.q_proj.weight": random.matrix(HEADS * head_dim, HIDDEN),
        "self_attn.k_proj.weight": random.matrix(KV_HEADS * head_dim, HIDDEN),
        "self_attn.v_proj.weight": random.matrix(KV_HEADS * head_dim, HIDDEN),
        "self_attn.o_proj.weight": random.matrix(HIDDEN, HEADS * head_dim),
        "self_attn.q_norm.weight": random.values((head_dim,), 0.05, norm),
        "self_attn.k_norm.weight": random.values((head_dim,), 0.05, norm),
    }


def block(random: Random, norm: float, post_norm: float, hidden: int = HIDDEN) -> dict[str, Array]:
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


def final_norm() -> Array:
    """[HIDDEN]: what the last hidden state is multiplied by."""
    import numpy as np

    factors = np.full(HIDDEN, LOGIT_SCALE, np.float32)
    factors[:SILENT] = 0
    return factors
