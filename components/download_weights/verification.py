"""Whether what lies in a bucket is what its manifest says; with every byte read again, if that is asked for."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from serving import progress
from serving.clients import storage
from serving.clients.digest import Digest, ServedFile
from serving.clients.storage import PreconditionError
from serving.errors import RequestError
from serving.log import Say
from serving.weights import manifest
from serving.weights.manifest import File, Manifest

THREADS = 4


@dataclass(frozen=True)
class Verdict:
    """What the manifest names, and what differs: a line each."""

    weights_uri: str
    files: int
    bytes: int
    differences: list[str]


def verify(weights_uri: str, *, read: bool = False, say: Say | None = None, report_seconds: float = 3.0) -> Verdict:
    """Compares what lies at `gs://BUCKET/models/ORG/NAME/KEY` with its manifest.

    GCS keeps a crc32c of every object, so nothing is read unless `read` is set: then every byte is, and the sha256 is
    compared as well; `say` hears of it every `report_seconds`. Raises RequestError when there is no manifest, naming
    complete weights nearby.
    """
    weights_uri = weights_uri.rstrip("/").removesuffix(f"/{manifest.NAME}")
    _, path = storage.parse_uri(weights_uri)
    text = storage.read_bytes(manifest.uri(weights_uri)) if path else None
    if text is None:
        raise RequestError(f"no complete weights at {weights_uri}: there is no {manifest.NAME}. {_nearby(weights_uri)}")
    try:
        known = Manifest.model_validate_json(text)
    except ValueError:
        return Verdict(weights_uri, 0, 0, [f"{manifest.NAME} is damaged: it is no manifest of ours"])
    there = manifest.listing(weights_uri)
    differences = _of_another_key(known, weights_uri) + manifest.differences(known, there)
    if read:
        sound = [file for file in known.files if not manifest.wrong(file, there.get(file.path))]
        found = progress.of_files(
            sound,
            functools.partial(_read_again, weights_uri),
            threads=THREADS,
            say=say or (lambda _: None),
            report_seconds=report_seconds,
        )
        differences += filter(None, found)
    differences += manifest.strays(known, there)
    return Verdict(weights_uri, len(known.files), sum(file.size for file in known.files), differences)


def _of_another_key(known: Manifest, weights_uri: str) -> list[str]:
    key = weights_uri.rpartition("/")[2]
    return [] if known.weights_key == key else [f"{manifest.NAME} is that of other weights: {known.weights_key}"]


def _nearby(weights_uri: str) -> str:
    """Which complete weights there are below an address, else beside it, in words."""
    bucket, path = storage.parse_uri(weights_uri)
    parent = f"gs://{bucket}/{path.rpartition('/')[0]}".rstrip("/")
    for folder in dict.fromkeys((weights_uri, parent)):
        found = manifest.complete_below(folder)
        if found:
            return f"Complete are: {', '.join(found[:20])}{', …' if len(found) > 20 else ''}"
    return f"Nothing below {parent} is complete; a run of the pipeline goes on with what is there"


def _read_again(weights_uri: str, file: File, passed: progress.Passed) -> str:
    """In what the bytes are not what the manifest says; empty when they are."""
    digest = Digest(ServedFile(file.path, file.size, sha256=file.sha256))

    def take(piece: bytes) -> None:
        digest.update(piece)
        passed(len(piece))

    try:
        storage.read_through(f"{weights_uri}/{file.path}", file.generation, take)
    except PreconditionError:
        return f"{file.path} changed while it was read"
    if digest.is_right():
        return ""
    return f"{file.path} reads otherwise: sha256 {digest.sha256} instead of {file.sha256}"
