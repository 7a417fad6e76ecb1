"""The storage server: what a path means, and the requests whose bodies stream."""

from __future__ import annotations

import email.parser
import email.policy
import json
import re
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit

from emulated_cloud.http import EmulatorServer, Handler
from emulated_cloud.storage import xml_api
from emulated_cloud.storage.errors import GcsError, invalid, required
from emulated_cloud.storage.json_api import Call, JsonApi, valid_name
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import fields_of_resource, object_headers, object_resource
from emulated_cloud.storage.store import Bucket, Store, StoredObject
from emulated_cloud.storage.uploads import QUANTUM, Expected, Session, Uploads

_PREFIX = re.compile(r"/(?P<kind>upload/|download/)?storage/v1/")


class StorageServer(EmulatorServer):
    """A store on the wire. `users` maps bearer tokens to who they are in the request log."""

    def __init__(
        self,
        address: tuple[str, int],
        store: Store,
        users: dict[str, str] | None = None,
        request_log: Path | None = None,
    ):
        self.store, self.uploads, self.users = store, Uploads(store), users or {}
        self.api = JsonApi(store, self.uploads)
        super().__init__(address, StorageHandler, request_log)


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


class StorageHandler(Handler):
    server: StorageServer

    def user(self) -> str:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return self.server.users.get(token.strip(), "anonymous") if kind.lower() == "bearer" else "anonymous"

    def logged_path(self) -> str:
        """Who has a session's URI can write to it: its id stays out of the log."""
        return re.sub(r"(upload_id=)[^&]*", r"\1REDACTED", self.path)

    @property
    def base_url(self) -> str:
        """How the client reached us."""
        return f"http://{self.headers.get('Host') or self.server.url.removeprefix('http://')}"

    def route(self, method: str) -> None:
        prefix = _PREFIX.match(self.url_path)
        is_xml = prefix is None and not self.url_path.startswith("/batch/storage/v1")
        try:
            if is_xml:
                xml_api.answer(self, self.server.uploads)
            elif prefix is None:
                self._batch()
            else:
                path = [unquote(segment) for segment in self.url_path[prefix.end() :].split("/")]
                if prefix["kind"] == "upload/":
                    self._upload(path)
                elif self.query.get("alt") == "media" and method in ("GET", "HEAD"):
                    self._download(path)
                else:
                    self._json(path)
        except GcsError as error:
            self._drain()
            if error.status == 304:
                self.send(304)
            elif error.plain:
                self.send(error.status, error.message)
            elif is_xml:
                self.send(error.status, error.as_xml(), {"Content-Type": "application/xml; charset=UTF-8"})
            else:
                self.send_json(error.as_json(), error.status)

    # -- JSON -----------------------------------------------------------------------------------------------

    def _json(self, path: list[str]) -> None:
        call = Call(
            method="GET" if self.command == "HEAD" else self.command,
            path=path,
            query=self.query,
            raw_query=urlsplit(self.path).query,
            headers=self.headers,
            body=parse_json(self.read_body()),
            base_url=self.base_url,
        )
        status, body = self.server.api.answer(call)
        self.send(status, body if body is not None else b"")

    def _batch(self) -> None:
        """Many JSON requests in one: each part of a multipart/mixed body is a request, and gets an answer."""
        head = f"Content-Type: {self.headers.get('Content-Type', '')}\r\n\r\n".encode()
        message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + self.read_body())
        if not message.is_multipart():
            raise GcsError(400, "badRequest", "Failed to parse batch request, error: no parts.")
        boundary = f"batch_{secrets.token_urlsafe(16)}"
        out = []
        for part in message.iter_parts():
            status, body = self._batched(part.get_content())
            text = json.dumps(body) if body is not None else ""
            content_id = str(part.get("Content-ID", "")).replace("<", "<response-")
            out.append(
                f"--{boundary}\r\nContent-Type: application/http\r\n"
                + (f"Content-ID: {content_id}\r\n" if content_id else "")
                + f"\r\nHTTP/1.1 {status} {self.responses[status][0]}\r\n"
                + f"Content-Type: application/json; charset=UTF-8\r\nContent-Length: {len(text)}\r\n\r\n{text}\r\n"
            )
        self.send(200, "".join(out) + f"--{boundary}--\r\n", {"Content-Type": f"multipart/mixed; boundary={boundary}"})

    def _batched(self, request: bytes) -> tuple[int, dict[str, Any] | None]:
        """The answer to one request of a batch."""
        line, _, rest = request.lstrip().partition(b"\n")
        headers = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(rest)
        try:
            method, uri, _ = line.decode().split()
            parts = urlsplit(uri)
            prefix = _PREFIX.match(parts.path)
            if prefix is None or prefix["kind"]:
                raise GcsError(404, "notFound", "Not Found")
            body = headers.get_payload(decode=True)
            call = Call(
                method=method,
                path=[unquote(segment) for segment in parts.path[prefix.end() :].split("/")],
                query={key: values[-1] for key, values in parse_qs(parts.query).items()},
                raw_query=parts.query,
                headers=headers,
                body=parse_json(body.strip() if isinstance(body, bytes) else b""),
                base_url=self.base_url,
            )
            return self.server.api.answer(call)
        except GcsError as error:
            return error.status, error.as_json()

    # -- downloads ------------------------------------------------------------------------------------------

    def _download(self, path: list[str]) -> None:
        match path:
            case ["b", bucket_name, "o", name]:
                bucket = self.server.store.bucket(bucket_name)
                try:
                    self.send_object(bucket, name, Preconditions.of_query(self.query, self.headers))
                except GcsError as error:
                    error.plain = error.status == 404  # for media, the service says this without JSON
                    raise
            case _:
                raise GcsError(404, "notFound", "Not Found")

    def send_object(self, bucket: Bucket, name: str, preconditions: Preconditions) -> None:
        """The bytes of an object, or the range of them that was asked for. Raises GcsError 404, 412, 304, 416."""
        with self.server.store.lock:
            stored = bucket.find(name, self.query.get("generation"))
            preconditions.check(stored, reading=True)
            file = self.server.store.open(bucket, stored)
        with file:
            headers = object_headers(stored)
            wanted = byte_range(self.headers.get("Range", ""), stored.size)
            if wanted is None:
                self.start(200, headers | {"Content-Length": str(stored.size)})
                return self.send_file(file, 0, stored.size)
            first, last = wanted
            if first > last:
                self._drain()
                body = "The requested range cannot be satisfied."
                return self.send(416, body, {"Content-Range": f"bytes */{stored.size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{stored.size}"
            self.start(206, headers | {"Content-Length": str(last - first + 1)})
            return self.send_file(file, first, last - first + 1)

    # -- uploads --------------------------------------------------------------------------------------------

    def _upload(self, path: list[str]) -> None:
        match path:
            case ["b", bucket_name, "o"]:
                bucket = self.server.store.bucket(bucket_name)
            case _:
                raise GcsError(404, "notFound", "Not Found")
        if upload_id := self.query.get("upload_id"):
            session = self.server.uploads.session(upload_id)
            return self._cancel(session) if self.command == "DELETE" else self._continue(bucket, session)
        if self.command != "POST":
            raise GcsError(405, "methodNotAllowed", "Method Not Allowed")
        preconditions = Preconditions.of_query(self.query, self.headers)
        match self.query.get("uploadType"):
            case "media":
                resource: dict[str, Any] = {"contentType": self.headers.get("Content-Type")}
                pieces = self.iter_body()
            case "multipart":
                resource, body = self._multipart()
                pieces = iter([body])
            case "resumable":
                return self._open_session(bucket, preconditions)
            case other:
                raise invalid(f"Invalid value for parameter 'uploadType': '{other}'.")
        stored = self.server.uploads.put(
            bucket,
            self._object_name(resource),
            pieces,
            self._fields(resource),
            preconditions,
            Expected.of(resource, self.headers),
        )
        return self._uploaded(bucket, stored)

    def _object_name(self, resource: dict[str, Any]) -> str:
        name = self.query.get("name") or resource.get("name")
        if not name:
            raise required("name")
        self.note(object=name)
        return valid_name(name)

    def _fields(self, resource: dict[str, Any]) -> dict[str, Any]:
        given = fields_of_resource(resource)
        if encoding := self.query.get("contentEncoding"):
            given["contentEncoding"] = encoding
        return given

    def _uploaded(self, bucket: Bucket, stored: StoredObject) -> None:
        headers = {"ETag": stored.etag, "X-Goog-Hash": object_headers(stored)["X-Goog-Hash"]}
        self.send_json(object_resource(bucket, stored, self.base_url), headers=headers)

    def _multipart(self) -> tuple[dict[str, Any], bytes]:
        """The resource and the bytes of a multipart/related body."""
        found = re.search(r'boundary="?([^";]+)"?', self.headers.get("Content-Type", ""))
        parts = self.read_body().split(b"--" + found[1].encode()) if found else []
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

    def _open_session(self, bucket: Bucket, preconditions: Preconditions) -> None:
        resource = parse_json(self.read_body())
        if given := self.headers.get("X-Upload-Content-Type"):
            resource.setdefault("contentType", given)
        total = self.headers.get("X-Upload-Content-Length")
        name = self._object_name(resource)
        expected = Expected.of(resource, self.headers)
        session = self.server.uploads.open(
            bucket, name, self._fields(resource), preconditions, expected, int(total) if total else None
        )
        query = f"uploadType=resumable&name={quote(name, safe='')}&upload_id={session.id}"
        location = f"{self.base_url}/upload/storage/v1/b/{bucket.name}/o?{query}"
        self.send(200, headers={"Location": location, "X-GUploader-UploadID": session.id})

    def _cancel(self, session: Session) -> None:
        self.server.uploads.cancel(session)
        self.send(499)

    def _continue(self, bucket: Bucket, session: Session) -> None:
        """A PUT to a session: bytes, or the question how many there are."""
        uploads = self.server.uploads
        header, length = self.headers.get("Content-Range"), self.headers.get("Content-Length")
        asked = ContentRange.parse(header) if header else ContentRange(0, None, int(length) if length else None)
        if session.generation is not None:
            return self._uploaded(bucket, bucket.find(session.name))
        total = self._total(session, asked)
        if asked.first is None:
            if asked.total is None or asked.total != session.size:
                return self._incomplete(session)
        else:
            writer = uploads.take_over(session)
            self._check_range(session, asked, total, length)
            skip = session.size - asked.first
            try:
                uploads.receive(session, writer, _without_first(skip, self.iter_body()))
            finally:
                if session.writer is writer and session.size != total:
                    with session.lock:
                        uploads.settle(session)
            if total is None and header is None:
                total = session.size
            if session.size != total:
                return self._incomplete(session)
        stored = uploads.finish(session, Expected.of({}, self.headers))
        return self._uploaded(bucket, stored)

    @staticmethod
    def _total(session: Session, asked: ContentRange) -> int | None:
        """The size that the object is to have. Raises GcsError 400 when the client names two."""
        if asked.total is not None and session.total is not None and asked.total != session.total:
            raise _bad_request(
                f"There were {asked.total} byte(s) declared by this request, and {session.total} byte(s) when the "
                "upload was started."
            )
        return asked.total if asked.total is not None else session.total

    def _check_range(self, session: Session, asked: ContentRange, total: int | None, length: str | None) -> None:
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

    def _incomplete(self, session: Session) -> None:
        """308 with what is there; 200 for clients that cannot take a 308 for anything but a redirect."""
        kept = Uploads.kept(session)
        headers = {"Range": f"bytes=0-{kept - 1}"} if kept else {}
        if self.headers.get("X-GUploader-No-308") == "yes":
            return self.send(200, headers=headers | {"X-Http-Status-Code-Override": "308"})
        return self.send(308, headers=headers)


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


def parse_json(body: bytes) -> Any:
    """Raises GcsError 400."""
    try:
        return json.loads(body or b"{}")
    except ValueError:
        raise GcsError(400, "parseError", "Parse Error") from None


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """First and last byte of a Range header, first > last when there is no such range; None: the whole."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header.replace(" ", ""))
    if not found or found[0] == "bytes=-":
        return None
    if not found[1]:
        return max(0, size - int(found[2])), size - 1
    first = int(found[1])
    last = min(int(found[2]), size - 1) if found[2] else size - 1
    if found[2] and int(found[2]) < first:
        return None
    return (first, last) if first < size else (1, 0)
