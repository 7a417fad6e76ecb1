"""What a LoRA adapter is made of, and whether vLLM can serve it.

Sources: PEFT's LoraConfig, and vLLM's reading of it (vllm/lora/peft_helper.py, vllm/lora/lora_model.py,
vllm/lora/utils.py, vllm/config/lora.py) and of names of tensors (hf_to_vllm_mapper in vllm/model_executor/models).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from serving.errors import ReleaseError, RequestError

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
    "trainable_token_indices": "trained token embeddings (trainable_token_indices)",
}
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""Initialisations that need another base model than the one that is named."""

PREFIX = "base_model."
"""What PEFT writes before the names of an adapter's tensors, and no model's own have."""
_TENSOR = re.compile(
    r"(base_model\.model\.)?(?P<module>.+)\.(lora_(?P<side>[AB])\.weight|lora_embedding_(?P<table>[AB]))"
)
_UNTOUCHED = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
"""Copies of the base's own tensors, which vLLM passes over."""

_TABLES = {"embed_tokens", "embed_tokens_per_layer", "lm_head"}
"""What vLLM adapts of no Gemma: they are no linear layers."""

_GEMMA_4 = (
    ("model.language_model.", "language_model.model."),
    ("model.vision_", "vision_"),
    ("model.audio_", "audio_"),
    ("model.embed_vision.", "embed_vision."),
    ("model.embed_audio.", "embed_audio."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
_RENAMED = {
    "Gemma3ForCausalLM": (),
    "Gemma3ForConditionalGeneration": (
        ("model.language_model.", "language_model.model."),
        ("model.vision_tower.", "vision_tower."),
        ("model.multi_modal_projector.", "multi_modal_projector."),
        ("lm_head.", "language_model.lm_head."),
    ),
    "Gemma4ForCausalLM": (("model.language_model.", "model."),),
    "Gemma4ForConditionalGeneration": _GEMMA_4,
    "Gemma4UnifiedForConditionalGeneration": _GEMMA_4,
}
"""How the names in a checkpoint or an adapter begin, and how they do in vLLM's model of the architecture."""


class InertError(ReleaseError):
    """An adapter that would do nothing: the engine answers as if there were none."""


def rank(where: str, config: dict[str, Any]) -> int:
    """An adapter's largest rank, by its adapter_config.json. Raises RequestError for one that vLLM cannot serve."""
    if config.get("peft_type", "LORA") != "LORA":
        raise RequestError(f"{where} is of the kind {config['peft_type']}: vLLM serves LORA alone")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if not all(type(value) is int and value > 0 for value in ranks):
        raise RequestError(f"{where}: its rank r is {config.get('r')!r}, not a whole number above 0")
    if missing := sorted({"lora_alpha", "target_modules"} - config.keys()):
        raise RequestError(f"{where} does not say {' and '.join(missing)}, without which vLLM does not load it")
    if config["lora_alpha"] == 0 and not config.get("alpha_pattern"):
        raise RequestError(f"{where}: its lora_alpha is 0, so it would do nothing")
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


def check_tensors(names: Iterable[str], base: Iterable[str], architecture: str) -> None:
    """Checks that an adapter's tensors are a LoRA's, and are meant for the model whose tensors are `base` (none: nobody
    knows them).

    vLLM itself serves an adapter none of whose modules the model has, and answers as if there were none. Raises
    InertError for one that would do nothing, ReleaseError for one that vLLM would not load. Of an architecture whose
    names nobody has told us, only what holds for all is checked.
    """
    sides: dict[str, set[str]] = {}
    for name in names:
        if name.endswith(_UNTOUCHED):
            continue
        found = _TENSOR.fullmatch(name)
        if not found:
            raise ReleaseError(f"its tensor {name} is no LoRA weight that vLLM could load")
        sides.setdefault(found["module"], set()).add(found["side"] or found["table"])
    if not sides:
        raise InertError("it holds no LoRA weights")
    if halves := sorted(module for module, there in sides.items() if there != {"A", "B"}):
        raise ReleaseError(f"of its {halves[0]} only lora_{min(sides[halves[0]])} is there: A and B go together")
    theirs = {_module(name.rpartition(".")[0], architecture) for name in base}
    if not theirs or architecture not in _RENAMED:
        return
    adapted = {_last(module) for module in theirs} - _TABLES
    if strange := sorted(module for module in sides if _last(_module(module, architecture)) not in adapted):
        raise ReleaseError(f"it adapts {strange[0]}, and vLLM adapts no {_last(strange[0])} of a {architecture}")
    if not any(_module(module, architecture) in theirs for module in sides):
        raise InertError(f"the model has none of its modules ({min(sides)} is one): it was made for another")


def _module(name: str, architecture: str) -> str:
    """What vLLM calls the module of a tensor; all experts of a layer are one."""
    for theirs, ours in _RENAMED.get(architecture, ()):
        if f"{name}.".startswith(theirs):
            name = (ours + f"{name}."[len(theirs) :]).removesuffix(".")
            break
    before, experts, _ = f"{name}.".partition(".experts.")
    return f"{before}.experts" if experts else name


def _last(module: str) -> str:
    return module.rpartition(".")[2]
