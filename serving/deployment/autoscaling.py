"""The autoscaler of a generation, where a feature scales: how few pods it may leave, and when.

A generation that is to take over has as many pods as the one that serves, so its autoscaler keeps as many, though
nobody calls it yet. When it serves, the settings' minimum holds. A generation at rest needs nothing: an autoscaler lets
a Deployment of zero replicas alone.
"""

from __future__ import annotations

from serving import names, scenarios
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import leftovers, objects, record, replicas
from serving.log import Say
from serving.rendering import manifests, render
from serving.settings import Settings

KIND = "HorizontalPodAutoscaler"


def least(cluster: Cluster, settings: Settings, live: str, generation: str) -> int:
    """The pods that a generation needs to take over from the live one; 0 where that is itself, or nobody scales."""
    if live in ("", generation) or replicas.owner(settings) == "settings":
        return 0
    there = cluster.get("Deployment", names.server(live), settings.namespace)
    down = record.read(cluster, settings).down  # One that made room (replacement.py) counts as it was.
    return bounded(settings, generation, down.replicas if down else replicas.answering(there))


def bounded(settings: Settings, generation: str, pods: int) -> int:
    """As many of these pods as the settings let a generation have."""
    most = [item["spec"]["maxReplicas"] for item in render.scaling(settings, generation) if item["kind"] == KIND]
    return min([pods, *most])


def keeping(item: Object, pods: int) -> Object:
    """An autoscaler that leaves at least so many pods, as far as its maximum allows; any other object as it is."""
    if item["kind"] != KIND:
        return item
    spec = item["spec"]
    wanted = min(max(spec["minReplicas"], pods), spec["maxReplicas"])
    return {**item, "spec": {**spec, "minReplicas": wanted}}


def put(cluster: Cluster, settings: Settings, generation: str, run_id: str, say: Say, *, pods: int = 0) -> None:
    """Has the generation scaled as the settings say, or no longer, if they do not; never to fewer than `pods`."""
    withdraw(cluster, settings, generation, say)
    for item in render.scaling(settings, generation):
        item["metadata"]["labels"][names.RUN] = run_id
        objects.put(cluster, keeping(item, pods), say)


def renew(cluster: Cluster, settings: Settings, generation: str, run_id: str, say: Say) -> None:
    """Has a generation that serves now scaled as the settings say.

    Its autoscaler is made anew: the old one remembers a time in which nobody called, and would let pods go at once. A
    new one keeps the pods that it finds as long as its window for scaling down says.
    """
    for item in _there(cluster, settings, generation):
        if item["kind"] == KIND:
            cluster.delete(item)
    put(cluster, settings, generation, run_id, say)


def withdraw(cluster: Cluster, settings: Settings, generation: str, say: Say) -> None:
    """Takes away what scales the generation and is not in the settings any more."""
    wanted = {item["kind"] for item in render.scaling(settings, generation)}
    idle = [item for item in _there(cluster, settings, generation) if item["kind"] not in wanted]
    leftovers.delete(cluster, idle, say)


def amiss(cluster: Cluster, settings: Settings, generation: str) -> str:
    """In what the autoscaler of a generation that serves is not as the settings want it, in words: a run that died, or
    a person, left it so."""
    there = {item["kind"]: item for item in _there(cluster, settings, generation)}
    wanted = {item["kind"]: item for item in render.scaling(settings, generation)}
    for kind in wanted.keys() - there.keys():
        return f"its {kind} is gone"
    for kind in there.keys() - wanted.keys():
        return f"it has a {kind}, and the settings scale nothing"
    for bound in ("minReplicas", "maxReplicas") if KIND in wanted else ():
        has, should = there[KIND]["spec"].get(bound), wanted[KIND]["spec"][bound]
        if has != should:
            return f"its autoscaler has {bound} {has} instead of {should}"
    return ""


def _there(cluster: Cluster, settings: Settings, generation: str) -> list[Object]:
    """What there is of all that may scale a generation, whatever features the settings have."""
    kinds = {
        item["kind"]
        for feature in scenarios.COLUMNS["scaling"]
        for item in manifests.of_any_variant(feature, "generation").values()
    }
    selector = names.selector(settings, generation)
    return [
        item for kind in sorted(kinds) for item in leftovers.list_served(cluster, kind, settings.namespace, selector)
    ]
