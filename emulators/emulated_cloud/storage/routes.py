"""Path → answer.

/storage/v1/…                 buckets.py, objects.py     JSON in and out; caches.py, operations.py
/storage/v1/…?alt=media       media.py                   an object's bytes (also below /download)
/upload/storage/v1/…          media.py                   uploads
/batch/storage/v1             batch.py                   many of the first kind
/<bucket>/<object>            xml_api.py
"""

from __future__ import annotations

import re
from email.message import Message
from functools import partial
from urllib.parse import parse_qs, unquote, urlsplit

from emulated_cloud.http import Handler
from emulated_cloud.storage import batch, buckets, caches, media, objects, operations, xml_api
from emulated_cloud.storage.call import Answer, Call, parse_json
from emulated_cloud.storage.errors import GcsError
from emulated_cloud.storage.operations import Operations
from emulated_cloud.storage.uploads import Uploads

_PREFIX = re.compile(r"/(?P<kind>upload/|download/)?storage/v1/")


def is_xml(path: str) -> bool:
    """Whether a path is the XML API's: who asks there is refused in XML."""
    return _PREFIX.match(path) is None and not path.startswith("/batch/storage/v1")


def answer(request: Handler, uploads: Uploads, running: Operations) -> None:
    """Raises GcsError, HttpError."""
    prefix = _PREFIX.match(request.url_path)
    if is_xml(request.url_path):
        xml(request, uploads)
    elif prefix is None:
        batch.answer(request, partial(json_request, uploads, running, request.origin))
    else:
        path = [unquote(segment) for segment in request.url_path[prefix.end() :].split("/")]
        reads_media = request.query.get("alt") == "media" and request.command in ("GET", "HEAD")
        match prefix["kind"], path:
            case "upload/", ["b", bucket, "o"]:
                media.upload(request, uploads, bucket)
            case "download/" | None, ["b", bucket, "o", name] if reads_media:
                media.download(request, uploads.store, bucket, name)
            case kind, _ if kind == "upload/" or reads_media:
                raise GcsError(404, "notFound", "Not Found")
            case _:
                method = "GET" if request.command == "HEAD" else request.command
                uri = request.path.removeprefix("/download")
                body = request.read_body()
                answered = json_request(uploads, running, request.origin, method, uri, request.headers, body)
                request.send(answered.status, answered.body if answered.body is not None else b"")


def json_request(
    uploads: Uploads, running: Operations, base_url: str, method: str, uri: str, headers: Message, body: bytes
) -> Answer:
    """Answers a request of the JSON API, alone or one of a batch. Raises GcsError."""
    parts = urlsplit(uri)
    prefix = _PREFIX.match(parts.path)
    if prefix is None or prefix["kind"]:
        raise GcsError(404, "notFound", "Not Found")
    path = [unquote(segment) for segment in parts.path[prefix.end() :].split("/")]
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    return json_api(Call(method, path, query, parts.query, headers, parse_json(body), base_url, uploads, running))


def json_api(call: Call) -> Answer:
    if not isinstance(call.body, dict):
        raise GcsError(400, "parseError", "Parse Error")
    match call.method, call.path:
        case "GET", ["b"]:
            return buckets.list_buckets(call)
        case "POST", ["b"]:
            return buckets.insert_bucket(call)
        case "GET", ["b", name]:
            return buckets.get_bucket(call, name)
        case "PATCH" | "PUT", ["b", name]:
            return buckets.change_bucket(call, name)
        case "DELETE", ["b", name]:
            return buckets.delete_bucket(call, name)
        case "GET", ["b", name, "iam"]:
            return buckets.get_policy(call, name)
        case "PUT", ["b", name, "iam"]:
            return buckets.set_policy(call, name)
        case "GET", ["b", name, "iam", "testPermissions"]:
            return buckets.test_permissions(call, name)
        case "GET", ["b", name, "storageLayout"]:
            return buckets.storage_layout(call, name)
        case "GET", ["b", name, "anywhereCaches"]:
            return caches.list_caches(call, name)
        case "POST", ["b", name, "anywhereCaches"]:
            return caches.insert_cache(call, name)
        case "GET", ["b", name, "anywhereCaches", cache]:
            return caches.get_cache(call, name, cache)
        case "PATCH", ["b", name, "anywhereCaches", cache]:
            return caches.update_cache(call, name, cache)
        case "POST", ["b", name, "anywhereCaches", cache, "disable" | "pause" | "resume" as verb]:
            return caches.change_state(call, name, cache, verb)
        case "GET", ["b", name, "operations"]:
            return operations.list_operations(call, name)
        case "GET", ["b", name, "operations", operation]:
            return operations.get_operation(call, name, operation)
        case "GET", ["b", name, "o"]:
            return objects.list_objects(call, name)
        case "GET", ["b", bucket, "o", name]:
            return objects.get_object(call, bucket, name)
        case "PATCH" | "PUT", ["b", bucket, "o", name]:
            return objects.change_object(call, bucket, name)
        case "DELETE", ["b", bucket, "o", name]:
            return objects.delete_object(call, bucket, name)
        case "POST", ["b", bucket, "o", name, "compose"]:
            return objects.compose(call, bucket, name)
        case "POST", ["b", bucket, "o", name, "rewriteTo" | "copyTo" as verb, "b", to_bucket, "o", to_name]:
            return objects.copy(call, bucket, name, to_bucket, to_name, rewrite=verb == "rewriteTo")
    raise GcsError(404, "notFound", "Not Found")


def xml(request: Handler, uploads: Uploads) -> None:
    bucket_name, _, name = unquote(request.url_path.lstrip("/")).partition("/")
    bucket = uploads.store.bucket(bucket_name)
    # `?uploads` has no value, which Handler.query leaves out.
    query = parse_qs(urlsplit(request.path).query, keep_blank_values=True)
    upload_id = request.query.get("uploadId", "")
    match request.command:
        case "GET" if not name and "uploads" in query:
            xml_api.list_uploads(request, bucket)
        case "POST" if "uploads" in query:
            xml_api.start_upload(request, uploads, bucket, name)
        case "PUT" if upload_id:
            xml_api.put_part(request, uploads, bucket, name, upload_id)
        case "POST" if upload_id:
            xml_api.complete_upload(request, uploads, bucket, name, upload_id)
        case "DELETE" if upload_id:
            xml_api.abort_upload(request, uploads, bucket, name, upload_id)
        case "GET" if upload_id:
            xml_api.list_parts(request, uploads, bucket, name, upload_id)
        case "GET" | "HEAD" if name:
            xml_api.get_object(request, uploads, bucket, name)
        case "PUT" if name:
            xml_api.put_object(request, uploads, bucket, name)
        case "DELETE" if name:
            xml_api.delete_object(request, uploads, bucket, name)
        case _:
            raise GcsError(405, "methodNotAllowed", "The specified method is not allowed.", "MethodNotAllowed")
