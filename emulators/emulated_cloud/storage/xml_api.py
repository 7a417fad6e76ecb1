"""The XML API: multipart uploads, and an object's GET, HEAD, PUT and DELETE. Paths are `/<bucket>/<object>`."""

from __future__ import annotations

import re
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from emulated_cloud.http import Handler
from emulated_cloud.storage.errors import GcsError, required
from emulated_cloud.storage.media import send_object
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import fields_of_headers, object_headers
from emulated_cloud.storage.store import Bucket, valid_name
from emulated_cloud.storage.uploads import Expected, Uploads

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


def start_upload(request: Handler, uploads: Uploads, bucket: Bucket, name: str) -> None:
    upload_id = uploads.start_parts(bucket, valid_name(name), fields_of_headers(request.headers))
    _send(request, _element("InitiateMultipartUploadResult", Bucket=bucket.name, Key=name, UploadId=upload_id))


def put_part(request: Handler, uploads: Uploads, bucket: Bucket, name: str, upload_id: str) -> None:
    folder = uploads.parts_folder(bucket, name, upload_id)
    part = uploads.put_part(folder, _part_number(request), request.iter_body(), _expected(request))
    md5 = f",md5={part['md5']}" if part["md5"] else ""
    request.send(200, headers={"ETag": f'"{part["etag"]}"', "x-goog-hash": f"crc32c={part['crc32c']}{md5}"})


def complete_upload(request: Handler, uploads: Uploads, bucket: Bucket, name: str, upload_id: str) -> None:
    folder = uploads.parts_folder(bucket, name, upload_id)
    stored = uploads.complete_parts(bucket, folder, _chosen_parts(request.read_body()))
    headers = {"x-goog-generation": str(stored.generation), "x-goog-hash": f"crc32c={stored.crc32c}"}
    location = f"{request.origin}/{bucket.name}/{name}"
    etag = f'"{stored.etag}"'
    _send(
        request,
        _element("CompleteMultipartUploadResult", Location=location, Bucket=bucket.name, Key=name, ETag=etag),
        headers,
    )


def abort_upload(request: Handler, uploads: Uploads, bucket: Bucket, name: str, upload_id: str) -> None:
    uploads.abort_parts(uploads.parts_folder(bucket, name, upload_id))
    request.send(204)


def list_parts(request: Handler, uploads: Uploads, bucket: Bucket, name: str, upload_id: str) -> None:
    parts = uploads.parts(uploads.parts_folder(bucket, name, upload_id))
    inner = "".join(
        f"<Part><PartNumber>{part['number']}</PartNumber><LastModified>{part['uploaded']}</LastModified>"
        f"<ETag>&quot;{part['etag']}&quot;</ETag><Size>{part['size']}</Size></Part>"
        for part in parts
    )
    names = {"Bucket": bucket.name, "Key": name, "UploadId": upload_id, "IsTruncated": "false"}
    _send(request, _element("ListPartsResult", inner, **names))


def list_uploads(request: Handler, bucket: Bucket) -> None:
    inner = "".join(
        f"<Upload><Key>{escape(upload['name'])}</Key><UploadId>{upload_id}</UploadId>"
        f"<Initiated>{upload['initiated']}</Initiated></Upload>"
        for upload_id, upload in Uploads.open_parts(bucket)
    )
    _send(request, _element("ListMultipartUploadsResult", inner, Bucket=bucket.name, IsTruncated="false"))


def get_object(request: Handler, uploads: Uploads, bucket: Bucket, name: str) -> None:
    send_object(request, uploads.store, bucket, name, Preconditions.of_headers(request.headers))


def put_object(request: Handler, uploads: Uploads, bucket: Bucket, name: str) -> None:
    stored = uploads.put(
        bucket,
        valid_name(name),
        request.iter_body(),
        fields_of_headers(request.headers),
        Preconditions.of_headers(request.headers),
        _expected(request),
    )
    given = object_headers(stored)
    request.send(200, headers={key: given[key] for key in ("ETag", "X-Goog-Generation", "X-Goog-Hash")})


def delete_object(request: Handler, uploads: Uploads, bucket: Bucket, name: str) -> None:
    preconditions = Preconditions.of_headers(request.headers)
    with uploads.store.lock:
        stored = bucket.find(name, request.query.get("generation"))
        preconditions.check(stored)
        uploads.store.delete(bucket, stored)
    request.send(204)


def _expected(request: Handler) -> Expected:
    return Expected.of({}, request.headers)


def _part_number(request: Handler) -> int:
    text = request.query.get("partNumber", "")
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


def _element(tag: str, inner: str = "", **texts: str) -> str:
    fields = "".join(f"<{key}>{escape(text)}</{key}>" for key, text in texts.items())
    return f"<?xml version='1.0' encoding='UTF-8'?><{tag} xmlns='{_NAMESPACE}'>{fields}{inner}</{tag}>"


def _send(request: Handler, document: str, headers: dict[str, str] | None = None) -> None:
    request.send(200, document, {"Content-Type": "application/xml; charset=UTF-8", **(headers or {})})
