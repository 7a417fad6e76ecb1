"""What a pod that streams its weights has before its engine starts: certainty of the bucket, and the other files.

Every object below the weights' prefix is compared with the manifest (size, crc32c, generation, and that none is there
which the manifest does not name: an engine would read it). Base weights stay where they are. Everything else is brought
to the pod's disk at its generation, and its sha256 compared.
"""

from __future__ import annotations

import time
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from serving import progress
from serving.clients import storage
from serving.clients.patience import Interrupted, Patience
from serving.clients.storage import StoredObject
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.log import Say
from serving.progress import Passed
from serving.weights import manifest
from serving.weights.manifest import File

_PIECE = 256 << 10
"""Bytes read at a time."""
_PART = ".part"
"""Ends the name of a file that is not whole yet."""
_ATTEMPTS = 3
"""How often a file that arrives with other bytes is asked for."""
_TOLD = 5
"""Differences that are told: where the whole prefix is another, there is one for every file."""


class Plan(BaseModel):
    """What to bring."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_uri: str
    """`gs://BUCKET/models/ORG/NAME/KEY`: complete weights, read as the pod's service account."""
    folder: str
    """Where the files go: a folder that the engine sees, and that no other pod has."""
    threads: int = Field(default=8, ge=1, le=8)
    """Files at once."""
    patience_seconds: float = Field(ge=0)
    """How long a bucket that is away, or not open to this pod yet, is waited for."""


def bring(plan: Plan, say: Say) -> dict[str, Any]:
    """Returns `{"files", "bytes", "streamed_files", "streamed_bytes", "seconds"}`: what is in the folder now, and what
    is left to the engine.

    Raises InconclusiveError for a bucket that is not as the manifest says, RequestError for weights that cannot be
    streamed.
    """
    started = time.monotonic()
    known, _ = manifest.read_through(plan.weights_uri)
    compare(plan.weights_uri, known, _listing(plan.weights_uri))
    streamed = [file for file in known.files if is_streamed(file.path)]
    others = [file for file in known.files if not is_streamed(file.path)]
    if not streamed:
        raise RequestError(f"{plan.weights_uri} has no safetensors to stream. Take another feature for the weights")
    bring_files(plan.weights_uri, others, Path(plan.folder), threads=plan.threads, say=say)
    return {
        "files": len(others),
        "bytes": sum(file.size for file in others),
        "streamed_files": len(streamed),
        "streamed_bytes": sum(file.size for file in streamed),
        "seconds": round(time.monotonic() - started, 3),
    }


def bring_files(weights_uri: str, files: list[File], folder: Path, *, threads: int, say: Say) -> None:
    """Brings files of a set of weights into a folder, each byte held against the manifest. Raises as `bring`."""

    def work(file: File, passed: Passed) -> None:
        _bring(weights_uri, file, _place(folder, file.path), passed)

    progress.of_files(files, work, threads=threads, say=say)


def is_streamed(path: str) -> bool:
    """Whether the engine streams a file of the weights: what its loader lists, the safetensors at the top."""
    return "/" not in path and path.endswith(".safetensors")


def compare(weights_uri: str, known: manifest.Manifest, there: dict[str, StoredObject]) -> None:
    """Raises InconclusiveError unless the objects are those that the manifest names, and no others."""
    if wrong := manifest.mismatch(known, there, _TOLD):
        raise InconclusiveError(
            f"{weights_uri} is not what its manifest says: {wrong}. Nothing is served "
            "from it. Run again: download_weights brings back what is missing or different, and what does not belong "
            "is for whoever put it there to take away"
        )


def _listing(weights_uri: str) -> dict[str, StoredObject]:
    """The objects below the prefix, and that the bucket itself may be looked at, as the streamer does. A new binding
    counts for some requests at once and for others after minutes."""
    bucket, _ = storage.parse_uri(weights_uri)

    def attempt() -> dict[str, StoredObject]:
        try:
            storage.region_of(bucket)
            return manifest.listing(weights_uri)
        except AccessError as error:
            raise Interrupted(f"this pod may not read the bucket: {error}") from error

    found: dict[str, StoredObject] = Patience().until_it_works(weights_uri, attempt)
    return found


def _place(folder: Path, path: str) -> Path:
    """Where a file goes. Raises RequestError for one that would be elsewhere."""
    inside = PurePosixPath(path)
    if str(inside) != path or inside.is_absolute() or ".." in inside.parts or inside.name.endswith(_PART):
        raise RequestError(f"the manifest names {path!r}, which is no file of weights")
    return folder / path


def _bring(weights_uri: str, file: File, place: Path, passed: Passed) -> None:
    """Makes one file whole. It has its name when it is: an attempt that was killed leaves none that is not."""
    place.parent.mkdir(parents=True, exist_ok=True)
    part, arrived = place.with_name(place.name + _PART), ""
    for _ in range(_ATTEMPTS):
        arrived = _fetch(weights_uri, file, part, passed)
        if arrived == file.sha256:
            part.rename(place)
            return
        passed(-file.size)
    part.unlink()
    raise InconclusiveError(
        f"{weights_uri}/{file.path} arrived with other bytes {_ATTEMPTS} times: sha256 {arrived} instead of "
        f"{file.sha256}. See `gemma-pipelines verify-weights --read {weights_uri}`"
    )


def _fetch(weights_uri: str, file: File, part: Path, passed: Passed) -> str:
    """Writes an object's bytes into a file, and returns the sha256 of what arrived."""
    with open(part, "wb") as stream:

        def take(piece: bytes) -> None:
            stream.write(piece)
            passed(len(piece))

        return manifest.read_object(weights_uri, file, take, _PIECE)
