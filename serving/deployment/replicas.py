"""How many pods a generation has: set through the scale subresource, never in an applied body.

Replicas have one owner. Were they in what is applied, every apply would undo an autoscaler; and an apply that leaves
out what the one before it had takes it away, which leaves one pod.
"""

from __future__ import annotations

from typing import Any, Literal

from serving import names, scenarios
from serving.clients.kubernetes import FIELD_MANAGER, Cluster, ConflictError, Object
from serving.settings import Settings


def owner(settings: Settings) -> Literal["settings", "autoscaler"]:
    """Who says how many pods a generation has that is neither new nor at rest."""
    return "autoscaler" if scenarios.find(settings.scenario).scaling else "settings"


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


def let_go(cluster: Cluster, settings: Settings, generation: str) -> None:
    """Takes the replicas out of what this pipeline's applies own, where a version before has applied them: the next
    apply, which has none, would set them to one."""
    name = names.server(generation)
    while deployment := cluster.get("Deployment", name, settings.namespace):
        metadata = deployment["metadata"]
        owned = metadata.get("managedFields") or []
        fields = [_without_replicas(entry) for entry in owned]
        if fields == owned:
            return
        change = {"managedFields": fields, "resourceVersion": metadata["resourceVersion"]}
        try:
            cluster.patch("Deployment", name, settings.namespace, {"metadata": change})
        except ConflictError:
            continue  # Its status changed, say: who owns what has to be read again.
        return


def _without_replicas(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of managedFields; an apply's of ours without the replicas."""
    spec = entry.get("fieldsV1", {}).get("f:spec", {})
    if (entry.get("manager"), entry.get("operation")) != (FIELD_MANAGER, "Apply") or "f:replicas" not in spec:
        return entry
    rest = {field: owned for field, owned in spec.items() if field != "f:replicas"}
    return {**entry, "fieldsV1": {**entry["fieldsV1"], "f:spec": rest}}
