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


def settled(settings: Settings, deployment: Object) -> bool:
    """Whether a Deployment's replicas are its owner's: those of the settings, or any that an autoscaler has chosen.
    None at all are nobody's: a kept generation rests."""
    there = wanted(deployment)
    return there > 0 and (there == settings.serving.replicas or owner(settings) == "autoscaler")


def scale(cluster: Cluster, settings: Settings, generation: str, replicas: int) -> None:
    """Sets the pods that the generation's Deployment is to have. Raises ApiError when there is no Deployment."""
    name = names.server(generation)
    cluster.patch("Deployment", name, settings.namespace, {"spec": {"replicas": replicas}}, subresource="scale")
