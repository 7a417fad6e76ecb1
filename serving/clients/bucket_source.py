"""A folder of a bucket as a source of weights: a fine-tune that never was on the hub.

A folder has no commits, so one is made over its listing: the same paths, sizes and contents are the same commit. Every
object is read at the generation that was listed, so a folder that changes meanwhile is noticed and never mixed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from serving.clients import storage
from serving.clients.digest import ServedFile
from serving.clients.source import Source
from serving.clients.storage import StoredObject
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError


@dataclass(frozen=True)
class Folder(Source):
    """A folder as it was listed. `uri`: gs://BUCKET/FOLDER."""

    uri: str
    commit: str
    """40 hex digits over paths, sizes and digests, like a commit of the hub."""
    objects: dict[str, StoredObject]
    """By path below the folder."""

    @property
    def name(self) -> str:
        return self.uri

    def files(self) -> list[ServedFile]:
        return [_file(path, stored) for path, stored in self.objects.items()]

    def locate(self, file: ServedFile) -> tuple[str, dict[str, str]]:
        stored = self.objects[file.path]
        return storage.locate(stored.uri, stored.generation)

    def refused(self, file: ServedFile, status: int) -> PipelineError | None:
        uri = self.objects[file.path].uri
        if status == 404:
            return InconclusiveError(f"{uri} changed while it was read. Run again when nobody writes to {self.uri}")
        if status in (401, 403):
            grant = storage.grant(self.uri, storage.READER_ROLE)
            return AccessError(f"{uri} may not be read (GCS answered {status}). {grant}")
        return None


def at(uri: str, setting: str, commit: str | None = None) -> Folder:
    """The folder as it is now. `setting` named it; with `commit` it has to be as it was then.

    Raises RequestError for a folder that holds nothing, AccessError without the right to list it, InconclusiveError for
    one that has changed.
    """
    prefix = f"{uri}/"
    # Consoles mark a folder by an object whose name ends in a slash.
    objects = {
        stored.uri.removeprefix(prefix): stored
        for stored in storage.list_objects(prefix, setting=setting)
        if not stored.uri.endswith("/")
    }
    bucket = storage.parse_uri(uri)[0]
    if not objects:
        raise RequestError(
            f"{uri} does not exist, or is empty. `gcloud storage ls gs://{bucket}/` shows what there is; put a model "
            f"there (`gcloud storage cp -r DIR/* {uri}/`), or correct `{setting}`"
        )
    packed = sorted(path for path, stored in objects.items() if stored.encoding == "gzip")
    if packed:
        raise RequestError(
            f"{prefix}{packed[0]} is stored in gzip, as `gcloud storage cp -Z` does: nobody could load it from a "
            "mounted bucket. Copy it again without"
        )
    found = _commit(objects)
    if commit and commit != found:
        raise InconclusiveError(f"{uri} has changed since this run began. Run again when nobody writes to it")
    return Folder(uri, found, objects)


def _file(path: str, stored: StoredObject) -> ServedFile:
    return ServedFile(path, stored.size, md5=stored.md5, crc32c=stored.crc32c)


def _commit(objects: dict[str, StoredObject]) -> str:
    lines = [f"{path}\0{stored.size}\0{_file(path, stored).digest}" for path, stored in sorted(objects.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:40]
