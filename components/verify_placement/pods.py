"""What a pod says of itself, and the node under it."""

from __future__ import annotations

from serving.clients.kubernetes import Cluster, Object
from serving.errors import InconclusiveError


def condition(pod: Object, kind: str) -> Object:
    """A condition of a pod; empty without it."""
    return next((each for each in (pod.get("status") or {}).get("conditions") or [] if each["type"] == kind), {})


def node_of(cluster: Cluster, pod: Object) -> Object:
    """The node under a pod. Raises InconclusiveError when it is gone."""
    name = pod["spec"]["nodeName"]
    if node := cluster.get("Node", name):
        return node
    raise InconclusiveError(f"the node {name} under {pod['metadata']['name']} is not there any more. Run again")
