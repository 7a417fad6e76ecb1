"""The manifests as they lie in `manifests/`: found by feature and scope, and their ${placeholders} filled in.

Values go into the parsed YAML, never into its text, so that none can break out of its place. A placeholder that stands
alone keeps its value's type, and in a list a list is spliced in. A placeholder that nobody fills is an error.
"""

from __future__ import annotations

import functools
import importlib.resources
import json
import re
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any, Literal

from serving.errors import RequestError

Object = dict[str, Any]
Scope = Literal["admin", "shared", "generation", "temporary", "entry", "patch"]

BASE = "base"
"""The folder of what all deployments share."""


def of(feature: str, scope: Scope, variant: str = "") -> dict[str, Object]:
    """The manifests of a feature (or of BASE) in a scope by their paths below `manifests/`; empty without a folder.
    With a variant, those in its folder in the scope's too."""
    folder = f"{feature}/{scope}"
    return {path: _read(path) for path in _paths(folder) + (_paths(f"{folder}/{variant}") if variant else ())}


def of_any_variant(feature: str, scope: Scope) -> dict[str, Object]:
    """The manifests of a feature in a scope, those of all its variants."""
    folder = f"{feature}/{scope}"
    return {path: _read(path) for part in (folder, *_folders(folder)) for path in _paths(part)}


@functools.cache
def _folders(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{entry.name}" for entry in _entries(folder) if entry.is_dir())


@functools.cache
def _paths(folder: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{entry.name}" for entry in _entries(folder) if entry.name.endswith(".yaml"))


def _entries(folder: str) -> list[Traversable]:
    there = importlib.resources.files("manifests").joinpath(folder)
    return sorted(there.iterdir(), key=lambda entry: entry.name) if there.is_dir() else []


@functools.cache
def _read(path: str) -> Any:
    import yaml

    text = importlib.resources.files("manifests").joinpath(path).read_text(encoding="utf-8")
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 (both are safe)


_PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")


def fill(template: Any, values: Mapping[str, Any], file: str) -> Any:
    """A copy of the parsed manifest with its placeholders filled in.

    Raises RequestError naming file and placeholder for one that has no value, and for a value that cannot stand within
    a text.
    """

    def value_of(name: str) -> Any:
        if name not in values:
            raise RequestError(f"manifests/{file}: no value for the placeholder ${{{name}}}")
        return values[name]

    def text_of(match: re.Match[str]) -> str:
        value = value_of(match[1])
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise RequestError(f"manifests/{file}: ${{{match[1]}}} is not a text, it has to stand alone")
        return str(value)

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {filled(key): filled(item) for key, item in node.items()}
        if isinstance(node, list):
            items: list[Any] = []
            for item in node:
                value = filled(item)
                items += value if isinstance(item, str) and isinstance(value, list) else [value]
            return items
        if not isinstance(node, str):
            return node
        alone = _PLACEHOLDER.fullmatch(node)
        return json.loads(json.dumps(value_of(alone[1]))) if alone else _PLACEHOLDER.sub(text_of, node)

    return filled(template)
