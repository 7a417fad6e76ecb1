"""Strategic merge patches, as kubectl applies them: maps merge, a list's items merge by their key, null deletes.

Lists without a key are replaced whole, tolerations and args among them, as the Kubernetes API says. Directives:
`$patch: replace` and `$patch: delete`; the latter says in a map what null says.
"""

from __future__ import annotations

import copy
from typing import Any

from serving.errors import RequestError

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "volumes": "name",
    "imagePullSecrets": "name",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""List field → the key of its items (`x-kubernetes-patch-merge-key` of the API's schema)."""
DELETE = {"$patch": "delete"}
"""Deletes the field that it is the value of."""
_PORT_KEYS = {"Service": "port"}
"""A Service's ports go by `port`; a container's by `containerPort`."""


def apply(item: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """The object with the patch merged in. Raises RequestError for a patch that cannot be merged."""
    keys = {**MERGE_KEYS, "ports": _PORT_KEYS.get(item["kind"], "containerPort")}
    merged: dict[str, Any] = _merge(item, patch, keys, item["kind"])
    return merged


def _merge(old: Any, new: Any, keys: dict[str, str], where: str) -> Any:
    for kind, name in ((dict, "mapping"), (list, "list")):
        if isinstance(old, kind) and not isinstance(new, kind):
            raise RequestError(f"patches: {where} is a {name}, and the patch has no {name} for it")
    if not isinstance(new, dict):
        return copy.deepcopy(new)
    directive = new.get("$patch")
    unknown = {key for key in new if key.startswith("$")} - {"$patch"}
    if unknown or directive not in (None, "replace", "delete", "merge"):
        raise RequestError(f"patches: {where}: {', '.join(sorted(unknown)) or f'$patch: {directive}'} is not supported")
    changes = {key: value for key, value in new.items() if key != "$patch"}
    if not isinstance(old, dict) or directive == "replace":
        old = {}
    merged = copy.deepcopy(old)
    for key, value in changes.items():
        if value in (None, DELETE):
            merged.pop(key, None)
        elif isinstance(value, list) and key in keys and all(isinstance(item, dict) for item in value):
            merged[key] = _merge_list(merged.get(key) or [], value, keys, f"{where}.{key}", keys[key])
        else:
            merged[key] = _merge(merged.get(key), value, keys, f"{where}.{key}")
    return merged


def _merge_list(old: list[Any], new: list[Any], keys: dict[str, str], where: str, name: str) -> list[Any]:
    if any(item == {"$patch": "replace"} for item in new):
        return [copy.deepcopy(item) for item in new if item != {"$patch": "replace"}]
    merged = copy.deepcopy(old)
    for item in new:
        if name not in item:
            raise RequestError(f"patches: an item of {where} needs its {name}: that is how it is found")
        there = next((position for position, known in enumerate(merged) if known.get(name) == item[name]), None)
        if item.get("$patch") == "delete":
            if there is None:
                raise RequestError(f"patches: {where} has no item whose {name} is {item[name]}, so none can be deleted")
            del merged[there]
        elif there is None:
            merged.append(_merge({}, item, keys, where))
        else:
            merged[there] = _merge(merged[there], item, keys, f"{where}[{item[name]}]")
    return merged
