"""What there is, in a folder: a resource is a JSON file.

us-central1/pipelineJobs/refresh-1.json        as the API shows it
us-central1/schedules/4711.json                as the API shows it
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emulated_cloud.google.resource_files import ResourceFiles


class Store(ResourceFiles):
    """The resources below a folder, by their paths (`us-central1/pipelineJobs/refresh-1`)."""

    def __init__(self, folder: Path):
        super().__init__(folder, ["*/*/*.json"])

    def of_kind(self, kind: str, location: str = "*") -> list[tuple[str, dict[str, Any]]]:
        """All of a kind (`pipelineJobs`, `schedules`), of one location or of all, by path."""
        found = []
        for path, resource in self._resources.items():
            its_location, its_kind, _ = path.split("/")
            if its_kind == kind and location in ("*", its_location):
                found.append((path, resource))
        return found
