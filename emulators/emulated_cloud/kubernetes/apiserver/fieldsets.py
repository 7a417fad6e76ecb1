"""Sets of field paths, and typed comparison, merging and removal: what server-side apply is made of.

A path is a tuple of elements as `fieldsV1` spells them: `f:name` a field, `k:{"name":"x"}` an item of a keyed list,
`v:"x"` an item of a set. A field set is a Python set of such paths; a parent is a member only where it is named
itself (`.` in fieldsV1). The rules are those of sigs.k8s.io/structured-merge-diff.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from emulated_cloud.kubernetes.apiserver.schema import Schema

Path = tuple[str, ...]
FieldSet = set[Path]

_ABSENT: Any = object()


def to_fields_v1(paths: FieldSet) -> dict[str, Any]:
    """The nested form that managedFields holds."""
    root: dict[str, Any] = {}
    for path in sorted(paths):
        node = root
        for element in path:
            node = node.setdefault(element, {})
        node["."] = {}
    return _without_lone_dots(root)


def _without_lone_dots(node: dict[str, Any]) -> dict[str, Any]:
    """`{".": {}}` alone is written as `{}`."""
    return {key: {} if set(child) == {"."} else _without_lone_dots(child) for key, child in node.items()}


def from_fields_v1(fields: dict[str, Any], prefix: Path = ()) -> FieldSet:
    paths: FieldSet = set()
    for element, child in fields.items():
        if element == ".":
            paths.add(prefix)
        elif child:
            paths |= from_fields_v1(child, (*prefix, element))
        else:
            paths.add((*prefix, element))
    return paths


def path_text(path: Path) -> str:
    """A path as messages show it: `.spec.containers[name="x"].image`."""
    parts = []
    for element in path:
        sort, _, rest = element.partition(":")
        if sort == "f":
            parts.append(f".{rest}")
        elif sort == "k":
            keys = json.loads(rest)
            pairs = ",".join(f"{name}={json.dumps(keys[name], ensure_ascii=False)}" for name in sorted(keys))
            parts.append(f"[{pairs}]")
        else:
            parts.append(f"[={rest}]")
    return "".join(parts)


def item_element(schema: Schema, item: Any) -> str:
    """The path element of an item of a list that is not atomic."""
    if not schema.list_keys:
        return "v:" + json.dumps(item, separators=(",", ":"), ensure_ascii=False)
    keys = {
        name: item.get(name, schema.element.of(name).raw.get("default"))
        for name in sorted(schema.list_keys)
        if isinstance(item, dict)
    }
    present = {name: value for name, value in keys.items() if value is not None}
    return "k:" + json.dumps(present, separators=(",", ":"), ensure_ascii=False)


def _is_map(schema: Schema, *values: Any) -> bool:
    return (
        schema.kind in ("map", "any")
        and not schema.atomic
        and all(isinstance(value, dict) for value in values if value is not _ABSENT)
    )


def _is_keyed(schema: Schema, *values: Any) -> bool:
    return (
        schema.kind == "list"
        and not schema.atomic
        and all(isinstance(value, list) for value in values if value is not _ABSENT)
    )


def _children(schema: Schema, value: Any) -> dict[str, tuple[Any, Schema]]:
    """A map's or a keyed list's children by path element, in their order."""
    if value is _ABSENT:
        return {}
    if isinstance(value, dict):
        return {f"f:{name}": (item, schema.of(name)) for name, item in value.items()}
    return {item_element(schema, item): (item, schema.element) for item in value}


def to_set(schema: Schema, value: Any, path: Path = ()) -> FieldSet:
    """The fields that whoever applies `value` owns: its leaves, its list items, and the keys of its open maps."""
    if _is_map(schema, value):
        paths: FieldSet = set()
        for element, (item, of) in _children(schema, value).items():
            paths |= to_set(of, item, (*path, element))
            if item is None or item == {} or element[2:] not in schema.fields:
                paths.add((*path, element))
        return paths
    if _is_keyed(schema, value):
        return {(*path, element) for element in _children(schema, value)}.union(
            *(to_set(of, item, (*path, element)) for element, (item, of) in _children(schema, value).items())
        )
    return {path}


def repeated_items(schema: Schema, value: Any, path: Path = ()) -> list[str]:
    """A complaint for every keyed list or set in which an item is there more than once."""
    if _is_map(schema, value):
        children = [(element, item, of) for element, (item, of) in _children(schema, value).items()]
        return [text for element, item, of in children for text in repeated_items(of, item, (*path, element))]
    if not _is_keyed(schema, value):
        return []
    elements = [item_element(schema, item) for item in value]
    repeated = dict.fromkeys(element for element in elements if elements.count(element) > 1)
    complaints = [f"{path_text(path)}: duplicate entries for key {path_text((element,))}" for element in repeated]
    for element, item in zip(elements, value, strict=True):
        complaints += repeated_items(schema.element, item, (*path, element))
    return complaints


@dataclass
class Comparison:
    """Which fields differ between two values."""

    added: FieldSet = field(default_factory=set)
    removed: FieldSet = field(default_factory=set)
    modified: FieldSet = field(default_factory=set)


def compare(schema: Schema, old: dict[str, Any], new: dict[str, Any]) -> Comparison:
    found = Comparison()
    _compare(schema, old, new, (), found)
    return found


def _compare(schema: Schema, old: Any, new: Any, path: Path, found: Comparison) -> None:
    both_empty = old in (_ABSENT, {}, []) and new in (_ABSENT, {}, [])
    nested = _is_map(schema, old, new) or _is_keyed(schema, old, new)
    if nested and not both_empty:
        before, after = _children(schema, old), _children(schema, new)
        for element in {**before, **after}:
            was, of = before.get(element, (_ABSENT, None))
            now, of_new = after.get(element, (_ABSENT, None))
            child = of or of_new
            assert child is not None
            _compare(child, was, now, (*path, element), found)
    if old is _ABSENT:
        found.added.add(path)
    elif new is _ABSENT:
        found.removed.add(path)
    elif (not nested or both_empty) and old != new:
        found.modified.add(path)


def merge(schema: Schema, live: Any, applied: Any) -> Any:
    """`live` with what `applied` says; keyed lists are merged item by item, in the applied order."""
    if _is_map(schema, live, applied):
        merged = dict(live)
        for name, item in applied.items():
            merged[name] = merge(schema.of(name), live[name], item) if name in live else item
        return merged
    if _is_keyed(schema, live, applied):
        before, after = _children(schema, live), _children(schema, applied)
        items: list[Any] = []
        waiting = list(after)

        def take(element: str) -> None:
            item = after[element][0]
            items.append(merge(schema.element, before[element][0], item) if element in before else item)

        for element, (item, _) in before.items():
            if element not in after:
                items.append(item)
            elif element in waiting:
                # Everything applied ahead of a shared item goes ahead of it.
                upto = waiting.index(element) + 1
                for earlier in waiting[:upto]:
                    take(earlier)
                waiting = waiting[upto:]
        for element in waiting:
            take(element)
        return items
    return applied


def remove(schema: Schema, value: Any, paths: FieldSet) -> Any:
    """`value` without the fields at `paths`, each with all that is below it; what is left empty goes too."""
    if not (_is_map(schema, value) or _is_keyed(schema, value)) or not value:
        return value
    below: dict[str, FieldSet] = {}
    gone = {path[0] for path in paths if len(path) == 1}
    for path in paths:
        if len(path) > 1:
            below.setdefault(path[0], set()).add(path[1:])
    kept: dict[str, Any] = {}
    for element, (item, of) in _children(schema, value).items():
        if element not in gone:
            left = remove(of, item, below[element]) if element in below else item
            if left is not None or item is None:
                kept[element] = left
    if not kept:
        return None
    if isinstance(value, dict):
        return {element[2:]: item for element, item in kept.items()}
    return list(kept.values())


def with_named_parents(schema: Schema, paths: FieldSet) -> FieldSet:
    """`paths` and the declared struct fields above them, which a set does not name though it owns them."""
    whole = set(paths)
    for path in paths:
        node = schema
        for depth, element in enumerate(path[:-1]):
            if element.startswith("f:"):
                if element[2:] in node.fields:
                    whole.add(path[: depth + 1])
                node = node.of(element[2:])
            else:
                node = node.element
    return whole
