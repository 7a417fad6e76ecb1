"""One object in the versions that it can be asked in.

Objects are kept in one version each. Versions of a custom resource differ in `apiVersion` alone (conversion strategy
None); Events are the one built-in kind served in two groups, with other names for the same fields.
"""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver.resources import Resource

Object = dict[str, Any]

# core/v1 name → events.k8s.io/v1 name
_EVENT_FIELDS = {
    "message": "note",
    "involvedObject": "regarding",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_CORE_FIELDS = {theirs: ours for ours, theirs in _EVENT_FIELDS.items()}


def _is_event(resource: Resource) -> bool:
    return (resource.group, resource.plural) == ("events.k8s.io", "events")


def served(resource: Resource, stored: Object) -> Object:
    """A stored object as `resource`'s version shows it; the stored one itself where nothing differs."""
    if stored["apiVersion"] == resource.api_version:
        return stored
    renamed = _EVENT_FIELDS if _is_event(resource) else {}
    item = {renamed.get(name, name): value for name, value in stored.items()}
    return {**item, "apiVersion": resource.api_version}


def kept(resource: Resource, item: Object) -> Object:
    """An object of `resource`'s version as it is stored."""
    if resource.api_version == resource.storage_version:
        return item
    renamed = _CORE_FIELDS if _is_event(resource) else {}
    stored = {renamed.get(name, name): value for name, value in item.items()}
    return {**stored, "apiVersion": resource.storage_version}
