"""Which accelerators come when a generation is to have more pods than it needs, and how many of each.

A choice that has no capacity left says nothing about a release, so nothing here is a verdict. What was asked for
beyond the settings' replicas is given back, whatever happens; a run that is killed in between leaves pods that the next
one scales down (their number is not the settings').
"""

from __future__ import annotations

import time

from components.verify_placement.pods import condition, node_of
from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import pods, replicas
from serving.errors import InconclusiveError
from serving.log import Say
from serving.settings import Settings, in_seconds
from serving.weights.release import Release

_KINDS = ("cloud.google.com/gke-accelerator", "cloud.google.com/gke-tpu-accelerator")
"""Labels of nodes that say what they have."""
_SPOT = "cloud.google.com/gke-spot"


def verify(cluster: Cluster, settings: Settings, release: Release, say: Say) -> tuple[dict[str, list[str]], list[str]]:
    """(the ready pods of each accelerator, why no more came, in words of the scheduler). Raises InconclusiveError where
    no pod is ready."""
    asked = settings.section("gpu-or-tpu").placement_pods
    given_back = replicas.owner(settings) == "settings" and asked > settings.serving.replicas
    if not given_back:
        return _placement(cluster, settings, release), []
    say(f"asking for {asked} pods, to see which accelerators come")
    replicas.scale(cluster, settings, release.generation, asked)
    try:
        _wait(cluster, settings, release, asked, say)
        return _placement(cluster, settings, release), _waiting(cluster, settings, release)
    finally:
        replicas.scale(cluster, settings, release.generation, settings.serving.replicas)
        say(f"back to {settings.serving.replicas}")


def in_words(placement: dict[str, list[str]]) -> str:
    """2 on nvidia-l4, 1 on tpu-v6e-slice (spot)."""
    return ", ".join(f"{len(there)} on {kind}" for kind, there in placement.items())


def _wait(cluster: Cluster, settings: Settings, release: Release, asked: int, say: Say) -> None:
    """Until all are ready; or no longer than for a node, and for a server on it that has one."""
    begun, serving = time.monotonic(), settings.serving
    without_node = begun + in_seconds(serving.capacity_timeout)
    last = without_node + in_seconds(serving.ready_timeout)
    labels = names.selector(settings, release.generation)
    told = -1
    with cluster.follow(Subject("Pod", settings.namespace, labels=labels)) as changes:
        for _ in changes.until(last):
            there = pods.of(cluster, settings, release.generation)
            coming = [pod for pod in there if not pods.is_ready(pod)]
            come = len(there) - len(coming)
            if come != told:
                say(f"{come} of {asked} pods are ready")
                told = come
            if come >= asked:
                return
            if time.monotonic() > without_node and not any(pod["spec"].get("nodeName") for pod in coming):
                return


def _placement(cluster: Cluster, settings: Settings, release: Release) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for pod in pods.ready(cluster, settings, release.generation):
        labels = node_of(cluster, pod)["metadata"].get("labels") or {}
        kind = next((labels[key] for key in _KINDS if key in labels), "no accelerator")
        spot = " (spot)" if labels.get(_SPOT) == "true" else ""
        found.setdefault(f"{kind}{spot}", []).append(pod["metadata"]["name"])
    if not found:
        raise InconclusiveError(
            f"no pod of {release.generation} is ready: its nodes may be gone. See `kubectl -n {settings.namespace} get "
            "pods -o wide`, then run again"
        )
    return dict(sorted(found.items()))


def _waiting(cluster: Cluster, settings: Settings, release: Release) -> list[str]:
    """What the scheduler says of pods that have no node."""
    return [_words(pod) for pod in pods.of(cluster, settings, release.generation) if not pod["spec"].get("nodeName")]


def _words(pod: Object) -> str:
    said = condition(pod, "PodScheduled").get("message") or "it has not been scheduled yet"
    return f"{pod['metadata']['name']} got no node: {said}"
