"""Every precondition of GCS on every operation that takes it. Runs against a real service, too: storage_service.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from google.api_core import exceptions

pytest_plugins = ["tests.contract.storage_service"]


class Operations:
    """What can be done with an object under preconditions, by name."""

    def __init__(self, gcs, name):
        self.gcs, self.name = gcs, name
        self.source = gcs.bucket.blob(name + "-source")
        self.source.upload_from_string(b"source")

    def upload(self, **conditions):
        self.gcs.bucket.blob(self.name).upload_from_string(b"new", **conditions)

    def upload_resumable(self, **conditions):
        uri = self.gcs.bucket.blob(self.name).create_resumable_upload_session(**conditions)
        self.gcs.session.put(uri, data=b"new").raise_for_status()

    def rewrite(self, **conditions):
        self.gcs.bucket.blob(self.name).rewrite(self.source, **conditions)

    def copy(self, **conditions):
        self.gcs.bucket.copy_blob(self.source, self.gcs.bucket, self.name, **conditions)

    def patch(self, **conditions):
        blob = self.gcs.bucket.blob(self.name)
        blob.metadata = {"patched": "yes"}
        blob.patch(**conditions)

    def delete(self, **conditions):
        self.gcs.bucket.blob(self.name).delete(**conditions)

    def reload(self, **conditions):
        self.gcs.bucket.blob(self.name).reload(**conditions)

    def download(self, **conditions):
        self.gcs.bucket.blob(self.name).download_as_bytes(**conditions)


WRITES = ["upload", "upload_resumable", "rewrite", "copy"]
CHANGES = ["patch", "delete"]
READS = ["reload", "download"]


def matrix(*conditions):
    """(operation, condition, value) of each operation and condition, but for the one that client 3.17.1 misspells
    (ifMetaGenerationNotMatch): test_a_condition_that_the_client_misspells."""
    every = [(operation, *condition) for operation in (*WRITES, *CHANGES, *READS) for condition in conditions]
    return [
        (operation, condition, value)
        for operation, condition, value in every
        if not (operation.startswith("upload") and condition == "if_metageneration_not_match")
    ]


@pytest.fixture
def operations(gcs, prefix):
    return Operations(gcs, prefix + "x")


@pytest.fixture
def there(gcs, operations):
    """The object, at metageneration 2."""
    blob = gcs.bucket.blob(operations.name)
    blob.upload_from_string(b"there")
    blob.metadata = {"a": "b"}
    blob.patch()
    return blob


@pytest.mark.parametrize(
    ("operation", "condition", "value"),
    matrix(
        ("if_generation_match", "current"),
        ("if_generation_not_match", "other"),
        ("if_generation_not_match", 0),
        ("if_metageneration_match", 2),
        ("if_metageneration_not_match", 1),
    ),
)
def test_what_holds_passes(operations, there, operation, condition, value):
    value = {"current": there.generation, "other": there.generation - 1}.get(value, value)
    getattr(operations, operation)(**{condition: value})


@pytest.mark.parametrize(
    ("operation", "condition", "value"),
    matrix(
        ("if_generation_match", "other"),
        ("if_generation_match", 0),
        ("if_generation_not_match", "current"),
        ("if_metageneration_match", 1),
        ("if_metageneration_not_match", 2),
    ),
)
def test_what_does_not_hold_is_refused(gcs, operations, there, operation, condition, value):
    value = {"current": there.generation, "other": there.generation - 1}.get(value, value)
    # A reader that has this version already is told so: 304.
    told = exceptions.NotModified if operation in READS and "not_match" in condition else exceptions.PreconditionFailed
    with pytest.raises(told):
        getattr(operations, operation)(**{condition: value})
    after = gcs.bucket.get_blob(operations.name)
    assert (after.generation, after.metageneration, after.metadata) == (there.generation, 2, {"a": "b"})


@pytest.mark.parametrize(("metageneration", "status"), [(1, 200), (2, 412)])
def test_a_condition_that_the_client_misspells(gcs, there, metageneration, status):
    query = f"uploadType=media&name={quote(there.name, safe='')}&ifMetagenerationNotMatch={metageneration}"
    path = f"/upload/storage/v1/b/{gcs.bucket.name}/o?{query}"
    assert gcs.session.post(gcs.url(path), data=b"new").status_code == status


@pytest.mark.parametrize("operation", WRITES)
def test_where_nothing_is(gcs, operations, operation):
    """Nothing has generation 0, and no metageneration."""
    for condition in ({"if_generation_match": 5}, {"if_generation_not_match": 0}, {"if_metageneration_match": 1}):
        with pytest.raises(exceptions.PreconditionFailed):
            getattr(operations, operation)(**condition)
        assert not gcs.bucket.blob(operations.name).exists()
    getattr(operations, operation)(if_generation_match=0)
    assert gcs.bucket.blob(operations.name).exists()


def test_a_session_finds_another_winner_at_its_end(gcs, prefix):
    """The precondition holds when the session is opened, and no more when it ends."""
    uri = gcs.open_session(prefix + "x", query="&ifGenerationMatch=0")
    gcs.bucket.blob(prefix + "x").upload_from_string(b"the winner")
    lost = gcs.session.put(uri, data=b"the loser")
    assert lost.status_code == 412
    assert gcs.bucket.blob(prefix + "x").download_as_bytes() == b"the winner"


def test_of_many_writers_one_wins(gcs, prefix):
    def write(number):
        try:
            gcs.bucket.blob(prefix + "x").upload_from_string(str(number), if_generation_match=0)
        except exceptions.PreconditionFailed:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(16)) if number is not None]
    assert len(winners) == 1
    assert gcs.bucket.blob(prefix + "x").download_as_text() == str(winners[0])


def test_etags(operations, there):
    operations.reload(if_etag_match=there.etag)
    operations.reload(if_etag_not_match="other")
    with pytest.raises(exceptions.PreconditionFailed):
        operations.reload(if_etag_match="other")
    with pytest.raises(exceptions.NotModified):
        operations.reload(if_etag_not_match=there.etag)


def test_a_precondition_that_is_no_number(gcs, operations, there):
    url = gcs.url(f"/storage/v1/b/{gcs.bucket.name}/o/{operations.name.replace('/', '%2F')}?ifGenerationMatch=abc")
    response = gcs.session.get(url)
    assert response.status_code == 400
    assert response.json()["error"]["errors"][0]["reason"] == "invalid"
