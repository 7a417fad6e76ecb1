"""Buckets and their objects in files, so that they outlive the process that serves them.

An object exists when both its metadata and its bytes do. It is put in place by renames that a kill at any moment
leaves either done or not done: the metadata goes to pending/, the bytes to their place, the metadata to its place;
what a kill leaves in pending/ is finished or dropped at the next start. Objects are deleted bytes first.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from emulated_cloud.storage.errors import GcsError, invalid, no_such_bucket, no_such_object


class RootInUse(Exception):
    """Another process serves this folder."""


class Damaged(Exception):
    """A file of ours that is empty, cut or of another shape: which one, and what to do about it."""


def now() -> str:
    """The time as GCS writes it."""
    return rfc3339(datetime.now(UTC))


def rfc3339(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def etag_of(generation: int, metageneration: int) -> str:
    """As the service makes it: both numbers as protobuf fields 1 and 2, in base64."""

    def varint(number: int) -> bytes:
        out = bytearray()
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        return bytes(out) + bytes([number])

    return base64.b64encode(b"\x08" + varint(generation) + b"\x10" + varint(metageneration)).decode()


@dataclass
class StoredObject:
    """What is known of an object. `fields` holds what its writer may set, under the JSON API's names
    (contentType, metadata, …); `crc32c` and `md5` are base64; `upload_id` is the session it came from."""

    name: str
    size: int
    crc32c: str
    fields: dict[str, Any]
    md5: str | None = None
    component_count: int | None = None
    upload_id: str | None = None
    generation: int = 0
    metageneration: int = 1
    created: str = ""
    updated: str = ""
    location: str = ""
    """Where the bytes lie, relative to the bucket's folder."""

    @property
    def etag(self) -> str:
        return etag_of(self.generation, self.metageneration)


@dataclass
class Bucket:
    """A bucket: `fields` is what its owner may set, under the JSON API's names; `policy` its IAM policy."""

    name: str
    folder: Path
    project: str
    fields: dict[str, Any]
    policy: dict[str, Any]
    generation: int
    metageneration: int = 1
    created: str = ""
    updated: str = ""
    objects: dict[str, StoredObject] = field(default_factory=dict)
    caches: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Caches of it (caches.py), by their zones."""

    @property
    def etag(self) -> str:
        return etag_of(self.generation, self.metageneration)

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    def find(self, name: str, generation: str | None = None) -> StoredObject:
        """Raises GcsError 404 when there is no such object, or not in this generation."""
        stored = self.objects.get(name)
        if stored is None or (generation is not None and str(stored.generation) != generation):
            raise no_such_object(self.name, name)
        return stored

    def location_of(self, name: str) -> str:
        """Where the bytes of a new object of this name are to lie.

        objects/<name>, or escaped/<sha256 of the name> for a name that no file can have: one with an empty, `.`,
        `..` or over-long segment (a leading, trailing or doubled slash makes an empty one), and one that is a
        folder of other objects' names, or lies below an object's (`a` and `a/b`; the first to come has the path).
        """
        path = Path("objects", name)
        segments = name.split("/")
        unusable = any(part in ("", ".", "..") or "\0" in part or len(part.encode()) > 255 for part in segments)
        if not unusable:
            in_the_way = [parent for parent in path.parents if (self.folder / parent).is_file()]
            unusable = bool(in_the_way) or (self.folder / path).is_dir()
        return f"escaped/{digest(name)}" if unusable else str(path)

    def metadata_file(self, name: str) -> Path:
        return self.folder / "metadata" / f"{digest(name)}.json"


def digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


class Store:
    """All buckets below a folder. Whatever reads and then writes holds `lock`. Raises RootInUse, Damaged."""

    def __init__(self, root: Path) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.root, self.lock = root, threading.RLock()
        self._held = open(root / ".lock", "w", encoding="utf-8")  # noqa: SIM115 (held as long as the store lives)
        try:
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._held.close()
            raise RootInUse(
                f"another storage emulator serves {root}: stop it, or give this one another --root"
            ) from None
        self.buckets: dict[str, Bucket] = {}
        self._last_generation = 0
        try:
            for leftover in root.glob(".deleted-*"):
                shutil.rmtree(leftover)
            for file in sorted(root.glob("*/bucket.json")):
                bucket = self._load(file)
                self.buckets[bucket.name] = bucket
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._held.close()

    def _load(self, file: Path) -> Bucket:
        with _read(file, f"the bucket, {file.parent}") as record:
            bucket = Bucket(folder=file.parent, **record)
        for cache in bucket.caches.values():
            # Its operation ended with the process before.
            cache |= {"state": "RUNNING"} if cache["state"] == "CREATING" else {}
        self._recover(bucket)
        for metadata in (bucket.folder / "metadata").glob("*.json"):
            with _read(metadata, "it: its object is gone then, and the next writer makes it anew") as record:
                stored = StoredObject(**record)
            if (bucket.folder / stored.location).is_file():
                bucket.objects[stored.name] = stored
            else:
                metadata.unlink()
        kept = {stored.location for stored in bucket.objects.values()}
        for escaped in (bucket.folder / "escaped").iterdir():
            if f"escaped/{escaped.name}" not in kept:
                escaped.unlink()
        newest = [bucket.generation, *(stored.generation for stored in bucket.objects.values())]
        self._last_generation = max(self._last_generation, *newest)
        return bucket

    def _recover(self, bucket: Bucket) -> None:
        """Finishes what a kill interrupted after the bytes were in place, and drops the rest."""
        for pending in (bucket.folder / "pending").iterdir():
            if pending.suffix == ".json" and not (bucket.uploads / f"{pending.stem}.data").exists():
                with _read(pending, "it: its object is gone then") as record:
                    metadata = bucket.metadata_file(record["name"])
                pending.replace(metadata)
            else:
                pending.unlink()

    def next_generation(self) -> int:
        """Microseconds since 1970, never the same twice. Hold the lock."""
        self._last_generation = max(self._last_generation + 1, time.time_ns() // 1000)
        return self._last_generation

    # -- buckets --------------------------------------------------------------------------------------------

    def bucket(self, name: str) -> Bucket:
        """Raises GcsError 404."""
        try:
            return self.buckets[name]
        except KeyError:
            raise no_such_bucket() from None

    def create_bucket(self, name: str, project: str, fields: dict[str, Any]) -> Bucket:
        """Raises GcsError 400 for a name that GCS refuses, 409 for one that is taken."""
        legal = re.fullmatch(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]", name)
        too_long = any(len(part) > 63 for part in name.split(".")) or ("." not in name and len(name) > 63)
        if not legal or too_long or ".." in name or name.startswith("goog") or "google" in name:
            raise invalid(f"Invalid bucket name: '{name}'")
        with self.lock:
            if name in self.buckets:
                message = "Your previous request to create the named bucket succeeded and you already own it."
                raise GcsError(409, "conflict", message, "BucketAlreadyOwnedByYou")
            bucket = Bucket(
                name=name,
                folder=self.root / name,
                project=project,
                fields=fields,
                policy=default_policy(project),
                generation=self.next_generation(),
                created=now(),
                updated=now(),
            )
            for part in ("objects", "escaped", "metadata", "uploads", "pending"):
                (bucket.folder / part).mkdir(parents=True, exist_ok=True)
            self.save_bucket(bucket)
            self.buckets[name] = bucket
            return bucket

    def ensure_bucket(self, name: str) -> Bucket:
        with self.lock:
            if name in self.buckets:
                return self.buckets[name]
            access = {"uniformBucketLevelAccess": uniform_access(True)}
            return self.create_bucket(name, "", {"location": "US", "iamConfiguration": access})

    def save_bucket(self, bucket: Bucket) -> None:
        record = {key: value for key, value in vars(bucket).items() if key not in ("folder", "objects")}
        write_json(bucket.folder / "bucket.json", record)

    def delete_bucket(self, name: str) -> None:
        with self.lock:
            bucket = self.bucket(name)
            if bucket.objects:
                message = "The bucket you tried to delete is not empty."
                raise GcsError(409, "conflict", message, "BucketNotEmpty")
            gone = self.root / f".deleted-{name}-{bucket.generation}"
            bucket.folder.rename(gone)
            del self.buckets[name]
        shutil.rmtree(gone)

    # -- objects --------------------------------------------------------------------------------------------

    def put(
        self, bucket: Bucket, upload: str, draft: StoredObject, check: Callable[[StoredObject | None], None]
    ) -> StoredObject:
        """Makes uploads/<upload>.data the bytes of an object, if `check` lets the one that is there be replaced."""
        with self.lock:
            if bucket.name not in self.buckets:
                raise no_such_bucket()
            old = bucket.objects.get(draft.name)
            check(old)
            draft.generation, draft.metageneration = self.next_generation(), 1
            draft.created = draft.updated = now()
            draft.location = old.location if old else bucket.location_of(draft.name)
            pending = bucket.folder / "pending" / f"{upload}.json"
            write_json(pending, asdict(draft))
            target = bucket.folder / draft.location
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(bucket.uploads / f"{upload}.data", target)
            except OSError:
                pending.unlink()  # or the next start would take the bytes that are there for these
                raise
            pending.replace(bucket.metadata_file(draft.name))
            bucket.objects[draft.name] = draft
            return draft

    def save(self, bucket: Bucket, stored: StoredObject) -> None:
        """Keeps changed metadata. Hold the lock."""
        write_json(bucket.metadata_file(stored.name), asdict(stored))
        bucket.objects[stored.name] = stored

    def delete(self, bucket: Bucket, stored: StoredObject) -> None:
        """Hold the lock."""
        file = bucket.folder / stored.location
        file.unlink(missing_ok=True)
        bucket.metadata_file(stored.name).unlink(missing_ok=True)
        del bucket.objects[stored.name]
        if stored.location.startswith("objects/"):
            # GCS has no folders: those that hold nothing any more would stand in the way of an object's name.
            for parent in file.relative_to(bucket.folder / "objects").parents[:-1]:
                try:
                    (bucket.folder / "objects" / parent).rmdir()
                except OSError:
                    break

    def open(self, bucket: Bucket, stored: StoredObject) -> BinaryIO:
        """The bytes of this version, which an overwrite or delete does not touch. Hold the lock."""
        return open(bucket.folder / stored.location, "rb")


def valid_name(name: str) -> str:
    """Raises GcsError 400 for a name that no object can have."""
    if not 1 <= len(name.encode()) <= 1024 or name in (".", "..") or re.search(r"[\r\n]", name):
        raise invalid(f"Invalid object name: '{name}'")
    return name


def write_json(file: Path, value: Any) -> None:
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(file)


@contextmanager
def _read(file: Path, what_to_delete: str) -> Iterator[dict[str, Any]]:
    """The JSON object in a file, for the block that makes something of it. Raises Damaged."""
    try:
        yield json.loads(file.read_bytes())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"{file} is damaged ({type(error).__name__}: {error}). Delete {what_to_delete}") from error


def uniform_access(enabled: bool) -> dict[str, Any]:
    """`iamConfiguration.uniformBucketLevelAccess`; it cannot be switched off again after 90 days."""
    locked = rfc3339(datetime.now(UTC) + timedelta(days=90))
    return {"enabled": True, "lockedTime": locked} if enabled else {"enabled": False}


def default_policy(project: str) -> dict[str, Any]:
    """The IAM policy that a new bucket has: its project's owners, editors and viewers."""
    return {
        "version": 1,
        "bindings": [
            {
                "role": "roles/storage.legacyBucketOwner",
                "members": [f"projectEditor:{project}", f"projectOwner:{project}"],
            },
            {"role": "roles/storage.legacyBucketReader", "members": [f"projectViewer:{project}"]},
        ],
        "revision": 1,
    }
