"""Tiny Gemma checkpoints for tests, made on the spot: `python -m emulated_cloud.hub.models KIND FOLDER [--seed N]`.

Real in form (architecture, tensor names, shards, index, tokenizer, chat template: vLLM and transformers load them), and
of random weights, byte for byte the same for the same seed. An answer is nonsense, but never empty (weights.py).

`write_gemma3`, `write_gemma4`, `write_gemma4_assistant` and `write_lora_adapter` make one. `truncate_shard`,
`drop_shard`, `mismatch_config`, `zero_weights` and `readme_only_change` turn it into a release that must be refused
(or, the last one, not noticed).
"""

from emulated_cloud.hub.models.damage import (
    drop_shard,
    mismatch_config,
    readme_only_change,
    truncate_shard,
    zero_weights,
)
from emulated_cloud.hub.models.gemma3 import write_gemma3
from emulated_cloud.hub.models.gemma4 import write_gemma4, write_gemma4_assistant
from emulated_cloud.hub.models.lora import write_lora_adapter

__all__ = [
    "drop_shard",
    "mismatch_config",
    "readme_only_change",
    "truncate_shard",
    "write_gemma3",
    "write_gemma4",
    "write_gemma4_assistant",
    "write_lora_adapter",
    "zero_weights",
]
