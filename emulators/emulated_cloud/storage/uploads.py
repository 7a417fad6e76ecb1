"""Uploads that are not complete: resumable sessions and multipart uploads, in files under uploads/.

A session outlives both the client and this process. What counts as received of it is, between requests, a multiple of
256 KiB, as the service persists it: the rest of a request that broke off is dropped.

    uploads/<upload id>.json   a resumable session         uploads/<upload id>.data    what it received
    uploads/<upload id>.parts/ a multipart upload: upload.json, and for each part <number>.json, which names its file
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c

from emulated_cloud.http import CHUNK, ConnectionDropped
from emulated_cloud.storage.errors import GcsError, bad_digest
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.store import Bucket, Store, StoredObject, now, write_json

QUANTUM = 256 << 10
WEEK = 7 * 24 * 3600
# md5 costs more than everything else that an upload does: of larger objects it is made only when it is asked for.
MD5_UP_TO = 8 << 20


class SessionGone(GcsError):
    """The session was cancelled, failed or ran out."""

    def __init__(self) -> None:
        super().__init__(410, "gone", "The upload session is no longer available.", plain=True)


@dataclass
class Content:
    """Bytes that came in: their number and crc32c."""

    size: int = 0
    crc: int = 0

    def write(self, pieces: Iterable[bytes], file: Path) -> Content:
        with open(file, "wb", buffering=0) as out:
            for piece in pieces:
                self.add(piece, out.fileno())
        return self

    def add(self, piece: bytes, descriptor: int) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(descriptor, view) :]
        self.crc = google_crc32c.extend(self.crc, piece)
        self.size += len(piece)

    @property
    def crc32c(self) -> str:
        return base64.b64encode(self.crc.to_bytes(4, "big")).decode()


def pieces_of(files: Iterable[BinaryIO]) -> Iterator[bytes]:
    """The bytes of open files, one after the other; closes each."""
    for file in files:
        with file:
            while piece := file.read(CHUNK):
                yield piece


def crc_of(file: Path) -> int:
    """The crc32c of a file. Its holes are not read: a test may have no room for the file that it speaks of."""
    crc, position, zeros = 0, 0, bytes(CHUNK)
    with open(file, "rb", buffering=0) as content:
        size = os.fstat(content.fileno()).st_size
        while position < size:
            try:
                data = os.lseek(content.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: a hole up to the end
                data = size
            while position < data:
                hole = zeros[: data - position]
                crc, position = google_crc32c.extend(crc, hole), position + len(hole)
            end = os.lseek(content.fileno(), data, os.SEEK_HOLE) if data < size else size
            content.seek(position)
            while position < end:
                piece = content.read(min(CHUNK, end - position))
                crc, position = google_crc32c.extend(crc, piece), position + len(piece)
    return crc


@dataclass
class Expected:
    """Hashes that the writer gave, base64; an upload that does not have them is refused."""

    crc32c: str | None = None
    md5: str | None = None

    @classmethod
    def of(cls, resource: Mapping[str, Any], headers: Message) -> Expected:
        """From an object resource (crc32c, md5Hash) and a request's headers (x-goog-hash, Content-MD5)."""
        expected = cls(resource.get("crc32c"), resource.get("md5Hash") or headers.get("Content-MD5"))
        for part in ",".join(headers.get_all("x-goog-hash", [])).split(","):
            kind, _, value = part.strip().partition("=")
            if kind in ("crc32c", "md5"):
                setattr(expected, kind, value)
        return expected


@dataclass
class Session:
    """A resumable session. `fields`, `preconditions` and `expected` were given when it was opened."""

    id: str
    bucket: str
    name: str
    fields: dict[str, Any]
    preconditions: dict[str, Any]
    expected: dict[str, Any]
    total: int | None
    opened: float
    generation: int | None = None
    """Of the object that it became."""
    cancelled: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)
    writer: object = None
    """The request that may write; a newer one takes over, so that a dead client's connection holds nobody up."""
    content: Content | None = field(default_factory=Content)
    """What was received; None when it is not known (after a cut, a restart): the file tells."""
    size: int = 0

    def as_record(self) -> dict[str, Any]:
        keys = (
            "id",
            "bucket",
            "name",
            "fields",
            "preconditions",
            "expected",
            "total",
            "opened",
            "generation",
            "cancelled",
        )
        return {key: getattr(self, key) for key in keys}


class Uploads:
    """All that is being uploaded to a store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        for bucket in store.buckets.values():
            self._load(bucket)

    def _load(self, bucket: Bucket) -> None:
        for file in bucket.uploads.glob("*.json"):
            session = Session(**json.loads(file.read_bytes()))
            if time.time() - session.opened > WEEK:
                file.unlink()
                continue
            data = self.data_file(session)
            if data.exists():
                session.size, session.content = data.stat().st_size, None
                self.settle(session)
            elif session.generation is None and not session.cancelled:
                # Killed between putting the object in place and noting it here.
                stored = bucket.objects.get(session.name)
                if stored and stored.upload_id == session.id:
                    session.generation = stored.generation
                else:
                    session.cancelled = True
            self.sessions[session.id] = session
        for data in bucket.uploads.glob("*.data"):
            if data.stem not in self.sessions:
                data.unlink()

    # -- whole bodies ---------------------------------------------------------------------------------------

    def put(
        self,
        bucket: Bucket,
        name: str,
        pieces: Iterable[bytes],
        fields: dict[str, Any],
        preconditions: Preconditions,
        expected: Expected,
        component_count: int | None = None,
    ) -> StoredObject:
        """An object from one body. Raises GcsError 400 (hashes), 412."""
        upload = secrets.token_urlsafe(24)
        file = bucket.uploads / f"{upload}.data"
        try:
            content = Content().write(pieces, file)
            draft = StoredObject(name, content.size, content.crc32c, fields, component_count=component_count)
            return self._finish(bucket, upload, draft, preconditions, expected)
        finally:
            file.unlink(missing_ok=True)

    def _finish(
        self, bucket: Bucket, upload: str, draft: StoredObject, preconditions: Preconditions, expected: Expected
    ) -> StoredObject:
        if expected.crc32c and expected.crc32c != draft.crc32c:
            raise bad_digest("CRC32C", expected.crc32c, draft.crc32c)
        if draft.component_count is None and (expected.md5 or draft.size <= MD5_UP_TO):
            with open(bucket.uploads / f"{upload}.data", "rb") as data:
                draft.md5 = base64.b64encode(hashlib.file_digest(data, "md5").digest()).decode()
            if expected.md5 and expected.md5 != draft.md5:
                raise bad_digest("MD5 hash", expected.md5, draft.md5)
        return self.store.put(bucket, upload, draft, preconditions.check)

    # -- resumable sessions ---------------------------------------------------------------------------------

    def open(
        self,
        bucket: Bucket,
        name: str,
        fields: dict[str, Any],
        preconditions: Preconditions,
        expected: Expected,
        total: int | None,
    ) -> Session:
        """Opens a session. Raises GcsError 412 when it could not be finished as things are."""
        preconditions.check(bucket.objects.get(name))
        session = Session(
            secrets.token_urlsafe(48),
            bucket.name,
            name,
            fields,
            preconditions.as_dict(),
            asdict(expected),
            total,
            time.time(),
        )
        self.data_file(session).touch()
        self._save(session)
        with self._lock:
            self.sessions[session.id] = session
        return session

    def session(self, upload_id: str) -> Session:
        """Raises GcsError 404 for an id that never was, 410 for a session that is gone."""
        session = self.sessions.get(upload_id)
        if session is None:
            raise GcsError(404, "notFound", "Not Found", plain=True)
        self.store.bucket(session.bucket)
        lost = session.generation is None and not self.data_file(session).exists()
        if session.cancelled or lost or time.time() - session.opened > WEEK:
            raise SessionGone
        return session

    def data_file(self, session: Session) -> Path:
        return self.store.root / session.bucket / "uploads" / f"{session.id}.data"

    def _save(self, session: Session) -> None:
        write_json(self.data_file(session).with_suffix(".json"), session.as_record())

    @staticmethod
    def kept(session: Session) -> int:
        """How much of the session would be left if its request broke off now."""
        return session.size - session.size % QUANTUM

    def settle(self, session: Session) -> None:
        """After a request: what is beyond a multiple of 256 KiB is dropped."""
        kept = self.kept(session)
        if kept != session.size:
            os.truncate(self.data_file(session), kept)
            session.size, session.content = kept, None

    def take_over(self, session: Session) -> object:
        """Makes the caller the one request that may write to the session, and returns what it has to prove it with."""
        with session.lock:
            if session.generation is None:
                self.settle(session)
            session.writer = object()
            return session.writer

    def receive(self, session: Session, writer: object, pieces: Iterable[bytes]) -> None:
        """Appends. Raises ConnectionDropped when another request took over."""
        with open(self.data_file(session), "ab", buffering=0) as data:
            for piece in pieces:
                with session.lock:
                    if session.writer is not writer or session.generation is not None:
                        raise ConnectionDropped
                    if session.content is None:
                        session.content = Content(session.size, crc_of(self.data_file(session)))
                    session.content.add(piece, data.fileno())
                    session.size = session.content.size

    def finish(self, session: Session, expected: Expected) -> StoredObject:
        """Makes the object. Raises GcsError 400 (hashes), 412; the session is gone then."""
        with session.lock:
            bucket = self.store.bucket(session.bucket)
            if session.generation is not None:
                return bucket.find(session.name)  # another request has finished it meanwhile
            if session.cancelled:
                raise SessionGone
            content = session.content or Content(session.size, crc_of(self.data_file(session)))
            draft = StoredObject(session.name, content.size, content.crc32c, session.fields, upload_id=session.id)
            given = Expected(**session.expected)
            expected = Expected(expected.crc32c or given.crc32c, expected.md5 or given.md5)
            try:
                stored = self._finish(bucket, session.id, draft, Preconditions(**session.preconditions), expected)
            except GcsError:
                self.cancel(session)
                raise
            session.generation = stored.generation
            self._save(session)
            return stored

    def cancel(self, session: Session) -> None:
        with session.lock:
            session.cancelled, session.writer = True, None
            self.data_file(session).unlink(missing_ok=True)
            self._save(session)

    # -- multipart uploads ----------------------------------------------------------------------------------

    def start_parts(self, bucket: Bucket, name: str, fields: dict[str, Any]) -> str:
        upload_id = secrets.token_urlsafe(48)
        folder = bucket.uploads / f"{upload_id}.parts"
        folder.mkdir()
        write_json(folder / "upload.json", {"name": name, "fields": fields, "initiated": now()})
        return upload_id

    def parts_folder(self, bucket: Bucket, name: str, upload_id: str) -> Path:
        """Raises GcsError 404."""
        folder = bucket.uploads / f"{upload_id}.parts"
        known = "/" not in upload_id and (folder / "upload.json").is_file()
        if not known or json.loads((folder / "upload.json").read_bytes())["name"] != name:
            raise GcsError(404, "notFound", "The requested upload was not found.", "NoSuchUpload")
        return folder

    @staticmethod
    def open_parts(bucket: Bucket) -> list[tuple[str, dict[str, Any]]]:
        """(upload id, record) of the bucket's multipart uploads."""
        records = sorted(bucket.uploads.glob("*.parts/upload.json"))
        return [(file.parent.stem, json.loads(file.read_bytes())) for file in records]

    def put_part(self, folder: Path, number: int, pieces: Iterable[bytes], expected: Expected) -> dict[str, Any]:
        """A part, in place of one of the same number. Raises GcsError 400 (hashes)."""
        incoming = folder / f"{secrets.token_hex(8)}.data"
        try:
            content = Content().write(pieces, incoming)
            if expected.crc32c and expected.crc32c != content.crc32c:
                raise bad_digest("CRC32C", expected.crc32c, content.crc32c)
            with open(incoming, "rb") as data:
                md5 = hashlib.file_digest(data, "md5").digest() if expected.md5 or content.size <= MD5_UP_TO else b""
            encoded = base64.b64encode(md5).decode()
            if expected.md5 and expected.md5 != encoded:
                raise bad_digest("MD5 hash", expected.md5, encoded)
            etag = md5.hex() or f"{content.crc:08x}-{content.size}"
            part = {
                "number": number,
                "file": incoming.name,
                "size": content.size,
                "etag": etag,
                "crc32c": content.crc32c,
                "md5": encoded,
                "uploaded": now(),
            }
            write_json(folder / f"{number:05}.json", part)
            return part
        except BaseException:
            incoming.unlink(missing_ok=True)
            raise

    def parts(self, folder: Path) -> list[dict[str, Any]]:
        return [json.loads(file.read_bytes()) for file in sorted(folder.glob("[0-9]*.json"))]

    def complete_parts(self, bucket: Bucket, folder: Path, chosen: list[tuple[int, str]]) -> StoredObject:
        """The object of the chosen (number, etag) parts. Raises GcsError 400, and leaves the upload as it is."""
        upload = json.loads((folder / "upload.json").read_bytes())
        have = {part["number"]: part for part in self.parts(folder)}
        numbers = [number for number, _ in chosen]
        if not numbers or numbers != sorted(set(numbers)):
            raise GcsError(400, "invalid", "The list of parts was not in ascending order.", "InvalidPartOrder")
        for number, etag in chosen:
            if number not in have or have[number]["etag"] != etag.strip('"'):
                raise GcsError(400, "invalid", "One or more of the specified parts could not be found.", "InvalidPart")
            if number != numbers[-1] and have[number]["size"] < 5 << 20:
                message = "Your proposed upload is smaller than the minimum allowed object size."
                raise GcsError(400, "invalid", message, "EntityTooSmall")
        # One file at a time: there may be ten thousand. pieces_of closes them.
        pieces = pieces_of(open(folder / have[number]["file"], "rb") for number in numbers)  # noqa: SIM115
        stored = self.put(
            bucket, upload["name"], pieces, upload["fields"], Preconditions(), Expected(), component_count=len(numbers)
        )
        self.abort_parts(folder)
        return stored

    def abort_parts(self, folder: Path) -> None:
        (folder / "upload.json").unlink(missing_ok=True)
        shutil.rmtree(folder)
