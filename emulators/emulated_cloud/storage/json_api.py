"""The JSON API's requests whose body is a JSON document or nothing: what a batch may hold."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from emulated_cloud.storage.errors import GcsError, invalid, precondition_failed, required
from emulated_cloud.storage.listing import Listing, page_of
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.resources import (
    WRITABLE,
    bucket_fields,
    bucket_resource,
    fields_of_resource,
    merged,
    object_resource,
    policy_etag,
    policy_resource,
)
from emulated_cloud.storage.store import Store, StoredObject, now
from emulated_cloud.storage.uploads import Expected, Uploads, pieces_of

COMPOSE_AT_MOST = 32
_MEMBER = re.compile(
    r"(allUsers|allAuthenticatedUsers|(deleted:)?(user|serviceAccount|group):[^@\s]+@\S+|domain:\S+"
    r"|project(Owner|Editor|Viewer):\S*|principal(Set)?://\S+/\S+)"
)
_ROLE = re.compile(r"(roles|projects/[^/]+/roles|organizations/[^/]+/roles)/[\w.]+")


@dataclass
class Call:
    """A request: `path` is what follows /storage/v1, split and unquoted; `base_url` how the client reached us."""

    method: str
    path: list[str]
    query: dict[str, str]
    raw_query: str
    headers: Message
    body: Any
    base_url: str


class Answer(NamedTuple):
    status: int
    body: dict[str, Any] | None


class JsonApi:
    """Answers calls. Every method may raise GcsError."""

    def __init__(self, store: Store, uploads: Uploads) -> None:
        self.store, self.uploads = store, uploads

    def answer(self, call: Call) -> Answer:
        if not isinstance(call.body, dict):
            raise GcsError(400, "parseError", "Parse Error")
        match call.method, call.path:
            case "GET", ["b"]:
                return self.list_buckets(call)
            case "POST", ["b"]:
                return self.insert_bucket(call)
            case "GET", ["b", name]:
                return self.get_bucket(call, name)
            case "PATCH" | "PUT", ["b", name]:
                return self.change_bucket(call, name)
            case "DELETE", ["b", name]:
                return self.delete_bucket(call, name)
            case "GET", ["b", name, "iam"]:
                return Answer(200, policy_resource(self.store.bucket(name)))
            case "PUT", ["b", name, "iam"]:
                return self.set_policy(call, name)
            case "GET", ["b", name, "iam", "testPermissions"]:
                return self.test_permissions(call, name)
            case "GET", ["b", name, "storageLayout"]:
                return self.storage_layout(name)
            case "GET", ["b", name, "o"]:
                return self.list_objects(call, name)
            case "GET", ["b", bucket, "o", name]:
                return self.get_object(call, bucket, name)
            case "PATCH" | "PUT", ["b", bucket, "o", name]:
                return self.change_object(call, bucket, name)
            case "DELETE", ["b", bucket, "o", name]:
                return self.delete_object(call, bucket, name)
            case "POST", ["b", bucket, "o", name, "compose"]:
                return self.compose(call, bucket, name)
            case "POST", ["b", bucket, "o", name, "rewriteTo" | "copyTo" as verb, "b", to_bucket, "o", to_name]:
                return self.copy(call, bucket, name, to_bucket, to_name, rewrite=verb == "rewriteTo")
        raise GcsError(404, "notFound", "Not Found")

    # -- buckets --------------------------------------------------------------------------------------------

    def list_buckets(self, call: Call) -> Answer:
        project, prefix = call.query.get("project"), call.query.get("prefix", "")
        if not project:
            raise required("project")
        with self.store.lock:
            buckets = sorted(self.store.buckets.values(), key=lambda bucket: bucket.name)
        # A bucket made on the command line belongs to no project: everybody sees it.
        mine = [bucket for bucket in buckets if bucket.project in ("", project) and bucket.name.startswith(prefix)]
        page, token = page_of(mine, lambda bucket: bucket.name, call.query)
        listed: dict[str, Any] = {"kind": "storage#buckets"}
        if page:
            listed["items"] = [bucket_resource(bucket, call.base_url) for bucket in page]
        return Answer(200, listed | ({"nextPageToken": token} if token else {}))

    def insert_bucket(self, call: Call) -> Answer:
        project, name = call.query.get("project"), call.body.get("name")
        if not project:
            raise required("project")
        if not name:
            raise required("name")
        bucket = self.store.create_bucket(name, project, bucket_fields(call.body))
        return Answer(200, bucket_resource(bucket, call.base_url))

    def get_bucket(self, call: Call, name: str) -> Answer:
        with self.store.lock:
            bucket = self.store.bucket(name)
            self._preconditions(call).check(bucket, reading=True)
            return Answer(200, bucket_resource(bucket, call.base_url))

    def change_bucket(self, call: Call, name: str) -> Answer:
        with self.store.lock:
            bucket = self.store.bucket(name)
            self._preconditions(call).check(bucket)
            fields = bucket_fields(merged(bucket.fields, call.body) if call.method == "PATCH" else call.body)
            for fixed in ("location", "hierarchicalNamespace"):
                if fixed in call.body and fields.get(fixed) != bucket.fields.get(fixed):
                    raise invalid(f"The {fixed} of an existing bucket cannot be changed.")
            bucket.fields, bucket.metageneration, bucket.updated = fields, bucket.metageneration + 1, now()
            self.store.save_bucket(bucket)
            return Answer(200, bucket_resource(bucket, call.base_url))

    def delete_bucket(self, call: Call, name: str) -> Answer:
        with self.store.lock:
            self._preconditions(call).check(self.store.bucket(name))
            self.store.delete_bucket(name)
        return Answer(204, None)

    def storage_layout(self, name: str) -> Answer:
        bucket = self.store.bucket(name)
        resource = bucket_resource(bucket, "")
        return Answer(
            200,
            {
                "kind": "storage#storageLayout",
                "bucket": name,
                "location": resource["location"],
                "locationType": resource["locationType"],
                "hierarchicalNamespace": bucket.fields.get("hierarchicalNamespace", {"enabled": False}),
            },
        )

    def set_policy(self, call: Call, name: str) -> Answer:
        bindings = call.body.get("bindings", [])
        for binding in bindings:
            if not _ROLE.fullmatch(binding.get("role", "")):
                raise invalid(f"Role {binding.get('role', '')} is not supported for this resource.")
            for member in binding.get("members", []):
                if not _MEMBER.fullmatch(member):
                    raise invalid(f"Invalid argument: member '{member}' has no valid type prefix.")
            if binding.get("condition") and call.body.get("version") != 3:
                raise invalid("Bindings with conditions need policy version 3.")
        with self.store.lock:
            bucket = self.store.bucket(name)
            if call.body.get("etag") and call.body["etag"] != policy_etag(bucket):
                raise precondition_failed()
            bucket.policy = {
                "version": call.body.get("version", 1),
                "bindings": [binding for binding in bindings if binding.get("members")],
                "revision": bucket.policy["revision"] + 1,
            }
            self.store.save_bucket(bucket)
            return Answer(200, policy_resource(bucket))

    def test_permissions(self, call: Call, name: str) -> Answer:
        """The emulator forbids nothing, so whoever asks has every permission there is."""
        self.store.bucket(name)
        asked = parse_qs(call.raw_query).get("permissions", [])
        if not asked:
            raise required("permissions")
        for permission in asked:
            if not permission.startswith("storage."):
                raise invalid(f"Permission {permission} is not valid for this resource.")
        return Answer(200, {"kind": "storage#testIamPermissionsResponse", "permissions": asked})

    # -- objects --------------------------------------------------------------------------------------------

    def list_objects(self, call: Call, name: str) -> Answer:
        with self.store.lock:
            bucket = self.store.bucket(name)
            items, prefixes, token = Listing.of_query(call.query).of(bucket.objects.values())
            listed: dict[str, Any] = {"kind": "storage#objects"}
            if token:
                listed["nextPageToken"] = token
            if prefixes:
                listed["prefixes"] = prefixes
            if items:
                listed["items"] = [object_resource(bucket, stored, call.base_url) for stored in items]
            return Answer(200, listed)

    def get_object(self, call: Call, bucket_name: str, name: str) -> Answer:
        with self.store.lock:
            bucket = self.store.bucket(bucket_name)
            stored = bucket.find(name, call.query.get("generation"))
            self._preconditions(call).check(stored, reading=True)
            return Answer(200, object_resource(bucket, stored, call.base_url))

    def change_object(self, call: Call, bucket_name: str, name: str) -> Answer:
        change = {key: value for key, value in call.body.items() if key in WRITABLE}
        with self.store.lock:
            bucket = self.store.bucket(bucket_name)
            stored = bucket.find(name, call.query.get("generation"))
            self._preconditions(call).check(stored)
            fields = fields_of_resource(merged(stored.fields, change) if call.method == "PATCH" else change)
            stored = replace(stored, fields=fields, metageneration=stored.metageneration + 1, updated=now())
            self.store.save(bucket, stored)
            return Answer(200, object_resource(bucket, stored, call.base_url))

    def delete_object(self, call: Call, bucket_name: str, name: str) -> Answer:
        with self.store.lock:
            bucket = self.store.bucket(bucket_name)
            stored = bucket.find(name, call.query.get("generation"))
            self._preconditions(call).check(stored)
            self.store.delete(bucket, stored)
            return Answer(204, None)

    def compose(self, call: Call, bucket_name: str, name: str) -> Answer:
        sources, destination = call.body.get("sourceObjects", []), call.body.get("destination") or {}
        if not 1 <= len(sources) <= COMPOSE_AT_MOST:
            raise invalid(f"The number of source components provided ({len(sources)}) must be between 1 and 32.")
        valid_name(name)
        with self.store.lock:
            bucket = self.store.bucket(bucket_name)
            # Asked again when the bytes are there; asked now, because copying them for nothing is slow.
            self._preconditions(call).check(bucket.objects.get(name))
            parts: list[StoredObject] = []
            for source in sources:
                generation = source.get("generation")
                stored = bucket.find(source.get("name", ""), str(generation) if generation else None)
                wanted = (source.get("objectPreconditions") or {}).get("ifGenerationMatch")
                if wanted is not None and int(wanted) != stored.generation:
                    raise precondition_failed()
                parts.append(stored)
            files = [self.store.open(bucket, part) for part in parts]
        fields = {"contentType": parts[0].fields.get("contentType", "application/octet-stream")}
        stored = self.uploads.put(
            bucket,
            name,
            pieces_of(files),
            fields | fields_of_resource(destination),
            self._preconditions(call),
            Expected(),
            component_count=sum(part.component_count or 1 for part in parts),
        )
        return Answer(200, object_resource(bucket, stored, call.base_url))

    def copy(self, call: Call, bucket: str, name: str, to_bucket: str, to_name: str, rewrite: bool) -> Answer:
        valid_name(to_name)
        with self.store.lock:
            source_bucket, target = self.store.bucket(bucket), self.store.bucket(to_bucket)
            source = source_bucket.find(name, call.query.get("sourceGeneration"))
            Preconditions.of_query(call.query, call.headers, source=True).check(source)
            self._preconditions(call).check(target.objects.get(to_name))
            file = self.store.open(source_bucket, source)
        # A body replaces the metadata of the source as a whole.
        fields = fields_of_resource(call.body) if call.body else source.fields
        stored = self.uploads.put(
            target,
            to_name,
            pieces_of([file]),
            fields,
            self._preconditions(call),
            Expected(),
            component_count=source.component_count,
        )
        resource = object_resource(target, stored, call.base_url)
        if not rewrite:
            return Answer(200, resource)
        size = str(stored.size)
        done = {"totalBytesRewritten": size, "objectSize": size, "done": True, "resource": resource}
        return Answer(200, {"kind": "storage#rewriteResponse"} | done)

    @staticmethod
    def _preconditions(call: Call) -> Preconditions:
        return Preconditions.of_query(call.query, call.headers)


def valid_name(name: str) -> str:
    """Raises GcsError 400 for a name that no object can have."""
    if not 1 <= len(name.encode()) <= 1024 or name in (".", "..") or re.search(r"[\r\n]", name):
        raise invalid(f"Invalid object name: '{name}'")
    return name
