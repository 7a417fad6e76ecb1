"""The resources that controllers, GKE's parts and the kubelet use: group, version, plural and scope of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """One resource of the API, as discovery names it."""

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


PODS = Resource("pods", "Pod")
SERVICES = Resource("services", "Service")
ENDPOINTS = Resource("endpoints", "Endpoints")
ENDPOINT_SLICES = Resource("endpointslices", "EndpointSlice", "discovery.k8s.io")
CONFIG_MAPS = Resource("configmaps", "ConfigMap")
SECRETS = Resource("secrets", "Secret")
SERVICE_ACCOUNTS = Resource("serviceaccounts", "ServiceAccount")
EVENTS = Resource("events", "Event")
NAMESPACES = Resource("namespaces", "Namespace", namespaced=False)
NODES = Resource("nodes", "Node", namespaced=False)
LEASES = Resource("leases", "Lease", "coordination.k8s.io")
VOLUMES = Resource("persistentvolumes", "PersistentVolume", namespaced=False)
CLAIMS = Resource("persistentvolumeclaims", "PersistentVolumeClaim")
STORAGE_CLASSES = Resource("storageclasses", "StorageClass", "storage.k8s.io", namespaced=False)
CSI_DRIVERS = Resource("csidrivers", "CSIDriver", "storage.k8s.io", namespaced=False)
DEPLOYMENTS = Resource("deployments", "Deployment", "apps")
REPLICA_SETS = Resource("replicasets", "ReplicaSet", "apps")
JOBS = Resource("jobs", "Job", "batch")
DISRUPTION_BUDGETS = Resource("poddisruptionbudgets", "PodDisruptionBudget", "policy")
