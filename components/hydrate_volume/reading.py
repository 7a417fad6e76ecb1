"""Reads every byte of a volume from its disk, and says in what it is not what the manifest in the bucket names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from components.hydrate_volume import volume
from components.hydrate_volume.volume import Plan
from serving import progress
from serving.log import Say
from serving.progress import Passed
from serving.weights import manifest
from serving.weights.manifest import File

_TOLD = 20
"""Reasons at most: a volume that is wholly another one has one for every file."""


def verify(plan: Plan, say: Say, *, report_seconds: float = 3.0) -> dict[str, Any]:
    """Returns `{"passed", "reasons", "files", "bytes", "seconds"}`: what differs, a line each, and what the manifest
    names. Raises OSError as the disk has it."""
    started = time.monotonic()
    known, _ = volume.manifest_of(plan)
    folder = Path(plan.folder)
    there = volume.present(folder)
    there.pop(manifest.NAME, None)

    def differs(file: File, passed: Passed) -> str:
        if file.path not in there:
            return f"{file.path} is missing"
        if not volume.is_whole(there[file.path], file.size):
            return f"{file.path} has {there[file.path].st_size} bytes instead of {file.size}"
        found = volume.sha256(folder / file.path, passed)
        return "" if found == file.sha256 else f"{file.path} reads otherwise: sha256 {found} instead of {file.sha256}"

    found = progress.of_files(known.files, differs, threads=plan.threads, say=say, report_seconds=report_seconds)
    reasons = [*filter(None, found), *manifest.strays(known, there)]
    left = len(reasons) - _TOLD
    return {
        "passed": not reasons,
        "reasons": reasons[:_TOLD] + ([f"and {left} more"] if left > 0 else []),
        "files": len(known.files),
        "bytes": sum(file.size for file in known.files),
        "seconds": round(time.monotonic() - started, 3),
    }
