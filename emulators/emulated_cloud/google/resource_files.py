"""Resources that outlive their server: a JSON file each, at the resource's path below a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ResourceFiles:
    """The resources below a folder, by their paths. `patterns` are globs of where they lie."""

    def __init__(self, folder: Path, patterns: Iterable[str]):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._resources: dict[str, dict[str, Any]] = {
            str(file.relative_to(folder))[: -len(".json")]: json.loads(file.read_bytes())
            for pattern in patterns
            for file in sorted(folder.glob(pattern))
        }

    def get(self, path: str) -> dict[str, Any] | None:
        return self._resources.get(path)

    def put(self, path: str, resource: dict[str, Any]) -> None:
        self._resources[path] = resource
        file = self.folder / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(resource, indent=2), encoding="utf-8")
        part.replace(file)

    def remove(self, path: str) -> None:
        self._resources.pop(path, None)
        (self.folder / f"{path}.json").unlink(missing_ok=True)
