"""Buckets and objects as the JSON API shows them, and what of them a request may set."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from email.message import Message
from typing import Any
from urllib.parse import quote

from emulated_cloud.storage.errors import invalid
from emulated_cloud.storage.store import Bucket, StoredObject, uniform_access

# The project number that every bucket names: the emulator knows of no projects.
PROJECT_NUMBER = "123456789012"

WRITABLE = (
    "cacheControl",
    "contentDisposition",
    "contentEncoding",
    "contentLanguage",
    "contentType",
    "customTime",
    "eventBasedHold",
    "metadata",
    "storageClass",
    "temporaryHold",
)
"""What the writer of an object may set."""

_HEADERS = {
    "cacheControl": "Cache-Control",
    "contentDisposition": "Content-Disposition",
    "contentEncoding": "Content-Encoding",
    "contentLanguage": "Content-Language",
    "contentType": "Content-Type",
}


def object_resource(bucket: Bucket, stored: StoredObject, base_url: str) -> dict[str, Any]:
    path = f"b/{quote(bucket.name, safe='')}/o/{quote(stored.name, safe='')}"
    resource = {
        "kind": "storage#object",
        "id": f"{bucket.name}/{stored.name}/{stored.generation}",
        "selfLink": f"{base_url}/storage/v1/{path}",
        "mediaLink": f"{base_url}/download/storage/v1/{path}?generation={stored.generation}&alt=media",
        "name": stored.name,
        "bucket": bucket.name,
        "generation": str(stored.generation),
        "metageneration": str(stored.metageneration),
        "storageClass": bucket.fields.get("storageClass", "STANDARD"),
        "size": str(stored.size),
        "crc32c": stored.crc32c,
        "etag": stored.etag,
        "timeCreated": stored.created,
        "updated": stored.updated,
        "timeStorageClassUpdated": stored.created,
        "timeFinalized": stored.created,
    }
    if stored.md5:
        resource["md5Hash"] = stored.md5
    if stored.component_count:
        resource["componentCount"] = stored.component_count
    return resource | stored.fields


def object_headers(stored: StoredObject) -> dict[str, str]:
    """What a download says of its object, beside its length."""
    md5 = f",md5={stored.md5}" if stored.md5 else ""
    headers = {
        "Content-Type": "application/octet-stream",
        "ETag": stored.etag,
        "X-Goog-Generation": str(stored.generation),
        "X-Goog-Metageneration": str(stored.metageneration),
        "X-Goog-Hash": f"crc32c={stored.crc32c}{md5}",
        "X-Goog-Storage-Class": stored.fields.get("storageClass", "STANDARD"),
        "X-Goog-Stored-Content-Encoding": stored.fields.get("contentEncoding", "identity"),
        "X-Goog-Stored-Content-Length": str(stored.size),
        "Accept-Ranges": "bytes",
    }
    headers |= {header: stored.fields[key] for key, header in _HEADERS.items() if stored.fields.get(key)}
    return headers | {f"X-Goog-Meta-{key}": value for key, value in stored.fields.get("metadata", {}).items()}


def fields_of_resource(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What a request's object resource sets. Raises GcsError 400 for metadata that is not text."""
    metadata = resource.get("metadata") or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise invalid("Invalid value for: metadata: values must be strings.")
    return {key: resource[key] for key in WRITABLE if resource.get(key) not in (None, "", {})}


def fields_of_headers(headers: Message) -> dict[str, Any]:
    """What an XML request's headers set."""
    fields: dict[str, Any] = {key: headers[header] for key, header in _HEADERS.items() if headers.get(header)}
    prefix = "x-goog-meta-"
    metadata = {
        key.lower().removeprefix(prefix): value for key, value in headers.items() if key.lower().startswith(prefix)
    }
    return fields | ({"metadata": metadata} if metadata else {})


def merged(old: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON merge patch: null deletes."""
    new = dict(old)
    for key, value in change.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            before = old.get(key)
            new[key] = merged(before if isinstance(before, dict) else {}, value)
        else:
            new[key] = value
    return new


# What a bucket resource holds but nobody may set.
_OUTPUT_ONLY = (
    "kind",
    "id",
    "selfLink",
    "projectNumber",
    "metageneration",
    "generation",
    "etag",
    "timeCreated",
    "updated",
    "locationType",
)
_MULTI_REGIONS = ("US", "EU", "ASIA")


def bucket_fields(resource: Mapping[str, Any]) -> dict[str, Any]:
    """What a bucket resource sets, with what GCS fills in. Raises GcsError 400."""
    fields = {key: value for key, value in resource.items() if key not in (*_OUTPUT_ONLY, "name") and value is not None}
    fields["location"] = str(fields.get("location", "US")).upper()
    fields.setdefault("storageClass", "STANDARD")
    access = dict(fields.get("iamConfiguration", {}))
    uniform = bool(access.get("uniformBucketLevelAccess", {}).get("enabled"))
    if not uniform or not access["uniformBucketLevelAccess"].get("lockedTime"):
        access["uniformBucketLevelAccess"] = uniform_access(uniform)
    access["bucketPolicyOnly"] = access["uniformBucketLevelAccess"]
    access.setdefault("publicAccessPrevention", "inherited")
    fields["iamConfiguration"] = access
    if fields.get("hierarchicalNamespace", {}).get("enabled") and not uniform:
        raise invalid("Uniform bucket-level access must be enabled to enable hierarchical namespace.")
    return fields


def bucket_resource(bucket: Bucket, base_url: str) -> dict[str, Any]:
    location = bucket.fields["location"]
    return bucket.fields | {
        "kind": "storage#bucket",
        "id": bucket.name,
        "name": bucket.name,
        "selfLink": f"{base_url}/storage/v1/b/{quote(bucket.name, safe='')}",
        "projectNumber": PROJECT_NUMBER,
        "generation": str(bucket.generation),
        "metageneration": str(bucket.metageneration),
        "etag": bucket.etag,
        "timeCreated": bucket.created,
        "updated": bucket.updated,
        "locationType": "multi-region" if location in _MULTI_REGIONS else "region",
    }


def policy_resource(bucket: Bucket) -> dict[str, Any]:
    policy = {key: value for key, value in bucket.policy.items() if key != "revision"}
    return policy | {
        "kind": "storage#policy",
        "resourceId": f"projects/_/buckets/{bucket.name}",
        "etag": policy_etag(bucket),
    }


def policy_etag(bucket: Bucket) -> str:
    return base64.b64encode(b"\x08" + bytes([bucket.policy["revision"] % 128])).decode()
