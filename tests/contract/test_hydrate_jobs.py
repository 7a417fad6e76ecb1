"""The Jobs of a volume, run as their pods run them: what they leave on a disk, whatever happens."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.clients import storage
from serving.weights import manifest
from serving.weights.manifest import File, Manifest, Repository
from tests.contract.transfer_site import MIB, Site, _site, site

__all__ = ["_site", "site"]

SIZES = {
    "model-00001-of-00002.safetensors": 3 * MIB + 17,
    "model-00002-of-00002.safetensors": 2 * MIB,
    "config.json": 700,
    "empty.txt": 0,
    "adapters/one/adapter_model.safetensors": MIB + 1,
}
SHARD, ADAPTER = "model-00001-of-00002.safetensors", "adapters/one/adapter_model.safetensors"
CONTENT = {path: random.Random(path).randbytes(size) for path, size in SIZES.items()}


@pytest.fixture
def weights_uri(site: Site, tmp_path: Path) -> str:
    """Complete weights in the bucket."""
    return put(f"gs://demo-bucket/models/test/{tmp_path.name}/0123456789abcdef", CONTENT)


def put(weights_uri: str, content: dict[str, bytes]) -> str:
    files = []
    for path, data in content.items():
        stored = storage.write_bytes(f"{weights_uri}/{path}", data, content_type="application/octet-stream")
        digest = hashlib.sha256(data).hexdigest()
        files.append(File(path=path, size=len(data), sha256=digest, crc32c=stored.crc32c, generation=stored.generation))
    repositories = [Repository(model="test/model", commit="c" * 40)]
    manifest.write(
        weights_uri, Manifest(weights_key=weights_uri.rpartition("/")[2], repositories=repositories, files=files)
    )
    return weights_uri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty volume, with what its file system keeps for itself."""
    (tmp_path / "volume" / "lost+found").mkdir(parents=True)
    (tmp_path / "volume" / "lost+found").chmod(0)
    return tmp_path / "volume"


def start(site: Site, task: str, weights_uri: str, folder: Path, **plan: Any) -> subprocess.Popen[str]:
    text = json.dumps({"weights_uri": weights_uri, "folder": str(folder), **plan})
    return subprocess.Popen(
        [sys.executable, "-m", "components.hydrate_volume", task, text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=site.environment,
    )


def run(site: Site, task: str, weights_uri: str, folder: Path, **plan: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr)."""
    running = start(site, task, weights_uri, folder, **plan)
    out, err = running.communicate(timeout=60)
    return running.returncode, out, err


def done(site: Site, task: str, weights_uri: str, folder: Path, **plan: Any) -> dict[str, Any]:
    """The result of a Job that succeeds."""
    code, out, err = run(site, task, weights_uri, folder, **plan)
    assert (code, err) == (0, ""), out + err
    found = json.loads(out.splitlines()[-1])
    assert isinstance(found, dict)
    assert found.pop("seconds") >= 0
    return found


def read(site: Site) -> list[str]:
    """The files that were asked for since the last question, but the manifest."""
    asked = [entry["path"] for entry in site.requests("storage") if "alt=media" in entry["path"]]
    return [path for path in asked if manifest.NAME not in path]


def assert_whole(weights_uri: str, folder: Path) -> None:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    text = found.pop(manifest.NAME).read_bytes()
    assert {path: file.read_bytes() for path, file in found.items()} == CONTENT
    assert text == storage.read_bytes(manifest.uri(weights_uri))
    assert (folder / "lost+found").is_dir()


COPIED = {"files": len(SIZES), "bytes": sum(SIZES.values()), "kept": 0}


# -- copying ------------------------------------------------------------------------------------------------


def test_a_volume_is_filled_and_a_second_time_only_read(site: Site, weights_uri: str, folder: Path):
    assert done(site, "copy", weights_uri, folder) == COPIED
    assert_whole(weights_uri, folder)
    asked = len(read(site))
    assert done(site, "copy", weights_uri, folder) == {**COPIED, "kept": len(SIZES)}
    assert len(read(site)) == asked
    assert_whole(weights_uri, folder)


def test_other_users_may_read_whatever_the_mask_is(site: Site, weights_uri: str, folder: Path):
    before = os.umask(0o077)
    try:
        done(site, "copy", weights_uri, folder)
    finally:
        os.umask(before)
    assert all((folder / path).stat().st_mode & 0o777 == 0o644 for path in (*SIZES, manifest.NAME))
    assert (folder / ADAPTER).parent.stat().st_mode & 0o777 == 0o755


def test_what_an_older_attempt_left_goes_and_what_is_right_stays(site: Site, weights_uri: str, folder: Path):
    (folder / SHARD).write_bytes(CONTENT[SHARD])
    kept = (folder / SHARD).stat().st_ino
    (folder / "config.json").write_bytes(bytes(SIZES["config.json"]))  # The right size and nothing else.
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"short")
    (folder / f"{SHARD}.part").write_bytes(b"part")
    (folder / "empty.txt" / "folder").mkdir(parents=True)
    (folder / "adapters").symlink_to("/etc")
    (folder / os.fsdecode(b"old-\xff")).write_bytes(b"no text")
    (folder / manifest.NAME).write_text("{}")
    assert done(site, "copy", weights_uri, folder) == {**COPIED, "kept": 1}
    assert_whole(weights_uri, folder)
    assert (folder / SHARD).stat().st_ino == kept
    assert not (folder / "adapters").is_symlink()


FAULTS: dict[str, dict[str, Any]] = {
    "a connection that breaks": {"action": "reset", "after_bytes": 2 * MIB + 5},
    "an answer that ends early": {"action": "truncate", "after_bytes": MIB},
    "a bucket that is busy": {"action": "status", "status": 503, "times": 2},
    "bytes that change on the way": {"action": "corrupt", "after_bytes": MIB, "times": 2},
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_what_heals_is_tried_again(site: Site, weights_uri: str, folder: Path, fault: dict[str, Any]):
    site.script("storage", {"method": "GET", "path": SHARD, **fault})
    assert done(site, "copy", weights_uri, folder) == COPIED
    assert site.consumed("storage") == [fault.get("times", 1)]
    assert_whole(weights_uri, folder)


def test_a_broken_download_goes_on_where_it_broke(site: Site, weights_uri: str, folder: Path):
    before = len(site.requests("storage"))
    site.script("storage", {"action": "truncate", "after_bytes": 2 * MIB + 5, "method": "GET", "path": SHARD})
    done(site, "copy", weights_uri, folder)
    assert site.consumed("storage") == [1]
    asked = [entry for entry in site.requests("storage")[before:] if "alt=media" in entry["path"]]
    answers = [entry for entry in asked if SHARD in entry["path"]]
    assert [entry["status"] for entry in answers] == [200, 206]
    assert sum(entry["bytes_out"] for entry in answers) == SIZES[SHARD]


def test_bytes_that_stay_wrong_leave_no_file(site: Site, weights_uri: str, folder: Path):
    site.script("storage", {"action": "corrupt", "method": "GET", "path": SHARD, "times": 3})
    code, out, err = run(site, "copy", weights_uri, folder)
    assert site.consumed("storage") == [3]
    assert code == 1
    assert f"{weights_uri}/{SHARD} arrived with other bytes 3 times: sha256 " in err
    assert f"gemma-pipelines verify-weights --read {weights_uri}" in err
    assert out.count(f"{SHARD} arrived with other bytes") == 3
    assert not [path for path in os.listdir(folder) if path.startswith((SHARD, manifest.NAME))]
    site.script("storage")
    done(site, "copy", weights_uri, folder)
    assert_whole(weights_uri, folder)


@pytest.mark.parametrize("ended_by", [signal.SIGKILL, signal.SIGTERM])
def test_a_copy_that_is_killed_is_gone_on_with(site: Site, weights_uri: str, folder: Path, ended_by: signal.Signals):
    site.script("storage", {"action": "stall", "seconds": 60, "method": "GET", "path": SHARD, "after_bytes": 2 * MIB})
    running = start(site, "copy", weights_uri, folder, threads=1)
    wait_until(lambda: site.consumed("storage") == [1])
    running.send_signal(ended_by)
    running.communicate(timeout=120)
    # The first process of a container gets no signal that it does not handle: it has to end by itself.
    assert running.returncode == (-signal.SIGKILL if ended_by is signal.SIGKILL else 128 + signal.SIGTERM)
    assert (folder / f"{SHARD}.part").stat().st_size == SIZES[SHARD]
    assert not (folder / manifest.NAME).exists()
    assert not (folder / SHARD).exists()
    site.script("storage")
    assert done(site, "copy", weights_uri, folder) == COPIED
    assert_whole(weights_uri, folder)


def test_what_a_killed_copy_had_brought_is_kept(site: Site, weights_uri: str, folder: Path):
    # The largest goes first, so three are whole when the second smallest hangs.
    site.script("storage", {"action": "stall", "seconds": 60, "method": "GET", "path": "config.json", "after_bytes": 5})
    running = start(site, "copy", weights_uri, folder, threads=1)
    wait_until(lambda: site.consumed("storage") == [1])
    running.kill()
    running.communicate(timeout=120)
    site.script("storage")
    assert done(site, "copy", weights_uri, folder) == {**COPIED, "kept": 3}
    assert_whole(weights_uri, folder)


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_two_never_write_one_volume(site: Site, weights_uri: str, folder: Path):
    fd = os.open(folder, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    code, _, err = run(site, "copy", weights_uri, folder, patience_seconds=0)
    assert (code, "another process copies onto it" in err) == (1, True)
    os.close(fd)
    done(site, "copy", weights_uri, folder, patience_seconds=0)


@pytest.fixture
def small_volume(folder: Path) -> Iterator[Path]:
    """A file system that has room for one of the shards."""
    if os.geteuid():
        pytest.skip("only root may mount")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_volume_too_small_says_so_before_a_byte_moves(site: Site, weights_uri: str, small_volume: Path):
    asked = len(read(site))
    code, _, err = run(site, "copy", weights_uri, small_volume)
    assert code == 1
    needed, room = sum(SIZES.values()), 4 * MIB
    assert f"is too small: {needed} bytes are to be copied, and {room} bytes of {room} are free. Make" in err
    assert len(read(site)) == asked
    assert os.listdir(small_volume) == ["adapters"] or not os.listdir(small_volume)


def test_memory_does_not_grow_with_the_model(site: Site, folder: Path, tmp_path: Path):
    """64 MB, eight files of 16 MiB at once; the interpreter and its libraries are most of it."""
    data = random.Random(1).randbytes(16 * MIB)
    weights_uri = put(
        f"gs://demo-bucket/models/test/{tmp_path.name}/fedcba9876543210", {f"f{n}": data for n in range(8)}
    )
    # A process of its own starts it: what the starter has counts as the started one's, too.
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)\n"
    )
    plan = json.dumps({"weights_uri": weights_uri, "folder": str(folder)})
    for task in ("copy", "verify"):
        command = [sys.executable, "-c", code, sys.executable, "-m", "components.hydrate_volume", task, plan]
        peak = int(subprocess.run(command, check=True, capture_output=True, env=site.environment).stdout)
        assert peak <= 64_000_000


# -- what stands in the way ---------------------------------------------------------------------------------


def test_no_manifest_no_copy(site: Site, weights_uri: str, folder: Path):
    storage.delete(manifest.uri(weights_uri))
    for task in ("copy", "verify"):
        code, _, err = run(site, task, weights_uri, folder)
        assert (code, err) == (1, f"no complete weights at {weights_uri}: there is no {manifest.NAME}\n")


def test_a_pod_without_access_waits_and_names_the_role(site: Site, weights_uri: str, folder: Path):
    denied = {"action": "status", "status": 403, "method": "GET", "path": manifest.NAME}
    site.script("storage", {**denied, "times": 2})
    assert done(site, "copy", weights_uri, folder)["files"] == len(SIZES)
    assert site.consumed("storage") == [2]
    site.script("storage", denied)
    code, _, err = run(site, "verify", weights_uri, folder, patience_seconds=0)
    assert site.consumed("storage") == [1]
    assert code == 1
    assert "this pod may not read it" in err
    assert "needs roles/storage.objectViewer on the bucket, which ensure_access binds" in err


def test_an_object_that_was_written_again_is_not_copied(site: Site, weights_uri: str, folder: Path):
    storage.write_bytes(f"{weights_uri}/{SHARD}", b"another", content_type="application/octet-stream")
    code, _, err = run(site, "copy", weights_uri, folder)
    assert (code, f"{weights_uri}/{SHARD} is not the object of its manifest any more" in err) == (1, True)
    assert not (folder / manifest.NAME).exists()


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../b", "model.part", "a//b"])
def test_a_manifest_never_leads_out_of_the_folder(site: Site, weights_uri: str, folder: Path, path: str):
    text = storage.read_json(manifest.uri(weights_uri))
    assert text
    text["files"][0]["path"] = path
    storage.write_json(manifest.uri(weights_uri), text)
    code, _, err = run(site, "copy", weights_uri, folder)
    assert (code, f"names {path!r}, which is no file of weights" in err) == (1, True)
    assert os.listdir(folder) == ["lost+found"]


def test_a_volume_that_is_not_mounted(site: Site, weights_uri: str, folder: Path):
    for task in ("copy", "verify"):
        code, _, err = run(site, task, weights_uri, folder / "none")
        assert (code, f"Is the volume mounted at {folder}/none?" in err) == (1, True)


# -- reading ------------------------------------------------------------------------------------------------


def missing(folder: Path) -> str:
    (folder / ADAPTER).unlink()
    return f"{ADAPTER} is missing"


def shorter(folder: Path) -> str:
    os.truncate(folder / SHARD, 5)
    return f"{SHARD} has 5 bytes instead of {SIZES[SHARD]}"


def a_bit(folder: Path) -> str:
    data = bytearray(CONTENT[SHARD])
    data[-1] ^= 1
    (folder / SHARD).write_bytes(data)
    digests = (hashlib.sha256(content).hexdigest() for content in (data, CONTENT[SHARD]))
    return f"{SHARD} reads otherwise: sha256 {next(digests)} instead of {next(digests)}"


def stray(folder: Path) -> str:
    (folder / "old" / "x").mkdir(parents=True)
    (folder / "old" / "x" / f"{SHARD}.part").write_bytes(b"")
    return f"old/x/{SHARD}.part is not in the manifest"


def link(folder: Path) -> str:
    (folder / "linked").symlink_to(SHARD)
    return "linked is not in the manifest"


@pytest.mark.parametrize("damage", [missing, shorter, a_bit, stray, link])
def test_what_differs_on_a_disk_is_a_verdict(site: Site, weights_uri: str, folder: Path, damage: Callable[[Path], str]):
    done(site, "copy", weights_uri, folder)
    whole = {"files": len(SIZES), "bytes": sum(SIZES.values())}
    assert done(site, "verify", weights_uri, folder) == {"passed": True, "reasons": [], **whole}
    words = damage(folder)
    assert done(site, "verify", weights_uri, folder) == {"passed": False, "reasons": [words], **whole}


def test_a_disk_of_another_model_is_told_in_twenty_lines(site: Site, weights_uri: str, folder: Path):
    for number in range(30):
        (folder / f"other-{number}").write_bytes(b"x")
    found = done(site, "verify", weights_uri, folder)
    assert not found["passed"]
    assert len(found["reasons"]) == 21
    assert found["reasons"][-1] == f"and {30 + len(SIZES) - 20} more"
