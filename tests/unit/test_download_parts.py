"""The small parts of a transfer: digests, patience, progress, the manifest's comparison."""

from __future__ import annotations

import base64
import email.utils
import hashlib
import threading
import time
import types
from typing import Any

import google_crc32c
import pytest

from serving import progress
from serving.clients import digest, patience
from serving.clients.digest import ServedFile
from serving.clients.patience import Interrupted, Patience, Stopped
from serving.clients.storage import StoredObject
from serving.clients.upload import QUANTUM, Upload
from serving.clients.wire import Wire, retry_after
from serving.errors import InconclusiveError
from serving.weights import manifest
from serving.weights.manifest import File, Manifest, Repository

DATA = bytes(range(256)) * 40


def test_a_digest_is_that_of_lfs_or_of_git():
    lfs = ServedFile("a", len(DATA), hashlib.sha256(DATA).hexdigest(), "0" * 40)
    git = ServedFile("a", len(DATA), None, hashlib.sha1(b"blob %d\0" % len(DATA) + DATA).hexdigest())
    for file in (lfs, git):
        passing = digest.Digest(file)
        for start in range(0, len(DATA), 1000):
            assert not passing.is_right()
            passing.update(DATA[start : start + 1000])
        assert passing.is_right()
        assert passing.sha256 == lfs.sha256
        assert base64.b64decode(passing.crc32c) == google_crc32c.value(DATA).to_bytes(4, "big")
        assert not digest.of(file, DATA[:-1] + b"x").is_right()


def test_patience_ends_with_the_cause_and_starts_over_with_progress(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(patience.time, "monotonic", clock)
    wait = Patience(60, stop=clock.never)
    for _ in range(2):
        clock.until(50, wait)
        wait.progress()
        clock.now = 0.0
    with pytest.raises(InconclusiveError, match=r"the hub: is busy \(\d+ attempts in \d+ s\)"):
        clock.until(100, wait)
    assert 60 - patience.LONGEST_PAUSE <= clock.now <= 60


class Clock:
    """Goes on by what is waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.never: Any = types.SimpleNamespace(wait=self.wait)

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def until(self, then: float, patience: Patience) -> None:
        """Asks until then, in vain."""
        while self.now < then:
            patience.wait("the hub", Interrupted("is busy"))


def test_patience_is_the_processs_and_nothing_waits_any_more_when_that_is_told_to_end(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr(patience.time, "monotonic", clock)
    assert patience.left() == 600, "ten minutes, when nobody says otherwise"
    with patience.lasting(120):
        assert patience.left() == 120
        wait = Patience(stop=clock.never)
        clock.until(0.01, wait)
        patience.end_soon()
        assert patience.left() <= 10
        with pytest.raises(InconclusiveError, match="the hub: is busy"):
            clock.until(30, wait)
        assert clock.now < 20
    assert patience.left() == 600


def test_a_wait_that_lasts_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    clock = Clock()
    monkeypatch.setattr(patience.time, "monotonic", clock)
    wait = Patience(60, stop=clock.never)
    clock.until(0.01, wait)
    assert caplog.records == []
    clock.until(40, wait)
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == ["the hub: is busy"]


def test_patience_waits_as_long_as_it_is_asked_to_and_no_longer_than_makes_sense():
    started = time.monotonic()
    Patience(3).wait("x", Interrupted("y", after=0.2))
    assert time.monotonic() - started >= 0.2
    with pytest.raises(InconclusiveError, match="asks for 3600 s"):
        Patience(3).wait("x", Interrupted("y", after=3600))


def test_patience_is_cut_short_when_the_work_is_wanted_no_more():
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(Stopped):
        Patience(stop=stop).wait("x", Interrupted("y", after=60))


def test_retry_after_is_seconds_or_a_date():
    assert retry_after({"Retry-After": "7"}) == 7
    soon = retry_after({"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    assert soon is not None
    assert 55 < soon <= 60
    assert retry_after({"Retry-After": email.utils.formatdate(0, usegmt=True)}) == 0
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({}) is None


def test_a_rate_limit_of_which_nothing_is_left_asks_for_patience_too():
    assert retry_after({"RateLimit": '"api";r=0;t=45'}) == 46
    assert retry_after({"RateLimit": '"api" ; r = 0 ; t = 300'}) == 301
    assert retry_after({"RateLimit": '"api";r=12;t=45'}) is None
    assert retry_after({"RateLimit": "nonsense"}) is None
    assert retry_after({"Retry-After": "7", "RateLimit": '"api";r=0;t=45'}) == 7


def test_a_host_that_is_not_there_is_an_interruption_that_shows_no_address():
    with pytest.raises(Interrupted) as error:
        Wire(1).send("GET", "http://127.0.0.1:9/secret?Signature=abc", {})
    assert "127" not in str(error.value)
    assert "Signature" not in str(error.value)


@pytest.mark.parametrize(
    ("size", "last_part"), [(0, 0), (1, 0), (QUANTUM, 0), (QUANTUM + 1, QUANTUM), (3 * QUANTUM, 2 * QUANTUM)]
)
def test_the_last_part_is_never_empty_and_starts_at_a_quantum(size: int, last_part: int):
    assert Upload(Wire(), "gs://b/o", "http://x", size).last_part == last_part


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_940, "99.9 kB"),
        (999_600, "1.0 MB"),
        (5e9, "5.0 GB"),
        (3e15, "3000 TB"),
    ],
)
def test_bytes_in_words(count: float, words: str):
    assert progress.size(count) == words


@pytest.mark.parametrize(("seconds", "words"), [(0.2, "1 s"), (59.5, "1 min 0 s"), (3725, "1 h 2 min")])
def test_time_in_words(seconds: float, words: str):
    assert progress.duration(seconds) == words


def test_progress_tells_files_bytes_rate_and_time_left():
    assert progress.line(1, 4, 500_000_000, 2_000_000_000, 400_000_000, 2) == (
        "1/4 files, 500 MB of 2.0 GB, 200 MB/s, 8 s left"
    )
    assert progress.line(4, 4, 10, 10, 0, 1) == "4/4 files, 10 B of 10 B, 0 B/s"


# -- the manifest -------------------------------------------------------------------------------------------

FILE = File(path="config.json", size=3, sha256="a" * 64, crc32c="AAAAAA==", generation=7)
THERE = StoredObject("gs://b/p/config.json", 3, "AAAAAA==", 7)
MANIFEST = Manifest(weights_key="k", repositories=[Repository(model="o/n", commit="c")], files=[FILE])


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (THERE, ""),
        (None, "config.json is missing"),
        (StoredObject(THERE.uri, 4, "AAAAAA==", 7), "config.json has 4 bytes instead of 3"),
        (
            StoredObject(THERE.uri, 3, "BBBBBB==", 7),
            "config.json has other content: crc32c BBBBBB== instead of AAAAAA==",
        ),
        (StoredObject(THERE.uri, 3, "AAAAAA==", 8), "config.json was written again: generation 8 instead of 7"),
    ],
)
def test_the_manifest_names_what_differs(there: StoredObject | None, words: str):
    listing = {"config.json": there} if there else {}
    assert manifest.differences(MANIFEST, listing) == ([words] if words else [])


def test_the_manifest_names_what_does_not_belong():
    assert manifest.strays(MANIFEST, ["config.json", "b", "a"]) == [
        "a is not in the manifest",
        "b is not in the manifest",
    ]
