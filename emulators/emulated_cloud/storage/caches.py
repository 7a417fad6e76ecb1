"""Rapid Cache, which the API still calls Anywhere Cache: one cache a zone of a bucket at most.

Making or changing one is an operation. A cache that was disabled can be resumed for an hour, then it is gone. Nothing
is read through it: an emulator on one machine has no zones.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

from emulated_cloud.storage.call import Answer, Call
from emulated_cloud.storage.errors import GcsError, invalid, required
from emulated_cloud.storage.listing import page_of
from emulated_cloud.storage.resources import PROJECT_NUMBER
from emulated_cloud.storage.store import Bucket, now, rfc3339

_GONE_AFTER = timedelta(hours=1)
_METADATA = "type.googleapis.com/google.storage.control.v2.{}AnywhereCacheMetadata"
_POLICIES = ("admit-on-first-miss", "admit-on-second-miss")
_CONTINENTS = {"US": "us-", "EU": "europe-", "ASIA": "asia-"}


def list_caches(call: Call, name: str) -> Answer:
    with call.store.lock:
        bucket = _bucket(call, name)
        query = {**call.query, "maxResults": call.query.get("pageSize", "1000")}
        page, token = page_of(sorted(bucket.caches.values(), key=_zone), _zone, query)
        listed: dict[str, Any] = {"kind": "storage#anywhereCaches"}
        if page:
            listed["items"] = [_resource(bucket, cache, call.base_url) for cache in page]
    return Answer(200, listed | ({"nextPageToken": token} if token else {}))


def get_cache(call: Call, name: str, cache_id: str) -> Answer:
    with call.store.lock:
        bucket = _bucket(call, name)
        return Answer(200, _resource(bucket, _find(bucket, cache_id), call.base_url))


def insert_cache(call: Call, name: str) -> Answer:
    zone = call.body.get("zone")
    if not zone:
        raise required("zone")
    fields = {"ttl": "86400s", "admissionPolicy": _POLICIES[0], "ingestOnWrite": False, **_fields(call.body)}
    with call.store.lock:
        bucket = _bucket(call, name)
        _check_zone(bucket, zone)
        if zone in bucket.caches:
            raise GcsError(409, "conflict", f"An Anywhere Cache already exists in zone {zone}.")
        cache = {**fields, "zone": zone, "state": "CREATING", "createTime": now(), "updateTime": now()}
        bucket.caches[zone] = cache
        call.store.save_bucket(bucket)

    def work() -> dict[str, Any]:
        with call.store.lock:
            if cache["state"] == "CREATING":
                _set(call, bucket, cache, state="RUNNING")
            return _resource(bucket, cache, call.base_url)

    def undo() -> None:
        with call.store.lock:
            bucket.caches.pop(zone, None)
            call.store.save_bucket(bucket)

    metadata = {"@type": _METADATA.format("Create"), "anywhereCacheId": zone, "zone": zone, **fields}
    return Answer(200, call.operations.begin(call, name, metadata, work, undo))


def update_cache(call: Call, name: str, cache_id: str) -> Answer:
    fields = _fields(call.body)
    with call.store.lock:
        bucket = _bucket(call, name)
        cache = _find(bucket, cache_id)
        if cache.get("pendingUpdate"):
            raise GcsError(409, "conflict", "The Anywhere Cache has a pending update.")
        _set(call, bucket, cache, pendingUpdate=True)

    def work() -> dict[str, Any]:
        with call.store.lock:
            _set(call, bucket, cache, pendingUpdate=False, **fields)
            return _resource(bucket, cache, call.base_url)

    def undo() -> None:
        with call.store.lock:
            _set(call, bucket, cache, pendingUpdate=False)

    metadata = {"@type": _METADATA.format("Update"), "anywhereCacheId": cache_id, "zone": cache["zone"], **fields}
    return Answer(200, call.operations.begin(call, name, metadata, work, undo))


def change_state(call: Call, name: str, cache_id: str, verb: str) -> Answer:
    """`disable`, `pause` and `resume`."""
    with call.store.lock:
        bucket = _bucket(call, name)
        cache = _find(bucket, cache_id)
        if verb == "pause" and cache["state"] == "DISABLED":
            raise invalid("A disabled Anywhere Cache cannot be paused.")
        _set(call, bucket, cache, state={"disable": "DISABLED", "pause": "PAUSED", "resume": "RUNNING"}[verb])
        return Answer(200, _resource(bucket, cache, call.base_url))


def _zone(cache: dict[str, Any]) -> str:
    return str(cache["zone"])


def _bucket(call: Call, name: str) -> Bucket:
    """The bucket, without the caches that were disabled long ago. Hold the lock."""
    bucket = call.store.bucket(name)
    limit = rfc3339(datetime.now(UTC) - _GONE_AFTER)
    for zone, cache in list(bucket.caches.items()):
        if cache["state"] == "DISABLED" and cache["updateTime"] < limit:
            del bucket.caches[zone]
    return bucket


def _find(bucket: Bucket, cache_id: str) -> dict[str, Any]:
    if cache_id not in bucket.caches:
        raise GcsError(404, "notFound", "The specified Anywhere Cache does not exist.")
    return bucket.caches[cache_id]


def _set(call: Call, bucket: Bucket, cache: dict[str, Any], **fields: Any) -> None:
    cache.update(fields, updateTime=now())
    call.store.save_bucket(bucket)


def _fields(body: dict[str, Any]) -> dict[str, Any]:
    """What a request may set. Raises GcsError 400."""
    fields = {key: body[key] for key in ("ttl", "admissionPolicy", "ingestOnWrite") if body.get(key) is not None}
    if "ttl" in fields:
        seconds = re.fullmatch(r"(\d+)s", fields["ttl"])
        if not seconds or not 3600 <= int(seconds[1]) <= 7 * 86400:
            raise invalid(f"Invalid TTL: {fields['ttl']}. It must be between 1 hour and 7 days, in whole seconds.")
    if fields.get("admissionPolicy", _POLICIES[0]) not in _POLICIES:
        raise invalid(f"Invalid admission policy: {fields['admissionPolicy']}.")
    return fields


def _check_zone(bucket: Bucket, zone: str) -> None:
    """Raises GcsError 400 for what is no zone, or none of the bucket's location."""
    location = str(bucket.fields["location"])
    here = _CONTINENTS.get(location, f"{location.lower()}-")
    if not re.fullmatch(r"[a-z]+-[a-z]+\d+-[a-z]", zone) or not zone.startswith(here):
        raise invalid(f"Zone {zone} is not in the location of the bucket, {location}.")


def _resource(bucket: Bucket, cache: dict[str, Any], base_url: str) -> dict[str, Any]:
    zone = cache["zone"]
    return {
        "pendingUpdate": False,
        **cache,
        "kind": "storage#anywhereCache",
        "id": f"{PROJECT_NUMBER}/{bucket.name}/{zone}",
        "selfLink": f"{base_url}/storage/v1/b/{quote(bucket.name, safe='')}/anywhereCaches/{zone}",
        "bucket": bucket.name,
        "anywhereCacheId": zone,
    }
