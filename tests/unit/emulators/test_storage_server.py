"""What the storage emulator's server is told apart from GCS's protocol: who is who, and what goes wrong on the wire.

The faults are those of emulators/emulated_cloud/http.py, which every threaded emulator shares.
"""

from __future__ import annotations

import http.client
import json
import threading
from contextlib import contextmanager

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.storage.server import StorageServer
from emulated_cloud.storage.store import Store

BODY = bytes(range(256)) * 400  # 102,400 bytes
UPLOAD = "/upload/storage/v1/b/bkt/o?uploadType=media&name=x"
MEDIA = "/storage/v1/b/bkt/o/x?alt=media"


@pytest.fixture
def server(tmp_path):
    store = Store(tmp_path / "root")
    store.ensure_bucket("bkt")
    log = tmp_path / "requests"
    server = StorageServer(("127.0.0.1", 0), store, {"secret-token": "ada@example.com"}, log)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.log = log
    yield server
    server.shutdown()
    thread.join()
    server.server_close()
    store.close()


@contextmanager
def connected(server):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=60)
    try:
        yield connection
    finally:
        connection.close()


def ask(server, method, path, body=None, **options):
    with connected(server) as connection:
        connection.request(method, path, body, **options)
        response = connection.getresponse()
        return response.status, response.read()


def consumed(server):
    return [fault["consumed"] for fault in server.faults.as_list()]


def test_the_log_tells_who_asked(server):
    for headers in ({"Authorization": "Bearer secret-token"}, {"Authorization": "Bearer other"}, {}):
        ask(server, "POST", UPLOAD, BODY, headers=headers)
    ask(server, "GET", "/storage/v1/b/bkt/o/x?upload_id=capability&alt=media")
    seen = json.loads(ask(server, "GET", "/_emulator/requests")[1])
    assert [entry["user"] for entry in seen] == ["ada@example.com", "anonymous", "anonymous", "anonymous"]
    assert [entry["status"] for entry in seen] == [200] * 4
    assert [entry["bytes_in"] for entry in seen] == [len(BODY)] * 3 + [0]
    assert seen[3]["path"] == "/storage/v1/b/bkt/o/x?upload_id=REDACTED&alt=media"
    assert "token" not in json.dumps(seen)


def test_the_log_is_a_file_with_a_line_for_each_request(server):
    # A line is written when its answer has gone, by the thread that served it: two connections' lines come in any
    # order, so each is waited for.
    for count, (method, path, body) in enumerate([("POST", UPLOAD, BODY), ("GET", MEDIA, None)], start=1):
        ask(server, method, path, body)
        assert wait_for(lambda count=count: server.log.read_text().count("\n") == count, 120)
    entries = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert [(entry["method"], entry["bytes_in"]) for entry in entries] == [("POST", len(BODY)), ("GET", 0)]
    assert entries[1]["bytes_out"] == len(BODY)


def test_a_body_in_chunks(server):
    pieces = [BODY[:1], BODY[1:70_000], BODY[70_000:]]
    options = {"encode_chunked": True, "headers": {"Transfer-Encoding": "chunked"}}
    assert ask(server, "POST", UPLOAD, iter(pieces), **options)[0] == 200
    assert ask(server, "GET", MEDIA) == (200, BODY)


def test_a_connection_serves_on_after_a_body_that_nobody_wanted(server):
    with connected(server) as connection:
        connection.request("POST", UPLOAD.replace("bkt", "no-such-bucket"), BODY)
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())["error"]["code"]) == (404, 404)
        connection.request("POST", UPLOAD, BODY)
        assert connection.getresponse().status == 200


def test_a_fault_happens_to_so_many_requests(server):
    server.faults.script([{"action": "status", "method": "POST", "path": "/upload/", "status": 429, "times": 2}])
    assert ask(server, "GET", "/storage/v1/b/bkt")[0] == 200
    assert [ask(server, "POST", UPLOAD, BODY)[0] for _ in range(3)] == [429, 429, 200]
    assert consumed(server) == [2]


@pytest.mark.parametrize("action", ["reset", "truncate", "unanswered"])
@pytest.mark.parametrize(("method", "path", "body"), [("POST", UPLOAD, BODY), ("DELETE", "/storage/v1/b/bkt", None)])
def test_a_connection_that_drops(server, action, method, path, body):
    server.faults.script([{"action": action, "after_bytes": 5000}])
    with pytest.raises(ConnectionError):
        ask(server, method, path, body)
    assert consumed(server) == [1]
    assert server.requests_seen[-1]["status"] == 0
    buckets = server.uploads.store.buckets
    done = "x" in buckets["bkt"].objects if body else "bkt" not in buckets
    assert done == (action == "unanswered" or body is None), "what has no body to break off is done"


@pytest.mark.parametrize("after", [0, 1, 50_000, len(BODY) - 1])
def test_a_byte_that_flips(server, after):
    flipped = BODY[:after] + bytes([BODY[after] ^ 0xFF]) + BODY[after + 1 :]
    server.faults.script([{"action": "corrupt", "method": "POST", "after_bytes": after}])
    ask(server, "POST", UPLOAD, BODY)
    assert ask(server, "GET", MEDIA) == (200, flipped)
    assert consumed(server) == [1]

    ask(server, "POST", UPLOAD, BODY)
    server.faults.script([{"action": "corrupt", "method": "GET", "after_bytes": after}])
    assert ask(server, "GET", MEDIA) == (200, flipped)
    assert consumed(server) == [1]


@pytest.mark.parametrize("action", ["reset", "truncate", "stall"])
def test_an_answer_that_breaks_off(server, action):
    ask(server, "POST", UPLOAD, BODY)
    server.faults.script(
        [{"action": action, "method": "GET", "path": "alt=media", "after_bytes": 5000, "seconds": 0.1}]
    )
    with connected(server) as connection:
        connection.request("GET", MEDIA)
        response = connection.getresponse()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            response.read()
    assert consumed(server) == [1]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_fault_that_could_not_happen_is_not_consumed(server, method):
    """The body was too short for it: the next request gets it."""
    ask(server, "POST", UPLOAD, BODY[:1000])
    server.faults.script([{"action": "corrupt", "method": method, "after_bytes": 2000}])
    path = MEDIA if method == "GET" else UPLOAD
    assert ask(server, method, path, None if method == "GET" else BODY[:1000])[0] == 200
    assert consumed(server) == [0]
    if method == "POST":
        ask(server, "POST", UPLOAD, BODY)
        assert consumed(server) == [1]


def test_a_fault_that_is_none(server):
    with pytest.raises(TypeError):
        server.faults.script([{"action": "reset", "afterbytes": 1}])
