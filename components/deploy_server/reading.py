"""Reads weights into the Rapid Cache of a zone: GCS keeps there what is read from a machine in that zone.

Nothing is written here: every byte is read and compared with the manifest.
"""

from __future__ import annotations

import functools
import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving import progress
from serving.errors import InconclusiveError
from serving.log import Say
from serving.progress import Passed
from serving.weights import manifest
from serving.weights.manifest import File

_PIECE = 256 << 10
"""Bytes read at a time."""


class Plan(BaseModel):
    """What to read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_uri: str
    """`gs://BUCKET/models/ORG/NAME/KEY`: complete weights, read as the pod's service account."""
    times: int = Field(default=1, ge=1, le=2)
    """How often: a cache may take in what is read for the second time."""
    threads: int = Field(default=8, ge=1, le=8)
    """Files at once."""
    patience_seconds: float = Field(ge=0)
    """How long a bucket that is away, or not open to this pod yet, is waited for."""


def read(plan: Plan, say: Say) -> dict[str, Any]:
    """Reads the weights. Returns `{"files", "bytes", "seconds"}`.

    Raises InconclusiveError for bytes other than the manifest's.
    """
    started = time.monotonic()
    known, _ = manifest.read_through(plan.weights_uri)
    for _ in range(plan.times):
        work = functools.partial(_read, plan.weights_uri)
        progress.of_files(known.files, work, threads=plan.threads, say=say)
    return {
        "files": len(known.files),
        "bytes": sum(file.size for file in known.files),
        "seconds": round(time.monotonic() - started, 3),
    }


def _read(weights_uri: str, file: File, passed: Passed) -> None:
    arrived = manifest.read_object(weights_uri, file, lambda piece: passed(len(piece)), _PIECE)
    if arrived != file.sha256:
        raise InconclusiveError(
            f"{weights_uri}/{file.path} reads otherwise: sha256 {arrived} instead of {file.sha256}. See "
            f"`gemma-pipelines verify-weights --read {weights_uri}`"
        )
