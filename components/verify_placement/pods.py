"""The pods of a generation, and the nodes under them."""

from __future__ import annotations

from serving.clients.kubernetes import Cluster, Object
from serving.deployment import pods
from serving.errors import InconclusiveError
from serving.settings import Settings
from serving.weights.release import Release


def ready(cluster: Cluster, settings: Settings, release: Release) -> list[Object]:
    """Those of the release's generation that are ready."""
    return [pod for pod in pods.of(cluster, settings, release.generation) if pods.is_ready(pod)]


def condition(pod: Object, kind: str) -> Object:
    """A condition of a pod; empty without it."""
    return next((each for each in (pod.get("status") or {}).get("conditions") or [] if each["type"] == kind), {})


def node_of(cluster: Cluster, pod: Object) -> Object:
    """The node under a pod. Raises InconclusiveError when it is gone."""
    name = pod["spec"]["nodeName"]
    if node := cluster.get("Node", name):
        return node
    raise InconclusiveError(f"the node {name} under {pod['metadata']['name']} is not there any more. Run again")
