"""LoRA adapters: opened, checked against the base model, loaded and unloaded at run time."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emulated_cloud.engine.checkpoint import BadModel, Checkpoint, read_shard, sample

LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


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
        rank = int(config["r"])
        tensors, header = read_shard(weights)
    except (ValueError, KeyError, TypeError) as error:
        raise AdapterFailed(f"Loading lora {path} failed: {error!r}") from error
    except BadModel as error:
        raise AdapterFailed(f"Loading lora {path} failed: {error}") from error
    if words := unsupported(config, max_rank):
        raise AdapterFailed(" ".join(words))
    bases = {key.removesuffix(".weight"): tensor for key, tensor in base.tensors.items() if key.endswith(".weight")}
    unexpected = []
    for key, tensor in tensors.items():
        match = LORA_TENSOR.fullmatch(key)
        target = bases.get(match["module"]) if match else None
        if match is None or target is None:
            unexpected.append(key)
            continue
        shape = (rank, target.shape[1]) if match["side"] == "A" else (target.shape[0], rank)
        if tensor.shape != shape:
            raise AdapterFailed(
                f"Loading lora {path} failed: {key} has shape {list(tensor.shape)}, expected {list(shape)}"
            )
    if unexpected:
        expected = sorted({module.rsplit(".", 1)[-1] for module in bases if module.endswith("_proj")})
        raise AdapterFailed(
            f"While loading {path}, expected target modules in {expected} but received {unexpected}. "
            "Please verify that the loaded LoRA module is correct"
        )
    return Adapter(name, path, hashlib.sha256(header + sample(weights)).digest())


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
