"""`_MANIFEST.json`: what a set of weights in the bucket consists of. Written last, so where it is, everything is.

`{"weights_key", "repositories": [{"role", "model", "commit", "source"?}], "files": [{"path", "size", "sha256",
"crc32c", "generation"}]}`: sizes in bytes, sha256 in hex, crc32c in base64 and generation as GCS gives them. It is
never changed: the key names the content. `commit` is the one that was current when the weights were moved; later
commits that change no served file have the same key, and the same manifest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict, ValidationError

from serving.clients import storage
from serving.clients.patience import Interrupted, Patience
from serving.clients.storage import PreconditionError, StoredObject
from serving.errors import AccessError, InconclusiveError, RequestError

NAME = "_MANIFEST.json"


class Repository(BaseModel):
    """Where files came from. `role`: `base`, `assistant` or an adapter's name."""

    model_config = ConfigDict(frozen=True)

    role: str = "base"
    model: str
    commit: str
    source: str | None = None
    """The gs:// folder that the files came from, if not the hub."""


class File(BaseModel):
    """An object below the weights' prefix."""

    model_config = ConfigDict(frozen=True)

    path: str
    size: int
    sha256: str
    crc32c: str
    generation: int


class Manifest(BaseModel):
    """A complete set of weights."""

    weights_key: str
    repositories: list[Repository]
    files: list[File]


def uri(weights_uri: str) -> str:
    """Where the manifest of the weights at `gs://BUCKET/models/ORG/NAME/KEY` is."""
    return f"{weights_uri}/{NAME}"


def read(weights_uri: str) -> tuple[Manifest | None, int]:
    """The manifest and its object's generation; (None, 0) when the weights are not there, or not complete yet."""
    value, generation = storage.read_json_with_generation(uri(weights_uri))
    if value is None:
        return None, 0
    try:
        return Manifest.model_validate(value), generation
    except ValidationError as error:
        raise RequestError(
            f"{uri(weights_uri)} is not a manifest of ours. If nobody needs it: `gcloud storage rm {uri(weights_uri)}`"
        ) from error


def read_through(weights_uri: str) -> tuple[Manifest, bytes]:
    """The manifest, read and as it is stored, for a pod: with little memory, and with patience while the bucket is not
    open to its service account yet.

    Raises RequestError when there is none, InconclusiveError when it stays closed.
    """
    address, pieces = uri(weights_uri), list[bytes]()

    def attempt() -> None:
        pieces.clear()
        try:
            storage.read_through(address, None, pieces.append)
        except AccessError as error:
            # A binding that is new counts for some requests at once and for others after minutes.
            raise Interrupted(
                f"this pod may not read it: {getattr(error.__cause__, 'message', error)}. Its service account needs "
                f"{storage.READER_ROLE} on the bucket, which ensure_access binds (with `access: check` an "
                "administrator does)"
            ) from error

    try:
        Patience().until_it_works(address, attempt)
    except PreconditionError as error:
        raise RequestError(f"no complete weights at {weights_uri}: there is no {NAME}") from error
    text = b"".join(pieces)
    try:
        return Manifest.model_validate_json(text), text
    except ValueError as error:
        raise RequestError(f"{address} is damaged: it is no manifest of ours") from error


def read_object(weights_uri: str, file: File, take: Callable[[bytes], object], piece: int = storage.PIECE) -> str:
    """Gives the bytes of an object to `take`, `piece` at a time, and returns their sha256.

    Raises InconclusiveError when the object is not there any more, or was written again.
    """
    digest = hashlib.sha256()

    def arrive(data: bytes) -> None:
        digest.update(data)
        take(data)

    try:
        storage.read_through(f"{weights_uri}/{file.path}", file.generation, arrive, piece)
    except PreconditionError as error:
        raise InconclusiveError(
            f"{weights_uri}/{file.path} is not the object of its manifest any more: somebody deleted it, or wrote it "
            "again. Run again: download_weights brings it back"
        ) from error
    return digest.hexdigest()


def complete_below(folder_uri: str) -> list[str]:
    """Where complete weights lie in a folder of the bucket, at any depth: those that have a manifest."""
    end = f"/{NAME}"
    return [found.removesuffix(end) for found in storage.list_uris(f"{folder_uri}/") if found.endswith(end)]


def write(weights_uri: str, manifest: Manifest) -> None:
    """Writes the manifest if there is none. Raises storage.PreconditionError when there is."""
    manifest.files.sort(key=lambda file: file.path)
    storage.write_json(uri(weights_uri), manifest.model_dump(exclude_none=True), if_generation_match=0)


def listing(weights_uri: str) -> dict[str, StoredObject]:
    """Path → object of what lies below the weights' prefix, the manifest left out."""
    prefix = f"{weights_uri}/"
    found = {stored.uri.removeprefix(prefix): stored for stored in storage.list_objects(prefix)}
    found.pop(NAME, None)
    return found


def wrong(file: File, there: StoredObject | None) -> str:
    """In what an object is not what the manifest says, in words; empty when it is."""
    if there is None:
        return f"{file.path} is missing"
    if there.size != file.size:
        return f"{file.path} has {there.size} bytes instead of {file.size}"
    if there.crc32c != file.crc32c:
        return f"{file.path} has other content: crc32c {there.crc32c} instead of {file.crc32c}"
    if there.generation != file.generation:
        return f"{file.path} was written again: generation {there.generation} instead of {file.generation}"
    return ""


def differences(manifest: Manifest, there: dict[str, StoredObject]) -> list[str]:
    """What is missing or different in the bucket, a line each; empty when everything is as it should be."""
    return [words for file in manifest.files if (words := wrong(file, there.get(file.path)))]


def mismatch(manifest: Manifest, there: dict[str, StoredObject], shown: int) -> str:
    """What is not as the manifest says, or does not belong, in words: no more than `shown` of it. Empty when nothing
    is."""
    wrong = [*differences(manifest, there), *strays(manifest, there)]
    more = f" and {len(wrong) - shown} more" if len(wrong) > shown else ""
    return f"{'; '.join(wrong[:shown])}{more}"


def strays(manifest: Manifest, paths: Iterable[str]) -> list[str]:
    """What lies there and does not belong, a line each: an engine may read it as part of the model."""
    known = {file.path for file in manifest.files}
    return [f"{path} is not in the manifest" for path in sorted(set(paths) - known)]
