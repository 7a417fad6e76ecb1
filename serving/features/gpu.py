"""NVIDIA cards of one node: what a pod asks for, and which nodes have it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from serving.errors import InconclusiveError
from serving.features import Explanation, Symptom, nodes

if TYPE_CHECKING:
    from serving.catalog import Host
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

RENAMED = {
    "engine.sizing_like": "gone: the model's own files say what it needs",
    "accelerator.spot": "`capacity: spot`",
}
DEFAULT_TYPE = "nvidia-l4"
"""The accelerator of a deployment whose settings name none."""

_MEANINGS = (
    (
        r"driver on your system is too old|driver version is insufficient|unsatisfied condition: cuda"
        r"|\bError 80[34]\b|unsupported display driver|driver/library version mismatch",
        "the NVIDIA driver under {pod} does not go with engine.image. Run again: a driver that was just replaced fits "
        "after its node's restart. If it stays, the node pool needs the driver version latest, or engine.image is to "
        "be one for older drivers (its tag ends in -cu129)",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|driver not loaded"
        r"|libcuda\.so\S*: cannot open|nvidia-container-cli|nvml error",
        "{pod} sees no NVIDIA card on its node, whose driver is not installed or has failed. Run again; `kubectl -n "
        "kube-system get pods -o wide` shows nvidia-gpu-device-plugin there",
    ),
    (
        r"Free memory on device\b.* on startup is less than",
        "something else holds memory of the card under {pod}: a server that has not gone yet, or a card that is "
        "shared. Run again",
    ),
    (
        # Want of the card's memory, and what the model itself asserts on the card, are the release's.
        r"CUDA error: (?!out of memory|device-side assert)|CUDNN_STATUS_|CUBLAS_STATUS_(?!ALLOC)"
        r"|NCCL error|\bnccl\w*Error|fallen off the bus|uncorrectable ECC",
        "a card of {pod}, or its link to another, failed. Run again, on another node if it stays",
    ),
)
"""Pattern in an engine's log, or in the words of the container runtime → what it means, and the cure."""


def check(settings: Settings) -> None:
    """Raises RequestError for an accelerator that is no NVIDIA card."""
    nodes.check(settings, "gpu")


def holds(settings: Settings, asked: Host) -> None:
    """Raises RequestError for a pod that is more than any of their machines."""
    nodes.hold(settings, asked)


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster that has no such nodes."""
    nodes.suits(settings, look)


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the pods: cards, nodes and their taints."""
    return nodes.values(settings) if release else {}


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What drivers and cards do to an engine: never the release's doing."""
    if symptom.kind != "words":
        return nodes.explain(settings, symptom)
    for pattern, meaning in _MEANINGS:
        if re.search(pattern, symptom.words):
            return Explanation(InconclusiveError, meaning.format(pod=symptom.pod))
    return None
