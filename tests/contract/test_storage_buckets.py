"""Buckets of GCS and their IAM policies, with the real client. Runs against a real service, too: storage_service.py."""

from __future__ import annotations

import uuid

import pytest
from google.api_core import exceptions

pytest_plugins = ["tests.contract.storage_service"]

MEMBER = (
    "principal://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/p.svc.id.goog/subject/"
    "ns/serving/sa/vllm"
)
ROLE = "roles/storage.objectViewer"


@pytest.fixture
def new_bucket(gcs):
    """Makes buckets that go with the test."""
    if not gcs.project:
        pytest.skip("GCS_CONTRACT_PROJECT names no project in which buckets may be made")
    made = []

    def make(location="US", **properties):
        bucket = gcs.client.bucket(f"contract-{uuid.uuid4().hex}")
        for name, value in properties.items():
            bucket._patch_property(name, value)
        made.append(bucket.name)
        return gcs.client.create_bucket(bucket, location=location)

    yield make
    for name in made:
        if bucket := gcs.client.lookup_bucket(name):
            bucket.delete(force=True)


def test_a_bucket_is_what_was_asked_for(gcs, new_bucket):
    made = new_bucket(
        "us-central1",
        labels={"team": "serving"},
        iamConfiguration={"uniformBucketLevelAccess": {"enabled": True}},
        hierarchicalNamespace={"enabled": True},
        lifecycle={"rule": [{"action": {"type": "Delete"}, "condition": {"age": 30}}]},
    )
    found = gcs.client.get_bucket(made.name)
    assert (found.location, found.location_type, found.storage_class) == ("US-CENTRAL1", "region", "STANDARD")
    assert found.labels == {"team": "serving"}
    assert found.iam_configuration.uniform_bucket_level_access_enabled
    assert found.iam_configuration.uniform_bucket_level_access_locked_time is not None
    assert found.hierarchical_namespace_enabled
    assert list(found.lifecycle_rules) == [{"action": {"type": "Delete"}, "condition": {"age": 30}}]
    assert made.name in [bucket.name for bucket in gcs.client.list_buckets(prefix=made.name)]


def test_a_bucket_is_patched(gcs, new_bucket):
    bucket = new_bucket(labels={"keep": "1", "drop": "2"})
    metageneration = bucket.metageneration
    labels = bucket.labels
    del labels["drop"]
    bucket.labels = labels | {"new": "3"}
    bucket.patch(if_metageneration_match=metageneration)
    found = gcs.client.get_bucket(bucket.name)
    assert found.labels == {"keep": "1", "new": "3"}
    assert found.metageneration > metageneration
    with pytest.raises(exceptions.PreconditionFailed):
        bucket.patch(if_metageneration_match=metageneration)
    with pytest.raises(exceptions.NotModified):
        gcs.client.get_bucket(bucket.name, if_metageneration_not_match=found.metageneration)


def test_a_bucket_that_cannot_be(gcs, new_bucket):
    bucket = new_bucket()
    with pytest.raises(exceptions.Conflict):
        gcs.client.create_bucket(bucket.name)
    for name in ("UPPER-case", "goog-mine", "-dash", "a..b", "x" * 64):
        url = gcs.url(f"/storage/v1/b?project={gcs.project}")
        assert gcs.session.post(url, json={"name": name}).status_code == 400
    with pytest.raises(exceptions.BadRequest):
        new_bucket(hierarchicalNamespace={"enabled": True})


def test_a_bucket_that_is_not_empty_stays(gcs, new_bucket):
    bucket = new_bucket()
    bucket.blob("x").upload_from_string(b"x")
    with pytest.raises(exceptions.Conflict, match="not empty"):
        bucket.delete()
    bucket.blob("x").delete()
    bucket.delete()
    with pytest.raises(exceptions.NotFound, match="The specified bucket does not exist"):
        gcs.client.get_bucket(bucket.name)
    with pytest.raises(exceptions.NotFound):
        bucket.delete()


def test_a_bucket_that_is_not_there(gcs):
    bucket = gcs.client.bucket(f"no-such-{uuid.uuid4().hex}")
    for attempt in (
        bucket.reload,
        bucket.get_iam_policy,
        lambda: bucket.test_iam_permissions(["storage.objects.get"]),
        lambda: bucket.blob("x").upload_from_string(b"x"),
        lambda: bucket.blob("x").create_resumable_upload_session(),
        lambda: list(bucket.list_blobs()),
    ):
        with pytest.raises(exceptions.NotFound, match="The specified bucket does not exist"):
            attempt()


def test_a_binding_is_added(gcs, new_bucket):
    bucket = new_bucket(iamConfiguration={"uniformBucketLevelAccess": {"enabled": True}})
    policy = bucket.get_iam_policy(requested_policy_version=3)
    before = len(policy.bindings)
    policy.version = 3
    policy.bindings.append({"role": ROLE, "members": {"domain:example.com" if not gcs.emulated else MEMBER}})
    bucket.set_iam_policy(policy)
    found = bucket.get_iam_policy(requested_policy_version=3)
    assert len(found.bindings) == before + 1
    assert ROLE in [binding["role"] for binding in found.bindings]


def test_of_two_changes_of_a_policy_one_is_lost_loudly(new_bucket):
    bucket = new_bucket()
    first, second = (bucket.get_iam_policy(requested_policy_version=3) for _ in range(2))
    assert first.etag == second.etag
    first[ROLE] = {"allAuthenticatedUsers"}
    bucket.set_iam_policy(first)
    second["roles/storage.objectCreator"] = {"allAuthenticatedUsers"}
    with pytest.raises((exceptions.PreconditionFailed, exceptions.Conflict)):
        bucket.set_iam_policy(second)
    assert "roles/storage.objectCreator" not in [
        binding["role"] for binding in bucket.get_iam_policy(requested_policy_version=3).bindings
    ]


@pytest.mark.parametrize(
    "binding",
    [
        {"role": ROLE, "members": ["serviceaccount-without-prefix@p.iam.gserviceaccount.com"]},
        {"role": "objectViewer", "members": ["allUsers"]},
        {"role": ROLE, "members": ["allUsers"], "condition": {"title": "t", "expression": "true"}},
    ],
    ids=["member", "role", "condition without version 3"],
)
def test_a_binding_that_cannot_be(gcs, new_bucket, binding):
    bucket = new_bucket()
    response = gcs.session.put(gcs.url(f"/storage/v1/b/{bucket.name}/iam"), json={"bindings": [binding]})
    assert response.status_code == 400


def test_permissions(gcs):
    asked = ["storage.objects.get", "storage.objects.create"]
    assert gcs.bucket.test_iam_permissions(asked) == asked
    with pytest.raises(exceptions.BadRequest):
        gcs.bucket.test_iam_permissions(["container.clusters.get"])
