"""NVIDIA cards of one node: what a pod asks for, and which nodes have it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from serving import catalog

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release

DEFAULT_TYPE = "nvidia-l4"
"""The accelerator of a deployment whose settings name none."""


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the pods: cards, nodes and their taints."""
    if release is None:
        return {}
    wanted = settings.accelerator
    tolerations = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    selector = {**catalog.node_selector(wanted.type), "cloud.google.com/gke-gpu-driver-version": "latest"}
    if wanted.spot:
        selector["cloud.google.com/gke-spot"] = "true"
        spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        tolerations.append(spot)
    return {"cards": str(wanted.count), "node_selector": selector, "tolerations": tolerations}
