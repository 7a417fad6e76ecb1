"""images/disk-builder/build_disk.py, as far as it needs neither root nor a disk (tests/system has the rest)."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import sys
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "images/disk-builder/build_disk.py"
DATA = bytes(range(256)) * 4000
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("build_disk", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["build_disk"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["build_disk"]


Answer = Callable[[BaseHTTPRequestHandler], None]


class Server(ThreadingHTTPServer):
    """Answers each request with the next of the answers, the last one for ever."""

    daemon_threads = True

    def __init__(self, *answers: Answer) -> None:
        self.left = list(answers)
        self.seen: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.seen.append((self.path, dict(self.headers)))
                (outer.left.pop(0) if len(outer.left) > 1 else outer.left[0])(self)

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def header(self, name: str) -> list[str | None]:
        return [headers.get(name) for _, headers in self.seen]

    def __enter__(self) -> Server:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


def bytes_from(start: int, end: int = len(DATA), status: int = 206, more: bytes = b"") -> Answer:
    """Promises all from `start`, and breaks off at `end`."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(DATA) - start))
        handler.end_headers()
        handler.wfile.write(DATA[start:end] + more)

    return answer


def status(code: int, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def read(script: ModuleType, server: Server, auth: str = "anonymous", attempts: int = 3) -> bytes:
    registry = script.Registry(server.url, "org/engine", auth, attempts)
    return b"".join(registry.chunks(DIGEST, len(DATA), wait=lambda seconds: None))


def test_a_download_that_breaks_goes_on_where_it_broke(script: ModuleType) -> None:
    with Server(bytes_from(0, 1000, 200), bytes_from(1000, 5000), status(503), bytes_from(5000)) as server:
        assert read(script, server) == DATA
    assert server.header("Range") == [None, "bytes=1000-", "bytes=5000-", "bytes=5000-"]
    assert server.seen[0][0] == f"/v2/org/engine/blobs/{DIGEST}"


def test_who_knows_no_ranges_sends_all_again(script: ModuleType) -> None:
    with Server(bytes_from(0, 300_000, 200), bytes_from(0, status=200)) as server:
        assert read(script, server) == DATA


def test_each_byte_that_comes_renews_the_patience(script: ModuleType) -> None:
    steps = [bytes_from(number, number + 1) for number in range(5)]
    with Server(*steps, bytes_from(5)) as server:
        assert read(script, server, attempts=2) == DATA


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (status(503), "HTTP Error 503: Service Unavailable, 3 times"),
        (status(429), "HTTP Error 429: Too Many Requests, 3 times"),
        (bytes_from(0, 0, 200), f"it ended after 0 of {len(DATA)} bytes, 3 times"),
    ],
)
def test_patience_ends(script: ModuleType, answer: Answer, words: str) -> None:
    with Server(answer) as server, pytest.raises(script.BakeError, match=words):
        read(script, server)
    assert len(server.seen) == 3


def test_a_refusal_is_not_asked_again(script: ModuleType) -> None:
    with Server(status(403)) as server, pytest.raises(script.BakeError, match=r"403 Forbidden .*only public images"):
        read(script, server)
    assert len(server.seen) == 1


def test_a_token_goes_to_the_registry_and_to_nobody_else(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "metadata", lambda path: b'{"access_token": "secret"}')
    with (
        Server(bytes_from(0, 1000, 200), bytes_from(1000)) as store,
        Server(status(307, Location=f"{store.url}/elsewhere")) as server,
    ):
        assert read(script, server, auth="google") == DATA
    assert server.header("Authorization") == ["Bearer secret", "Bearer secret"]
    assert store.header("Authorization") == [None, None]
    assert store.header("Range") == [None, "bytes=1000-"]


@pytest.mark.parametrize(
    "challenge", ["", "Basic realm=x", 'Bearer service="a"', 'Bearer realm="file:///etc/passwd"', "Bearer"]
)
def test_a_challenge_that_gives_no_token(script: ModuleType, challenge: str) -> None:
    assert script.anonymous_token(challenge) == ""


def test_gzip_is_unpacked_a_mebibyte_at_a_time(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    monkeypatch.setattr(script.os, "write", lambda pipe, data: written.append(len(data)) or len(data))
    decoder = script.Gunzip(0)
    bomb = zlib.compressobj(9, wbits=31)
    decoder.write(bomb.compress(bytes(64 << 20)) + bomb.flush())
    decoder.close()
    assert sum(written) == 64 << 20
    assert max(written) <= 1 << 20


def archive(*members: tarfile.TarInfo, end: bytes = bytes(1024)) -> bytes:
    return b"".join(member.tobuf(tarfile.PAX_FORMAT) for member in members) + end


def entries(script: ModuleType, content: bytes) -> list[tarfile.TarInfo]:
    out, into = os.pipe()
    os.write(into, content)
    os.close(into)
    source = script.Archive(out)
    try:
        return [member for _, member in script.members(source)]
    finally:
        source.source.close()


def test_a_damaged_header_is_no_end(script: ModuleType) -> None:
    first, second = tarfile.TarInfo("first"), tarfile.TarInfo("second")
    assert [member.name for member in entries(script, archive(first, second))] == ["first", "second"]
    assert [member.name for member in entries(script, archive(first, second, end=b""))] == ["first", "second"]
    damaged = bytearray(archive(first, second))
    damaged[512 + 10] ^= 1
    with pytest.raises(script.CutError, match="damaged at byte 1024"):
        entries(script, bytes(damaged))
    with pytest.raises(script.CutError, match="damaged at byte 700"):
        entries(script, archive(first, second)[:700])
    # What tarfile itself makes of it.
    with tarfile.open(fileobj=io.BytesIO(bytes(damaged))) as unwarned:
        assert unwarned.getnames() == ["first"]


def test_headers_for_all_files_are_nobodys(script: ModuleType) -> None:
    everybodys = tarfile.TarInfo.create_pax_global_header({"mtime": "1", "uname": "eve", "SCHILY.xattr.user.a": "b"})
    (member,) = entries(script, everybodys + archive(tarfile.TarInfo("file")))
    assert (member.name, member.mtime, member.pax_headers) == ("file", 0, {})


@pytest.mark.parametrize(
    ("pax", "mtime", "expected"),
    [
        ({}, 5, (5 * 10**9, 5 * 10**9)),
        ({"mtime": "1234567890.123456789"}, 0, (1234567890123456789,) * 2),
        ({"mtime": "7.5", "atime": "9.25"}, 7.5, (9_250_000_000, 7_500_000_000)),
        ({"mtime": "7.5", "atime": "2"}, 7.5, (7_500_000_000, 7_500_000_000)),
        ({"mtime": "-5.5"}, -5.5, (0, 0)),
        ({"mtime": "-0.5"}, -0.5, (0, 0)),
        ({"mtime": str(1 << 40)}, 0, (0, 0)),
    ],
)
def test_times_are_exact(script: ModuleType, pax: dict[str, str], mtime: float, expected: tuple[int, int]) -> None:
    member = tarfile.TarInfo("file")
    member.pax_headers, member.mtime = pax, mtime
    assert script.times(member) == expected


def test_the_table_of_images_is_padded_as_ctr_does_it(script: ModuleType) -> None:
    long = script.Image("z.example/engine@sha256:1", "type", "sha256:1", 8_730_576_300, "linux/amd64")
    short = script.Image("a.example/b@sha256:2", "type", "sha256:2", 500, "linux/arm64")
    assert script.images_table([long, short]).splitlines() == [
        "REF                       TYPE DIGEST   SIZE    PLATFORMS   LABELS ",
        "a.example/b@sha256:2      type sha256:2 500.0 B linux/arm64 -      ",
        "z.example/engine@sha256:1 type sha256:1 8.1 GiB linux/amd64 -      ",
    ]


def test_it_fits_a_startup_script_and_says_what_runs_it() -> None:
    content = SCRIPT.read_bytes()
    assert content.startswith(b"#!/usr/bin/python3\n")
    assert len(content) <= 256 << 10
    assert os.access(SCRIPT, os.X_OK)
