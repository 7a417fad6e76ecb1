"""Buckets over the JSON API: everything below `/storage/v1/b` but objects."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import parse_qs

from emulated_cloud.storage.call import Answer, Call
from emulated_cloud.storage.errors import invalid, precondition_failed, required
from emulated_cloud.storage.listing import page_of
from emulated_cloud.storage.resources import bucket_fields, bucket_resource, merged, policy_etag, policy_resource
from emulated_cloud.storage.store import now

_MEMBER = re.compile(
    r"(allUsers|allAuthenticatedUsers|(deleted:)?(user|serviceAccount|group):[^@\s]+@\S+|domain:\S+"
    r"|project(Owner|Editor|Viewer):\S*|principal(Set)?://\S+/\S+)"
)
_ROLE = re.compile(r"(roles|projects/[^/]+/roles|organizations/[^/]+/roles)/[\w.]+")


def list_buckets(call: Call) -> Answer:
    project, prefix = call.query.get("project"), call.query.get("prefix", "")
    if not project:
        raise required("project")
    with call.store.lock:
        buckets = sorted(call.store.buckets.values(), key=lambda bucket: bucket.name)
    # A bucket made on the command line belongs to no project: everybody sees it.
    mine = [bucket for bucket in buckets if bucket.project in ("", project) and bucket.name.startswith(prefix)]
    page, token = page_of(mine, lambda bucket: bucket.name, call.query)
    listed: dict[str, Any] = {"kind": "storage#buckets"}
    if page:
        listed["items"] = [bucket_resource(bucket, call.base_url) for bucket in page]
    return Answer(200, listed | ({"nextPageToken": token} if token else {}))


def insert_bucket(call: Call) -> Answer:
    project, name = call.query.get("project"), call.body.get("name")
    if not project:
        raise required("project")
    if not name:
        raise required("name")
    bucket = call.store.create_bucket(name, project, bucket_fields(call.body))
    return Answer(200, bucket_resource(bucket, call.base_url))


def get_bucket(call: Call, name: str) -> Answer:
    with call.store.lock:
        bucket = call.store.bucket(name)
        call.preconditions.check(bucket, reading=True)
        return Answer(200, bucket_resource(bucket, call.base_url))


def change_bucket(call: Call, name: str) -> Answer:
    with call.store.lock:
        bucket = call.store.bucket(name)
        call.preconditions.check(bucket)
        fields = bucket_fields(merged(bucket.fields, call.body) if call.method == "PATCH" else call.body)
        for fixed in ("location", "hierarchicalNamespace"):
            if fixed in call.body and fields.get(fixed) != bucket.fields.get(fixed):
                raise invalid(f"The {fixed} of an existing bucket cannot be changed.")
        bucket.fields, bucket.metageneration, bucket.updated = fields, bucket.metageneration + 1, now()
        call.store.save_bucket(bucket)
        return Answer(200, bucket_resource(bucket, call.base_url))


def delete_bucket(call: Call, name: str) -> Answer:
    with call.store.lock:
        call.preconditions.check(call.store.bucket(name))
        call.store.delete_bucket(name)
    return Answer(204, None)


def storage_layout(call: Call, name: str) -> Answer:
    bucket = call.store.bucket(name)
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


def set_policy(call: Call, name: str) -> Answer:
    bindings = call.body.get("bindings", [])
    for binding in bindings:
        if not _ROLE.fullmatch(binding.get("role", "")):
            raise invalid(f"Role {binding.get('role', '')} is not supported for this resource.")
        for member in binding.get("members", []):
            if not _MEMBER.fullmatch(member):
                raise invalid(f"Invalid argument: member '{member}' has no valid type prefix.")
        if binding.get("condition") and call.body.get("version") != 3:
            raise invalid("Bindings with conditions need policy version 3.")
    with call.store.lock:
        bucket = call.store.bucket(name)
        if call.body.get("etag") and call.body["etag"] != policy_etag(bucket):
            raise precondition_failed()
        bucket.policy = {
            "version": call.body.get("version", 1),
            "bindings": [binding for binding in bindings if binding.get("members")],
            "revision": bucket.policy["revision"] + 1,
        }
        call.store.save_bucket(bucket)
        return Answer(200, policy_resource(bucket))


def test_permissions(call: Call, name: str) -> Answer:
    """The emulator forbids nothing, so whoever asks has every permission there is."""
    call.store.bucket(name)
    asked = parse_qs(call.raw_query).get("permissions", [])
    if not asked:
        raise required("permissions")
    for permission in asked:
        if not permission.startswith("storage."):
            raise invalid(f"Permission {permission} is not valid for this resource.")
    return Answer(200, {"kind": "storage#testIamPermissionsResponse", "permissions": asked})


def get_policy(call: Call, name: str) -> Answer:
    return Answer(200, policy_resource(call.store.bucket(name)))
