"""A transfer that is killed (-9) at any moment and run again: it completes, and sends little twice.

The bound: of a shard that was under way, no byte that the bucket had persisted (a multiple of 256 KiB) is sent again.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from serving import names
from serving.clients import storage
from serving.clients.upload import QUANTUM
from serving.weights import manifest
from tests.contract.test_download_weights import SHARDS, assert_whole
from tests.contract.transfer_site import GATED, MIB, TOKEN, Site, _site, folder, model, site

__all__ = ["_site", "folder", "model", "site"]

HELD: dict[str, dict[str, Any]] = {
    "before the first byte": {"method": "POST", "path": "uploadType=resumable"},
    "in a shard's first bytes": {"method": "PUT", "path": "upload_id=", "after_bytes": 100_000},
    "in the middle of a shard": {"method": "PUT", "path": "upload_id=", "after_bytes": 3 * MIB + 17},
    "at a shard's end": {"method": "PUT", "path": "upload_id=", "after_bytes": 6 * MIB - 5},
    "before the manifest": {"method": "POST", "path": "uploadType=multipart.*ifGenerationMatch=0", "after_bytes": 0},
}


def wait_until(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("held", HELD.values(), ids=HELD.keys())
def test_a_killed_transfer_is_gone_on_with(site: Site, model: str, folder: Path, held: dict[str, Any]):
    site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    shards = sum((folder / name).stat().st_size for name in SHARDS)
    before = len(site.requests("storage"))
    site.script("storage", {"action": "stall", "seconds": 60, "times": 2, **held})
    running = site.start_bringing(settings, release)
    wait_until(lambda: site.consumed("storage")[0] >= 1)
    time.sleep(0.3)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert running.stdout
    running.stdout.close()
    assert manifest.read(release.weights_uri) == (None, 0)
    site.script("storage")

    assert site.bring(settings, release) >= 0
    assert_whole(release.weights_uri, folder)
    puts = [entry for entry in site.requests("storage")[before:] if "upload_id" in entry["path"]]
    received = sum(entry["bytes_in"] for entry in puts)
    assert received - shards < len(SHARDS) * QUANTUM
    assert storage.list_uris(f"{settings.pipeline_root}/transfers/{names.place(settings)}/") == []


def test_no_token_no_session_and_no_signed_link_reaches_an_output(
    site: Site, folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """With a fault on each side, so that errors are spoken of, in a process whose whole output is read."""
    site.commit(GATED, folder)
    settings = site.settings(GATED)
    release = site.release(settings, token=TOKEN)
    site.script("hub", {"action": "reset", "method": "GET", "path": "^/cdn/", "after_bytes": 2 * MIB})
    site.script(
        "storage",
        {"action": "status", "status": 503, "method": "PUT", "path": "upload_id="},
        {"action": "reset", "method": "PUT", "path": "upload_id=", "after_bytes": MIB},
        {"action": "corrupt", "method": "PUT", "path": "upload_id=", "after_bytes": MIB, "times": 50},
    )
    running = site.start_bringing(settings, release, 1, token=TOKEN)
    output, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert "GCS refused the bytes" in output
    assert site.consumed("hub") == [1]
    assert site.consumed("storage")[:2] == [1, 1]
    sessions = [
        json.dumps(storage.read_json(uri))
        for uri in storage.list_uris(f"{settings.pipeline_root}/transfers/{names.place(settings)}/")
    ]
    assert sessions
    assert all("upload_id=" in session for session in sessions)
    logs = "".join((site.root / f"{name}.log").read_text() for name in ("hub", "storage"))
    for emulator in ("hub", "storage"):
        logs += json.dumps(site.requests(emulator))
    for text in (output, logs, "".join(capfd.readouterr()), caplog.text):
        assert TOKEN not in text
        assert "upload_id=A" not in text.replace("upload_id=REDACTED", "")
        assert "Signature=" not in text.replace("Signature=\\u2026", "")
        for session in sessions:
            assert json.loads(session)["session"].rpartition("upload_id=")[2] not in text
