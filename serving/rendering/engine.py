"""What the server is: its image, its flags, its machine. All of it enters the name of a generation."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from serving import catalog, features, image, names
from serving.features import nodes
from serving.image import mirrored as in_mirror
from serving.settings import Settings
from serving.sizing import Sizing
from serving.values import in_seconds
from serving.weights import repositories
from serving.weights.release import Release

MODEL_PATH = "/model"
"""Where a pod finds its weights, in every generation: the path is part of the compile cache's key. (The feature
streamed has its base weights nowhere in the pod: serving/features/streamed.py.)"""


def engine_image(settings: Settings) -> str:
    """The engine's image as the pods pull it: from the mirror if there is one."""
    return mirrored(settings, named_image(settings))


def named_image(settings: Settings) -> str:
    """The engine's image as the settings name it, or the catalog: the same whatever mirror it comes from."""
    return settings.engine.image or _card(settings).kind.image


def pod_image(settings: Settings, release: Release) -> str:
    """The same as a generation's pods pull it: by its digest, where a feature has looked it up."""
    image = engine_image(settings)
    if not release.image_digest:
        return image
    repository, _, last = image.partition("@")[0].rpartition("/")
    return f"{repository}{'/' if repository else ''}{last.partition(':')[0]}@{release.image_digest}"


def component_image(settings: Settings) -> str:
    """The image that Jobs run: the one that the pipeline was compiled with, from the mirror if there is one."""
    return mirrored(settings, settings.images.components or image.DEFAULT)


def engine_flags(settings: Settings, release: Release) -> list[str]:
    """The flags of `vllm serve` that make the server what it is; where it listens is not among them."""
    found, asked = release.sizing, settings.engine
    # Where nobody knows how long a context finds room, vLLM finds out.
    flags = ["--served-model-name", settings.model, "--max-model-len", str(found.max_model_len or "auto")]
    if found.gpu_memory_utilization:
        flags += ["--gpu-memory-utilization", str(found.gpu_memory_utilization)]
    if found.max_num_batched_tokens:
        flags += ["--max-num-batched-tokens", str(found.max_num_batched_tokens)]
    if found.max_num_seqs:
        flags += ["--max-num-seqs", str(found.max_num_seqs)]
    if (cores := _cores(settings)) > 1:
        flags += ["--tensor-parallel-size", str(cores)]
    if asked.quantization:
        flags += ["--quantization", catalog.quantization_flag(asked.quantization, engine_image(settings))]
    if asked.text_only:
        flags += ["--language-model-only"]
    else:
        flags += _card(settings).kind.architecture_flags.get(release.architecture, [])
    flags += _adapter_flags(settings, release.max_lora_rank) + _assistant_flags(settings)
    return [
        *flags,
        *(flag for _, own in features.answers(settings, "flags", release) for flag in own),
        *("--shutdown-timeout", str(math.ceil(in_seconds(settings.serving.request_timeout)))),
        *asked.extra_args,
    ]


def _adapter_flags(settings: Settings, max_lora_rank: int) -> list[str]:
    adapters = sorted(settings.adapters)
    if not adapters or settings.has_live_adapters:
        return []
    at_once = settings.adapters_at_once
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
    drafted = settings.assistant.num_speculative_tokens or catalog.speculative_tokens(settings.model)
    draft = {"model": f"{MODEL_PATH}/{repositories.ASSISTANT}", "num_speculative_tokens": drafted}
    return ["--speculative-config", json.dumps(draft, separators=(",", ":"))]


def api_key(settings: Settings) -> list[dict[str, Any]]:
    """The variable that brings the server's API key into a container, where the server has one: Kubernetes EnvVars."""
    if not settings.engine.api_key_secret:
        return []
    secret = {"name": names.api_key(settings), "key": names.API_KEY}
    return [{"name": names.API_KEY_VARIABLE, "valueFrom": {"secretKeyRef": secret}}]


def accelerator(settings: Settings, release: Release) -> dict[str, Any]:
    """The machine of a pod: cards, and the host's part."""
    wanted, part = settings.accelerator, host(settings, release.sizing)
    reserved = {"reservation": settings.reservation.model_dump()} if settings.capacity == "reservation" else {}
    return {
        "type": wanted.type,
        "count": wanted.count,
        "spot": settings.capacity == "spot",
        **reserved,
        **asdict(part),
    }


def host(settings: Settings, sized: Sizing) -> catalog.Host:
    """The host's part of a pod, by how large the model is on its cards."""
    on_a_card = sized.weights_gib
    return nodes.host(settings, on_a_card and on_a_card * _cores(settings))


def shared_memory(settings: Settings) -> str:
    """How much of its memory a pod's processes may share, as a Kubernetes quantity."""
    on_any = [
        max(2 * own.accelerator.count, _card(own).kind.shared_memory_gib)
        for own in (settings, settings.beside)
        if own is not None
    ]
    return f"{max(on_any)}Gi"


def _card(settings: Settings) -> catalog.Card:
    return catalog.card(settings.accelerator.type)


def _cores(settings: Settings) -> int:
    """The devices that the engine splits the model over."""
    return settings.accelerator.count * _card(settings).cores


def beside(settings: Settings, release: Release) -> tuple[Settings, Release] | None:
    """The deployment and its release as they are on the accelerator that a pod may find in place of the settings' own;
    None where there is no choice."""
    other = settings.beside
    if other is None or release.beside is None:
        return None
    return other, release.model_copy(update={"sizing": release.beside})


def mirrored(settings: Settings, image: str) -> str:
    """The image's name in the settings' mirror, if they have one."""
    return in_mirror(settings.images.registry, image)
