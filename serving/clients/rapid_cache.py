"""Rapid Cache: copies of what is read from a bucket, in a zone, kept by GCS. Its API still says Anywhere Cache.

https://cloud.google.com/storage/docs/json_api/v1/anywhereCaches. A bucket has one cache a zone at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from serving.clients import storage
from serving.errors import AccessError

PERMISSIONS = (
    "storage.anywhereCaches.create,storage.anywhereCaches.disable,storage.anywhereCaches.get,"
    "storage.anywhereCaches.list,storage.anywhereCaches.resume,storage.anywhereCaches.update,"
    "storage.bucketOperations.get"
)


@dataclass(frozen=True)
class Cache:
    """A cache as GCS has it."""

    id: str
    zone: str
    state: str
    """CREATING, RUNNING, DISABLED (gone within an hour; resumed until then), or PAUSED (takes nothing new)."""
    created: str
    """When: tells a cache from another that was in its zone before."""
    ttl: str
    """How long what nobody reads is kept, `86400s`."""
    admission: str
    """Which read brings something into it: admit-on-first-miss, unless somebody chose another."""


def caches(bucket: str) -> dict[str, Cache]:
    """The bucket's caches, by their zones."""
    found: dict[str, Cache] = {}
    token: str | None = ""
    while token is not None:
        page = _call(bucket, "GET", "anywhereCaches" + (f"?pageToken={quote(token, safe='')}" if token else ""))
        found |= {item["zone"]: _cache(item) for item in page.get("items", [])}
        token = page.get("nextPageToken")
    return found


def create(bucket: str, zone: str, ttl_seconds: float) -> str:
    """Begins to make a cache. Returns the operation's id; an empty text when the zone has one already."""
    from google.api_core.exceptions import Conflict

    try:
        operation = _call(bucket, "POST", "anywhereCaches", {"zone": zone, "ttl": f"{ttl_seconds:.0f}s"})
    except Conflict:
        return ""
    return str(operation["name"]).rpartition("/")[2]


def failure(bucket: str, operation: str) -> str:
    """Why an operation has failed; empty while it has not, and when nobody knows it any more."""
    from google.api_core.exceptions import NotFound

    try:
        found = _call(bucket, "GET", f"operations/{quote(operation, safe='')}")
    except NotFound:
        return ""
    error = found.get("error")
    return str(error.get("message") or error) if error else ""


def change(bucket: str, cache: Cache, ttl_seconds: float) -> None:
    """Begins to give a cache another time to live; not while it is being changed already."""
    from google.api_core.exceptions import Conflict

    try:
        _call(bucket, "PATCH", f"anywhereCaches/{quote(cache.id, safe='')}", {"ttl": f"{ttl_seconds:.0f}s"})
    except Conflict:
        return  # The next run looks again.


def resume(bucket: str, cache: Cache) -> None:
    """Has a cache that was disabled or paused work again."""
    _call(bucket, "POST", f"anywhereCaches/{quote(cache.id, safe='')}/resume")


def disable(bucket: str, cache: Cache) -> None:
    """Ends a cache: it is gone within an hour."""
    from google.api_core.exceptions import NotFound

    try:
        _call(bucket, "POST", f"anywhereCaches/{quote(cache.id, safe='')}/disable")
    except NotFound:
        return


def _call(bucket: str, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    try:
        return storage.call(bucket, method, path, body)
    except AccessError as error:
        raise AccessError(f"{error}, or a role with {PERMISSIONS}") from error


def _cache(item: dict[str, Any]) -> Cache:
    return Cache(
        item["anywhereCacheId"],
        item["zone"],
        # Documents have it in capitals, and the service in whichever it likes.
        item["state"].upper(),
        item.get("createTime", ""),
        item.get("ttl", ""),
        item.get("admissionPolicy", ""),
    )
