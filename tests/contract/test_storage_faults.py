"""What the storage emulator does when it is told to go wrong, and what the real client makes of it.

These tests are the emulator's alone. Each shows that its fault has happened.
"""

from __future__ import annotations

import base64
import io
import json
import os
import time

import google_crc32c
import pytest
import requests
from google.api_core import exceptions
from google.cloud.storage.retry import DEFAULT_RETRY

pytest_plugins = ["tests.contract.storage_service"]

QUANTUM = 256 << 10
FAST = DEFAULT_RETRY.with_delay(initial=0.01, maximum=0.05).with_timeout(20)
DATA = os.urandom(6 * QUANTUM + 99)


def crc32c(data: bytes) -> str:
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def persisted(gcs, uri) -> int:
    response = gcs.session.put(uri, headers={"Content-Range": "bytes */*"})
    assert response.status_code == 308
    found = response.headers.get("Range")
    return int(found.removeprefix("bytes=0-")) + 1 if found else 0


def put_rest(gcs, uri, start, **options):
    headers = {"Content-Range": f"bytes {start}-{len(DATA) - 1}/{len(DATA)}"}
    return gcs.session.put(uri, data=DATA[start:], headers=headers, **options)


@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_that_passes(emulator, prefix, status):
    emulator.script({"action": "status", "method": "POST", "path": "^/upload/", "status": status, "times": 2})
    blob = emulator.bucket.blob(prefix + "x")
    blob.upload_from_string(b"x", retry=FAST, if_generation_match=0)
    assert emulator.consumed() == [2]
    assert blob.download_as_bytes() == b"x"


def test_a_refusal_that_stays(emulator, prefix):
    body = {
        "error": {
            "code": 403,
            "message": "no",
            "errors": [{"message": "no", "domain": "global", "reason": "forbidden"}],
        }
    }
    emulator.script(
        {
            "action": "status",
            "path": "/o/",
            "status": 403,
            "body": json.dumps(body),
            "headers": {"Content-Type": "application/json"},
        }
    )
    with pytest.raises(exceptions.Forbidden, match="no"):
        emulator.bucket.blob(prefix + "x").reload()
    assert emulator.consumed() == [1]


@pytest.mark.parametrize("action", ["reset", "truncate"])
@pytest.mark.parametrize("after", [0, 1000, QUANTUM, 3 * QUANTUM + 1])
def test_a_chunk_that_breaks_off_is_resumed(emulator, prefix, action, after):
    uri = emulator.open_session(prefix + "x")
    emulator.script({"action": action, "method": "PUT", "path": "upload_id=", "after_bytes": after})
    with pytest.raises(requests.ConnectionError):
        put_rest(emulator, uri, 0)
    assert emulator.consumed() == [1]
    start = persisted(emulator, uri)
    assert start == after - after % QUANTUM
    response = put_rest(emulator, uri, start)
    assert response.status_code == 200
    assert response.json()["crc32c"] == crc32c(DATA)


def test_the_client_recovers_by_itself(emulator, prefix):
    emulator.script(
        {"action": "reset", "method": "PUT", "path": "upload_id=", "after_bytes": 1000},
        {"action": "status", "method": "PUT", "path": "upload_id=", "status": 503},
    )
    blob = emulator.bucket.blob(prefix + "x", chunk_size=2 * QUANTUM)
    blob.upload_from_file(io.BytesIO(DATA), retry=FAST)
    assert emulator.consumed() == [1, 1]
    assert emulator.bucket.blob(prefix + "x").download_as_bytes() == DATA


def test_a_connection_that_goes_silent(emulator, prefix):
    uri = emulator.open_session(prefix + "x")
    emulator.script({"action": "stall", "method": "PUT", "after_bytes": 2 * QUANTUM + 1, "seconds": 30})
    with pytest.raises(requests.exceptions.RequestException):
        put_rest(emulator, uri, 0, timeout=3)
    assert emulator.consumed() == [1]
    assert persisted(emulator, uri) == 2 * QUANTUM
    assert put_rest(emulator, uri, 2 * QUANTUM).status_code == 200, "the silent connection holds nobody up"
    assert emulator.bucket.blob(prefix + "x").download_as_bytes() == DATA


def test_a_last_answer_that_is_lost(emulator, prefix):
    """The object is there; who asks for the session's state gets the answer that was lost."""
    uri = emulator.open_session(prefix + "x", query="&ifGenerationMatch=0")
    emulator.script({"action": "unanswered", "method": "PUT", "path": "upload_id="})
    with pytest.raises(requests.ConnectionError):
        put_rest(emulator, uri, 0)
    assert emulator.consumed() == [1]
    blob = emulator.bucket.get_blob(prefix + "x")
    assert blob.crc32c == crc32c(DATA)
    again = emulator.session.put(uri, headers={"Content-Range": f"bytes */{len(DATA)}"})
    assert again.status_code == 200
    assert again.json()["generation"] == str(blob.generation)


def test_a_session_that_ran_out(emulator, prefix):
    uri = emulator.open_session(prefix + "x")
    emulator.script({"action": "status", "method": "PUT", "path": "upload_id=", "status": 410})
    assert put_rest(emulator, uri, 0).status_code == 410
    assert emulator.consumed() == [1]


def test_a_byte_that_flips_on_the_way_in(emulator, prefix):
    uri = emulator.open_session(prefix + "x", crc32c=crc32c(DATA))
    emulator.script({"action": "corrupt", "method": "PUT", "path": "upload_id=", "after_bytes": 5000})
    refused = put_rest(emulator, uri, 0)
    assert emulator.consumed() == [1]
    assert refused.status_code == 400
    message = refused.json()["error"]["message"]
    assert message.startswith(f'Provided CRC32C "{crc32c(DATA)}" doesn\'t match calculated CRC32C "')
    assert not emulator.bucket.blob(prefix + "x").exists()


@pytest.mark.parametrize("action", ["reset", "truncate"])
def test_a_download_that_breaks_off(emulator, prefix, action):
    blob = emulator.bucket.blob(prefix + "x")
    blob.upload_from_string(DATA)
    emulator.script({"action": action, "method": "GET", "path": "alt=media", "after_bytes": QUANTUM + 1})
    stream = io.BytesIO()
    blob.download_to_file(stream, retry=FAST)
    assert emulator.consumed() == [1]
    assert stream.getvalue() == DATA


def test_a_byte_that_flips_on_the_way_out(emulator, prefix):
    from google.cloud.storage.exceptions import DataCorruption

    blob = emulator.bucket.blob(prefix + "x")
    blob.upload_from_string(DATA)
    emulator.script({"action": "corrupt", "method": "GET", "path": "alt=media", "after_bytes": 1000})
    with pytest.raises(DataCorruption):
        blob.download_as_bytes(retry=None)
    assert emulator.consumed() == [1]


def test_the_request_log_tells_who_and_no_secret(emulator, prefix):
    uri = emulator.open_session(prefix + "logged")
    secret = uri.split("upload_id=")[1]
    headers = {"Authorization": "Bearer opaque-token", "Content-Range": "bytes */0"}
    requests.put(uri, headers=headers, timeout=60).raise_for_status()
    entries = [entry for entry in emulator.requests() if f"{prefix[:-1]}%2Flogged" in entry["path"]]
    assert entries[-1]["path"].endswith("upload_id=REDACTED")
    assert entries[-1]["status"] == 200
    assert entries[-1]["user"] == "anonymous"
    assert not [entry for entry in entries if secret in str(entry) or "opaque-token" in str(entry)]


def test_a_network_that_is_slow(emulator, prefix):
    """Each answer begins later, and bytes come at a rate: nothing breaks."""
    emulator.bucket.blob(prefix + "x").upload_from_string(DATA)
    emulator.script(
        {"action": "slow", "method": "GET", "path": "alt=media", "seconds": 0.2, "bytes_per_second": 4 * len(DATA)}
    )
    started = time.monotonic()
    assert emulator.bucket.blob(prefix + "x").download_as_bytes() == DATA
    assert time.monotonic() - started >= 0.45
    assert emulator.consumed() == [1]
