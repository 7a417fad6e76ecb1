"""What applying an object would change in the cluster: the API server's own word, by a dry run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serving.clients.kubernetes import Cluster, Object, kinds

_OF_THE_SERVER = ("managedFields", "resourceVersion", "generation", "creationTimestamp", "uid")
_SHOWN = 12
"""Fields of one object."""


def compare(cluster: Cluster, body: Object) -> dict[str, Any]:
    """`{"what", "change": "create" | "change" | "exists", "details": [FIELD: THERE -> WANTED]}`. Writes nothing."""
    metadata = body["metadata"]
    there = cluster.get(body["kind"], metadata["name"], metadata.get("namespace"))
    if there is None:
        return change(body, "create")
    if kinds.find(body["kind"]).immutable:
        return change(body, "exists")
    different = list(_differences(_plain(there), _plain(cluster.would_be(body)), ""))
    more = [f"and {len(different) - _SHOWN} more"] if len(different) > _SHOWN else []
    return change(body, "change" if different else "exists", [*different[:_SHOWN], *more])


def change(body: Object, word: str, details: list[str] | None = None) -> dict[str, Any]:
    return {"what": f"{body['kind']}/{body['metadata']['name']}", "change": word, "details": details or []}


def _plain(item: Object) -> Object:
    """An object without what the server alone writes."""
    metadata = {key: value for key, value in item["metadata"].items() if key not in _OF_THE_SERVER}
    return {**{key: value for key, value in item.items() if key != "status"}, "metadata": metadata}


def _differences(there: Any, wanted: Any, path: str) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(wanted, dict):
        for key in sorted(there.keys() | wanted.keys()):
            yield from _differences(there.get(key), wanted.get(key), f"{path}.{key}" if path else key)
    elif isinstance(there, list) and isinstance(wanted, list) and len(there) == len(wanted):
        for number, (one, other) in enumerate(zip(there, wanted, strict=True)):
            name = one.get("name", number) if isinstance(one, dict) else number
            yield from _differences(one, other, f"{path}[{name}]")
    elif there != wanted:
        yield f"{path}: {_short(there)} -> {_short(wanted)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
