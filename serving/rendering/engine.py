"""What the server is: its image, its flags, its machine. All of it enters the name of a generation."""

from __future__ import annotations

import json
import math
from typing import Any

from serving import catalog, features, image
from serving.settings import Settings
from serving.values import in_seconds
from serving.weights import repositories
from serving.weights.release import Release

MODEL_PATH = "/model"
"""Where a pod finds its weights, in every generation: the path is part of the compile cache's key."""
_ADAPTERS_AT_ONCE = 8
"""Adapters that one batch may mix: each takes its own part of a card's memory."""


def sizing(settings: Settings) -> catalog.Sizing:
    """What the catalog says about the settings' model on their accelerator."""
    return catalog.entry(
        settings.sized_like,
        settings.accelerator.type,
        settings.accelerator.count,
        settings.engine.quantization,
        max_model_len=settings.engine.max_model_len,
        gpu_memory_utilization=settings.engine.gpu_memory_utilization,
    )


def engine_image(settings: Settings) -> str:
    """The engine's image as the pods pull it: from the mirror if there is one."""
    return mirrored(settings, settings.engine.image or catalog.engine_image())


def component_image(settings: Settings) -> str:
    """The image that Jobs run: the one that the pipeline was compiled with, from the mirror if there is one."""
    return mirrored(settings, settings.images.components or image.DEFAULT)


def engine_flags(settings: Settings, release: Release) -> list[str]:
    """The flags of `vllm serve` that make the server what it is; where it listens is not among them."""
    size = sizing(settings)
    flags = [
        *("--served-model-name", settings.model),
        *("--max-model-len", str(size.max_model_len)),
        *("--gpu-memory-utilization", str(size.gpu_memory_utilization)),
    ]
    if size.count > 1:
        flags += ["--tensor-parallel-size", str(size.count)]
    if settings.engine.quantization:
        flags += ["--quantization", settings.engine.quantization]
    flags += _adapter_flags(settings, release.max_lora_rank) + _assistant_flags(settings)
    return [
        *flags,
        *(flag for _, own in features.answers(settings, "flags", release) for flag in own),
        *("--shutdown-timeout", str(math.ceil(in_seconds(settings.serving.request_timeout)))),
        *settings.engine.extra_args,
    ]


def _adapter_flags(settings: Settings, max_lora_rank: int) -> list[str]:
    adapters = sorted(settings.adapters)
    if not adapters:
        return []
    at_once = min(len(adapters), _ADAPTERS_AT_ONCE)
    return [
        *("--enable-lora", "--max-lora-rank", str(max_lora_rank)),
        # vLLM's own is one: requests to another adapter would wait until all of the first's are done.
        *("--max-loras", str(at_once)),
        *(("--max-cpu-loras", str(len(adapters))) if len(adapters) > at_once else ()),
        *("--lora-modules", *(f"{name}={MODEL_PATH}/{repositories.ADAPTERS_FOLDER}/{name}" for name in adapters)),
    ]


def _assistant_flags(settings: Settings) -> list[str]:
    if not settings.assistant:
        return []
    drafted = settings.assistant.num_speculative_tokens or catalog.speculative_tokens(settings.sized_like)
    draft = {"model": f"{MODEL_PATH}/{repositories.ASSISTANT}", "num_speculative_tokens": drafted}
    return ["--speculative-config", json.dumps(draft, separators=(",", ":"))]


def accelerator(settings: Settings) -> dict[str, Any]:
    """The machine of a pod: cards, and the host's part."""
    size, wanted = sizing(settings), settings.accelerator
    return {
        "type": wanted.type,
        "count": wanted.count,
        "spot": wanted.spot,
        "cpu": wanted.cpu or size.cpu,
        "memory": wanted.memory or size.memory,
        "ephemeral_storage": wanted.ephemeral_storage or size.ephemeral_storage,
    }


def mirrored(settings: Settings, image: str) -> str:
    """The image's name in the mirror: REGISTRY/<path of the image>, or as it is without a mirror."""
    if not settings.images.registry:
        return image
    host, slash, path = image.partition("/")
    # As docker reads names: a first part with a dot or a port is a registry, any other belongs to the path.
    has_registry = slash and ("." in host or ":" in host or host == "localhost")
    return f"{settings.images.registry}/{path if has_registry else image}"
