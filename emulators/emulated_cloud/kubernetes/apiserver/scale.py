"""The scale subresource: an `autoscaling/v1 Scale` view of what has replicas."""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.schema import copied
from emulated_cloud.kubernetes.apiserver.selectors import selector_text
from emulated_cloud.kubernetes.apiserver.storage import Options, Storage

Object = dict[str, Any]


def _paths(resource: Resource) -> tuple[str, str, str]:
    """Where wanted replicas, actual replicas and the selector (as text) are."""
    if resource.crd is None:
        return ".spec.replicas", ".status.replicas", ""
    declared = resource.crd["subresources"]["scale"]
    return declared["specReplicasPath"], declared["statusReplicasPath"], declared.get("labelSelectorPath", "")


def _read(item: Object, path: str) -> Any:
    value: Any = item
    for part in path.strip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def shown(resource: Resource, item: Object) -> Object:
    wanted, actual, selector_path = _paths(resource)
    selector = item["spec"].get("selector") or {}
    if resource.kind == "ReplicationController":
        selector = {"matchLabels": selector}
    text = _read(item, selector_path) if selector_path else selector_text(selector)
    names = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status = {"replicas": _read(item, actual) or 0}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: item["metadata"][name] for name in names if name in item["metadata"]},
        "spec": {"replicas": _read(item, wanted) or 0},
        "status": {**status, "selector": text} if text else status,
    }


def change(storage: Storage, resource: Resource, live: Object, scale: Object, options: Options) -> Object:
    """Sets the replicas that a Scale wants; the Scale afterwards. Raises ApiError 409 and 422."""
    name = live["metadata"]["name"]
    replicas = (scale.get("spec") or {}).get("replicas") or 0
    if not isinstance(replicas, int) or replicas < 0:
        cause = errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid("autoscaling", "Scale", name, [cause])
    item = copied(live)
    for part in ("resourceVersion", "uid"):
        item["metadata"][part] = (scale.get("metadata") or {}).get(part) or live["metadata"][part]
    *parents, last = _paths(resource)[0].strip(".").split(".")
    target = item
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = replicas
    stored = storage.replace(
        resource, live, item, options, own=lambda new: storage.own(resource, live, new, options, "scale")
    )
    return shown(resource, stored)
