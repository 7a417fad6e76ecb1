"""Field ownership: managedFields kept on every write, and server-side apply with its conflicts.

Follows k8s.io/apimachinery/pkg/util/managedfields: a manager is known by name, operation, version (of an Update)
and subresource; what an Update changes it owns, and others lose; what an Apply names it owns, what it no longer names
is removed unless somebody else owns it, and changing what others own is a conflict unless forced.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from emulated_cloud.kubernetes.apiserver.errors import ApiError, bad_request
from emulated_cloud.kubernetes.apiserver.fieldsets import (
    Comparison,
    FieldSet,
    compare,
    from_fields_v1,
    merge,
    path_text,
    remove,
    to_fields_v1,
    to_set,
    with_named_parents,
)
from emulated_cloud.kubernetes.apiserver.schema import Schema

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"

# Parts of Go structs that are there (empty) even in an object that is about to be created: whoever fills them in did
# not add them. Custom resources have no such parts.
_ALWAYS_THERE = {
    "f:containers",
    "f:jobTemplate",
    "f:metadata",
    "f:podSelector",
    "f:scaleTargetRef",
    "f:spec",
    "f:strategy",
    "f:template",
    "f:updateStrategy",
}

_PATHS_ALWAYS_THERE: FieldSet = {
    ("f:status",),
    ("f:spec", "f:resources"),
    ("f:status", "f:daemonEndpoints"),
    ("f:status", "f:daemonEndpoints", "f:kubeletEndpoint"),
    ("f:status", "f:nodeInfo"),
}

_NEVER_OWNED: FieldSet = {
    ("f:apiVersion",),
    ("f:kind",),
    ("f:metadata",),
    *(
        ("f:metadata", f"f:{name}")
        for name in (
            "name",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "clusterName",
            "generation",
            "managedFields",
            "resourceVersion",
        )
    ),
}


class Manager(NamedTuple):
    """Who owns fields. The version tells Updates apart; an applier stays the same through versions."""

    name: str
    operation: str
    api_version: str
    subresource: str

    def text(self) -> str:
        words = json.dumps(self.name)
        if self.subresource:
            words += f" with subresource {json.dumps(self.subresource)}"
        return words + (f" using {self.api_version}" if self.operation == "Update" else "")


@dataclass
class Owned:
    """What a manager owns, since when, seen in which version."""

    paths: FieldSet
    time: str
    api_version: str


Managed = dict[Manager, Owned]


@dataclass(frozen=True)
class Writer:
    """Who writes, how and where: what an entry of managedFields is made from."""

    name: str
    api_version: str
    subresource: str
    time: str
    ignored: tuple[str, ...] = ()
    """Top-level fields that this endpoint does not write: `status` of the resource, the rest of its status."""
    custom: bool = False

    def updating(self) -> Manager:
        return Manager(self.name, "Update", self.api_version, self.subresource)

    def applying(self) -> Manager:
        return Manager(self.name, "Apply", "", self.subresource)

    def may_own(self, paths: FieldSet) -> FieldSet:
        return {path for path in paths - _NEVER_OWNED if path and path[0][2:] not in self.ignored}


def read_managed(entries: Iterable[dict[str, Any]]) -> Managed:
    managed: Managed = {}
    for entry in entries:
        operation, version = entry.get("operation", ""), entry.get("apiVersion", "")
        manager = Manager(
            entry.get("manager", ""),
            operation,
            version if operation == "Update" else "",
            entry.get("subresource", ""),
        )
        # Of two entries of one manager the last one counts, as in the real server.
        managed[manager] = Owned(from_fields_v1(entry.get("fieldsV1") or {}), entry.get("time", ""), version)
    return managed


def write_managed(managed: Managed) -> list[dict[str, Any]]:
    entries = []
    for manager, owned in managed.items():
        entry = {
            "manager": manager.name,
            "operation": manager.operation,
            "apiVersion": owned.api_version,
            "time": owned.time,
            "fieldsType": "FieldsV1",
            "fieldsV1": to_fields_v1(owned.paths),
        }
        if manager.subresource:
            entry["subresource"] = manager.subresource
        if not owned.time:
            del entry["time"]
        entries.append(entry)
    order = ("operation", "time", "manager", "apiVersion", "subresource")
    return sorted(entries, key=lambda entry: [entry.get(name, "") for name in order])


def _taken(managed: Managed, found: Comparison, but: Manager | None) -> Managed:
    """`managed` after a change: the others lose what was changed or removed."""
    changed = found.added | found.modified | found.removed
    left = {
        manager: owned if manager == but else Owned(owned.paths - changed, owned.time, owned.api_version)
        for manager, owned in managed.items()
    }
    return {manager: owned for manager, owned in left.items() if owned.paths or manager == but}


def _managed_of(live: dict[str, Any] | None, new: dict[str, Any], subresource: str) -> Managed:
    """The ownership that an Update starts from: what it sends itself, else what the live object has."""
    before = ((live or {}).get("metadata") or {}).get("managedFields") or []
    sent = (new.get("metadata") or {}).get("managedFields") or []
    if subresource:
        return read_managed(before)
    if sent == [{}]:
        return {}
    return read_managed(sent) if sent else read_managed(before)


def record_update(schema: Schema, live: dict[str, Any] | None, new: dict[str, Any], writer: Writer) -> None:
    """Writes into `new` (a whole object) the ownership that follows from changing `live` into it."""
    managed = _managed_of(live, new, writer.subresource)
    metadata = new["metadata"]
    if live is not None and not managed:
        # Ownership was switched off by clearing managedFields; only an Apply starts it again.
        metadata.pop("managedFields", None)
        return
    empty: dict[str, Any] = {"apiVersion": new.get("apiVersion"), "kind": new.get("kind"), "metadata": {}}
    found = compare(schema, live or empty, new)
    managed = _taken(managed, found, None)
    gained = writer.may_own(found.added | found.modified)
    if not writer.custom:
        gained = {path for path in gained - _PATHS_ALWAYS_THERE if path[-1] not in _ALWAYS_THERE}
    if gained:
        manager = writer.updating()
        before = managed.get(manager)
        managed[manager] = Owned(gained | (before.paths if before else set()), writer.time, writer.api_version)
    metadata["managedFields"] = write_managed(managed)
    if not metadata["managedFields"]:
        del metadata["managedFields"]


def apply(schema: Schema, live: dict[str, Any], applied: dict[str, Any], writer: Writer, force: bool) -> dict[str, Any]:
    """`live` after `applied` (both whole objects; `live` has only a name when it does not exist yet).

    Raises ApiError 409 with a cause for each field that somebody else owns with another value.
    """
    if applied.get("metadata", {}).get("managedFields"):
        raise bad_request("metadata.managedFields must be nil")
    managed = read_managed(live.get("metadata", {}).get("managedFields", []))
    if not managed and live.get("metadata", {}).get("uid"):
        managed = _before_first_apply(schema, live, writer)
    manager = writer.applying()
    last = managed.get(manager)
    named = to_set(schema, applied)
    former = {key: (owned.paths, owned.api_version) for key, owned in managed.items()}
    managed[manager] = Owned(writer.may_own(named), last.time if last else writer.time, writer.api_version)
    live = {**live, "metadata": {k: v for k, v in live.get("metadata", {}).items() if k != "managedFields"}}
    merged = merge(schema, live, applied)
    if last:
        # What nobody may own counts here: what names the object holds on to its metadata.
        others = [owned.paths for other, owned in managed.items() if other != manager]
        merged = _pruned(schema, merged, named.union(*others), last.paths)
    found = compare(schema, live, merged)
    _refuse_conflicts(schema, live, managed, manager, found, writer, force)
    managed = _taken(managed, found, manager)
    if not managed[manager].paths:
        del managed[manager]
    changed = merged != live or former != {k: (owned.paths, owned.api_version) for k, owned in managed.items()}
    if changed and manager in managed:
        managed[manager].time = writer.time
    if managed:
        merged = {**merged, "metadata": {**merged.get("metadata", {}), "managedFields": write_managed(managed)}}
    return merged


def _before_first_apply(schema: Schema, live: dict[str, Any], writer: Writer) -> Managed:
    """An object without ownership belongs, at the first Apply, to a manager of that name."""
    paths = {path for path in compare(schema, {}, live).added if path} - _NEVER_OWNED
    manager = Manager("before-first-apply", "Update", writer.api_version, writer.subresource)
    return {manager: Owned(paths, writer.time, writer.api_version)}


def _pruned(schema: Schema, merged: dict[str, Any], owned: FieldSet, last: FieldSet) -> dict[str, Any]:
    """`merged` without what the manager applied last time, if nobody (itself included) owns it now."""
    last = with_named_parents(schema, last)
    owned = with_named_parents(schema, owned)
    everything = with_named_parents(schema, to_set(schema, merged))

    def left_of(value: Any) -> FieldSet:
        return with_named_parents(schema, to_set(schema, value or {}))

    stripped = remove(schema, merged, last)
    restored = remove(schema, merged, everything - (left_of(stripped) | owned))
    return remove(schema, merged, (everything - left_of(restored)) & last) or {}


def _refuse_conflicts(
    schema: Schema,
    live: dict[str, Any],
    managed: Managed,
    applier: Manager,
    found: Comparison,
    writer: Writer,
    force: bool,
) -> None:
    if force:
        return
    changed = found.added | found.modified
    conflicts = [
        (manager, path)
        for manager, owned in managed.items()
        if manager != applier
        for path in sorted(owned.paths & changed)
        if path and path[0][2:] not in writer.ignored
    ]
    if applier.name == "kubectl" and conflicts:
        mine = _last_applied_by_kubectl(schema, live, writer)
        if all(path in mine for _, path in conflicts):
            return
        conflicts = [(manager, path) for manager, path in conflicts if path not in mine]
    if conflicts:
        raise _conflict(conflicts)


def _last_applied_by_kubectl(schema: Schema, live: dict[str, Any], writer: Writer) -> FieldSet:
    """What client-side `kubectl apply` put there and is there still: `kubectl apply --server-side` takes it over."""
    text = live.get("metadata", {}).get("annotations", {}).get(LAST_APPLIED)
    try:
        last = json.loads(text or "null")
    except ValueError:
        return set()
    if not isinstance(last, dict) or last.get("apiVersion") != writer.api_version:
        return set()
    found = compare(schema, last, live)
    return to_set(schema, last) - found.modified - found.added - found.removed


def _conflict(conflicts: list[tuple[Manager, tuple[str, ...]]]) -> ApiError:
    causes = [
        {
            "reason": "FieldManagerConflict",
            "message": f"conflict with {manager.text()}",
            "field": path_text(path),
        }
        for manager, path in conflicts
    ]
    if len(conflicts) == 1:
        manager, path = conflicts[0]
        message = f"Apply failed with 1 conflict: conflict with {manager.text()}: {path_text(path)}"
    else:
        by_manager: dict[str, list[str]] = {}
        for manager, path in conflicts:
            by_manager.setdefault(manager.text(), []).append(path_text(path))
        lines = []
        for words in sorted(by_manager):
            lines.append(f"conflicts with {words}:")
            lines += [f"- {path}" for path in by_manager[words]]
        message = f"Apply failed with {len(conflicts)} conflicts: " + "\n".join(lines)
    return ApiError(409, "Conflict", message, {"causes": causes})
