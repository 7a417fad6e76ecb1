"""What there is, in a folder: a resource is a JSON file at its path below the project, and a disk's or an image's bytes
are a sparse file beside it.

    zones/us-central1-a/disks/builder.json         as the API shows it
    zones/us-central1-a/disks/builder.raw          as a machine sees it
    regions/us-central1/subnetworks/proxies.json   which has none
    global/images/nodes-1.json, global/images/nodes-1.raw
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emulated_cloud.google.resource_files import ResourceFiles


class Store(ResourceFiles):
    """The resources below a folder, by their paths (`zones/us-central1-a/disks/builder`)."""

    def __init__(self, folder: Path):
        super().__init__(folder, ["zones/*/*/*.json", "regions/*/*/*.json", "global/*/*.json"])

    def change(self, path: str, **fields: Any) -> None:
        """Sets fields of a resource that is there."""
        self.put(path, {**self._resources[path], **fields})

    def remove(self, path: str) -> None:
        super().remove(path)
        self.data(path).unlink(missing_ok=True)

    def of_kind(self, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """All of a kind (`disks`, `images`, `instances`) wherever they are, by path."""
        for path, resource in sorted(self._resources.items(), key=lambda item: item[0]):
            if path.split("/")[-2] == kind:
                yield path, resource

    # -- bytes ----------------------------------------------------------------------------------------------

    def data(self, path: str) -> Path:
        return self.folder / f"{path}.raw"

    def make_data(self, path: str, size_gb: int, source: str = "") -> None:
        """A disk's or an image's bytes: zeros, or those of `source`. None for what is deleted meanwhile."""
        file = self.data(path)
        part = file.with_suffix(".raw-part")
        if source and self.data(source).exists():
            command = ["cp", "--sparse=always", "--reflink=auto", str(self.data(source)), str(part)]
            subprocess.run(command, check=True, capture_output=True)
        else:
            part.touch()
        os.truncate(part, max(size_gb << 30, part.stat().st_size))
        part.replace(file)
        if path not in self._resources:
            file.unlink()
