"""Files above 50 GB, and a machine that has no room for any.

huggingface_hub's own downloader refuses above 50 GB what it gets without xet; ours never goes through it. Shown are: a
file above that limit, the limit lowered to where this machine has room; the protocol at 60 GB with files that are
holes but for their ends (what the hub is asked for, what the bucket is told, what the manifest and its verification say
of it). Not shown is 60 GB on their way from the first byte to the last: nothing in the mover knows a size but by
numbers that Python does not limit, and its memory does not grow with them (tests/bench/transfer.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulated_cloud import process

from components.download_weights.verification import verify
from serving.clients import hub, storage
from serving.clients.digest import ServedFile
from serving.clients.upload import QUANTUM, Upload
from serving.clients.wire import Wire, pieces
from serving.weights import manifest
from tests.contract.test_download_weights import assert_whole
from tests.contract.transfer_site import MIB, Site, _site, folder, model, site

__all__ = ["_site", "folder", "model", "site"]

SIZE = 60_000_000_123
"""Bytes: above 50 GB, and no multiple of anything."""
TAIL = os.urandom(3 * MIB + 123)


def sparse(path: Path) -> None:
    """A file of SIZE bytes whose last are TAIL, the rest a hole."""
    with open(path, "wb") as file:
        file.truncate(SIZE)
        file.seek(SIZE - len(TAIL))
        file.write(TAIL)
    if path.stat().st_blocks * 512 > 100 * MIB:
        pytest.skip(f"{path.parent} has no sparse files")


def test_what_the_hubs_own_client_refuses_as_too_large_is_moved(
    site: Site, model: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from huggingface_hub import constants, hf_hub_download

    monkeypatch.setattr(constants, "MAX_HTTP_DOWNLOAD_SIZE", 5_000_000)
    site.commit(model, folder)
    with pytest.raises(ValueError, match="too large to be downloaded"):
        hf_hub_download(
            model, "model-00001-of-00002.safetensors", endpoint=site.url("hub"), local_dir=tmp_path, token=False
        )
    settings = site.settings(model)
    release = site.release(settings)
    site.bring(settings, release)
    assert_whole(release.weights_uri, folder)


def test_the_end_of_a_file_of_60_gb_is_asked_of_the_hub(site: Site, model: str, tmp_path: Path):
    source = tmp_path / "release" / "model.safetensors"
    source.parent.mkdir()
    sparse(source)
    # The digests are made up: nobody reads 60 GB here, neither the emulator to make them nor we to check.
    stat = source.stat()
    known = site.root / "hub" / "hashes.json"
    known.parent.mkdir(exist_ok=True)
    before = json.loads(known.read_bytes()) if known.exists() else {}
    entry = {"state": [stat.st_size, stat.st_mtime_ns], "digests": ["ab" * 32, "cd" * 20]}
    known.write_text(json.dumps({**before, str(source.resolve()): entry}))
    snapshot = hub.Hub().at(model, site.commit(model, source.parent))
    (file,) = snapshot.files()
    assert file == ServedFile("model.safetensors", SIZE, "ab" * 32, file.blob_id)
    first = SIZE - len(TAIL) + 1
    wire = Wire()
    answer = snapshot.open(wire, file, first)
    assert answer.headers["Content-Range"] == f"bytes {first}-{SIZE - 1}/{SIZE}"
    assert b"".join(pieces(wire, answer, SIZE - first)) == TAIL[1:]
    wire.close()


def test_an_upload_of_60_gb_goes_on_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The emulator wakes up with a session of which it holds all but the last megabytes."""
    arguments = ("--root", str(tmp_path / "buckets"), "--bucket", "demo-bucket")
    uri = f"gs://demo-bucket/models/org/large/{'a' * 16}"
    emulator = process.start("emulated_cloud.storage", *arguments, log=tmp_path / "storage.log")
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        session = storage.open_upload(
            f"{uri}/model.safetensors", SIZE, content_type="application/octet-stream", metadata={}
        )
        address = emulator.url
    finally:
        emulator.stop()
    (data,) = (tmp_path / "buckets" / "demo-bucket" / "uploads").glob("*.data")
    sparse(data)
    held = (SIZE - len(TAIL)) // QUANTUM * QUANTUM
    os.truncate(data, held)
    emulator = process.start("emulated_cloud.storage", *arguments, log=tmp_path / "storage.log")
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulator.url)
        wire = Wire()
        upload = Upload(wire, f"{uri}/model.safetensors", session.replace(address, emulator.url), SIZE)
        assert upload.persisted() == held
        rest = bytes(SIZE - len(TAIL) - held) + TAIL
        middle = upload.last_part - held
        assert upload.last_part % QUANTUM == 0
        assert SIZE - QUANTUM <= upload.last_part < SIZE
        assert upload.send(held, upload.last_part, [rest[:middle]]) == upload.last_part
        stored = upload.finish(upload.last_part, rest[middle:], None)
        wire.close()
        assert stored == storage.stat(f"{uri}/model.safetensors")
        assert not isinstance(stored, int)
        assert stored.size == SIZE
        file = manifest.File(
            path="model.safetensors", size=SIZE, sha256="", crc32c=stored.crc32c, generation=stored.generation
        )
        manifest.write(uri, manifest.Manifest(weights_key="a" * 16, repositories=[], files=[file]))
        verdict = verify(uri)
        assert (verdict.bytes, verdict.differences) == (SIZE, [])
    finally:
        emulator.stop()


# -- no room ------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_no_byte_does_not_matter(site: Site, model: str, folder: Path):
    """No process may make any file longer than 0 bytes here, and there is no temporary folder to make one in."""
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    code = (
        "import json, resource, signal, sys\n"
        "from components.download_weights.step import bring\n"
        "from serving.weights.release import Release\n"
        "from serving.settings import Settings\n"
        "settings, release = json.load(sys.stdin)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try:\n"
        "    open('/tmp/' + sys.argv[1], 'wb', buffering=0).write(b'x')\n"
        "except OSError as error:\n"
        "    print(error)\n"
        "bring(Settings(**settings), Release(**release), print)\n"
    )
    probe = f"no-room-{os.getpid()}-{time.monotonic_ns()}"
    nowhere = dict.fromkeys(("TMPDIR", "HOME", "HF_HOME", "XDG_CACHE_HOME"), "/nonexistent")
    try:
        child = subprocess.run(
            [sys.executable, "-c", code, probe],
            input=json.dumps([settings.model_dump(mode="json"), release.model_dump()]),
            capture_output=True,
            text=True,
            env={**site.environment, **nowhere, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=60,
        )
    finally:
        Path("/tmp", probe).unlink(missing_ok=True)
    assert child.returncode == 0, child.stderr
    assert "File too large" in child.stdout, "the limit did not hold"
    assert_whole(release.weights_uri, folder)
