"""Rapid Cache of a bucket, by requests of the JSON API on the client's own session and by the product's client."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from serving.clients import rapid_cache, storage
from serving.errors import AccessError, RequestError

if TYPE_CHECKING:
    from tests.contract.storage_service import Gcs

pytest_plugins = ["tests.contract.storage_service"]

ZONE, OTHER = "us-central1-a", "us-central1-b"
INSERT = {"action": "outcome", "method": "POST", "path": "/anywhereCaches$"}


@pytest.fixture
def caches(emulator: Gcs, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gcs]:
    """A bucket without a cache, which the product's client finds; its exchanges are held against the document, too.
    (A real cache is not for a test: it takes its time, and an hour to go.)"""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.endpoint)
    bucket = emulator.client.create_bucket(f"caches-{time.time_ns()}", location="us-central1")
    emulator.conformance.watch(storage.client()._http, where="/storage/v1/")
    # The service is the whole session's, its bucket too.
    yield replace(emulator, bucket=bucket)
    emulator.script()
    bucket.delete(force=True)


def url(gcs: Gcs, path: str) -> str:
    return gcs.url(f"/storage/v1/b/{gcs.bucket.name}/{path}")


def state(gcs: Gcs, zone: str = ZONE) -> str:
    return rapid_cache.caches(gcs.bucket.name)[zone].state


def settled(gcs: Gcs, operation: str) -> dict[str, Any]:
    """An operation when it is done."""
    deadline = time.monotonic() + 120
    while not (found := gcs.session.get(url(gcs, f"operations/{operation}")).json())["done"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_a_cache_is_made_by_an_operation(caches: Gcs):
    caches.script({**INSERT, "outcome": {"hold": True}})
    operation = rapid_cache.create(caches.bucket.name, ZONE, 7200)
    assert state(caches) == "CREATING"
    assert not caches.session.get(url(caches, f"operations/{operation}")).json()["done"]
    assert rapid_cache.failure(caches.bucket.name, operation) == ""
    caches.script()
    made = settled(caches, operation)["response"]
    assert (made["zone"], made["state"], made["ttl"]) == (ZONE, "RUNNING", "7200s")
    found = rapid_cache.caches(caches.bucket.name)
    assert set(found) == {ZONE}
    cache = found[ZONE]
    assert (cache.id, cache.state, cache.ttl) == (ZONE, "RUNNING", "7200s")
    assert cache.admission == "admit-on-first-miss"
    one = caches.session.get(url(caches, f"anywhereCaches/{ZONE}")).json()
    assert (one["createTime"], one["pendingUpdate"]) == (cache.created, False)


def test_a_zone_has_one(caches: Gcs):
    settled(caches, rapid_cache.create(caches.bucket.name, ZONE, 3600))
    assert rapid_cache.create(caches.bucket.name, ZONE, 3600) == ""
    settled(caches, rapid_cache.create(caches.bucket.name, OTHER, 3600))
    first = caches.session.get(url(caches, "anywhereCaches?pageSize=1")).json()
    assert [item["zone"] for item in first["items"]] == [ZONE]
    assert set(rapid_cache.caches(caches.bucket.name)) == {ZONE, OTHER}


def test_why_a_cache_was_not_made(caches: Gcs):
    error = {"code": 8, "message": "There is no capacity in the zone."}
    caches.script({**INSERT, "outcome": {"error": error}})
    operation = rapid_cache.create(caches.bucket.name, ZONE, 3600)
    assert settled(caches, operation)["error"] == error
    assert caches.consumed() == [1]
    assert rapid_cache.failure(caches.bucket.name, operation) == error["message"]
    assert rapid_cache.caches(caches.bucket.name) == {}
    assert rapid_cache.failure(caches.bucket.name, "nobody-knows-it") == ""


def test_a_disabled_cache_is_resumed_or_goes(caches: Gcs):
    settled(caches, rapid_cache.create(caches.bucket.name, ZONE, 3600))
    cache = rapid_cache.caches(caches.bucket.name)[ZONE]
    rapid_cache.disable(caches.bucket.name, cache)
    assert state(caches) == "DISABLED"
    assert rapid_cache.create(caches.bucket.name, ZONE, 3600) == ""
    rapid_cache.resume(caches.bucket.name, cache)
    assert state(caches) == "RUNNING"
    assert caches.session.post(url(caches, f"anywhereCaches/{ZONE}/pause")).json()["state"] == "PAUSED"
    rapid_cache.resume(caches.bucket.name, cache)
    assert state(caches) == "RUNNING"


def test_a_cache_gets_another_time_to_live(caches: Gcs):
    settled(caches, rapid_cache.create(caches.bucket.name, ZONE, 3600))
    caches.script({"action": "outcome", "method": "PATCH", "path": "/anywhereCaches/", "outcome": {"hold": True}})
    cache = rapid_cache.caches(caches.bucket.name)[ZONE]
    rapid_cache.change(caches.bucket.name, cache, 86400)
    assert caches.session.get(url(caches, f"anywhereCaches/{ZONE}")).json()["pendingUpdate"]
    rapid_cache.change(caches.bucket.name, cache, 7200)  # Refused, and the next run looks again.
    caches.script()
    for operation in caches.session.get(url(caches, "operations")).json()["operations"]:
        settled(caches, operation["name"].rpartition("/")[2])
    assert rapid_cache.caches(caches.bucket.name)[ZONE].ttl == "86400s"


@pytest.mark.parametrize(("zone", "ttl"), [("europe-west1-b", 3600), (ZONE, 60), ("nowhere", 3600)])
def test_what_cannot_be_is_refused(caches: Gcs, zone: str, ttl: float):
    with pytest.raises(RequestError, match=rf"gs://{caches.bucket.name}: GCS refused the request"):
        rapid_cache.create(caches.bucket.name, zone, ttl)
    assert rapid_cache.caches(caches.bucket.name) == {}


def test_who_lacks_the_right_learns_which(caches: Gcs):
    caches.script({"action": "status", "status": 403, "path": "/anywhereCaches"})
    with pytest.raises(AccessError, match=r"roles/storage\.admin.*a role with storage\.anywhereCaches\.create"):
        rapid_cache.caches(caches.bucket.name)
    assert caches.consumed() == [1]


def test_a_busy_service_is_asked_again(caches: Gcs):
    caches.script({"action": "status", "status": 503, "path": "/anywhereCaches", "times": 2})
    assert rapid_cache.caches(caches.bucket.name) == {}
    assert caches.consumed() == [2]
