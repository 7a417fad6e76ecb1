"""The XML API: multipart uploads, and an object's GET, HEAD, PUT and DELETE. Paths are `/<bucket>/<object>`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from emulated_cloud.storage.errors import GcsError, required
from emulated_cloud.storage.json_api import valid_name
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import fields_of_headers, object_headers
from emulated_cloud.storage.store import Bucket
from emulated_cloud.storage.uploads import Expected, Uploads

if TYPE_CHECKING:
    from emulated_cloud.storage.server import StorageHandler

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def answer(handler: StorageHandler, uploads: Uploads) -> None:
    """Answers one XML request. Raises GcsError."""
    bucket_name, _, name = unquote(handler.url_path.lstrip("/")).partition("/")
    store = uploads.store
    bucket = store.bucket(bucket_name)
    # `?uploads` has no value, which Handler.query leaves out.
    query = parse_qs(urlsplit(handler.path).query, keep_blank_values=True)
    upload_id = handler.query.get("uploadId", "")
    preconditions = Preconditions.of_headers(handler.headers)
    match handler.command:
        case "GET" if not name and "uploads" in query:
            _send(handler, _list_uploads(bucket))
        case "POST" if "uploads" in query:
            upload_id = uploads.start_parts(bucket, valid_name(name), fields_of_headers(handler.headers))
            _send(handler, _element("InitiateMultipartUploadResult", Bucket=bucket_name, Key=name, UploadId=upload_id))
        case "PUT" if upload_id:
            folder = uploads.parts_folder(bucket, name, upload_id)
            part = uploads.put_part(folder, _part_number(handler), handler.iter_body(), _expected(handler))
            md5 = f",md5={part['md5']}" if part["md5"] else ""
            headers = {"ETag": f'"{part["etag"]}"', "x-goog-hash": f"crc32c={part['crc32c']}{md5}"}
            handler.send(200, headers=headers)
        case "POST" if upload_id:
            folder = uploads.parts_folder(bucket, name, upload_id)
            stored = uploads.complete_parts(bucket, folder, _chosen_parts(handler.read_body()))
            headers = {"x-goog-generation": str(stored.generation), "x-goog-hash": f"crc32c={stored.crc32c}"}
            location = f"{handler.base_url}/{bucket_name}/{name}"
            result = _element(
                "CompleteMultipartUploadResult",
                Location=location,
                Bucket=bucket_name,
                Key=name,
                ETag=f'"{stored.etag}"',
            )
            _send(handler, result, headers)
        case "DELETE" if upload_id:
            uploads.abort_parts(uploads.parts_folder(bucket, name, upload_id))
            handler.send(204)
        case "GET" if upload_id:
            _send(handler, _list_parts(uploads, bucket, name, upload_id))
        case "GET" | "HEAD" if name:
            handler.send_object(bucket, name, preconditions)
        case "PUT" if name:
            stored = uploads.put(
                bucket,
                valid_name(name),
                handler.iter_body(),
                fields_of_headers(handler.headers),
                preconditions,
                _expected(handler),
            )
            given = object_headers(stored)
            handler.send(200, headers={key: given[key] for key in ("ETag", "X-Goog-Generation", "X-Goog-Hash")})
        case "DELETE" if name:
            with store.lock:
                stored = bucket.find(name, handler.query.get("generation"))
                preconditions.check(stored)
                store.delete(bucket, stored)
            handler.send(204)
        case _:
            raise GcsError(405, "methodNotAllowed", "The specified method is not allowed.", "MethodNotAllowed")


def _expected(handler: StorageHandler) -> Expected:
    return Expected.of({}, handler.headers)


def _part_number(handler: StorageHandler) -> int:
    text = handler.query.get("partNumber", "")
    if not text:
        raise required("partNumber")
    if not text.isdecimal() or not 1 <= int(text) <= 10_000:
        raise GcsError(400, "invalid", "Part number must be an integer between 1 and 10000.")
    return int(text)


def _chosen_parts(body: bytes) -> list[tuple[int, str]]:
    """(number, etag) of each Part of a CompleteMultipartUpload document. Raises GcsError 400."""
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 (from a client on this machine)
        texts = [
            {re.sub(r"\{.*\}", "", child.tag): child.text or "" for child in part}
            for part in root
            if part.tag.endswith("Part")
        ]
        return [(int(part["PartNumber"]), part["ETag"]) for part in texts]
    except (ElementTree.ParseError, KeyError, ValueError):
        message = "The XML you provided was not well-formed or did not validate against our published schema."
        raise GcsError(400, "invalid", message, "MalformedCompleteMultipartUploadRequest") from None


def _list_parts(uploads: Uploads, bucket: Bucket, name: str, upload_id: str) -> str:
    parts = uploads.parts(uploads.parts_folder(bucket, name, upload_id))
    inner = "".join(
        f"<Part><PartNumber>{part['number']}</PartNumber><LastModified>{part['uploaded']}</LastModified>"
        f"<ETag>&quot;{part['etag']}&quot;</ETag><Size>{part['size']}</Size></Part>"
        for part in parts
    )
    return _element("ListPartsResult", inner, Bucket=bucket.name, Key=name, UploadId=upload_id, IsTruncated="false")


def _list_uploads(bucket: Bucket) -> str:
    inner = "".join(
        f"<Upload><Key>{escape(upload['name'])}</Key><UploadId>{upload_id}</UploadId>"
        f"<Initiated>{upload['initiated']}</Initiated></Upload>"
        for upload_id, upload in Uploads.open_parts(bucket)
    )
    return _element("ListMultipartUploadsResult", inner, Bucket=bucket.name, IsTruncated="false")


def _element(tag: str, inner: str = "", **texts: str) -> str:
    fields = "".join(f"<{key}>{escape(text)}</{key}>" for key, text in texts.items())
    return f"<?xml version='1.0' encoding='UTF-8'?><{tag} xmlns='{_NAMESPACE}'>{fields}{inner}</{tag}>"


def _send(handler: StorageHandler, document: str, headers: dict[str, str] | None = None) -> None:
    handler.send(200, document, {"Content-Type": "application/xml; charset=UTF-8", **(headers or {})})
