"""Requests in which an object's bytes stream: `alt=media`, and the three kinds of upload of the JSON API."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from emulated_cloud.http import Handler
from emulated_cloud.storage.call import parse_json
from emulated_cloud.storage.errors import GcsError, invalid, required
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import fields_of_resource, object_headers, object_resource
from emulated_cloud.storage.store import Bucket, Store, StoredObject, valid_name
from emulated_cloud.storage.uploads import QUANTUM, Expected, Session, Uploads


def download(request: Handler, store: Store, bucket_name: str, name: str) -> None:
    """Raises GcsError 404, 412, 304, HttpError 416."""
    bucket = store.bucket(bucket_name)
    try:
        send_object(request, store, bucket, name, Preconditions.of_query(request.query, request.headers))
    except GcsError as error:
        error.plain = error.status == 404  # for media, the service says this without JSON
        raise


def send_object(request: Handler, store: Store, bucket: Bucket, name: str, preconditions: Preconditions) -> None:
    """The bytes of an object, or the range of them that was asked for. Raises GcsError 404, 412, 304, HttpError 416."""
    with store.lock:
        stored = bucket.find(name, request.query.get("generation"))
        preconditions.check(stored, reading=True)
        file = store.open(bucket, stored)
    with file:
        words = "The requested range cannot be satisfied."
        request.send_content(file, stored.size, object_headers(stored), words)


def upload(request: Handler, uploads: Uploads, bucket_name: str) -> None:
    """Raises GcsError 400, 404, 405, 410, 412, 503."""
    Upload(request, uploads).receive(uploads.store.bucket(bucket_name))


class ContentRange(NamedTuple):
    """A Content-Range header: `bytes first-last/total`; None where it has a star."""

    first: int | None
    last: int | None
    total: int | None

    @classmethod
    def parse(cls, header: str) -> ContentRange:
        """Raises GcsError 400."""
        found = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(?:\*|(\d+))", header.strip())
        if not found or (found[1] and int(found[2]) < int(found[1])):
            raise invalid(f"Failed to parse Content-Range header: {header}")
        return cls(*(int(number) if number else None for number in found.groups()))


class Upload:
    """A request that brings bytes, or speaks of a session that does."""

    def __init__(self, request: Handler, uploads: Uploads):
        self.request, self.uploads = request, uploads

    def receive(self, bucket: Bucket) -> None:
        if upload_id := self.request.query.get("upload_id"):
            session = self.uploads.session(upload_id)
            return self.cancel(session) if self.request.command == "DELETE" else self.go_on(bucket, session)
        if self.request.command != "POST":
            raise GcsError(405, "methodNotAllowed", "Method Not Allowed")
        preconditions = Preconditions.of_query(self.request.query, self.request.headers)
        match self.request.query.get("uploadType"):
            case "media":
                resource: dict[str, Any] = {"contentType": self.request.headers.get("Content-Type")}
                pieces = self.request.iter_body()
            case "multipart":
                resource, body = self.multipart()
                pieces = iter([body])
            case "resumable":
                return self.open_session(bucket, preconditions)
            case other:
                raise invalid(f"Invalid value for parameter 'uploadType': '{other}'.")
        stored = self.uploads.put(
            bucket,
            self.object_name(resource),
            pieces,
            self.fields(resource),
            preconditions,
            Expected.of(resource, self.request.headers),
        )
        return self.uploaded(bucket, stored)

    def object_name(self, resource: dict[str, Any]) -> str:
        name = self.request.query.get("name") or resource.get("name")
        if not name:
            raise required("name")
        self.request.note(object=name)
        return valid_name(name)

    def fields(self, resource: dict[str, Any]) -> dict[str, Any]:
        given = fields_of_resource(resource)
        if encoding := self.request.query.get("contentEncoding"):
            given["contentEncoding"] = encoding
        return given

    def uploaded(self, bucket: Bucket, stored: StoredObject) -> None:
        headers = {"ETag": stored.etag, "X-Goog-Hash": object_headers(stored)["X-Goog-Hash"]}
        self.request.send_json(object_resource(bucket, stored, self.request.origin), headers=headers)

    def multipart(self) -> tuple[dict[str, Any], bytes]:
        """The resource and the bytes of a multipart/related body."""
        found = re.search(r'boundary="?([^";]+)"?', self.request.headers.get("Content-Type", ""))
        parts = self.request.read_body().split(b"--" + found[1].encode()) if found else []
        if len(parts) < 4:
            raise invalid("Missing multipart boundary, or not two parts.")
        # Bytes that happen to hold the boundary were split, too.
        content = (b"--" + found[1].encode()).join(parts[2:-1]) if found else b""
        (_, resource), (content_head, data) = (split_part(part) for part in (parts[1], content))
        parsed = parse_json(resource)
        given = re.search(rb"(?im)^content-type:\s*(.+?)\s*$", content_head)
        if given:
            parsed.setdefault("contentType", given[1].decode())
        return parsed, data

    def open_session(self, bucket: Bucket, preconditions: Preconditions) -> None:
        resource = parse_json(self.request.read_body())
        if given := self.request.headers.get("X-Upload-Content-Type"):
            resource.setdefault("contentType", given)
        total = self.request.headers.get("X-Upload-Content-Length")
        name = self.object_name(resource)
        expected = Expected.of(resource, self.request.headers)
        session = self.uploads.open(
            bucket, name, self.fields(resource), preconditions, expected, int(total) if total else None
        )
        query = f"uploadType=resumable&name={quote(name, safe='')}&upload_id={session.id}"
        location = f"{self.request.origin}/upload/storage/v1/b/{bucket.name}/o?{query}"
        self.request.send(200, headers={"Location": location, "X-GUploader-UploadID": session.id})

    def cancel(self, session: Session) -> None:
        self.uploads.cancel(session)
        self.request.send(499)

    def go_on(self, bucket: Bucket, session: Session) -> None:
        """A PUT to a session: bytes, or the question how many there are."""
        uploads = self.uploads
        header, length = self.request.headers.get("Content-Range"), self.request.headers.get("Content-Length")
        asked = ContentRange.parse(header) if header else ContentRange(0, None, int(length) if length else None)
        if session.generation is not None:
            return self.uploaded(bucket, bucket.find(session.name))
        total = self.total(session, asked)
        if asked.first is None:
            if asked.total is None or asked.total != session.size:
                return self.incomplete(session)
        else:
            writer = uploads.take_over(session)
            self.check_range(session, asked, total, length)
            skip = session.size - asked.first
            try:
                uploads.receive(session, writer, _without_first(skip, self.request.iter_body()))
            finally:
                if session.writer is writer and session.size != total:
                    with session.lock:
                        uploads.settle(session)
            if total is None and header is None:
                total = session.size
            if session.size != total:
                return self.incomplete(session)
        stored = uploads.finish(session, Expected.of({}, self.request.headers))
        return self.uploaded(bucket, stored)

    @staticmethod
    def total(session: Session, asked: ContentRange) -> int | None:
        """The size that the object is to have. Raises GcsError 400 when the client names two."""
        if asked.total is not None and session.total is not None and asked.total != session.total:
            raise _bad_request(
                f"There were {asked.total} byte(s) declared by this request, and {session.total} byte(s) when the "
                "upload was started."
            )
        return asked.total if asked.total is not None else session.total

    def check_range(self, session: Session, asked: ContentRange, total: int | None, length: str | None) -> None:
        first, last = asked.first or 0, asked.last
        if first > session.size:
            raise GcsError(
                503,
                "backendError",
                f"Invalid request.  According to the Content-Range header, the upload offset is {first} byte(s), "
                f"which exceeds already uploaded size of {session.size} byte(s).",
                plain=True,
            )
        if last is None:
            return
        size = last - first + 1
        if (length is not None and int(length) != size) or size < 1:
            raise _bad_request(
                f"There were {length} byte(s) in the request body.  There should have been {size} byte(s) "
                f"(starting at offset {first} and ending at offset {last}) according to the Content-Range header."
            )
        if total is not None and last >= total:
            raise _bad_request(f"The offset {last} lies beyond the declared size of {total} byte(s).")
        if size < QUANTUM and last + 1 != total:
            raise _bad_request(
                f"The number of bytes uploaded is required to be equal or greater than {QUANTUM}, except for the "
                "final request (it's recommended to be the exact multiple of 262144).  The received request "
                f"contained {size} bytes, which does not meet this requirement."
            )

    def incomplete(self, session: Session) -> None:
        """308 with what is there; 200 for clients that cannot take a 308 for anything but a redirect."""
        kept = Uploads.kept(session)
        headers = {"Range": f"bytes=0-{kept - 1}"} if kept else {}
        if self.request.headers.get("X-GUploader-No-308") == "yes":
            return self.request.send(200, headers=headers | {"X-Http-Status-Code-Override": "308"})
        return self.request.send(308, headers=headers)


def _bad_request(message: str) -> GcsError:
    return GcsError(400, "invalid", f"Invalid request.  {message}", plain=True)


def _without_first(skip: int, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """A client may send again what is there already."""
    for piece in pieces:
        if skip < len(piece):
            yield piece[skip:] if skip else piece
        skip = max(0, skip - len(piece))


def split_part(part: bytes) -> tuple[bytes, bytes]:
    """Head and body of a part of a multipart body, without the line ends round them."""
    line_end = b"\r\n" if part.startswith(b"\r\n") else b"\n"
    head, _, body = part.removeprefix(line_end).partition(line_end * 2)
    return head, body.removesuffix(line_end)
