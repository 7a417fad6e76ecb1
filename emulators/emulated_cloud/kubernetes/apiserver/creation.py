"""What happens once, when an object is created: initial status, generated selectors, addresses, admission's additions.

Follows PrepareForCreate of the strategies in k8s.io/kubernetes/pkg/registry, and the few admission plugins whose
additions clients see (default tolerations and service account of pods, default storage class, protection finalizers).
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import forbidden, invalid, invalid_value
from emulated_cloud.kubernetes.apiserver.schema import copied
from emulated_cloud.kubernetes.apiserver.store import Store

Object = dict[str, Any]

SERVICE_RANGE = ipaddress.ip_network("10.96.0.0/16")
NODE_PORTS = range(30000, 32768)

WITH_GENERATION = {
    "CronJob",
    "CustomResourceDefinition",
    "DaemonSet",
    "Deployment",
    "EndpointSlice",
    "Ingress",
    "IngressClass",
    "Job",
    "NetworkPolicy",
    "Pod",
    "PodDisruptionBudget",
    "PriorityClass",
    "ReplicaSet",
    "ReplicationController",
    "StatefulSet",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}
"""Built-in kinds whose objects count the changes of what is wanted."""

_INITIAL_STATUS: dict[str, Object] = {
    "APIService": {},
    "CronJob": {},
    "CustomResourceDefinition": {
        "conditions": [],
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": [],
    },
    "DaemonSet": {
        "currentNumberScheduled": 0,
        "numberMisscheduled": 0,
        "desiredNumberScheduled": 0,
        "numberReady": 0,
    },
    "Deployment": {},
    "HorizontalPodAutoscaler": {"desiredReplicas": 0, "currentMetrics": None},
    "Ingress": {"loadBalancer": {}},
    "Job": {},
    "Namespace": {"phase": "Active"},
    "PersistentVolume": {"phase": "Pending"},
    "PersistentVolumeClaim": {"phase": "Pending"},
    "Pod": {"phase": "Pending"},
    "PodDisruptionBudget": {"disruptionsAllowed": 0, "currentHealthy": 0, "desiredHealthy": 0, "expectedPods": 0},
    "ReplicaSet": {"replicas": 0},
    "ReplicationController": {"replicas": 0},
    "ResourceQuota": {},
    "Service": {"loadBalancer": {}},
    "StatefulSet": {"replicas": 0, "availableReplicas": 0},
    "ValidatingAdmissionPolicy": {},
    "VolumeAttachment": {"attached": False},
}


def prepare(kind: str, item: Object, store: Store, now: str) -> None:
    """Completes a new object of a built-in kind, in place. Raises ApiError 422 for an address that is taken."""
    if kind in WITH_GENERATION:
        item["metadata"]["generation"] = 1
    if kind in _INITIAL_STATUS:
        # Whoever creates an object does not tell how it is doing; only a node's creator does.
        item["status"] = copied(_INITIAL_STATUS[kind])
    complete = _PREPARE.get(kind)
    if complete:
        complete(item, store, now)


def qos_class(spec: Object) -> str:
    """QoS class of a pod: Guaranteed, Burstable or BestEffort (core/v1/helper/qos)."""
    resources = [container.get("resources", {}) for container in _containers(spec)]
    compute = ("cpu", "memory")
    if not any(
        name in entry.get(part, {}) for entry in resources for part in ("limits", "requests") for name in compute
    ):
        return "BestEffort"
    for entry in resources:
        limits, requests = entry.get("limits", {}), entry.get("requests", {})
        if any(name not in limits or requests.get(name, limits[name]) != limits[name] for name in compute):
            return "Burstable"
    return "Guaranteed"


def _containers(spec: Object) -> list[Object]:
    return [*spec.get("initContainers", []), *spec.get("containers", [])]


_TOKEN_MOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105


def _pod(item: Object, store: Store, now: str) -> None:
    spec = item["spec"]
    item["status"]["qosClass"] = qos_class(spec)
    _service_account(item, store)
    tolerate_unready_nodes(spec)
    wanted = spec.get("priorityClassName")
    chosen = store.get(("scheduling.k8s.io", "priorityclasses"), "", wanted) if wanted else None
    spec["priority"] = chosen["value"] if chosen else 0
    spec["preemptionPolicy"] = (chosen or {}).get("preemptionPolicy", "PreemptLowerPriority")


def tolerate_unready_nodes(spec: Object) -> None:
    """Five minutes on a node that is not ready, unless the pod says otherwise (DefaultTolerationSeconds)."""
    tolerations = spec.setdefault("tolerations", [])
    for key in ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"):
        tolerated = any(
            entry.get("key", key) == key and entry.get("effect") in (None, "NoExecute") for entry in tolerations
        )
        if not tolerated:
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})


def _service_account(item: Object, store: Store) -> None:
    """The service account and its token, as the ServiceAccount admission plugin adds them. Raises ApiError 403."""
    spec = item["spec"]
    name = spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = name
    namespace = item["metadata"]["namespace"]
    account = store.get(("", "serviceaccounts"), namespace, name)
    if account is None and name != "default":
        why = f'error looking up service account {namespace}/{name}: serviceaccount "{name}" not found'
        raise forbidden("", "pods", item["metadata"]["name"], why)
    # A namespace's default account comes moments after it, and the real server waits for that.
    account = account or {}
    if not spec.get("automountServiceAccountToken", account.get("automountServiceAccountToken", True)):
        return
    lacking = [
        container
        for container in _containers(spec)
        if all(mount["mountPath"] != _TOKEN_MOUNT for mount in container.get("volumeMounts", []))
    ]
    if not lacking:
        return
    volume = f"kube-api-access-{random_suffix()}"
    for container in lacking:
        mount = {"name": volume, "readOnly": True, "mountPath": _TOKEN_MOUNT}
        container.setdefault("volumeMounts", []).append(mount)
    sources: list[Object] = [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {
            "downwardAPI": {
                "items": [{"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}]
            }
        },
    ]
    spec.setdefault("volumes", []).append({"name": volume, "projected": {"sources": sources, "defaultMode": 0o644}})


def random_suffix() -> str:
    """Five characters as generated names end in (no vowels, so no words)."""
    return "".join(random.choices("bcdfghjklmnpqrstvwxz2456789", k=5))


def _namespace(item: Object, store: Store, now: str) -> None:
    item["spec"] = {"finalizers": ["kubernetes"]}


def _definition(item: Object, store: Store, now: str) -> None:
    versions = item["spec"].get("versions", [])
    item["status"]["storedVersions"] = [version["name"] for version in versions if version.get("storage")]


def _job(item: Object, store: Store, now: str) -> None:
    spec, metadata = item["spec"], item["metadata"]
    if spec.get("manualSelector"):
        return
    uid = metadata["uid"]
    labels = {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": metadata["name"],
        "controller-uid": uid,
        "job-name": metadata["name"],
    }
    template = spec["template"].setdefault("metadata", {})
    template["labels"] = {**template.get("labels", {}), **labels}
    metadata["labels"] = metadata.get("labels") or dict(template["labels"])
    spec.setdefault("selector", {}).setdefault("matchLabels", {})["batch.kubernetes.io/controller-uid"] = uid


def _claim(item: Object, store: Store, now: str) -> None:
    item["metadata"].setdefault("finalizers", []).append("kubernetes.io/pvc-protection")
    spec = item["spec"]
    source, reference = spec.get("dataSource"), spec.get("dataSourceRef")
    if source and not reference:
        spec["dataSourceRef"] = dict(source)
    elif reference and not source and not reference.get("namespace"):
        groups = {("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")}
        if (reference.get("apiGroup", ""), reference.get("kind")) in groups:
            spec["dataSource"] = dict(reference)
    if "storageClassName" not in spec:
        classes = [
            each
            for each in store.list(("storage.k8s.io", "storageclasses"))
            if each["metadata"].get("annotations", {}).get("storageclass.kubernetes.io/is-default-class") == "true"
        ]
        if classes:
            newest = max(classes, key=lambda each: each["metadata"]["creationTimestamp"])
            spec["storageClassName"] = newest["metadata"]["name"]


def _volume(item: Object, store: Store, now: str) -> None:
    item["metadata"].setdefault("finalizers", []).append("kubernetes.io/pv-protection")
    item["status"]["lastPhaseTransitionTime"] = now


def _service(item: Object, store: Store, now: str) -> None:
    allocate_service(item, None, store)


def allocate_service(item: Object, live: Object | None, store: Store) -> None:
    """Gives a Service its cluster address and node ports, keeping those that `live` has."""
    spec, before = item["spec"], (live or {}).get("spec", {})
    if spec["type"] not in ("NodePort", "LoadBalancer") and before.get("type") in ("NodePort", "LoadBalancer"):
        for name in ("allocateLoadBalancerNodePorts", "externalTrafficPolicy"):
            if spec.get(name) == before.get(name):
                spec.pop(name, None)
    if spec["type"] == "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            spec.pop(name, None)
        return
    others = [
        each["spec"]
        for each in store.list(("", "services"))
        if each["metadata"]["uid"] != item["metadata"]["uid"] and each["spec"].get("clusterIP")
    ]
    taken = {address for other in others for address in other.get("clusterIPs", [])}
    address = spec.get("clusterIP") or before.get("clusterIP")
    if not address:
        address = _free_address(taken)
    elif address != "None" and ipaddress.ip_address(address) not in SERVICE_RANGE:
        why = f"failed to allocate IP {address}: the provided network does not match the current range"
        raise invalid("", "Service", item["metadata"]["name"], [invalid_value("spec.clusterIPs", [address], why)])
    elif address != "None" and address in taken:
        why = f"failed to allocate IP {address}: provided IP is already allocated"
        raise invalid("", "Service", item["metadata"]["name"], [invalid_value("spec.clusterIPs", [address], why)])
    spec["clusterIP"], spec["clusterIPs"] = address, [address]
    spec.setdefault("ipFamilies", ["IPv4"])
    spec.setdefault("ipFamilyPolicy", "SingleStack")
    if spec["type"] not in ("NodePort", "LoadBalancer"):
        for port in spec.get("ports", []):
            if live and before.get("type") in ("NodePort", "LoadBalancer"):
                port.pop("nodePort", None)
        return
    if spec["type"] == "LoadBalancer" and not spec.get("allocateLoadBalancerNodePorts", True):
        return
    used = {port.get("nodePort") for other in others for port in other.get("ports", [])}
    had = {(port["port"], port.get("protocol")): port.get("nodePort") for port in before.get("ports", [])}
    for port in spec.get("ports", []):
        if not port.get("nodePort"):
            kept = had.get((port["port"], port.get("protocol")))
            port["nodePort"] = kept or next(each for each in NODE_PORTS if each not in used)
            used.add(port["nodePort"])


def _free_address(taken: set[str]) -> str:
    """An address as the real allocator picks it: at random from the upper part of the range."""
    first = int(SERVICE_RANGE.network_address)
    while True:
        address = str(ipaddress.ip_address(first + random.randrange(256, SERVICE_RANGE.num_addresses - 1)))
        if address not in taken:
            return address


_PREPARE: dict[str, Callable[[Object, Store, str], None]] = {
    "CustomResourceDefinition": _definition,
    "Pod": _pod,
    "Namespace": _namespace,
    "Job": _job,
    "PersistentVolumeClaim": _claim,
    "PersistentVolume": _volume,
    "Service": _service,
}
