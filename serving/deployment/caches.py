"""Rapid Cache in a deployment's zones: who made a cache, who needs it, and what lies in it.

A bucket's cache in a zone serves every deployment with weights in the bucket. Whose it is, is remembered beside the
weights (names.cache_record), and written before anything is made: so whatever ends a run, the next one knows. A cache
that no deployment made is used, and never disabled. Who made one and leaves it to others hands it on to them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import BaseModel

from serving import features, names
from serving.clients import google, rapid_cache, storage
from serving.clients.rapid_cache import Cache
from serving.clients.storage import PreconditionError
from serving.errors import InconclusiveError, RequestError
from serving.features import Caching
from serving.log import Say
from serving.settings import Settings
from serving.weights.release import Release

_ASLEEP = ("DISABLED", "PAUSED")
_REMEMBERED = 20
"""Weights that are remembered as read into a cache."""
_LONGEST_PAUSE = 10.0
_SAY_EVERY_SECONDS = 30


class Known(BaseModel):
    """What deployments remember of a cache."""

    made_by: str = ""
    """The place (names.place) of the deployment whose it is; empty for one that none of them made."""
    created: str = ""
    """When it was made, as GCS says it: tells it from another that somebody made in its zone later."""
    operation: str = ""
    """What makes it."""
    needed_by: list[str] = []
    """The places of the deployments that need it."""
    warm: list[str] = []
    """The weights keys that were read into it, the latest last."""

    def is_of(self, cache: Cache) -> bool:
        """Whether this is about that cache, and not one that was in its zone before."""
        return self.created in ("", cache.created)


def wanted(settings: Settings) -> Caching | None:
    """The caches that the deployment is to have."""
    return next((caching for _, caching in features.answers(settings, "caching") if caching), None)


def zones(settings: Settings) -> list[str]:
    """The zones that are to have one."""
    caching = wanted(settings)
    if caching is None:
        return []
    if caching.zones:
        return caching.zones
    return list(google.cluster_traits(settings).zones)


def amiss(settings: Settings, release: Release) -> str:
    """In what the caches are not as they should be for weights that serve, in words; empty when they are."""
    wishes, known = zones(settings), remembered(settings)
    there = rapid_cache.caches(settings.bucket) if wishes or known else {}
    for zone in wishes:
        state = there[zone].state if zone in there else "missing"
        if state != "RUNNING":
            return f"its Rapid Cache in {zone} is {state}"
        if (
            zone not in known
            or release.weights_key not in known[zone].warm
            or known[zone].created != there[zone].created
        ):
            return f"its weights were not read into the Rapid Cache in {zone}"
    for zone in sorted(known.keys() - set(wishes)):
        works = zone in there and known[zone].is_of(there[zone]) and there[zone].state != "DISABLED"
        if works or names.place(settings) in known[zone].needed_by:
            return f"it needs no Rapid Cache in {zone} any more"
    return ""


def remembered(settings: Settings) -> dict[str, Known]:
    """Zone → what is known of its cache, for those that this deployment made or needs."""
    place, found = names.place(settings), {}
    for uri in storage.list_uris(names.cache_records(settings)):
        known = Known.model_validate(storage.read_json(uri) or {})
        if place == known.made_by or place in known.needed_by:
            found[uri.rpartition("/")[2].removesuffix(".json")] = known
    return found


# -- needing one --------------------------------------------------------------------------------------------


def ensure(settings: Settings, say: Say) -> list[str]:
    """Begins to make the caches that are missing, and has those work again that sleep. Returns what was changed.

    Raises RequestError for a cache of somebody else's that sleeps, and AccessError without the rights.
    """
    caching = wanted(settings)
    if caching is None:
        return []
    there = rapid_cache.caches(settings.bucket)
    return [
        f"Rapid Cache in {zone}"
        for zone in zones(settings)
        if _ensure(settings, zone, caching.ttl_seconds, there.get(zone), say)
    ]


def _ensure(settings: Settings, zone: str, ttl_seconds: float, there: Cache | None, say: Say) -> bool:
    place = names.place(settings)

    def join(known: Known) -> None:
        if known.made_by and known.made_by not in known.needed_by:
            known.made_by = place  # Who made it has left it.
        if place not in known.needed_by:
            known.needed_by.append(place)
        if there is None:
            known.made_by, known.created, known.operation, known.warm = place, "", "", []
        elif known.created != there.created:
            if not known.is_of(there):
                known.made_by, known.operation = "", ""  # Somebody else made it since.
            known.created, known.warm = there.created, []

    known, _ = _note(settings, zone, join)
    if there is None:
        return _make(settings, zone, ttl_seconds, say)
    if there.state in _ASLEEP:
        if not known.made_by:
            cache = f"{settings.bucket}/{there.id}"
            raise RequestError(
                f"the Rapid Cache of gs://{settings.bucket} in {zone} is {there.state}, and somebody else's: `gcloud "
                f"storage buckets anywhere-caches resume {cache}`, or leave the zone out (gcs_fuse.rapid_cache_zones). "
                "One that is DISABLED is gone within an hour"
            )
        rapid_cache.resume(settings.bucket, there)
        say(f"the Rapid Cache in {zone}, which was {there.state}, works again")
        return True
    if known.made_by == place and there.ttl != f"{ttl_seconds:.0f}s":
        rapid_cache.change(settings.bucket, there, ttl_seconds)
        say(f"the Rapid Cache in {zone} keeps what nobody reads for {ttl_seconds:.0f} s from now on")
        return True
    return False


def _make(settings: Settings, zone: str, ttl_seconds: float, say: Say) -> bool:
    place = names.place(settings)
    operation = rapid_cache.create(settings.bucket, zone, ttl_seconds)

    def mine(known: Known) -> None:
        known.made_by, known.operation = place, operation

    def not_mine(known: Known) -> None:
        if known.made_by == place:
            known.made_by = ""  # Somebody was quicker; if it was a deployment, that one says so.

    _note(settings, zone, mine if operation else not_mine)
    if operation:
        say(f"making a Rapid Cache of gs://{settings.bucket} in {zone}")
    return bool(operation)


def wait_until_running(settings: Settings, say: Say) -> dict[str, Cache]:
    """Waits until every zone's cache works. Returns them, by their zones. Raises InconclusiveError when one does not in
    time, or was not made."""
    caching, wishes = wanted(settings), zones(settings)
    assert caching
    started = said_at = time.monotonic()
    pause = 0.2
    while True:
        there = rapid_cache.caches(settings.bucket)
        states = {zone: there[zone].state if zone in there else "missing" for zone in wishes}
        waiting = {zone: state for zone, state in states.items() if state != "RUNNING"}
        if not waiting:
            return {zone: there[zone] for zone in wishes}
        for zone, state in waiting.items():
            operation = Known.model_validate(storage.read_json(names.cache_record(settings, zone)) or {}).operation
            failed = rapid_cache.failure(settings.bucket, operation) if state == "missing" and operation else ""
            if failed or state in _ASLEEP:
                why = failed or f"somebody left it {state}"
                raise InconclusiveError(
                    f"there is no Rapid Cache of gs://{settings.bucket} in {zone}: {why}. Run again, or leave the zone "
                    "out (gcs_fuse.rapid_cache_zones)"
                )
        words = ", ".join(f"{zone} ({state})" for zone, state in waiting.items())
        seconds = time.monotonic() - started
        if seconds > caching.timeout_seconds:
            raise InconclusiveError(
                f"Rapid Cache does not work yet after {seconds:.0f} s in {words}. It goes on being made: run again "
                "later, or give it more time (gcs_fuse.rapid_cache_timeout)"
            )
        if time.monotonic() - said_at > _SAY_EVERY_SECONDS:
            said_at = time.monotonic()
            say(f"waiting for Rapid Cache in {words}, {seconds:.0f} s")
        time.sleep(pause)  # Its state can only be asked, not watched.
        pause = min(pause * 1.5, _LONGEST_PAUSE)


def is_warm(settings: Settings, release: Release, zone: str, cache: Cache) -> None:
    """Remembers that the release's weights were read into a zone's cache."""

    def note(known: Known) -> None:
        if known.is_of(cache):
            known.created = cache.created
            rest = [key for key in known.warm if key != release.weights_key]
            known.warm = [*rest, release.weights_key][-_REMEMBERED:]

    _note(settings, zone, note)


# -- needing none -------------------------------------------------------------------------------------------


def leave(settings: Settings, say: Say) -> list[str]:
    """Gives up the caches that the deployment does not want any more. Returns the zones of those that were disabled:
    its own, which nobody else needs."""
    wishes = set(zones(settings))
    return [zone for zone in remembered(settings) if zone not in wishes and _leave(settings, zone, say)]


def present(settings: Settings) -> list[str]:
    """The zones of the caches that the deployment made or needs, but for those that are going."""
    known = remembered(settings)
    there = rapid_cache.caches(settings.bucket) if known else {}
    return [
        zone
        for zone, cache in known.items()
        if names.place(settings) in cache.needed_by or (zone in there and there[zone].state != "DISABLED")
    ]


def leave_all(settings: Settings, say: Say) -> list[str]:
    """Gives up all of the deployment's caches, as `leave` does."""
    return [zone for zone in remembered(settings) if _leave(settings, zone, say)]


def _leave(settings: Settings, zone: str, say: Say) -> bool:
    place = names.place(settings)

    def part(known: Known) -> None:
        known.needed_by = [other for other in known.needed_by if other != place]
        if known.made_by == place and known.needed_by:
            known.made_by = known.needed_by[0]

    known, generation = _note(settings, zone, part)
    if known.made_by != place:
        say(f"the Rapid Cache in {zone} stays: {known.made_by or 'somebody else'} has it")
        return False
    cache = rapid_cache.caches(settings.bucket).get(zone)
    if cache is None or not known.is_of(cache):
        storage.delete(names.cache_record(settings, zone), generation)
        return False
    if cache.state == "DISABLED":
        return False  # Remembered until it is gone: whoever wants it within the hour may wake it.
    rapid_cache.disable(settings.bucket, cache)
    if Known.model_validate(storage.read_json(names.cache_record(settings, zone)) or {}).needed_by:
        rapid_cache.resume(settings.bucket, cache)  # Somebody came to need it in this very moment.
        return False
    say(f"disabled the Rapid Cache of gs://{settings.bucket} in {zone}: nobody needs it")
    return True


def _note(settings: Settings, zone: str, change: Callable[[Known], None]) -> tuple[Known, int]:
    """Changes what is remembered of a zone's cache. Returns it, and the object's generation: 0 when nothing is left to
    remember."""
    uri = names.cache_record(settings, zone)
    for _ in range(10):
        value, generation = storage.read_json_with_generation(uri)
        known = Known.model_validate(value or {})
        change(known)
        try:
            if not known.made_by and not known.needed_by:
                if value is None or storage.delete(uri, generation):
                    return known, 0
                continue
            if value != known.model_dump():
                generation = storage.write_json(uri, known.model_dump(), if_generation_match=generation)
            return known, generation
        except PreconditionError:
            continue  # Another deployment wrote meanwhile: look again.
    raise InconclusiveError(f"{uri} kept changing while it was written. Run again")
