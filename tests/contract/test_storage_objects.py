"""Objects of GCS, with the real client. Runs against a real service, too: see storage_service.py."""

from __future__ import annotations

import base64
import hashlib
import os
from urllib.parse import quote

import google_crc32c
import pytest
from google.api_core import exceptions
from google.cloud.storage import transfer_manager

pytest_plugins = ["tests.contract.storage_service"]


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def test_an_object_says_what_it_holds(gcs, prefix):
    data = os.urandom(1000)
    blob = gcs.bucket.blob(prefix + "한글 이름 #1?&%2F+.bin")
    blob.metadata = {"hf-sha256": "abc"}
    blob.upload_from_string(data, content_type="application/x-test")

    found = gcs.bucket.get_blob(blob.name)
    assert found.size == 1000
    assert found.crc32c == crc32c(data)
    assert found.md5_hash == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert found.content_type == "application/x-test"
    assert found.metadata == {"hf-sha256": "abc"}
    assert found.metageneration == 1
    assert found.time_created == found.updated
    assert found.etag == blob.etag
    assert found.download_as_bytes() == data
    assert f"/o/{quote(blob.name, safe='')}?generation={found.generation}" in found.media_link
    assert gcs.session.get(found.media_link).content == data


@pytest.mark.parametrize("name", ["a//b", "trailing/", "/leading", "dots/../x", "./y", "x" * 300])
def test_names_that_no_file_can_have(gcs, prefix, name):
    blob = gcs.bucket.blob(prefix + name)
    blob.upload_from_string(b"content of " + name.encode())
    assert [found.name for found in gcs.bucket.list_blobs(prefix=prefix)] == [blob.name]
    assert blob.download_as_bytes() == b"content of " + name.encode()


def test_an_object_and_others_below_its_name(gcs, prefix):
    for name in ("a", "a/b", "a/b/c"):
        gcs.bucket.blob(prefix + name).upload_from_string(name.encode())
    for name in ("a/b", "a/b/c", "a"):
        assert gcs.bucket.blob(prefix + name).download_as_bytes() == name.encode()
        gcs.bucket.blob(prefix + name).delete()
    assert not list(gcs.bucket.list_blobs(prefix=prefix))


@pytest.mark.parametrize("name", ["", "line\nend", "x" * 1025])
def test_a_name_that_no_object_can_have(gcs, name):
    path = f"/upload/storage/v1/b/{gcs.bucket.name}/o?uploadType=media&name={quote(name)}"
    assert gcs.session.post(gcs.url(path), data=b"x").status_code == 400


def test_overwriting_makes_a_new_generation(gcs, prefix):
    blob = gcs.bucket.blob(prefix + "x")
    generations = []
    for content in (b"one", b"two", b"three"):
        blob.upload_from_string(content)
        generations.append(blob.generation)
    assert generations == sorted(set(generations))
    assert blob.download_as_bytes() == b"three"
    with pytest.raises(exceptions.NotFound):
        gcs.bucket.blob(blob.name, generation=generations[0] - 1).reload()


def test_what_is_not_there(gcs, prefix):
    blob = gcs.bucket.blob(prefix + "absent")
    for attempt in (blob.reload, blob.delete, blob.patch):
        with pytest.raises(exceptions.NotFound, match="No such object"):
            attempt()
    with pytest.raises(exceptions.NotFound, match="No such object"):
        blob.download_as_bytes()
    with pytest.raises(exceptions.NotFound, match="The specified bucket does not exist"):
        list(gcs.client.list_blobs(f"no-such-bucket-{prefix[5:-1]}"))
    assert not blob.exists()


@pytest.mark.parametrize(
    ("asked", "status", "expected"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=990-", 206, slice(990, 1000)),
        ("bytes=-5", 206, slice(995, 1000)),
        ("bytes=-5000", 206, slice(0, 1000)),
        ("bytes=900-5000", 206, slice(900, 1000)),
        ("bytes=1000-", 416, None),
        ("bytes=9-3", 200, slice(0, 1000)),
        ("lines=1-2", 200, slice(0, 1000)),
    ],
)
def test_ranges(gcs, prefix, asked, status, expected):
    data = os.urandom(1000)
    blob = gcs.bucket.blob(prefix + "x")
    blob.upload_from_string(data)
    response = gcs.session.get(blob.media_link, headers={"Range": asked})
    assert response.status_code == status
    if status == 416:
        assert response.headers["Content-Range"] == "bytes */1000"
        return
    assert response.content == data[expected]
    assert f"crc32c={crc32c(data)}" in response.headers["X-Goog-Hash"]
    assert response.headers["X-Goog-Generation"] == str(blob.generation)
    assert response.headers["X-Goog-Stored-Content-Length"] == "1000"
    if status == 206:
        assert response.headers["Content-Range"] == f"bytes {expected.start}-{expected.stop - 1}/1000"


def test_an_empty_object(gcs, prefix):
    blob = gcs.bucket.blob(prefix + "empty")
    blob.upload_from_string(b"")
    assert (blob.size, blob.crc32c) == (0, "AAAAAA==")
    assert blob.download_as_bytes() == b""
    assert gcs.session.get(blob.media_link, headers={"Range": "bytes=0-"}).status_code == 416


def test_patch_merges_and_update_replaces(gcs, prefix):
    blob = gcs.bucket.blob(prefix + "x")
    blob.metadata = {"keep": "1", "drop": "2"}
    blob.upload_from_string(b"x", content_type="text/plain")
    generation = blob.generation

    blob.metadata = {"drop": None, "new": "3"}
    blob.cache_control = "no-cache"
    blob.patch()
    blob.reload()
    assert blob.metadata == {"keep": "1", "new": "3"}
    assert (blob.content_type, blob.cache_control) == ("text/plain", "no-cache")
    assert (blob.generation, blob.metageneration) == (generation, 2)

    url = gcs.url(f"/storage/v1/b/{gcs.bucket.name}/o/{quote(blob.name, safe='')}")
    assert gcs.session.put(url, json={"contentType": "text/html"}).status_code == 200
    blob.reload()
    assert (blob.content_type, blob.cache_control, blob.metadata) == ("text/html", None, None)
    assert blob.metageneration == 3


def test_listing(gcs, prefix):
    names = [prefix + name for name in ("a", "b/1", "b/2", "b/", "c/d/e", "f.json", "g.txt")]
    for name in names:
        gcs.bucket.blob(name).upload_from_string(b"x")

    def listed(**options):
        page = gcs.bucket.list_blobs(prefix=prefix, **options)
        return [blob.name.removeprefix(prefix) for blob in page], sorted(p.removeprefix(prefix) for p in page.prefixes)

    assert listed() == (["a", "b/", "b/1", "b/2", "c/d/e", "f.json", "g.txt"], [])
    assert listed(delimiter="/") == (["a", "f.json", "g.txt"], ["b/", "c/"])
    assert listed(delimiter="/", include_trailing_delimiter=True) == (["a", "b/", "f.json", "g.txt"], ["b/", "c/"])
    assert listed(start_offset=prefix + "b/2", end_offset=prefix + "g") == (["b/2", "c/d/e", "f.json"], [])
    assert listed(match_glob="**.json") == (["f.json"], [])
    assert listed(match_glob=prefix + "{b,c}/**") == (["b/", "b/1", "b/2", "c/d/e"], [])
    assert listed(match_glob=prefix + "?.[jt]*") == (["f.json", "g.txt"], [])
    assert listed(max_results=2) == (["a", "b/"], [])
    assert listed(page_size=2) == listed()
    assert listed(page_size=1, delimiter="/") == listed(delimiter="/")


def test_compose(gcs, prefix):
    parts = [os.urandom(1000 + number) for number in range(3)]
    blobs = [gcs.bucket.blob(f"{prefix}part-{number}") for number in range(3)]
    for blob, part in zip(blobs, parts, strict=True):
        blob.upload_from_string(part)
    whole = gcs.bucket.blob(prefix + "whole")
    whole.content_type = "application/x-whole"
    whole.compose(blobs, if_source_generation_match=[blob.generation for blob in blobs], if_generation_match=0)
    assert whole.download_as_bytes() == b"".join(parts)
    whole.reload()
    assert whole.crc32c == crc32c(b"".join(parts))
    assert (whole.md5_hash, whole.component_count, whole.content_type) == (None, 3, "application/x-whole")

    with pytest.raises(exceptions.PreconditionFailed):
        whole.compose(blobs, if_source_generation_match=[1, 1, 1])
    with pytest.raises(exceptions.NotFound):
        whole.compose([gcs.bucket.blob(prefix + "absent")])
    with pytest.raises(exceptions.BadRequest):
        whole.compose([blobs[0]] * 33)


def test_rewrite_and_copy(gcs, prefix):
    source = gcs.bucket.blob(prefix + "source")
    source.metadata = {"a": "b"}
    source.upload_from_string(b"content", content_type="text/x-source")

    target = gcs.bucket.blob(prefix + "rewritten")
    token, done, size = target.rewrite(source, if_generation_match=0, if_source_generation_match=source.generation)
    assert (token, done, size) == (None, 7, 7)
    assert (target.metadata, target.content_type) == ({"a": "b"}, "text/x-source")
    assert target.download_as_bytes() == b"content"

    copied = gcs.bucket.copy_blob(source, gcs.bucket, prefix + "copied")
    assert copied.crc32c == source.crc32c
    with pytest.raises(exceptions.PreconditionFailed):
        gcs.bucket.copy_blob(source, gcs.bucket, copied.name, if_generation_match=0)
    with pytest.raises(exceptions.PreconditionFailed):
        target.rewrite(source, if_source_generation_match=1)


def test_a_batch_deletes_and_patches(gcs, prefix):
    for name in ("a", "b", "c"):
        gcs.bucket.blob(prefix + name).upload_from_string(b"x")
    with gcs.client.batch():
        gcs.bucket.blob(prefix + "a").delete()
        gcs.bucket.blob(prefix + "b").delete()
        patched = gcs.bucket.blob(prefix + "c")
        patched.metadata = {"x": "y"}
        patched.patch()
    assert [blob.name for blob in gcs.bucket.list_blobs(prefix=prefix)] == [prefix + "c"]
    assert gcs.bucket.get_blob(prefix + "c").metadata == {"x": "y"}

    with gcs.client.batch(raise_exception=False) as batch:
        gcs.bucket.blob(prefix + "absent").delete()
        gcs.bucket.blob(prefix + "c").delete()
    assert [response.status_code for response in batch._responses] == [404, 204]
    assert not list(gcs.bucket.list_blobs(prefix=prefix)), "a batch goes on behind a request that fails"


def test_transfer_manager(gcs, prefix, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    names = ["a.bin", "dir/b.bin", "dir/c.bin"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(os.urandom(300_000))
    uploaded = transfer_manager.upload_many_from_filenames(
        gcs.bucket, names, source_directory=str(source), blob_name_prefix=prefix, worker_type="thread"
    )
    assert uploaded == [None] * 3
    pairs = []
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        pairs.append((gcs.bucket.blob(prefix + name), str(target / name)))
    assert transfer_manager.download_many(pairs, worker_type="thread") == [None] * 3
    assert all((source / name).read_bytes() == (target / name).read_bytes() for name in names)


def test_plain_xml(gcs, prefix):
    url = gcs.url(f"/{gcs.bucket.name}/{quote(prefix)}xml%20object")
    data = os.urandom(1000)
    put = gcs.session.put(url, data=data, headers={"x-goog-meta-a": "b", "Content-Type": "text/x-xml"})
    assert put.status_code == 200
    blob = gcs.bucket.get_blob(prefix + "xml object")
    assert (blob.metadata, blob.content_type, blob.crc32c) == ({"a": "b"}, "text/x-xml", crc32c(data))
    assert gcs.session.get(url).content == data
    head = gcs.session.head(url)
    assert (head.headers["Content-Length"], head.headers["x-goog-meta-a"]) == ("1000", "b")
    assert gcs.session.put(url, data=b"", headers={"x-goog-if-generation-match": "0"}).status_code == 412
    bad = gcs.session.put(url, data=b"x", headers={"x-goog-hash": "crc32c=AAAAAA=="})
    assert bad.status_code == 400
    assert "<Code>BadDigest</Code>" in bad.text
    assert gcs.session.delete(url).status_code == 204
    absent = gcs.session.get(url)
    assert absent.status_code == 404
    assert "<Code>NoSuchKey</Code>" in absent.text
