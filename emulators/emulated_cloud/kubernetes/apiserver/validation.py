"""Validation of built-in kinds: required fields, enumerations, ranges, immutable fields.

The rules and their words are those of k8s.io/apimachinery/pkg/api/validation and of
k8s.io/kubernetes/pkg/apis/*/validation, for the fields that the scenarios use. What the schema alone says (a required
field is absent) is found for every kind.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors, names, pod_security, pod_validation, policy_validation
from emulated_cloud.kubernetes.apiserver import workload_validation as workloads
from emulated_cloud.kubernetes.apiserver.errors import Cause, forbidden_value, invalid_value, not_supported, required
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.schema import Schema
from emulated_cloud.kubernetes.quantity import parse_quantity

Object = dict[str, Any]


def causes(resource: Resource, item: Object, live: Object | None, subresource: str = "") -> list[Cause]:
    """What is wrong with an object of a built-in kind; and with its change, where there is a `live` one."""
    found = names.metadata_causes(resource, item, live)
    if subresource in ("status", "finalize"):
        return found
    check = _CHECKS.get(resource.kind)
    if check:
        found += check(item)
    if live is not None:
        found += _immutable(resource.kind, item, live)
        compare = _CHANGES.get(resource.kind)
        if compare:
            found += compare(item, live)
    # A field that a check has judged already is not reported as absent once more.
    judged = {cause.field for cause in found}
    return found + [cause for cause in _absent(resource.schema, item, "") if cause.field not in judged]


def _absent(schema: Schema, value: Any, path: str) -> list[Cause]:
    """Required fields that are not there. A status is the server's own, and metadata is judged by names.py."""
    if isinstance(value, list) and schema.kind == "list":
        return [
            cause for index, item in enumerate(value) for cause in _absent(schema.element, item, f"{path}[{index}]")
        ]
    if not isinstance(value, dict) or schema.kind != "map":
        return []
    found = []
    for name in schema.raw.get("required", []):
        if name not in value:
            found.append(required(f"{path}.{name}" if path else name))
    for name, item in value.items():
        field = f"{path}.{name}" if path else name
        if field not in ("metadata", "status"):
            found += _absent(schema.of(name), item, field)
    return found


def _immutable(kind: str, item: Object, live: Object) -> list[Cause]:
    found = []
    for path in _IMMUTABLE_FIELDS.get(kind, ()):
        before, after = _at(live, path), _at(item, path)
        if before != after:
            found.append(invalid_value(path, after, workloads.IMMUTABLE))
    if kind in ("ConfigMap", "Secret") and live.get("immutable"):
        if item.get("immutable") is not True:
            found.append(forbidden_value("immutable", "field is immutable when `immutable` is set"))
        for name in ("data", "binaryData"):
            if item.get(name) != live.get(name):
                found.append(forbidden_value(name, "field is immutable when `immutable` is set"))
    return found


def _at(item: Object, path: str) -> Any:
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


_IMMUTABLE_FIELDS: dict[str, tuple[str, ...]] = {
    "Deployment": ("spec.selector",),
    "ReplicaSet": ("spec.selector",),
    "DaemonSet": ("spec.selector",),
    "Job": ("spec.selector", "spec.completionMode"),
    "StorageClass": ("volumeBindingMode",),
    "Secret": ("type",),
    "PriorityClass": ("value",),
    "EndpointSlice": ("addressType",),
}


_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")


def _service(item: Object) -> list[Cause]:
    spec = item["spec"]
    found: list[Cause] = []
    ports, sort = spec.get("ports", []), spec["type"]
    if not ports and spec.get("clusterIP") != "None" and sort != "ExternalName":
        found.append(required("spec.ports"))
    seen: set[str] = set()
    for index, port in enumerate(ports):
        found += _service_port(port, f"spec.ports[{index}]", len(ports) > 1, seen)
    if spec["sessionAffinity"] not in ("ClientIP", "None"):
        found.append(not_supported("spec.sessionAffinity", spec["sessionAffinity"], ("ClientIP", "None")))
    if sort not in _SERVICE_TYPES:
        found.append(not_supported("spec.type", sort, _SERVICE_TYPES))
    if sort == "ExternalName" and not spec.get("externalName"):
        found.append(required("spec.externalName"))
    if sort not in ("LoadBalancer", "NodePort") and "externalTrafficPolicy" in spec:
        detail = "may only be set for externally-accessible services"
        found.append(invalid_value("spec.externalTrafficPolicy", spec["externalTrafficPolicy"], detail))
    places = [(port.get("protocol"), port.get("port")) for port in ports]
    for index, (protocol, number) in enumerate(places):
        if (protocol, number) in places[:index]:
            shown = {
                "Name": "",
                "Protocol": protocol,
                "AppProtocol": None,
                "Port": number,
                "TargetPort": 0,
                "NodePort": 0,
            }
            found.append(errors.duplicate(f"spec.ports[{index}]", shown))
    return found + names.label_causes(spec.get("selector", {}), "spec.selector")


def _service_port(port: Object, path: str, named: bool, seen: set[str]) -> list[Cause]:
    found = []
    name = port.get("name", "")
    if named and not name:
        found.append(required(f"{path}.name"))
    elif name:
        found += [invalid_value(f"{path}.name", name, words) for words in names.dns_label(name)]
        if name in seen:
            found.append(errors.duplicate(f"{path}.name", name))
        seen.add(name)
    found += pod_validation.port_causes(port.get("port", 0), f"{path}.port")
    if port["protocol"] not in ("SCTP", "TCP", "UDP"):
        found.append(not_supported(f"{path}.protocol", port["protocol"], ("SCTP", "TCP", "UDP")))
    target = port.get("targetPort")
    if isinstance(target, int):
        found += pod_validation.port_causes(target, f"{path}.targetPort")
    elif isinstance(target, str):
        found += [invalid_value(f"{path}.targetPort", target, words) for words in names.port_name(target)]
    return found


def _service_change(item: Object, live: Object) -> list[Cause]:
    before, after = live["spec"], item["spec"]
    address = before.get("clusterIP")
    if address and after["type"] != "ExternalName" and after.get("clusterIP") != address:
        detail = "may not change once set"
        return [invalid_value("spec.clusterIPs[0]", [after.get("clusterIP")], detail)]
    return []


def _access_modes(modes: list[str], path: str) -> list[Cause]:
    choices = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")
    found = [not_supported(path, mode, choices) for mode in modes if mode not in choices]
    if "ReadWriteOncePod" in modes and len(modes) > 1:
        found.append(forbidden_value(path, "may not use ReadWriteOncePod with other access modes"))
    return found


def _storage(spec: Object, amount: Any, field: str) -> list[Cause]:
    """What claims and volumes have in common."""
    found = []
    if amount is not None and (value := parse_quantity(amount)) <= 0:
        if value < 0:
            found.append(errors.Cause("FieldValueInvalid", f"Invalid value: {amount}: {_NO_QUANTITY}", field))
        found.append(invalid_value(field, str(amount), "must be greater than zero"))
    if name := spec.get("storageClassName"):
        found += [invalid_value("spec.storageClassName", name, words) for words in names.dns_subdomain(name)]
    mode = spec.get("volumeMode")
    if mode not in (None, "Block", "Filesystem"):
        found.append(not_supported("spec.volumeMode", mode, ("Block", "Filesystem")))
    return found


_NO_QUANTITY = "must be a valid resource quantity"


def _volume(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = [] if spec.get("accessModes") else [required("spec.accessModes")]
    found += _access_modes(spec.get("accessModes", []), "spec.accessModes")
    if not spec.get("capacity"):
        found.append(required("spec.capacity"))
    if list(spec.get("capacity", {})) != ["storage"]:
        capacity = dict(sorted(spec.get("capacity", {}).items()))
        found.append(not_supported("spec.capacity", capacity, ("storage",)))
    found += _storage(spec, spec.get("capacity", {}).get("storage"), "spec.capacity[storage]")
    sources = [name for name in _VOLUME_SOURCES if name in spec]
    if not sources:
        found.append(required("spec", "must specify a volume type"))
    found += [forbidden_value(f"spec.{name}", "may not specify more than 1 volume type") for name in sources[1:]]
    csi = spec.get("csi")
    if csi is not None:
        found += [required(f"spec.csi.{name}") for name in ("driver", "volumeHandle") if not csi.get(name)]
        driver = csi.get("driver", "")
        found += [invalid_value("spec.csi.driver", driver, words) for words in names.dns_subdomain(driver) if driver]
    policy = spec["persistentVolumeReclaimPolicy"]
    if policy not in ("Delete", "Recycle", "Retain"):
        found.append(not_supported("spec.persistentVolumeReclaimPolicy", policy, ("Delete", "Recycle", "Retain")))
    return found


_VOLUME_SOURCES = ("gcePersistentDisk", "hostPath", "local", "nfs", "iscsi", "fc", "csi")


def _volume_change(item: Object, live: Object) -> list[Cause]:
    before, after = live["spec"], item["spec"]
    if any(before.get(name) != after.get(name) for name in _VOLUME_SOURCES):
        return [
            forbidden_value("spec.persistentvolumesource", "spec.persistentvolumesource is immutable after creation")
        ]
    return []


def _claim(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = []
    if not spec.get("accessModes"):
        found.append(required("spec.accessModes", "at least 1 access mode is required"))
    found += _access_modes(spec.get("accessModes", []), "spec.accessModes")
    requests = spec["resources"].get("requests", {})
    if "storage" not in requests:
        found.append(required("spec.resources[storage]"))
    return found + _storage(spec, requests.get("storage"), "spec.resources[storage]")


def _claim_change(item: Object, live: Object) -> list[Cause]:
    before, after = dict(live["spec"]), dict(item["spec"])
    sizes = [parse_quantity(spec["resources"].get("requests", {}).get("storage", "0")) for spec in (before, after)]
    for spec in (before, after):
        spec["resources"] = {**spec["resources"], "requests": None}
        spec.pop("volumeAttributesClassName", None)
    # Binding fills in the volume's name, once.
    if not before.get("volumeName"):
        before.pop("volumeName", None)
        after.pop("volumeName", None)
    found = []
    if before != after:
        detail = (
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
        found.append(forbidden_value("spec", detail))
    if sizes[0] and sizes[1] is not None and sizes[1] < sizes[0]:
        detail = "field can not be less than status.capacity"
        found.append(forbidden_value("spec.resources.requests.storage", detail))
    elif sizes != [sizes[0]] * 2 and live.get("status", {}).get("phase") != "Bound":
        detail = (
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
        )
        found.append(forbidden_value("spec", detail))
    return found


def _storage_class(item: Object) -> list[Cause]:
    found = [] if item.get("provisioner") else [required("provisioner")]
    if item["reclaimPolicy"] not in ("Delete", "Retain"):
        found.append(not_supported("reclaimPolicy", item["reclaimPolicy"], ("Delete", "Retain")))
    if item["volumeBindingMode"] not in ("Immediate", "WaitForFirstConsumer"):
        choices = ("Immediate", "WaitForFirstConsumer")
        found.append(not_supported("volumeBindingMode", item["volumeBindingMode"], choices))
    return found


def _storage_class_change(item: Object, live: Object) -> list[Cause]:
    return [
        forbidden_value(name, f"updates to {name} are forbidden.")
        for name in ("parameters", "provisioner", "reclaimPolicy")
        if item.get(name) != live.get(name)
    ]


def _role_binding_change(item: Object, live: Object) -> list[Cause]:
    if item["roleRef"] == live["roleRef"]:
        return []
    names_in_go = {"APIGroup": "apiGroup", "Kind": "kind", "Name": "name"}
    shown = {name: item["roleRef"].get(field, "") for name, field in names_in_go.items()}
    return [invalid_value("roleRef", shown, "cannot change roleRef")]


def _lease(item: Object) -> list[Cause]:
    spec = item.get("spec", {})
    seconds, transitions = spec.get("leaseDurationSeconds", 1), spec.get("leaseTransitions", 0)
    found = []
    if seconds <= 0:
        found.append(invalid_value("spec.leaseDurationSeconds", seconds, "must be greater than 0"))
    if transitions < 0:
        found.append(invalid_value("spec.leaseTransitions", transitions, "must be greater than or equal to 0"))
    return found


def _event(item: Object) -> list[Cause]:
    given = item.get("involvedObject", {}).get("namespace", "")
    # What is about a cluster's object lies in the default namespace.
    if given != item["metadata"]["namespace"] and (given or item["metadata"]["namespace"] != "default"):
        return [invalid_value("involvedObject.namespace", given, "does not match event.namespace")]
    return []


def _network_policy(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = []
    for index, sort in enumerate(spec.get("policyTypes", [])):
        if sort not in ("Ingress", "Egress"):
            words = f'Unsupported value: {errors.quoted(sort)}: supported values: "Ingress", "Egress"'
            found.append(Cause("FieldValueNotSupported", words, f"spec.policyTypes[{index}]"))
    for way, peers in (("ingress", "from"), ("egress", "to")):
        for number, rule in enumerate(spec.get(way, [])):
            path = f"spec.{way}[{number}]"
            for index, port in enumerate(rule.get("ports", [])):
                if isinstance(port.get("port"), int):
                    found += pod_validation.port_causes(port["port"], f"{path}.ports[{index}].port")
            for index, peer in enumerate(rule.get(peers, [])):
                found += _peer(peer, f"{path}.{peers}[{index}]")
    return found


def _peer(peer: Object, path: str) -> list[Cause]:
    if not peer:
        return [required(path, "must specify a peer")]
    if "ipBlock" not in peer:
        return []
    if len(peer) > 1:
        return [forbidden_value(path, "may not specify both ipBlock and another peer")]
    try:
        ipaddress.ip_network(peer["ipBlock"].get("cidr", ""), strict=False)
    except ValueError:
        detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
        return [invalid_value(f"{path}.ipBlock.cidr", peer["ipBlock"].get("cidr", ""), detail)]
    return []


def _config_map(item: Object) -> list[Cause]:
    found = []
    size = 0
    for part in ("data", "binaryData"):
        for name, value in sorted(item.get(part, {}).items()):
            found += [invalid_value(f"{part}[{name}]", name, words) for words in names.config_key(name)]
            size += len(value.encode())
    for name in sorted(set(item.get("data", {})) & set(item.get("binaryData", {}))):
        found.append(invalid_value(f"data[{name}]", name, "duplicate of key present in binaryData"))
    return found + ([errors.too_long("[]", 1024 * 1024)] if size > 1024 * 1024 else [])


def _secret(item: Object) -> list[Cause]:
    found = []
    for name in sorted(item.get("data", {})):
        found += [invalid_value(f"data[{name}]", name, words) for words in names.config_key(name)]
    if sum(len(value) for value in item.get("data", {}).values()) * 3 // 4 > 1024 * 1024:
        found.append(errors.too_long("data", 1024 * 1024))
    return found


def _role_binding(item: Object) -> list[Cause]:
    found = [required(f"roleRef.{name}") for name in ("name",) if not item["roleRef"].get(name)]
    for index, subject in enumerate(item.get("subjects", [])):
        if subject.get("kind") not in ("Group", "ServiceAccount", "User"):
            choices = ("Group", "ServiceAccount", "User")
            found.append(not_supported(f"subjects[{index}].kind", subject.get("kind"), choices))
    return found


def _definition(item: Object) -> list[Cause]:
    spec, name = item["spec"], item["metadata"]["name"]
    plural = spec.get("names", {}).get("plural", "")
    found = []
    if name != f"{plural}.{spec.get('group', '')}":
        found.append(invalid_value("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    if spec.get("scope") not in ("Cluster", "Namespaced"):
        found.append(not_supported("spec.scope", spec.get("scope", ""), ("Cluster", "Namespaced")))
    versions = spec.get("versions", [])
    if sum(bool(version.get("storage")) for version in versions) != 1:
        detail = "must have exactly one version marked as storage version"
        found.append(invalid_value("spec.versions", [version.get("name") for version in versions], detail))
    for index, version in enumerate(versions):
        if not version.get("schema", {}).get("openAPIV3Schema"):
            path = f"spec.versions[{index}].schema.openAPIV3Schema"
            found.append(required(path, "schemas are required"))
    return found


_CHECKS: dict[str, Callable[[Object], list[Cause]]] = {
    "ClusterRoleBinding": _role_binding,
    "ConfigMap": _config_map,
    "CronJob": workloads.cron_job,
    "CustomResourceDefinition": _definition,
    "DaemonSet": workloads.selector_and_template,
    "Deployment": workloads.deployment,
    "Event": _event,
    "HorizontalPodAutoscaler": workloads.autoscaler,
    "Job": workloads.job,
    "Lease": _lease,
    "NetworkPolicy": _network_policy,
    "Namespace": lambda item: pod_security.label_causes(item["metadata"].get("labels", {})),
    "PersistentVolume": _volume,
    "PersistentVolumeClaim": _claim,
    "Pod": lambda item: pod_validation.spec_causes(item["spec"], "spec"),
    "PodDisruptionBudget": workloads.budget,
    "ReplicaSet": workloads.replicated,
    "RoleBinding": _role_binding,
    "Secret": _secret,
    "Service": _service,
    "StatefulSet": workloads.replicated,
    "StorageClass": _storage_class,
    "ValidatingAdmissionPolicy": policy_validation.policy,
    "ValidatingAdmissionPolicyBinding": policy_validation.binding,
}
_CHANGES: dict[str, Callable[[Object, Object], list[Cause]]] = {
    "ClusterRoleBinding": _role_binding_change,
    "RoleBinding": _role_binding_change,
    "StorageClass": _storage_class_change,
    "Job": workloads.job_change,
    "PersistentVolume": _volume_change,
    "PersistentVolumeClaim": _claim_change,
    "Pod": pod_validation.change_causes,
    "Service": _service_change,
    "StatefulSet": workloads.stateful_set_change,
}
