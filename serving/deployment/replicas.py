"""How many pods a generation has: set through the scale subresource, never in an applied body.

Replicas have one owner: were they in what is applied, every apply would undo an autoscaler.
"""

from __future__ import annotations

from typing import Literal

from serving import names, scenarios
from serving.clients.kubernetes import Cluster, Object
from serving.settings import Settings


def owner(settings: Settings) -> Literal["settings", "autoscaler"]:
    """Who says how many pods a generation has that is neither new nor at rest."""
    scaled = set(settings.chosen_features) & set(scenarios.COLUMNS["scaling"])
    return "autoscaler" if scaled else "settings"


def wanted(deployment: Object) -> int:
    """The pods that a Deployment is to have."""
    return int(deployment["spec"].get("replicas", 1))


def ready(deployment: Object | None) -> int:
    """Ready pods of a Deployment's present template, none without one. While pods of an older template are left, as
    many as are certain: a Deployment does not say whose its ready pods are."""
    status = _status(deployment)
    if deployment is None or status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return 0
    older = status.get("replicas", 0) - status.get("updatedReplicas", 0)
    return max(0, status.get("readyReplicas", 0) - max(0, older))


def rolled_out(deployment: Object) -> bool:
    """Whether a Deployment's present template has all its pods, ready, and no older one has any: an update in place
    that cannot go on (no node, say) leaves old pods that serve, and is not done."""
    status = _status(deployment)
    return 0 < wanted(deployment) <= ready(deployment) and status.get("replicas", 0) == status.get("updatedReplicas", 0)


def answering(deployment: Object | None) -> int:
    """Ready pods of a Deployment, of whatever template."""
    return int(_status(deployment).get("readyReplicas", 0))


def settled(settings: Settings, deployment: Object) -> bool:
    """Whether a Deployment's replicas are its owner's: those of the settings, or any that an autoscaler has chosen.
    None at all are nobody's: a kept generation rests."""
    there = wanted(deployment)
    return there > 0 and (there == settings.serving.replicas or owner(settings) == "autoscaler")


def scale(cluster: Cluster, settings: Settings, generation: str, replicas: int) -> None:
    """Sets the pods that the generation's Deployment is to have. Raises ApiError when there is no Deployment."""
    name = names.server(generation)
    cluster.patch("Deployment", name, settings.namespace, {"spec": {"replicas": replicas}}, subresource="scale")


def _status(deployment: Object | None) -> Object:
    return (deployment or {}).get("status") or {}
