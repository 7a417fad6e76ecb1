"""The downward API: fields of a pod and resources of a container, as strings."""

from __future__ import annotations

import math
import re

from emulated_cloud.kubernetes.client import Object
from emulated_cloud.kubernetes.quantity import parse_quantity


class FieldError(Exception):
    """A field that the downward API does not offer."""


def field_value(pod: Object, path: str, pod_ip: str = "", host_ip: str = "") -> str:
    """`fieldRef.fieldPath`."""
    meta, spec, status = pod["metadata"], pod["spec"], pod.get("status") or {}
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return (meta.get(match[1]) or {}).get(match[2], "")
    if path in ("metadata.labels", "metadata.annotations"):
        entries = meta.get(path.split(".")[1]) or {}
        return "\n".join(f'{key}="{value}"' for key, value in sorted(entries.items()))
    values = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta["namespace"],
        "metadata.uid": meta["uid"],
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", "default"),
        "status.podIP": pod_ip or status.get("podIP", ""),
        "status.podIPs": pod_ip or status.get("podIP", ""),
        "status.hostIP": host_ip or status.get("hostIP", ""),
        "status.hostIPs": host_ip or status.get("hostIP", ""),
    }
    if path not in values:
        raise FieldError(f"unsupported fieldPath: {path}")
    return values[path]


def resource_value(pod: Object, container: str, source: Object) -> str:
    """`resourceFieldRef`: the amount divided by the divisor, rounded up."""
    containers = [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]
    found = next((entry for entry in containers if entry["name"] == container), containers[0])
    kind, _, name = source["resource"].partition(".")
    amounts = (found.get("resources") or {}).get(kind) or {}
    divisor = parse_quantity(source.get("divisor") or "1") or 1
    return str(math.ceil(parse_quantity(amounts.get(name, "0")) / divisor))
