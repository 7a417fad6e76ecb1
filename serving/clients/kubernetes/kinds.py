"""The kinds that this project touches, and where the API has them: kinds.json, which a test holds to a real server.

The order of its entries is the order in which objects are applied, so that what a pod needs is there before it;
deleting goes the other way.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serving.errors import RequestError

Object = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of the API."""

    kind: str
    group: str
    """Empty for the core group."""
    version: str
    plural: str
    namespaced: bool
    immutable: bool = False
    """What its objects say cannot change once they are there: they are created, and never applied again."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version


@functools.cache
def _table() -> dict[str, Kind]:
    text = importlib.resources.files(__package__).joinpath("kinds.json").read_text(encoding="utf-8")
    return {entry["kind"]: Kind(**entry) for entry in json.loads(text)}


def known() -> list[Kind]:
    """All kinds, in the order in which their objects are applied."""
    return list(_table().values())


def find(kind: str) -> Kind:
    """Raises RequestError for a kind that the project does not touch."""
    if kind not in _table():
        raise RequestError(f"kind {kind} is not one that this project manages")
    return _table()[kind]


def in_order(items: Iterable[Object]) -> list[Object]:
    """Objects in the order in which they are applied. Raises RequestError for an unknown kind."""
    places = {kind: place for place, kind in enumerate(_table())}
    return sorted(items, key=lambda item: places[find(item["kind"]).kind])


def path(kind: str, namespace: str | None, name: str = "") -> str:
    """The path of an object, or of all objects of the kind: in a namespace, or in the whole cluster.

    Raises RequestError for a kind that the project does not touch.
    """
    found = find(kind)
    root = f"/apis/{found.api_version}" if found.group else f"/api/{found.version}"
    scope = f"/namespaces/{namespace}" if namespace and found.namespaced else ""
    return f"{root}{scope}/{found.plural}" + (f"/{name}" if name else "")


def typed(kind: str, item: Object) -> Object:
    """An item of a list, with the type that lists leave out."""
    return {"apiVersion": find(kind).api_version, "kind": kind, **item}
