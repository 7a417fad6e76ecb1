"""What a LoRA adapter is made of, and whether vLLM can serve it.

Sources: PEFT's LoraConfig, and vLLM's reading of it (vllm/lora/peft_helper.py, vllm/lora/lora_model.py,
vllm/config/lora.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from serving.errors import RequestError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What `--max-lora-rank` may be."""

_NOT_SERVED = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA bias",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "layer replication",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that need another base model than the one that is named."""


def rank(where: str, config: dict[str, Any]) -> int:
    """An adapter's largest rank, by its adapter_config.json. Raises RequestError for one that vLLM cannot serve."""
    if config.get("peft_type", "LORA") != "LORA":
        raise RequestError(f"{where} is of the kind {config['peft_type']}: vLLM serves LORA alone")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(type(value) is int and value > 0 for value in ranks):
        raise RequestError(f"{where}: its rank r is {config.get('r')!r}, not a whole number above 0")
    if missing := sorted({"lora_alpha", "target_modules"} - config.keys()):
        raise RequestError(f"{where} does not say {' and '.join(missing)}, without which vLLM does not load it")
    if max(ranks) > RANKS[-1]:
        raise RequestError(f"{where}: its rank is {max(ranks)}, and vLLM serves {RANKS[-1]} at most")
    unserved = [words for key, words in _NOT_SERVED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        unserved.append("bias")
    if modules := set(config.get("modules_to_save") or ()) - {"classifier", "score"}:
        unserved.append(f"whole modules ({', '.join(sorted(modules))})")
    if str(config.get("init_lora_weights", "")).lower().startswith(_CHANGES_THE_BASE):
        unserved.append(f"the initialisation {config['init_lora_weights']}")
    if unserved:
        raise RequestError(
            f"{where} uses {' and '.join(unserved)}, which vLLM does not serve: train or convert it without, or merge "
            "it into its model and serve that"
        )
    return max(ranks)


def max_lora_rank(ranks: Iterable[int]) -> int:
    """What `--max-lora-rank` has to be for adapters of these ranks; 0 without adapters."""
    largest = max(ranks, default=0)
    return next(allowed for allowed in (0, *RANKS) if allowed >= largest)


def another_base(where: str, config: dict[str, Any], model: str) -> str:
    """A warning when an adapter says that it was made for another model; empty when it does not.

    No more than a warning: what it says is often a path on the machine that trained it, or a quantized copy. Whether
    its tensors fit, the engine says.
    """
    made_for = config.get("base_model_name_or_path")
    if not made_for or str(made_for) == model:
        return ""
    return f"warning: {where} was made for {made_for}, and goes on {model}: its answers may make no sense"
