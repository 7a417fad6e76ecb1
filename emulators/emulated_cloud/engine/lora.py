"""LoRA adapters: opened, checked against the base model, loaded and unloaded at run time."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated_cloud.engine.architectures import renamed
from emulated_cloud.engine.checkpoint import BadModel, Checkpoint, Tensor, read_shard, sample

LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
COPIES_OF_THE_BASE = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
NOT_ADAPTED = {"embed_tokens", "embed_tokens_per_layer", "lm_head"}
NOT_SUPPORTED = {
    "alora_invocation_tokens": "Activated LoRA (aLoRA)",
    "layer_replication": "layer_replication",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA)",
    "use_qalora": "QALoRA",
}
PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")


class AdapterNotFound(Exception):
    """There is no adapter at the path."""


class AdapterFailed(Exception):
    """The adapter is there but does not fit, in vLLM's words."""

    def __init__(self, words: str):
        super().__init__(f"Call to add_lora method failed: {words}")


@dataclass
class Adapter:
    """A loaded adapter."""

    name: str
    path: str
    digest: bytes
    base_model_name: str | None = None


def open_adapter(name: str, path: str, base: Checkpoint, max_rank: int) -> Adapter:
    """Reads adapter_config.json and the safetensors. Raises AdapterNotFound, AdapterFailed."""
    folder = Path(path)
    weights = folder / "adapter_model.safetensors"
    if not (folder / "adapter_config.json").is_file() or not weights.is_file():
        raise AdapterNotFound(f"Loading lora {name} failed: No adapter found for {path}")
    try:
        config = json.loads((folder / "adapter_config.json").read_bytes())
        if missing := {"r", "lora_alpha", "target_modules"} - set(config):
            raise ValueError(f"Missing required configuration fields: {missing}")
        words = unsupported(config, max_rank)
        tensors, header = read_shard(weights)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterFailed(f"Loading lora {path} failed: {error!r}") from error
    except BadModel as error:
        raise AdapterFailed(f"Loading lora {path} failed: {error}") from error
    if words:
        raise AdapterFailed(" ".join(words))
    check_tensors(path, tensors, base, max_rank)
    return Adapter(name, path, hashlib.sha256(header + sample(weights)).digest())


def check_tensors(path: str, tensors: dict[str, Tensor], base: Checkpoint, max_rank: int) -> None:
    """Raises AdapterFailed for what vLLM does not load (vllm/lora/lora_model.py). A module that the model does not have
    is passed over, as there, as long as its last name is that of some layer."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.endswith(COPIES_OF_THE_BASE):
            continue
        match = LORA_TENSOR.fullmatch(key)
        if not match:
            raise AdapterFailed(f"{key} is unsupported LoRA weight")
        modules.setdefault(renamed(match["module"], base.architecture), {})[match["side"]] = tensor
    layers = {
        renamed(key, base.architecture).removesuffix(".weight"): tensor.shape
        for key, tensor in base.tensors.items()
        if len(tensor.shape) == 2
    }
    expected = {layer.rsplit(".", 1)[-1] for layer in layers} - NOT_ADAPTED
    if received := [module for module in modules if module.rsplit(".", 1)[-1] not in expected]:
        raise AdapterFailed(
            f"While loading {path}, expected target modules in {expected} but received {received}. "
            "Please verify that the loaded LoRA module is correct"
        )
    if not modules:
        raise AdapterFailed("")  # A StopIteration, which has no words.
    if any(set(sides) != {"A", "B"} for sides in modules.values()):
        raise AdapterFailed("unsupported operand type(s) for *=: 'NoneType' and 'float'")
    for module, sides in modules.items():
        outputs, inputs = layers.get(module, (sides["B"].shape[0], sides["A"].shape[-1]))
        rank = min(sides["A"].shape[0], max_rank)
        for side, shape in (("A", (rank, inputs)), ("B", (outputs, rank))):
            if sides[side].shape != shape:
                raise AdapterFailed(
                    f"Loading lora {path} failed: {module}.lora_{side} has shape {list(sides[side].shape)}, expected "
                    f"{list(shape)}"
                )


def unsupported(config: dict[str, Any], max_rank: int) -> list[str]:
    """What of an adapter's configuration vLLM does not do, in its words (vllm/lora/peft_helper.py)."""
    words = []
    if modules := [name for name in config.get("modules_to_save") or () if name not in ("classifier", "score")]:
        words.append(
            "vLLM only supports modules_to_save being either None or "
            f'["classifier", "score"] for classification models. Unsupported modules_to_save: {modules}'
        )
    if config.get("use_dora"):
        words.append("vLLM does not yet support DoRA.")
    if config.get("lora_bias"):
        words.append("vLLM does not support LoRA bias (lora_bias).")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        words.append(f"vLLM does not support init_lora_weights={start!r}.")
    for key, name in NOT_SUPPORTED.items():
        if config.get(key):
            words.append(f"vLLM does not support {name}.")
    rank = max(config["r"], *(config.get("rank_pattern") or {}).values(), 0)
    if rank > max_rank:
        words.append(f"LoRA rank {rank} is greater than max_lora_rank {max_rank}.")
    if config.get("bias", "none") != "none":
        words.append("Adapter bias is not supported.")
    return words


def resolve(name: str, cache: str | None, base_model: str) -> str | None:
    """The filesystem resolver's path for an adapter that nobody loaded, or None.

    As in vLLM, adapter_config.json must name the base model exactly as the engine was given it.
    """
    if not cache or "/" in name or name in ("", ".", ".."):
        return None
    folder = Path(cache) / name
    try:
        config: dict[str, Any] = json.loads((folder / "adapter_config.json").read_bytes())
    except (OSError, ValueError):
        return None
    if config.get("peft_type") == "LORA" and config.get("base_model_name_or_path") == base_model:
        return str(folder)
    return None
