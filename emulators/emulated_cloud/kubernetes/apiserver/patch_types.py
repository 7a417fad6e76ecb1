"""The three patches besides server-side apply: JSON patch (RFC 6902), merge patch (RFC 7386), strategic merge patch.

A strategic merge patch is driven by the schema's `x-kubernetes-patch-strategy` and `-merge-key`, with the directives
`$patch`, `$deleteFromPrimitiveList`, `$setElementOrder` and `$retainKeys`.
"""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import ApiError, bad_request
from emulated_cloud.kubernetes.apiserver.schema import Schema, copied


def merge_patch(target: Any, patch: Any) -> Any:
    """RFC 7386: objects are merged, null deletes, everything else replaces."""
    if not isinstance(patch, dict):
        return patch
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged


def json_patch(target: Any, operations: Any) -> Any:
    """RFC 6902. Raises ApiError 422 when an operation cannot be done, as the real server answers."""
    if not isinstance(operations, list):
        raise bad_request("json: cannot unmarshal object into Go value of type jsonpatch.Patch")
    target = copied(target)
    for operation in operations:
        try:
            target = _operate(target, operation)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            message = "the server rejected our request due to an error in our request"
            raise ApiError(422, "Invalid", message, {}) from error
    return target


def _operate(target: Any, operation: dict[str, Any]) -> Any:
    name, path = operation["op"], _pointer(operation["path"])
    if name == "add":
        return _add(target, path, copied(operation["value"]))
    if name == "remove":
        return _removed(target, path)
    if name == "replace":
        _at(target, path)
        return _add(_removed(target, path) if path else target, path, copied(operation["value"]))
    if name == "copy":
        return _add(target, path, copied(_at(target, _pointer(operation["from"]))))
    if name == "move":
        origin = _pointer(operation["from"])
        value = _at(target, origin)
        return _add(_removed(target, origin), path, value)
    if name == "test":
        if _at(target, path) != operation["value"]:
            raise ValueError("testing value failed")
        return target
    raise ValueError(f"unexpected kind {name}")


def _pointer(text: str) -> list[str]:
    if text and not text.startswith("/"):
        raise ValueError(f"{text} is not a JSON pointer")
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")[1:]]


def _index(container: list[Any], part: str, *, end: int) -> int:
    index = int(part)
    if not -len(container) <= index < end:
        raise IndexError(f"index {part} is out of bounds")
    return index


def _at(target: Any, path: list[str]) -> Any:
    for part in path:
        target = target[_index(target, part, end=len(target))] if isinstance(target, list) else target[part]
    return target


def _add(target: Any, path: list[str], value: Any) -> Any:
    if not path:
        return value
    parent = _at(target, path[:-1])
    if isinstance(parent, list):
        parent.insert(len(parent) if path[-1] == "-" else _index(parent, path[-1], end=len(parent) + 1), value)
    else:
        parent[path[-1]] = value
    return target


def _removed(target: Any, path: list[str]) -> Any:
    parent = _at(target, path[:-1])
    if isinstance(parent, list):
        del parent[_index(parent, path[-1], end=len(parent))]
    else:
        del parent[path[-1]]
    return target


def strategic_merge(schema: Schema, target: Any, patch: Any) -> Any:
    """`target` after a strategic merge patch (maps; lists are met below them)."""
    if not isinstance(patch, dict):
        return patch
    directive = patch.get("$patch")
    if directive == "delete":
        return {}
    patch = {name: value for name, value in patch.items() if name != "$patch"}
    if directive == "replace" or not isinstance(target, dict):
        return _without_directives(patch)
    if directive not in (None, "merge"):
        raise bad_request(f"unknown patch type: {directive}")
    merged = dict(target)
    retained = patch.pop("$retainKeys", None)
    if retained is not None:
        merged = {name: value for name, value in merged.items() if name in retained}
    for name, value in patch.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            merged[field] = [item for item in merged.get(field, []) if item not in value]
    for name, value in patch.items():
        if name.startswith("$"):
            continue
        if value is None:
            merged.pop(name, None)
            continue
        field_schema = schema.of(name)
        if isinstance(value, list) and "merge" in field_schema.patch_strategies:
            merged[name] = _merge_list(field_schema, name, merged.get(name) or [], value)
        elif isinstance(value, dict) and "replace" not in field_schema.patch_strategies:
            merged[name] = strategic_merge(field_schema, merged.get(name), value)
        else:
            merged[name] = value
    for name, order in patch.items():
        if name.startswith("$setElementOrder/"):
            field = name.partition("/")[2]
            if isinstance(merged.get(field), list):
                merged[field] = _ordered(schema.of(field).patch_merge_key, merged[field], order)
    return merged


def _without_directives(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            name: _without_directives(item)
            for name, item in value.items()
            if not name.startswith("$") and item is not None
        }
    if isinstance(value, list):
        return [
            _without_directives(item)
            for item in value
            if not (isinstance(item, dict) and item.get("$patch") == "delete")
        ]
    return value


def _merge_list(schema: Schema, name: str, target: list[Any], patch: list[Any]) -> list[Any]:
    key = schema.patch_merge_key
    if key is None:
        return target + [item for item in dict.fromkeys(patch) if item not in target]
    if any(isinstance(item, dict) and item.get("$patch") == "replace" for item in patch):
        return [_without_directives(item) for item in patch if item.get("$patch") != "replace"]
    merged = list(target)
    for item in patch:
        if not isinstance(item, dict) or key not in item:
            raise bad_request(f"map: {item} does not contain declared merge key: {key} (in {name})")
        index = next((i for i, existing in enumerate(merged) if existing.get(key) == item[key]), None)
        if item.get("$patch") == "delete":
            merged = [existing for existing in merged if existing.get(key) != item[key]]
        elif index is None:
            merged.append(_without_directives(item))
        else:
            merged[index] = strategic_merge(schema.element, merged[index], item)
    return merged


def _ordered(key: str | None, items: list[Any], order: list[Any]) -> list[Any]:
    """`items` in the order asked for; those that it does not name stay behind what they stood behind."""

    def identity(item: Any) -> Any:
        return item.get(key) if key and isinstance(item, dict) else item

    wanted = [identity(item) for item in order]
    named = sorted((item for item in items if identity(item) in wanted), key=lambda i: wanted.index(identity(i)))
    result, placed = [], iter(named)
    for item in items:
        result.append(next(placed) if identity(item) in wanted else item)
    return result
