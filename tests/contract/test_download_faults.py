"""Everything that goes wrong on the way from the hub to the bucket: the right bytes arrive, or a clear error does.

Each scripted fault must have happened: a fault that nothing met would show nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud import process
from emulated_cloud.hub import Repository

from components.download_weights.sessions import Sessions
from serving import names
from serving.clients import hub, storage
from serving.clients.upload import QUANTUM, Upload
from serving.clients.wire import Wire
from serving.errors import InconclusiveError, RequestError
from serving.settings import Settings
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.test_download_weights import SHARDS, assert_whole
from tests.contract.transfer_site import (
    MIB,
    QUICK,
    SERVED,
    Site,
    _site,
    folder,
    model,
    site,
    write_release,
    write_shard,
)

__all__ = ["_site", "folder", "model", "site"]

CDN = {"method": "GET", "path": "^/cdn/"}
# A range is asked for when a shard's header is read; a body this long is a shard's.
PAST_THE_HEADER = 2 * MIB
PUT = {"method": "PUT", "path": "upload_id="}


def bring(site: Site, model: str, folder: Path) -> tuple[Settings, Release]:
    site.commit(model, folder)
    settings = site.settings(model)
    return settings, site.release(settings)


HUB_FAULTS: dict[str, list[dict[str, Any]]] = {
    "429 with Retry-After": [
        {
            "action": "status",
            "status": 429,
            "headers": {"Retry-After": "1"},
            "method": "GET",
            "path": "/api/models/.*tree",
        }
    ],
    "429 without Retry-After": [{"action": "status", "status": 429, "method": "HEAD", "path": "/resolve/", "times": 2}],
    "500 of the listing": [{"action": "status", "status": 500, "method": "GET", "path": "/api/models/.*tree"}],
    "503 of the CDN": [{"action": "status", "status": 503, **CDN, "times": 3}],
    "no answer to the listing": [{"action": "unanswered", "method": "GET", "path": "/api/models/.*tree"}],
    "reset in a shard": [{"action": "reset", **CDN, "after_bytes": PAST_THE_HEADER, "times": 2}],
    "reset in every megabyte": [{"action": "reset", **CDN, "after_bytes": 300_000, "times": 12}],
    "short body": [{"action": "truncate", **CDN, "after_bytes": PAST_THE_HEADER, "times": 2}],
    "stall": [{"action": "stall", **CDN, "after_bytes": PAST_THE_HEADER, "seconds": 3, "times": 2}],
    "stall of a small file": [{"action": "stall", "method": "GET", "path": "config.json", "seconds": 3}],
    "corrupt shard": [{"action": "corrupt", **CDN, "after_bytes": PAST_THE_HEADER}],
    "corrupt last byte": [{"action": "corrupt", **CDN, "after_bytes": 6 * MIB}],
    "corrupt small file": [
        {"action": "corrupt", "method": "GET", "path": "resolve-cache.*config.json", "after_bytes": 3}
    ],
    "corrupt header of a shard": [{"action": "corrupt", **CDN, "after_bytes": 9}],
    "link expired between two parts of a shard": [
        {"action": "reset", **CDN, "after_bytes": PAST_THE_HEADER},
        {"action": "status", "status": 403, **CDN, "body": "<Error><Code>AccessDenied</Code></Error>"},
    ],
}


@pytest.mark.parametrize("faults", HUB_FAULTS.values(), ids=HUB_FAULTS.keys())
def test_the_right_bytes_arrive_through_a_fault_of_the_hub(site: Site, model: str, folder: Path, faults: list[Any]):
    settings, release = bring(site, model, folder)
    site.script("hub", *faults)
    started = time.monotonic()
    site.bring(settings, release)
    assert site.consumed("hub") == [fault.get("times", 1) for fault in faults]
    assert_whole(release.weights_uri, folder)
    if "Retry-After" in faults[0].get("headers", {}):
        assert time.monotonic() - started >= 1


BUCKET_FAULTS: dict[str, list[dict[str, Any]]] = {
    "429 of a session's start": [{"action": "status", "status": 429, "method": "POST", "path": "uploadType=resumable"}],
    "503 of a session's start": [{"action": "status", "status": 503, "method": "POST", "path": "uploadType=resumable"}],
    "503 of the bytes": [{"action": "status", "status": 503, **PUT, "times": 3}],
    "429 of the bytes": [{"action": "status", "status": 429, "headers": {"Retry-After": "1"}, **PUT}],
    "reset in a chunk": [{"action": "reset", **PUT, "after_bytes": 2 * MIB + 17, "times": 2}],
    "stall in a chunk": [{"action": "stall", **PUT, "after_bytes": 2 * MIB, "seconds": 3, "times": 2}],
    "session gone": [{"action": "status", "status": 410, **PUT}],
    "session never known": [{"action": "status", "status": 404, **PUT}],
    "no answer to a chunk": [{"action": "unanswered", **PUT, "times": 2}],
    "corrupt on the way": [{"action": "corrupt", **PUT, "after_bytes": 2 * MIB}],
    "503 of a small file": [{"action": "status", "status": 503, "method": "POST", "path": "uploadType=multipart"}],
    "no answer to a small file": [
        {"action": "unanswered", "method": "POST", "path": "uploadType=multipart", "times": 2}
    ],
    "503 of the listing": [{"action": "status", "status": 503, "method": "GET", "path": "/o\\?"}],
}


@pytest.mark.parametrize("faults", BUCKET_FAULTS.values(), ids=BUCKET_FAULTS.keys())
def test_the_right_bytes_arrive_through_a_fault_of_the_bucket(site: Site, model: str, folder: Path, faults: list[Any]):
    settings, release = bring(site, model, folder)
    site.script("storage", *faults)
    site.bring(settings, release)
    assert site.consumed("storage") == [fault.get("times", 1) for fault in faults]
    assert_whole(release.weights_uri, folder)
    assert storage.list_uris(f"{settings.pipeline_root}/transfers/{names.place(settings)}/") == []


def test_a_reset_costs_the_bucket_no_more_than_what_it_had_not_persisted(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    before = len(site.requests("storage"))
    site.script("storage", {"action": "reset", **PUT, "after_bytes": 3 * MIB + 17})
    site.bring(settings, release)
    assert site.consumed("storage") == [1]
    received = sum(entry["bytes_in"] for entry in site.requests("storage")[before:] if "upload_id" in entry["path"])
    shards = sum((folder / name).stat().st_size for name in SHARDS)
    assert shards <= received <= shards + QUANTUM


def test_a_last_chunk_that_is_not_answered_is_known_to_have_arrived(
    site: Site, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, release = bring(site, model, folder)
    finish = Upload.finish

    def unanswered(self: Upload, *args: Any) -> Any:
        monkeypatch.setattr(Upload, "finish", finish)
        site.script("storage", {"action": "unanswered", **PUT})
        return finish(self, *args)

    monkeypatch.setattr(Upload, "finish", unanswered)
    before = len(site.requests("storage"))
    site.bring(settings, release, dataclasses.replace(QUICK, threads=1))
    assert site.consumed("storage") == [1]
    assert_whole(release.weights_uri, folder)
    puts = [entry for entry in site.requests("storage")[before:] if "upload_id" in entry["path"]]
    assert sum(entry["bytes_in"] for entry in puts) == sum((folder / name).stat().st_size for name in SHARDS)


def test_a_reset_of_the_hub_costs_the_bucket_nothing(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    before = len(site.requests("storage"))
    site.script("hub", {"action": "reset", **CDN, "after_bytes": PAST_THE_HEADER})
    site.bring(settings, release)
    assert site.consumed("hub") == [1]
    puts = [entry for entry in site.requests("storage")[before:] if "upload_id" in entry["path"]]
    assert sum(entry["bytes_in"] for entry in puts) == sum((folder / name).stat().st_size for name in SHARDS)


# -- what does not heal -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("emulator", "fault", "words"),
    [
        ("hub", {"action": "status", "status": 503, **CDN}, r"localhost:\d+ answered 503"),
        ("hub", {"action": "corrupt", **CDN, "after_bytes": PAST_THE_HEADER}, "other bytes than it lists"),
        ("storage", {"action": "status", "status": 503, **PUT}, "GCS answered 503"),
        ("storage", {"action": "corrupt", **PUT}, "GCS refused the bytes"),
    ],
)
def test_what_never_heals_ends_in_words_and_leaves_no_half_model(
    site: Site, model: str, folder: Path, emulator: str, fault: dict[str, Any], words: str
):
    settings, release = bring(site, model, folder)
    site.script(emulator, {**fault, "times": 1000})
    with pytest.raises(InconclusiveError, match=words):
        site.bring(settings, release, dataclasses.replace(QUICK, attempts=3))
    assert site.consumed(emulator)[0] >= 3
    assert manifest.read(release.weights_uri) == (None, 0)
    assert not [path for path in manifest.listing(release.weights_uri) if path.endswith(".safetensors")]
    site.script(emulator)
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


@pytest.mark.parametrize("fault", [{"action": "reset"}, {"action": "stall", "seconds": 1}], ids=["reset", "stall"])
def test_a_transfer_that_gets_further_each_time_goes_on(site: Site, model: str, folder: Path, fault: dict[str, Any]):
    settings, release = bring(site, model, folder)
    site.script("hub", {**fault, **CDN, "after_bytes": PAST_THE_HEADER, "times": 1000})
    site.bring(settings, release, dataclasses.replace(QUICK, attempts=3))
    assert site.consumed("hub")[0] > 3
    assert_whole(release.weights_uri, folder)


def test_a_connection_that_trickles_is_broken_off(site: Site, model: str, folder: Path):
    """Each byte resets the socket's own timeout; only the watchdog sees that nothing gets on."""
    settings, release = bring(site, model, folder)
    site.script("hub", {"action": "stall", **CDN, "after_bytes": PAST_THE_HEADER, "seconds": 20})
    started = time.monotonic()
    site.bring(settings, release, dataclasses.replace(QUICK, stall_seconds=60, slow_seconds=1))
    assert site.consumed("hub") == [1]
    assert time.monotonic() - started < 15
    assert_whole(release.weights_uri, folder)


def test_links_that_live_a_second_are_asked_for_again(
    tmp_path: Path, site: Site, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    Repository(tmp_path / "hub", model).commit(folder)
    emulator = process.start(
        "emulated_cloud.hub", "--root", str(tmp_path / "hub"), "--signature-seconds", "1", log=tmp_path / "hub.log"
    )
    try:
        monkeypatch.setenv("HF_ENDPOINT", emulator.url)
        own = dataclasses.replace(site, processes={**site.processes, "hub": emulator})
        settings = own.settings(model)
        release = own.release(settings)
        own.script("hub", {"action": "stall", **CDN, "after_bytes": PAST_THE_HEADER, "seconds": 3, "times": 2})
        own.bring(settings, release, dataclasses.replace(QUICK, stall_seconds=2))
        assert own.consumed("hub") == [2]
        assert_whole(release.weights_uri, folder)
    finally:
        emulator.stop()


def test_with_the_hub_down_complete_weights_go_on_and_others_say_so(
    site: Site, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    settings, release = bring(site, model, folder)
    site.bring(settings, release)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert site.bring(settings, release) == 0
    with pytest.raises(InconclusiveError, match="the hub does not answer"):
        hub.Hub(attempts=2).commit(model, "main")


# -- sessions that somebody left ----------------------------------------------------------------------------


def leave_session(settings: Settings, release: Release, folder: Path, data: bytes) -> str:
    """What a process leaves that died after `data` had been persisted of the first shard. Returns the session."""
    name = min(SHARDS)
    size = (folder / name).stat().st_size
    uri = f"{release.weights_uri}/{name}"
    sha256 = next(file.sha256 for file in hub.Hub().tree(release.model, release.commit) if file.path == name)
    session = storage.open_upload(uri, size, content_type="x/y", metadata={"hf-sha256": sha256 or ""})
    wire = Wire()
    held = Upload(wire, uri, session, size).send(0, len(data), [data]) if data else 0
    assert held == len(data)
    wire.close()
    sessions = Sessions(settings, release.weights_key)
    sessions.remember(name, session)
    return session


def test_a_session_of_a_dead_process_is_gone_on_with(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    persisted = (folder / min(SHARDS)).read_bytes()[: 20 * QUANTUM]
    leave_session(settings, release, folder, persisted)
    shards = sum((folder / name).stat().st_size for name in SHARDS)
    small = sum((folder / path).stat().st_size for path in SERVED)
    assert site.bring(settings, release) == shards + small - len(persisted)
    assert_whole(release.weights_uri, folder)


def test_what_a_dead_process_sent_wrongly_is_found_by_reading_it_back(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    leave_session(settings, release, folder, bytes(4 * QUANTUM))
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


def test_what_a_dead_process_finished_and_did_not_verify_is_read_back(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    name = min(SHARDS)
    session = leave_session(settings, release, folder, b"")
    wire = Wire()
    wrong = bytes((folder / name).stat().st_size)
    uri = f"{release.weights_uri}/{name}"
    upload = Upload(wire, uri, session, len(wrong))
    assert upload.finish(0, wrong, None) == storage.stat(uri)
    wire.close()
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


def test_an_expired_session_is_started_over(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    session = leave_session(settings, release, folder, bytes(QUANTUM))
    wire = Wire()
    Upload(wire, release.weights_uri, session, 0).cancel()
    wire.close()
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


def test_sessions_for_other_weights_are_ended(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    session = leave_session(settings, release.model_copy(update={"weights_key": "e" * 16}), folder, bytes(QUANTUM))
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)
    wire = Wire()
    status, _, _ = wire.ask("PUT", session, {"Content-Range": "bytes */*", "Content-Length": "0"})
    wire.close()
    assert status in (404, 410)


def test_sessions_of_a_namesake_in_another_project_are_left_alone(site: Site, model: str, folder: Path):
    """Two clusters of one name that share a bucket, each on its way to weights of its own."""
    settings, release = bring(site, model, folder)
    namesake = site.settings(model, project="other-project")
    session = leave_session(namesake, release.model_copy(update={"weights_key": "e" * 16}), folder, bytes(QUANTUM))
    site.bring(settings, release)
    wire = Wire()
    status, _, _ = wire.ask("PUT", session, {"Content-Range": "bytes */*", "Content-Length": "0"})
    wire.close()
    assert status == 308, "the upload goes on"


def test_a_session_that_another_process_took_over_is_left_to_it(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    leave_session(settings, release, folder, b"")
    first, second = (Sessions(settings, release.weights_key) for _ in range(2))
    first.load()
    second.load()
    assert first.take_over(min(SHARDS))
    assert first.is_ours(min(SHARDS))
    assert second.take_over(min(SHARDS)) is None
    third = Sessions(settings, release.weights_key)
    third.load()
    assert third.take_over(min(SHARDS))
    assert not first.is_ours(min(SHARDS))
    first.remember(min(SHARDS), "not to be written")
    assert third.is_ours(min(SHARDS))


@pytest.mark.parametrize("equal", [True, False], ids=["equal", "different"])
def test_a_412_from_a_concurrent_writer(
    site: Site, model: str, folder: Path, equal: bool, monkeypatch: pytest.MonkeyPatch
):
    """Somebody else makes the object while our last bytes are on their way: equal will do, other gives way."""
    settings, release = bring(site, model, folder)
    finish, name = Upload.finish, min(SHARDS)
    expected = (folder / name).read_bytes()
    theirs: list[int] = []

    def too_late(self: Upload, first: int, body: bytes, crc32c: str | None) -> Any:
        if self._uri.endswith(name) and not theirs:
            data = expected if equal else bytes(len(expected))
            sha256 = hashlib.sha256(expected).hexdigest() if equal else "0" * 64
            metadata = {"hf-sha256": sha256}
            made = storage.write_bytes(self._uri, data, content_type="x/y", metadata=metadata, if_generation_match=0)
            theirs.append(made.generation)
        return finish(self, first, body, crc32c)

    monkeypatch.setattr(Upload, "finish", too_late)
    before = len(site.requests("storage"))
    site.bring(settings, release)
    refused = [entry for entry in site.requests("storage")[before:] if entry["status"] == 412]
    assert ["upload_id=" in entry["path"] for entry in refused] == [True]
    assert_whole(release.weights_uri, folder)
    there = storage.stat(f"{release.weights_uri}/{name}")
    assert there
    assert (there.generation in theirs) is equal


def test_reading_back_goes_on_after_a_broken_connection(site: Site, model: str, folder: Path):
    settings, release = bring(site, model, folder)
    leave_session(settings, release, folder, (folder / min(SHARDS)).read_bytes()[: 8 * QUANTUM])
    shards = sum((folder / name).stat().st_size for name in SHARDS)
    small = sum((folder / path).stat().st_size for path in SERVED)
    site.script(
        "storage", {"action": "reset", "method": "GET", "path": "safetensors.*alt=media", "after_bytes": 3 * MIB + 5}
    )
    assert site.bring(settings, release) == shards + small - 8 * QUANTUM
    assert site.consumed("storage") == [1]
    assert_whole(release.weights_uri, folder)


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(403, "GatedRepo", "is gated"), (401, "", "refused the token"), (404, "EntryNotFound", "has no such file")],
)
def test_a_refusal_of_the_hub_during_a_transfer_ends_it_at_once(
    site: Site, model: str, folder: Path, status: int, code: str, words: str
):
    """A grant or a token that goes, a file that is taken away, after the shards' headers have been looked at."""
    settings, release = bring(site, model, folder)
    headers = {"X-Error-Code": code, "X-Error-Message": "Invalid credentials in Authorization header"}
    shard = {"method": "HEAD", "path": "safetensors$"}
    site.script(
        "hub",
        {"action": "slow", **shard, "seconds": 0, "times": len(SHARDS)},
        {"action": "status", "status": status, "headers": headers, **shard, "times": 99},
    )
    with pytest.raises(RequestError, match=words):
        site.bring(settings, release)
    looked, refused = site.consumed("hub")
    assert looked == len(SHARDS)
    assert 1 <= refused <= len(SHARDS)
    assert manifest.read(release.weights_uri) == (None, 0)
    assert not SHARDS & set(manifest.listing(release.weights_uri))


def test_a_shard_of_exact_quanta_and_one_of_a_byte_more(site: Site, model: str, tmp_path: Path):
    write_release(tmp_path / "r")
    for number, size in ((1, 20 * QUANTUM), (2, 20 * QUANTUM + 1)):
        path = tmp_path / "r" / f"model-0000{number}-of-00002.safetensors"
        write_shard(path, f"tensor.{number}", size, number)
        header = path.stat().st_size - size
        write_shard(path, f"tensor.{number}", size - header, number)
        # The header names the size: one digit fewer would make it shorter.
        assert path.stat().st_size == size
    settings, release = bring(site, model, tmp_path / "r")
    site.bring(settings, release)
    assert_whole(release.weights_uri, tmp_path / "r")
