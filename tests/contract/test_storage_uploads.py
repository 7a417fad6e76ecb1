"""How bytes come into GCS: resumable sessions, multipart uploads, and what is refused.

Runs against a real service, too: see storage_service.py.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
import socket
import time
from urllib.parse import quote, urlsplit

import google_crc32c
import pytest
from google.api_core import exceptions
from google.cloud.storage import transfer_manager

pytest_plugins = ["tests.contract.storage_service"]

QUANTUM = 256 << 10


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def put(gcs, uri, data, content_range=None, **headers):
    if content_range:
        headers["Content-Range"] = content_range
    return gcs.session.put(uri, data=data, headers={key.replace("_", "-"): value for key, value in headers.items()})


def persisted(response) -> int:
    """How many bytes a 308 says are there."""
    assert response.status_code == 308
    found = response.headers.get("Range")
    return int(found.removeprefix("bytes=0-")) + 1 if found else 0


# -- the client's own ways ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, QUANTUM, 3 * QUANTUM, 3 * QUANTUM + 5])
@pytest.mark.parametrize("checksum", ["crc32c", "md5"])
def test_the_client_uploads_in_chunks(gcs, prefix, size, checksum):
    data = os.urandom(size)
    blob = gcs.bucket.blob(prefix + "x", chunk_size=QUANTUM)
    blob.upload_from_file(io.BytesIO(data), size=size, checksum=checksum)
    assert (blob.size, blob.crc32c) == (size, crc32c(data))
    assert gcs.bucket.blob(blob.name).download_as_bytes() == data


def test_the_client_writes_a_stream_of_unknown_length(gcs, prefix):
    data = os.urandom(2 * QUANTUM + 77)
    blob = gcs.bucket.blob(prefix + "x")
    with blob.open("wb", chunk_size=QUANTUM) as stream:
        stream.write(data)
    assert gcs.bucket.blob(blob.name).download_as_bytes() == data


def test_a_large_object_has_an_md5_when_its_writer_sent_one(gcs, prefix):
    data = os.urandom(9 << 20)
    blob = gcs.bucket.blob(prefix + "x", chunk_size=4 << 20)
    blob.upload_from_file(io.BytesIO(data), checksum="md5")
    assert blob.md5_hash == base64.b64encode(hashlib.md5(data).digest()).decode()


def test_chunks_concurrently(gcs, prefix, tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom((12 << 20) + 1))
    blob = gcs.bucket.blob(prefix + "x")
    transfer_manager.upload_chunks_concurrently(
        str(source), blob, chunk_size=5 << 20, max_workers=3, worker_type="thread"
    )
    blob.reload()
    assert (blob.size, blob.crc32c, blob.md5_hash) == ((12 << 20) + 1, crc32c(source.read_bytes()), None)
    transfer_manager.download_chunks_concurrently(
        blob, str(target), chunk_size=5 << 20, max_workers=3, worker_type="thread"
    )
    assert target.read_bytes() == source.read_bytes()


# -- resumable sessions -------------------------------------------------------------------------------------


def test_a_session_from_start_to_end(gcs, prefix):
    data = os.urandom(3 * QUANTUM + 100)
    uri = gcs.open_session(prefix + "x", contentType="text/x-test", metadata={"a": "b"})
    assert persisted(put(gcs, uri, b"", "bytes */*")) == 0
    assert persisted(put(gcs, uri, data[:QUANTUM], f"bytes 0-{QUANTUM - 1}/*")) == QUANTUM
    assert persisted(put(gcs, uri, b"", f"bytes */{len(data)}")) == QUANTUM
    assert not gcs.bucket.blob(prefix + "x").exists(), "an object shows only when it is whole"

    last = f"bytes {QUANTUM}-{len(data) - 1}/{len(data)}"
    done = put(gcs, uri, data[QUANTUM:], last, x_goog_hash=f"crc32c={crc32c(data)}")
    assert done.status_code == 200
    assert done.json()["crc32c"] == crc32c(data)
    blob = gcs.bucket.get_blob(prefix + "x")
    assert (blob.content_type, blob.metadata) == ("text/x-test", {"a": "b"})
    assert blob.download_as_bytes() == data

    # Whoever lost the answer asks again and gets it.
    for content_range in ("bytes */*", f"bytes */{len(data)}", "bytes */1"):
        again = put(gcs, uri, b"", content_range)
        assert again.status_code == 200
        assert again.json()["generation"] == str(blob.generation)
    assert put(gcs, uri, data[QUANTUM:], last).json()["generation"] == str(blob.generation)


def test_one_put_is_enough(gcs, prefix):
    data = os.urandom(QUANTUM + 1)
    uri = gcs.open_session(prefix + "x", size=len(data))
    assert put(gcs, uri, data).status_code == 200
    assert gcs.bucket.blob(prefix + "x").download_as_bytes() == data


def test_a_session_for_nothing(gcs, prefix):
    uri = gcs.open_session(prefix + "empty")
    assert put(gcs, uri, b"", "bytes */0").status_code == 200
    assert gcs.bucket.get_blob(prefix + "empty").size == 0


def test_what_is_there_already_may_be_sent_again(gcs, prefix):
    data = os.urandom(4 * QUANTUM)
    uri = gcs.open_session(prefix + "x")
    put(gcs, uri, data[: 2 * QUANTUM], f"bytes 0-{2 * QUANTUM - 1}/*")
    repeated = put(gcs, uri, data[QUANTUM : 3 * QUANTUM], f"bytes {QUANTUM}-{3 * QUANTUM - 1}/*")
    assert persisted(repeated) == 3 * QUANTUM
    put(gcs, uri, data[3 * QUANTUM :], f"bytes {3 * QUANTUM}-{4 * QUANTUM - 1}/{4 * QUANTUM}")
    assert gcs.bucket.blob(prefix + "x").download_as_bytes() == data


def test_a_gap_is_refused(gcs, prefix):
    uri = gcs.open_session(prefix + "x")
    put(gcs, uri, bytes(QUANTUM), f"bytes 0-{QUANTUM - 1}/*")
    gap = put(gcs, uri, bytes(QUANTUM), f"bytes {2 * QUANTUM}-{3 * QUANTUM - 1}/*")
    assert gap.status_code == 503
    assert re.sub(" +", " ", gap.text) == (
        "Invalid request. According to the Content-Range header, the upload offset is 524288 byte(s), which exceeds "
        "already uploaded size of 262144 byte(s)."
    )
    assert persisted(put(gcs, uri, b"", "bytes */*")) == QUANTUM


def test_only_multiples_of_256_kib_are_kept(gcs, prefix):
    uri = gcs.open_session(prefix + "x")
    assert persisted(put(gcs, uri, bytes(QUANTUM + 1000), f"bytes 0-{QUANTUM + 999}/*")) == QUANTUM
    small = put(gcs, uri, bytes(1000), f"bytes {QUANTUM}-{QUANTUM + 999}/*")
    assert small.status_code == 400
    assert "required to be equal or greater than 262144" in small.text
    assert persisted(put(gcs, uri, b"", "bytes */*")) == QUANTUM


@pytest.mark.parametrize("content_range", ["bytes 0-9/10", "bytes 0-99/50", "octets 0-99/100", "bytes 5-2/10"])
def test_a_content_range_that_does_not_fit(gcs, prefix, content_range):
    uri = gcs.open_session(prefix + "x")
    assert put(gcs, uri, bytes(100), content_range).status_code == 400
    assert not gcs.bucket.blob(prefix + "x").exists()


def test_a_cancelled_session_is_gone(gcs, prefix):
    uri = gcs.open_session(prefix + "x")
    put(gcs, uri, bytes(QUANTUM), f"bytes 0-{QUANTUM - 1}/*")
    assert gcs.session.delete(uri).status_code == 499
    for _ in range(2):
        assert 400 <= put(gcs, uri, b"", "bytes */*").status_code < 500
    unknown = re.sub("upload_id=[^&]*", "upload_id=AAAA", uri)
    assert put(gcs, unknown, b"", "bytes */*").status_code in (404, 410)


def test_a_client_for_which_308_is_a_redirect(gcs, prefix):
    uri = gcs.open_session(prefix + "x")
    response = put(gcs, uri, bytes(QUANTUM), f"bytes 0-{QUANTUM - 1}/*", X_GUploader_No_308="yes")
    assert response.status_code == 200
    assert response.headers["X-Http-Status-Code-Override"] == "308"
    assert response.headers["Range"] == f"bytes=0-{QUANTUM - 1}"


def test_a_session_of_a_killed_client_is_resumed(gcs, prefix):
    """The client goes away in the middle of a chunk; the next one asks how far it came, and goes on from there."""
    data = os.urandom(8 << 20)
    uri = gcs.open_session(prefix + "x", size=len(data))
    for cut in (2 * QUANTUM + 12_345, 11 * QUANTUM + 1):
        start = persisted(put(gcs, uri, b"", "bytes */*"))
        send_and_vanish(gcs, uri, data[start:cut], start, len(data))
        kept = settled(gcs, uri, cut - cut % QUANTUM)
        assert kept % QUANTUM == 0
        assert start < kept <= cut
    if gcs.emulated:
        assert kept == 11 * QUANTUM
    response = put(gcs, uri, data[kept:], f"bytes {kept}-{len(data) - 1}/{len(data)}")
    assert response.status_code == 200
    assert response.json()["crc32c"] == crc32c(data)
    assert gcs.bucket.blob(prefix + "x").download_as_bytes() == data


def settled(gcs, uri, expected):
    """How much is there when what the connection still held has arrived, or some seconds have passed."""
    deadline = time.monotonic() + (120 if gcs.emulated else 5)
    while (kept := persisted(put(gcs, uri, b"", "bytes */*"))) < expected and time.monotonic() < deadline:
        time.sleep(0.02)
    return kept


def send_and_vanish(gcs, uri, data, start, total):
    """The head of a PUT for everything, only `data` of its body, and then nothing any more."""
    parts = urlsplit(uri)
    if parts.scheme != "http":
        pytest.skip("cuts a plain connection")
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.sendall(
            f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {total - start}\r\n"
            f"Content-Range: bytes {start}-{total - 1}/{total}\r\n\r\n".encode()
        )
        connection.sendall(data)


def test_two_clients_at_one_session(gcs, prefix):
    """A new request takes over from one that is stuck; what the old one sends then is not taken."""
    if not gcs.emulated:
        pytest.skip("what the service does with two writers is not documented")
    data = os.urandom(4 * QUANTUM)
    uri = gcs.open_session(prefix + "x", size=len(data))
    parts = urlsplit(uri)
    with socket.create_connection((parts.hostname, parts.port), timeout=60) as stuck:
        stuck.sendall(
            f"PUT {parts.path}?{parts.query} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Length: {len(data)}\r\n"
            f"Content-Range: bytes 0-{len(data) - 1}/{len(data)}\r\n\r\n".encode()
            + data[:QUANTUM]
        )
        assert settled(gcs, uri, QUANTUM) == QUANTUM
        second = put(gcs, uri, data[QUANTUM : 2 * QUANTUM], f"bytes {QUANTUM}-{2 * QUANTUM - 1}/*")
        assert persisted(second) == 2 * QUANTUM
        stuck.sendall(bytes(1000))
        with contextlib.suppress(ConnectionResetError):
            assert stuck.recv(1) == b"", "the server has hung up"
    assert persisted(put(gcs, uri, b"", "bytes */*")) == 2 * QUANTUM
    rest = put(gcs, uri, data[2 * QUANTUM :], f"bytes {2 * QUANTUM}-{len(data) - 1}/{len(data)}")
    assert rest.status_code == 200
    assert gcs.bucket.blob(prefix + "x").download_as_bytes() == data


# -- hashes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "hashes", [{"crc32c": "AAAAAA=="}, {"md5Hash": base64.b64encode(bytes(16)).decode()}], ids=["crc32c", "md5"]
)
def test_bytes_that_do_not_have_the_hash(gcs, prefix, hashes):
    """Given when the session is opened, or with the last byte: the object does not come to be."""
    data = os.urandom(1000)
    (key, value), *_ = hashes.items()
    uri = gcs.open_session(prefix + "x", **hashes)
    refused = put(gcs, uri, data)
    assert refused.status_code == 400
    assert "doesn't match calculated" in refused.text

    uri = gcs.open_session(prefix + "x")
    header = f"{'crc32c' if key == 'crc32c' else 'md5'}={value}"
    assert put(gcs, uri, data, "bytes 0-999/1000", x_goog_hash=header).status_code == 400

    blob = gcs.bucket.blob(prefix + "x")
    if key == "crc32c":
        blob.crc32c = value
    else:
        blob.md5_hash = value
    with pytest.raises(exceptions.BadRequest, match="doesn't match calculated"):
        blob.upload_from_string(data, checksum=None)
    assert not blob.exists()


def test_the_right_hash_passes(gcs, prefix):
    data = os.urandom(1000)
    uri = gcs.open_session(prefix + "x", crc32c=crc32c(data))
    md5 = base64.b64encode(hashlib.md5(data).digest()).decode()
    assert put(gcs, uri, data, "bytes 0-999/1000", x_goog_hash=f"crc32c={crc32c(data)},md5={md5}").status_code == 200


# -- XML multipart uploads ----------------------------------------------------------------------------------


class Multipart:
    """An XML multipart upload, by hand."""

    def __init__(self, gcs, name):
        self.gcs = gcs
        self.url = gcs.url(f"/{gcs.bucket.name}/{quote(name)}")
        response = gcs.session.post(f"{self.url}?uploads", headers={"Content-Type": "text/x-mpu", "x-goog-meta-a": "b"})
        assert response.status_code == 200, response.text
        self.id = re.search("<UploadId>(.*)</UploadId>", response.text)[1]

    def put(self, number, data, **headers):
        url = f"{self.url}?partNumber={number}&uploadId={self.id}"
        return self.gcs.session.put(url, data=data, headers=headers)

    def complete(self, *parts):
        inner = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>{etag}</ETag></Part>" for n, etag in parts)
        body = f"<CompleteMultipartUpload>{inner}</CompleteMultipartUpload>"
        return self.gcs.session.post(f"{self.url}?uploadId={self.id}", data=body)

    def listed(self):
        response = self.gcs.session.get(f"{self.url}?uploadId={self.id}")
        return response.status_code, re.findall(r"<PartNumber>(\d+)</PartNumber>", response.text)

    def abort(self):
        return self.gcs.session.delete(f"{self.url}?uploadId={self.id}")


def test_a_multipart_upload(gcs, prefix):
    upload = Multipart(gcs, prefix + "x")
    first, last = os.urandom(5 << 20), os.urandom(10)
    upload.put(1, os.urandom(100))
    etag_2 = upload.put(2, last).headers["ETag"]
    again = upload.put(1, first)
    assert f"crc32c={crc32c(first)}" in again.headers["x-goog-hash"]
    assert upload.listed() == (200, ["1", "2"])
    uploads = gcs.session.get(gcs.url(f"/{gcs.bucket.name}?uploads")).text
    assert upload.id in uploads
    assert not gcs.bucket.blob(prefix + "x").exists()

    assert upload.complete((1, again.headers["ETag"]), (2, etag_2)).status_code == 200
    blob = gcs.bucket.get_blob(prefix + "x")
    assert blob.download_as_bytes() == first + last
    assert (blob.content_type, blob.metadata, blob.crc32c) == ("text/x-mpu", {"a": "b"}, crc32c(first + last))
    assert upload.listed()[0] == 404


def test_a_multipart_upload_that_does_not_fit(gcs, prefix):
    upload = Multipart(gcs, prefix + "x")
    etags = [upload.put(number, bytes(1000)).headers["ETag"] for number in (1, 2)]
    for parts, code in (
        ([(1, etags[0]), (2, etags[1])], "EntityTooSmall"),
        ([(2, etags[1]), (1, etags[0])], "InvalidPartOrder"),
        ([(1, '"0"')], "InvalidPart"),
        ([(3, etags[0])], "InvalidPart"),
    ):
        refused = upload.complete(*parts)
        assert refused.status_code == 400
        assert f"<Code>{code}</Code>" in refused.text
    bad = upload.put(1, b"x", **{"x-goog-hash": "crc32c=AAAAAA=="})
    assert (bad.status_code, "<Code>BadDigest</Code>" in bad.text) == (400, True)
    assert upload.put(0, b"x").status_code == 400
    assert upload.put(10_001, b"x").status_code == 400
    assert upload.abort().status_code == 204
    assert upload.abort().status_code == 404
    assert upload.put(1, b"x").status_code == 404
    assert not gcs.bucket.blob(prefix + "x").exists()
