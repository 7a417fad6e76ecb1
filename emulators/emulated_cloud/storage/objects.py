"""Objects over the JSON API, but for their bytes: everything below `/storage/v1/b/<bucket>/o`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from emulated_cloud.storage.call import Answer, Call
from emulated_cloud.storage.errors import invalid, precondition_failed
from emulated_cloud.storage.listing import Listing
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import WRITABLE, fields_of_resource, merged, object_resource
from emulated_cloud.storage.store import StoredObject, now, valid_name
from emulated_cloud.storage.uploads import Expected, pieces_of

COMPOSE_AT_MOST = 32


def list_objects(call: Call, name: str) -> Answer:
    with call.store.lock:
        bucket = call.store.bucket(name)
        items, prefixes, token = Listing.of_query(call.query).of(bucket.objects.values())
        listed: dict[str, Any] = {"kind": "storage#objects"}
        if token:
            listed["nextPageToken"] = token
        if prefixes:
            listed["prefixes"] = prefixes
        if items:
            listed["items"] = [object_resource(bucket, stored, call.base_url) for stored in items]
        return Answer(200, listed)


def get_object(call: Call, bucket_name: str, name: str) -> Answer:
    with call.store.lock:
        bucket = call.store.bucket(bucket_name)
        stored = bucket.find(name, call.query.get("generation"))
        call.preconditions.check(stored, reading=True)
        return Answer(200, object_resource(bucket, stored, call.base_url))


def change_object(call: Call, bucket_name: str, name: str) -> Answer:
    change = {key: value for key, value in call.body.items() if key in WRITABLE}
    with call.store.lock:
        bucket = call.store.bucket(bucket_name)
        stored = bucket.find(name, call.query.get("generation"))
        call.preconditions.check(stored)
        fields = fields_of_resource(merged(stored.fields, change) if call.method == "PATCH" else change)
        stored = replace(stored, fields=fields, metageneration=stored.metageneration + 1, updated=now())
        call.store.save(bucket, stored)
        return Answer(200, object_resource(bucket, stored, call.base_url))


def delete_object(call: Call, bucket_name: str, name: str) -> Answer:
    with call.store.lock:
        bucket = call.store.bucket(bucket_name)
        stored = bucket.find(name, call.query.get("generation"))
        call.preconditions.check(stored)
        call.store.delete(bucket, stored)
        return Answer(204, None)


def compose(call: Call, bucket_name: str, name: str) -> Answer:
    sources, destination = call.body.get("sourceObjects", []), call.body.get("destination") or {}
    if not 1 <= len(sources) <= COMPOSE_AT_MOST:
        raise invalid(f"The number of source components provided ({len(sources)}) must be between 1 and 32.")
    valid_name(name)
    with call.store.lock:
        bucket = call.store.bucket(bucket_name)
        # Asked again when the bytes are there; asked now, because copying them for nothing is slow.
        call.preconditions.check(bucket.objects.get(name))
        parts: list[StoredObject] = []
        for source in sources:
            generation = source.get("generation")
            stored = bucket.find(source.get("name", ""), str(generation) if generation else None)
            wanted = (source.get("objectPreconditions") or {}).get("ifGenerationMatch")
            if wanted is not None and int(wanted) != stored.generation:
                raise precondition_failed()
            parts.append(stored)
        files = [call.store.open(bucket, part) for part in parts]
    fields = {"contentType": parts[0].fields.get("contentType", "application/octet-stream")}
    stored = call.uploads.put(
        bucket,
        name,
        pieces_of(files),
        fields | fields_of_resource(destination),
        call.preconditions,
        Expected(),
        component_count=sum(part.component_count or 1 for part in parts),
    )
    return Answer(200, object_resource(bucket, stored, call.base_url))


def copy(call: Call, bucket: str, name: str, to_bucket: str, to_name: str, rewrite: bool) -> Answer:
    valid_name(to_name)
    with call.store.lock:
        source_bucket, target = call.store.bucket(bucket), call.store.bucket(to_bucket)
        source = source_bucket.find(name, call.query.get("sourceGeneration"))
        Preconditions.of_query(call.query, call.headers, source=True).check(source)
        call.preconditions.check(target.objects.get(to_name))
        file = call.store.open(source_bucket, source)
    # A body replaces the metadata of the source as a whole.
    fields = fields_of_resource(call.body) if call.body else source.fields
    stored = call.uploads.put(
        target,
        to_name,
        pieces_of([file]),
        fields,
        call.preconditions,
        Expected(),
        component_count=source.component_count,
    )
    resource = object_resource(target, stored, call.base_url)
    if not rewrite:
        return Answer(200, resource)
    size = str(stored.size)
    done = {"totalBytesRewritten": size, "objectSize": size, "done": True, "resource": resource}
    return Answer(200, {"kind": "storage#rewriteResponse"} | done)
