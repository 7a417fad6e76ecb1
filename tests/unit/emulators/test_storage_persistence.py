"""The storage emulator's files: what a restart, a kill and a look from outside find there."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from itertools import count

import google_crc32c
import pytest
from emulated_cloud import process
from emulated_cloud.storage.errors import GcsError
from emulated_cloud.storage.preconditions import Preconditions
from emulated_cloud.storage.store import RootInUse, Store
from emulated_cloud.storage.uploads import QUANTUM, Expected, SessionGone, Uploads


class Service:
    """A store and its uploads, which can be started again."""

    def __init__(self, root):
        self.root = root
        self.start()
        self.store.ensure_bucket("bkt")

    def start(self):
        self.store = Store(self.root)
        self.uploads = Uploads(self.store)

    def restart(self):
        self.store.close()
        self.start()

    @property
    def bucket(self):
        return self.store.bucket("bkt")

    def put(self, name, data):
        return self.uploads.put(self.bucket, name, [data], {}, Preconditions(), Expected())

    def read(self, name):
        with self.store.open(self.bucket, self.bucket.find(name)) as file:
            return file.read()

    def open_session(self, name="x", total=None, **expected):
        return self.uploads.open(self.bucket, name, {"a": "b"}, Preconditions(), Expected(**expected), total)

    def send(self, session, data):
        self.uploads.receive(session, self.uploads.take_over(session), [data])

    def names(self):
        return sorted(self.bucket.objects)

    def files(self):
        """Every file below the root that is not the lock, but for the bucket's record."""
        found = (str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file())
        return sorted(path for path in found if path not in (".lock", "bkt/bucket.json"))


@pytest.fixture
def service(tmp_path):
    service = Service(tmp_path / "root")
    yield service
    service.store.close()


def crc32c(data):
    return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()


def test_a_bucket_is_a_folder(service):
    service.put("models/org/name/한글 #1.txt", b"content")
    assert (service.root / "bkt/objects/models/org/name/한글 #1.txt").read_bytes() == b"content"
    service.store.delete(service.bucket, service.bucket.find("models/org/name/한글 #1.txt"))
    assert list((service.root / "bkt/objects").iterdir()) == [], "no empty folder stays behind"


@pytest.mark.parametrize("name", ["a//b", "a/", "/a", "../../outside", "a/./b", "a/..", "x" * 256, "nul\0"])
def test_a_name_that_is_no_path_lies_escaped(service, name):
    service.put(name, b"content")
    assert (service.root / "bkt/escaped" / hashlib.sha256(name.encode()).hexdigest()).read_bytes() == b"content"
    assert list((service.root / "bkt/objects").iterdir()) == []
    assert not (service.root.parent / "outside").exists()
    service.restart()
    assert service.read(name) == b"content"


@pytest.mark.parametrize("order", [("a", "a/b"), ("a/b", "a")])
def test_of_a_file_and_a_folder_of_one_name_the_first_has_the_path(service, order):
    for name in order:
        service.put(name, name.encode())
    assert (service.root / "bkt/objects" / order[0]).read_bytes() == order[0].encode()
    service.restart()
    for name in order:
        assert service.read(name) == name.encode()
        service.put(name, b"new")
        assert service.read(name) == b"new"
        service.store.delete(service.bucket, service.bucket.find(name))
    assert service.files() == []


def test_everything_outlives_a_restart(service):
    service.put("x", b"one")
    stored = service.put("x", b"two")
    service.bucket.policy["revision"] = 7
    service.store.save_bucket(service.bucket)
    service.restart()
    assert service.bucket.find("x") == stored
    assert service.read("x") == b"two"
    assert service.bucket.policy["revision"] == 7
    assert service.put("y", b"").generation > stored.generation


def test_generations_rise_when_the_clock_falls(service, monkeypatch):
    stored = service.put("x", b"one")
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert service.put("x", b"two").generation == stored.generation + 1
    service.restart()
    assert service.put("x", b"three").generation == stored.generation + 2


def test_a_reader_keeps_its_version(service):
    service.put("x", b"old")
    file = service.store.open(service.bucket, service.bucket.find("x"))
    service.put("x", b"new")
    service.store.delete(service.bucket, service.bucket.find("x"))
    with file:
        assert file.read() == b"old"


@pytest.mark.parametrize("name", ["dir/x", "dir//x"], ids=["a path", "escaped"])
@pytest.mark.parametrize("old", [None, b"old content"], ids=["new", "overwritten"])
def test_a_kill_leaves_the_old_object_or_the_new(service, name, old):
    """Before each rename of a write: the metadata to pending/, the bytes to their place, the metadata to its place."""
    outcomes = []
    for renames in range(4):
        if name in service.names():
            service.store.delete(service.bucket, service.bucket.find(name))
        if old is not None:
            service.put(name, old)
        killed_at("replace", renames, lambda: service.put(name, b"new"))
        service.restart()
        there = service.read(name) if name in service.names() else None
        assert there is None or service.bucket.find(name).crc32c == crc32c(there)
        assert len(service.files()) == (0 if there is None else 2), "nothing else stays behind"
        outcomes.append(there)
    assert outcomes == [old, old, b"new", b"new"]


def test_a_kill_in_a_delete_leaves_the_object_or_nothing(service):
    outcomes = []
    for unlinks in range(3):
        service.put("x", b"content")
        killed_at("unlink", unlinks, lambda: service.store.delete(service.bucket, service.bucket.find("x")))
        service.restart()
        assert len(service.files()) == 2 * len(service.names())
        outcomes.append(service.names())
    assert outcomes == [["x"], [], []]


def killed_at(operation, calls, do):
    """Does something in a child process that is killed before the call of os.<operation> behind so many."""
    child = os.fork()
    if not child:
        real, done = getattr(os, operation), count()
        setattr(os, operation, lambda *args, **options: os._exit(9) if next(done) >= calls else real(*args, **options))
        try:
            do()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def test_bytes_that_cannot_be_put_in_place_change_nothing(service, monkeypatch):
    service.put("x", b"old")
    real = os.replace

    def full(source, target):
        if "objects" in str(target):
            raise OSError("no space left on device")
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            service.put("x", b"new")
    service.restart()
    assert service.read("x") == b"old"
    assert service.bucket.find("x").crc32c == crc32c(b"old")


def test_a_session_outlives_a_restart(service):
    data = os.urandom(3 * QUANTUM + 1000)
    session = service.open_session(total=len(data))
    service.send(session, data[: QUANTUM + 500])
    service.restart()
    session = service.uploads.session(session.id)
    assert session.size == QUANTUM
    service.send(session, data[QUANTUM:])
    stored = service.uploads.finish(session, Expected(crc32c=crc32c(data)))
    assert service.read("x") == data
    assert stored.fields == {"a": "b"}
    service.restart()
    assert service.uploads.session(session.id).generation == stored.generation


def test_a_kill_between_the_object_and_the_session(service):
    session = service.open_session()
    service.send(session, b"content")
    killed_at("replace", 3, lambda: service.uploads.finish(session, Expected()))
    service.restart()
    assert service.uploads.session(session.id).generation == service.bucket.find("x").generation


def test_a_session_ends(service, monkeypatch):
    cancelled, failed, old = (service.open_session() for _ in range(3))
    service.uploads.cancel(cancelled)
    service.send(failed, b"content")
    with pytest.raises(GcsError, match="doesn't match"):
        service.uploads.finish(failed, Expected(crc32c="AAAAAA=="))
    for session in (cancelled, failed):
        with pytest.raises(SessionGone):
            service.uploads.session(session.id)
    week = time.time() + 8 * 24 * 3600
    monkeypatch.setattr(time, "time", lambda: week)
    with pytest.raises(SessionGone):
        service.uploads.session(old.id)
    service.restart()
    assert service.files() == []


def test_a_multipart_upload_outlives_a_restart(service):
    upload = service.uploads.start_parts(service.bucket, "x", {})
    parts = []
    for number, data in ((1, bytes(5 << 20)), (2, b"replaced"), (2, b"end")):
        folder = service.uploads.parts_folder(service.bucket, "x", upload)
        parts.append(service.uploads.put_part(folder, number, [data], Expected()))
    service.restart()
    chosen = [(1, parts[0]["etag"]), (2, parts[2]["etag"])]
    folder = service.uploads.parts_folder(service.bucket, "x", upload)
    stored = service.uploads.complete_parts(service.bucket, folder, chosen)
    assert service.read("x") == bytes(5 << 20) + b"end"
    assert stored.crc32c == crc32c(bytes(5 << 20) + b"end")
    assert len(service.files()) == 2


def test_an_upload_id_is_no_path(service):
    (service.root / "bkt/uploads/x.parts").mkdir()
    with pytest.raises(GcsError):
        service.uploads.parts_folder(service.bucket, "x", "../uploads/x")


def test_a_deleted_bucket_comes_back_empty(service):
    session = service.open_session()
    service.store.delete_bucket("bkt")
    assert not (service.root / "bkt").exists()
    with pytest.raises(GcsError, match="bucket does not exist"):
        service.uploads.session(session.id)
    service.store.ensure_bucket("bkt")
    with pytest.raises(SessionGone):
        service.uploads.session(session.id)
    assert service.names() == []


def test_two_servers_do_not_share_a_folder(service):
    with pytest.raises(RootInUse, match="--root"):
        Store(service.root)
    log = service.root.parent / "log"
    with pytest.raises(process.EmulatorFailed, match="another storage emulator serves"):
        process.start("emulated_cloud.storage", "--root", str(service.root), log=log)


def test_a_real_kill(tmp_path):
    """kill -9 while four threads write and overwrite: what a restart finds is whole, and no older than was said."""
    from concurrent.futures import ThreadPoolExecutor

    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    confirmed: dict[str, int] = {}
    for round_number in range(3):
        options = ("--root", str(tmp_path / "root"), "--bucket", "bkt")
        emulator = process.start("emulated_cloud.storage", *options, log=tmp_path / "log")
        client = storage.Client("p", AnonymousCredentials(), client_options={"api_endpoint": emulator.url})

        written: list[str] = []

        def write(worker, bucket, written=written):
            for number in count():
                name = f"w{worker}/{number % 3}"
                blob = bucket.blob(name)
                try:
                    blob.upload_from_string(os.urandom(200_000), retry=None, timeout=60)
                except OSError:
                    return
                confirmed[name] = blob.generation
                written.append(name)

        with ThreadPoolExecutor(4) as pool:
            writers = [pool.submit(write, worker, client.bucket("bkt")) for worker in range(4)]
            wanted = 12 + 5 * round_number
            while len(set(written)) < 12 or len(written) < wanted:
                time.sleep(0.01)
            emulator.popen.kill()
            for writer in writers:
                writer.result()
        emulator.stop()
        client.close()

        store = Store(tmp_path / "root")
        Uploads(store)
        bucket = store.bucket("bkt")
        assert set(confirmed) <= set(bucket.objects)
        for name, stored in bucket.objects.items():
            with store.open(bucket, stored) as file:
                assert crc32c(file.read()) == stored.crc32c
            assert stored.generation >= confirmed.get(name, 0)
        store.close()
    assert len(confirmed) == 12


# -- caches -------------------------------------------------------------------------------------------------


def test_caches_outlive_their_server_and_one_in_the_making_is_made(service):
    for zone, state in (("us-central1-a", "CREATING"), ("us-central1-b", "DISABLED")):
        service.bucket.caches[zone] = {"zone": zone, "state": state}
    service.store.save_bucket(service.bucket)
    service.restart()
    states = {zone: cache["state"] for zone, cache in service.bucket.caches.items()}
    assert states == {"us-central1-a": "RUNNING", "us-central1-b": "DISABLED"}
