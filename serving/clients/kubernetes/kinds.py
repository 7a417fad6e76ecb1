"""The kinds that this project touches, and where the API has them."""

from __future__ import annotations

from typing import Any

from serving.errors import RequestError

Object = dict[str, Any]

_PLURALS = {
    "v1": "Namespace ServiceAccount Service ConfigMap Secret Pod Event Node PersistentVolume PersistentVolumeClaim",
    "apps/v1": "Deployment ReplicaSet",
    "batch/v1": "Job",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "policy/v1": "PodDisruptionBudget",
    "networking.k8s.io/v1": "NetworkPolicy",
    "gateway.networking.k8s.io/v1": "HTTPRoute",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding ClusterRole ClusterRoleBinding",
    "storage.k8s.io/v1": "StorageClass",
    "coordination.k8s.io/v1": "Lease",
    "discovery.k8s.io/v1": "EndpointSlice",
    "monitoring.googleapis.com/v1": "PodMonitoring",
}
_CLUSTER_SCOPED = {
    "Namespace",
    "Node",
    "PersistentVolume",
    "StorageClass",
    "ClusterRole",
    "ClusterRoleBinding",
}


def _plural(kind: str) -> str:
    lower = kind.lower()
    if lower.endswith("y"):
        return lower[:-1] + "ies"
    return lower + ("es" if lower.endswith("s") else "s")


KINDS = {kind: (version, _plural(kind)) for version, kinds in _PLURALS.items() for kind in kinds.split()}
"""Kind → (API version, plural) of everything that the project touches."""


def path(kind: str, namespace: str | None, name: str = "") -> str:
    """The path of an object, or of all objects of the kind: in a namespace, or in the whole cluster.

    Raises RequestError for a kind that the project does not touch.
    """
    if kind not in KINDS:
        raise RequestError(f"kind {kind} is not one that this project manages")
    version, plural = KINDS[kind]
    root = "/api/v1" if version == "v1" else f"/apis/{version}"
    scope = f"/namespaces/{namespace}" if namespace and kind not in _CLUSTER_SCOPED else ""
    return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")


def typed(kind: str, item: Object) -> Object:
    """An item of a list, with the type that lists leave out."""
    return {"apiVersion": KINDS[kind][0], "kind": kind, **item}
