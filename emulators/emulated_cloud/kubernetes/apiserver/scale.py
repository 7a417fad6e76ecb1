"""The scale subresource: an `autoscaling/v1 Scale` view of what has replicas.

Follows k8s.io/apimachinery/pkg/util/managedfields/scalehandler.go: whoever owns the replicas of the object owns those
of its Scale, a write is one of the Scale, and who owns the Scale's replicas then owns the object's.
"""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver import apply, errors
from emulated_cloud.kubernetes.apiserver.apply import Managed, Owned, Writer, read_managed, write_managed
from emulated_cloud.kubernetes.apiserver.fieldsets import Path
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.schema import copied
from emulated_cloud.kubernetes.apiserver.selectors import selector_text
from emulated_cloud.kubernetes.apiserver.storage import Options, Storage, now

Object = dict[str, Any]

SCALE = Resource("", "Scale", "autoscaling", definition="io.k8s.api.autoscaling.v1.Scale")
_REPLICAS: Path = ("f:spec", "f:replicas")


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
    replicas, status = _read(item, wanted), {"replicas": _read(item, actual) or 0}
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {name: item["metadata"][name] for name in names if name in item["metadata"]},
        # Go leaves a zero out.
        "spec": {"replicas": replicas} if replicas else {},
        "status": {**status, "selector": text} if text else status,
    }


def update(storage: Storage, resource: Resource, live: Object, scale: Object, options: Options) -> Object:
    """Sets the replicas that a (decoded) Scale wants; the Scale afterwards. Raises ApiError 409 and 422."""
    before = _managed(resource, live)
    replicas = scale.get("spec", {}).get("replicas")
    spec = {"replicas": replicas} if replicas else {}
    new = {**scale, "spec": spec, "metadata": {**before["metadata"], **scale["metadata"]}}
    apply.record_update(SCALE.schema, before, new, _writer(options))
    return _store(storage, resource, live, new, options)


def applied(storage: Storage, resource: Resource, live: Object, scale: Object, options: Options, force: bool) -> Object:
    """Server-side apply of a Scale; the Scale afterwards. Raises ApiError 409 and 422."""
    new = apply.apply(SCALE.schema, _managed(resource, live), scale, _writer(options), force)
    return _store(storage, resource, live, new, options)


def _writer(options: Options) -> Writer:
    return Writer(options.manager, SCALE.api_version, "scale", now(), ignored=("status",))


def _managed(resource: Resource, live: Object) -> Object:
    """The Scale of an object, owned by those who own the object's replicas."""
    path = _owned_path(resource)
    managed: Managed = {
        manager._replace(api_version=manager.api_version and SCALE.api_version): Owned(
            {_REPLICAS}, owned.time, SCALE.api_version
        )
        for manager, owned in read_managed(live["metadata"].get("managedFields", [])).items()
        if path in owned.paths
    }
    scale = shown(resource, live)
    return {**scale, "metadata": {**scale["metadata"], "managedFields": write_managed(managed)}}


def _store(storage: Storage, resource: Resource, live: Object, scale: Object, options: Options) -> Object:
    name, metadata = live["metadata"]["name"], scale["metadata"]
    replicas = scale.get("spec", {}).get("replicas", 0)
    if replicas < 0:
        cause = errors.invalid_value("spec.replicas", replicas, "must be greater than or equal to 0")
        raise errors.invalid(SCALE.group, SCALE.kind, name, [cause])
    uid = live["metadata"]["uid"]
    if metadata.get("uid", uid) != uid:
        why = f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {uid}"
        raise errors.conflict(resource.group, f"{resource.plural}/scale", name, why)
    item = copied(live)
    item["metadata"]["resourceVersion"] = metadata.get("resourceVersion")
    item["metadata"]["managedFields"] = write_managed(_of_parent(resource, live, metadata.get("managedFields", [])))
    *parents, last = _paths(resource)[0].strip(".").split(".")
    target = item
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = replicas
    return shown(resource, storage.replace(resource, live, item, options, own=lambda new: None))


def _of_parent(resource: Resource, live: Object, entries: list[Object]) -> Managed:
    """Who owns what of the object, when `entries` say who owns its Scale. As in the real server an Update's entry is
    always made anew, and without a time."""
    path = _owned_path(resource)
    scale = {manager: owned for manager, owned in read_managed(entries).items() if _REPLICAS in owned.paths}
    managed: Managed = {}
    for manager, owned in read_managed(live["metadata"].get("managedFields", [])).items():
        if path in owned.paths and scale.pop(manager, None) is None:
            owned = Owned(owned.paths - {path}, owned.time, owned.api_version)
        if owned.paths:
            managed[manager] = owned
    return managed | {manager: Owned({path}, "", resource.storage_version) for manager in scale}


def _owned_path(resource: Resource) -> Path:
    return tuple(f"f:{part}" for part in _paths(resource)[0].strip(".").split("."))
