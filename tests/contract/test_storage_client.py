"""serving/clients/storage.py and upload.py against a bucket."""

from __future__ import annotations

import json
import threading
import uuid
from typing import Any

import pytest
import requests

from serving.clients import patience, storage
from serving.clients.patience import Interrupted
from serving.clients.storage import PreconditionError
from serving.clients.upload import QUANTUM, SessionGone, Upload, WrongBytes
from serving.clients.wire import Wire
from serving.errors import AccessError, InconclusiveError, RequestError
from tests.contract.transfer_site import Site, _site, site

__all__ = ["_site", "site"]

ROLE, MEMBER = "roles/storage.objectViewer", "principal://iam.googleapis.com/projects/1/x"


@pytest.fixture
def uri(site: Site) -> str:
    return f"gs://demo-bucket/documents/{uuid.uuid4().hex}/한글 and space.json"


def test_a_document_comes_back_as_it_was_written(uri: str):
    generation = storage.write_json(uri, {"한": [1, 2.5, None]})
    assert storage.read_json_with_generation(uri) == ({"한": [1, 2.5, None]}, generation)
    assert storage.read_json(uri) == {"한": [1, 2.5, None]}
    stat = storage.stat(uri)
    assert stat
    assert (stat.uri, stat.generation) == (uri, generation)


def test_what_is_not_set_is_not_sent(uri: str, monkeypatch: pytest.MonkeyPatch):
    """A null is something else than nothing: Google's own storage-testbench answers 500 to `"metadata": null`."""
    bodies: list[bytes] = []
    send = requests.Session.send

    def note(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        bodies.append(request.body.encode() if isinstance(request.body, str) else request.body or b"")
        return send(session, request, **options)

    monkeypatch.setattr(requests.Session, "send", note)
    storage.write_json(uri, [1])
    storage.write_bytes(f"{uri}.2", b"bytes", content_type="a/b", metadata={"a": "b"})
    storage.open_upload(f"{uri}.3", 1, content_type="a/b", metadata={"a": "b"})
    for number, source in enumerate((uri, f"{uri}.2")):
        there = storage.stat(source)
        assert there
        assert storage.copy(there, f"{uri}.copy-{number}", content_type="a/b").metadata == there.metadata
    assert sum(b'"metadata": {"a": "b"}' in body for body in bodies) == 3
    assert not [body for body in bodies if b"null" in body or b'"metadata": {}' in body]


def test_a_name_that_is_no_unicode_is_kept_as_json_escapes_it(uri: str):
    storage.write_json(uri, {"name": "a\udcff"})
    assert storage.read_json(uri) == {"name": "a\udcff"}


def test_json_that_is_nested_too_deep_is_named(uri: str):
    storage.write_text(uri, "[" * 100_000 + "]" * 100_000, content_type="application/json")
    with pytest.raises(RequestError, match="is not JSON"):
        storage.read_json(uri)


def test_what_is_not_there_is_none(uri: str):
    assert storage.read_json(uri) is None
    assert storage.read_json_with_generation(uri) == (None, 0)
    assert storage.stat(uri) is None
    assert storage.delete(uri) is False


def test_a_precondition_keeps_what_somebody_else_wrote(uri: str):
    first = storage.write_json(uri, 1, if_generation_match=0)
    with pytest.raises(PreconditionError):
        storage.write_json(uri, 2, if_generation_match=0)
    second = storage.write_json(uri, 2, if_generation_match=first)
    with pytest.raises(PreconditionError):
        storage.write_json(uri, 3, if_generation_match=first)
    assert storage.delete(uri, first) is False
    assert storage.read_json(uri) == 2
    assert storage.delete(uri, second) is True
    assert storage.read_json(uri) is None


def test_a_document_is_written_only_when_it_changes(site: Site, uri: str):
    assert storage.write_json_if_changed(uri, [1]) is True
    before = len(site.requests("storage"))
    assert storage.write_json_if_changed(uri, [1]) is False
    assert {entry["method"] for entry in site.requests("storage")[before:]} == {"GET"}


def test_what_is_no_json_is_named(uri: str):
    storage.write_text(uri, "<html>", content_type="text/html")
    with pytest.raises(RequestError, match="is not JSON"):
        storage.read_json(uri)


def test_a_listing_has_everything_below_a_prefix(uri: str):
    prefix = uri.rpartition("/")[0]
    for number in range(3):
        storage.write_bytes(f"{prefix}/{number}", b"x" * number, content_type="a/b", metadata={"n": str(number)})
    found = storage.list_objects(f"{prefix}/")
    assert [(stored.uri, stored.size, stored.metadata) for stored in found] == [
        (f"{prefix}/{number}", number, {"n": str(number)}) for number in range(3)
    ]
    assert storage.list_uris(f"{prefix}/") == [f"{prefix}/{number}" for number in range(3)]


@pytest.mark.parametrize("address", ["http://x/y", "gs://", "demo-bucket/x", ""])
def test_an_address_that_is_none_is_refused(address: str):
    with pytest.raises(RequestError, match="not a gs://BUCKET/NAME"):
        storage.parse_uri(address)


def test_a_missing_bucket_is_named_with_the_command_that_makes_it(site: Site):
    words = r"gs://no-such-bucket does not exist.*gcloud storage buckets create gs://no-such-bucket"
    for ask in (
        lambda: storage.write_json("gs://no-such-bucket/x", 1),
        lambda: storage.read_json("gs://no-such-bucket/x"),
        lambda: storage.list_uris("gs://no-such-bucket/"),
        lambda: storage.stat("gs://no-such-bucket/x"),
        lambda: storage.delete("gs://no-such-bucket/x"),
        lambda: storage.ensure_bucket_binding("no-such-bucket", ROLE, MEMBER),
    ):
        with pytest.raises(RequestError, match=words):
            ask()


def test_a_refusal_names_the_role_and_the_command(site: Site, uri: str):
    status = 403
    body = json.dumps({"error": {"code": status, "message": "no way"}})
    site.script("storage", {"action": "status", "status": status, "body": body})
    with pytest.raises(AccessError, match=r"no way.*roles/storage.objectUser: `gcloud storage buckets add-iam-policy"):
        storage.write_json(uri, 1)
    assert site.consumed("storage") == [1]
    site.script("storage", {"action": "status", "status": status, "body": body, "path": "/iam"})
    with pytest.raises(AccessError, match=r"no way.*roles/storage.admin"):
        storage.has_bucket_binding("demo-bucket", ROLE, MEMBER)
    assert site.consumed("storage") == [1]


def test_a_bucket_that_is_not_there_to_answer_is_inconclusive(site: Site, uri: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    with patience.lasting(0), pytest.raises(InconclusiveError, match="GCS did not answer"):
        storage.read_json(uri)


def test_no_credentials_are_an_access_error(monkeypatch: pytest.MonkeyPatch, uri: str):
    import google.auth
    from google.auth.exceptions import DefaultCredentialsError

    def none(*args: object, **kwargs: object) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr(google.auth, "default", none)
    monkeypatch.delenv("STORAGE_EMULATOR_HOST")
    with pytest.raises(AccessError, match="gcloud auth application-default login"):
        storage.read_json(uri)


# -- the bucket's IAM policy --------------------------------------------------------------------------------


def test_a_binding_is_added_once_and_others_stay(site: Site):
    member = f"{MEMBER}/{uuid.uuid4().hex}"
    assert storage.has_bucket_binding("demo-bucket", ROLE, member) is False
    assert storage.ensure_bucket_binding("demo-bucket", ROLE, member) is True
    before = len(site.requests("storage"))
    assert storage.ensure_bucket_binding("demo-bucket", ROLE, member) is False
    assert {entry["method"] for entry in site.requests("storage")[before:]} == {"GET"}
    other = f"{MEMBER}/{uuid.uuid4().hex}"
    assert storage.ensure_bucket_binding("demo-bucket", ROLE, other) is True
    assert storage.has_bucket_binding("demo-bucket", ROLE, member) is True


def test_bindings_that_are_added_at_once_all_stay(site: Site):
    members = [f"{MEMBER}/{uuid.uuid4().hex}" for _ in range(6)]
    threads = [
        threading.Thread(target=storage.ensure_bucket_binding, args=("demo-bucket", ROLE, member)) for member in members
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(storage.has_bucket_binding("demo-bucket", ROLE, member) for member in members)


def test_a_conditional_binding_is_not_taken_for_one_without_and_stays(site: Site):
    member = f"{MEMBER}/{uuid.uuid4().hex}"
    bucket = storage.client().bucket("demo-bucket")
    policy = bucket.get_iam_policy(requested_policy_version=3)
    policy.version = 3
    condition = {"title": "soon over", "expression": 'request.time < timestamp("2027-01-01T00:00:00Z")'}
    policy.bindings.append({"role": ROLE, "members": {member}, "condition": condition})
    bucket.set_iam_policy(policy)
    assert storage.has_bucket_binding("demo-bucket", ROLE, member) is False
    assert storage.ensure_bucket_binding("demo-bucket", ROLE, member) is True
    found = bucket.get_iam_policy(requested_policy_version=3).bindings
    assert [b.get("condition") for b in found if member in b["members"]].count(condition) == 1


# -- resumable uploads --------------------------------------------------------------------------------------


@pytest.fixture
def wire():
    wire = Wire(5)
    yield wire
    wire.close()


def opened(wire: Wire, uri: str, size: int) -> Upload:
    return Upload(wire, uri, storage.open_upload(uri, size, content_type="a/b", metadata={"k": "v"}), size)


def crc(data: bytes) -> str:
    import base64

    import google_crc32c

    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


@pytest.mark.parametrize("size", [0, 1, QUANTUM - 1, QUANTUM, QUANTUM + 1, 3 * QUANTUM])
def test_an_upload_in_two_parts_makes_the_object_with_the_last_byte(uri: str, wire: Wire, size: int):
    data = bytes(range(256)) * (size // 256 + 1)
    data = data[:size]
    upload = opened(wire, uri, size)
    assert upload.last_part % QUANTUM == 0
    if upload.last_part:
        assert upload.send(0, upload.last_part, [data[: upload.last_part]]) == upload.last_part
        assert upload.persisted() == upload.last_part
    assert storage.stat(uri) is None
    stored = upload.finish(upload.last_part, data[upload.last_part :], crc(data))
    assert stored == storage.stat(uri)
    assert upload.persisted() == stored
    got: list[bytes] = []
    storage.read_through(uri, storage.stat(uri).generation, got.append)  # type: ignore[union-attr]
    assert b"".join(got) == data


def test_an_object_whose_bytes_have_another_digest_never_appears(uri: str, wire: Wire):
    upload = opened(wire, uri, 10)
    with pytest.raises(WrongBytes):
        upload.finish(0, b"x" * 10, crc(b"y" * 10))
    assert storage.stat(uri) is None
    with pytest.raises(SessionGone):
        upload.persisted()


def test_a_session_loses_to_whoever_made_the_object_first(uri: str, wire: Wire):
    upload = opened(wire, uri, 3)
    storage.write_bytes(uri, b"abc", content_type="a/b")
    with pytest.raises(PreconditionError):
        upload.finish(0, b"abc", None)
    with pytest.raises(PreconditionError):
        storage.open_upload(uri, 3, content_type="a/b", metadata={})


def test_a_cancelled_session_is_gone(uri: str, wire: Wire):
    upload = opened(wire, uri, 3)
    upload.cancel()
    with pytest.raises(SessionGone):
        upload.finish(0, b"abc", None)


def test_what_a_busy_bucket_asks_for_is_passed_on(site: Site, uri: str, wire: Wire):
    upload = opened(wire, uri, 3)
    site.script("storage", {"action": "status", "status": 429, "headers": {"Retry-After": "7"}, "method": "PUT"})
    with pytest.raises(Interrupted) as error:
        upload.finish(0, b"abc", None)
    assert error.value.after == 7
    assert site.consumed("storage") == [1]
    assert upload.finish(0, b"abc", None) == storage.stat(uri)


def test_a_refused_session_names_the_role(site: Site, uri: str, wire: Wire):
    upload = opened(wire, uri, 3)
    site.script("storage", {"action": "status", "status": 403, "method": "PUT"})
    with pytest.raises(AccessError, match="GCS refused the upload"):
        upload.finish(0, b"abc", None)
    assert site.consumed("storage") == [1]


def test_reading_an_object_that_changed_is_noticed(uri: str):
    generation = storage.write_bytes(uri, b"abc", content_type="a/b").generation
    storage.write_bytes(uri, b"abd", content_type="a/b")
    with pytest.raises(PreconditionError):
        storage.read_through(uri, generation, lambda piece: None)
    storage.delete(uri)
    with pytest.raises(PreconditionError):
        storage.read_through(uri, generation, lambda piece: None)
