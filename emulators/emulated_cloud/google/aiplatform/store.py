"""What there is, in a folder: a resource is a JSON file.

us-central1/pipelineJobs/refresh-1.json        as the API shows it
us-central1/schedules/4711.json                as the API shows it
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Store:
    """The resources below a folder, by their paths (`us-central1/pipelineJobs/refresh-1`)."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._resources: dict[str, dict[str, Any]] = {
            str(file.relative_to(folder))[: -len(".json")]: json.loads(file.read_bytes())
            for file in sorted(folder.glob("*/*/*.json"))
        }

    def get(self, path: str) -> dict[str, Any] | None:
        return self._resources.get(path)

    def put(self, path: str, resource: dict[str, Any]) -> None:
        self._resources[path] = resource
        file = self._folder / f"{path}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(json.dumps(resource), encoding="utf-8")
        part.replace(file)

    def remove(self, path: str) -> None:
        self._resources.pop(path, None)
        (self._folder / f"{path}.json").unlink(missing_ok=True)

    def of_kind(self, kind: str, location: str = "*") -> list[tuple[str, dict[str, Any]]]:
        """All of a kind (`pipelineJobs`, `schedules`), of one location or of all, by path."""
        found = []
        for path, resource in self._resources.items():
            its_location, its_kind, _ = path.split("/")
            if its_kind == kind and location in ("*", its_location):
                found.append((path, resource))
        return found
