"""The storage contract as a mount keeps it: what gcsfuse makes of names, pages, ranges, generations and faults.

test_gcsfuse.py runs this in a mount namespace. With GCS_CONTRACT_ENDPOINT (tests/contract/storage_service.py) it mounts
a bucket of that service, to which nobody has to log in.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.kubernetes.gke.gcsfuse import Mount
from emulated_cloud.real.gcsfuse import GcsFuseMounter

from tests.contract.storage_service import Gcs, emulator, gcs, gcs_service, prefix

__all__ = ["emulator", "gcs", "gcs_service", "prefix"]

# A file is looked at again whenever it is opened.
FRESH = ["implicit-dirs", "metadata-cache:ttl-secs:0"]
# gcsfuse reads bytes by the XML API, and everything else by the JSON API.
READS = {"method": "GET", "path": r"^/[^/]+/.*[?&]generation="}
Mounting = Callable[..., Path]


@pytest.fixture
def mounted(gcs: Gcs, prefix: str, tmp_path: Path) -> Iterator[Mounting]:
    """Mounts the test's own prefix of the bucket, with options."""
    mounter = GcsFuseMounter(gcs.endpoint, tmp_path / "gcsfuse")
    targets: list[Path] = []

    def mount(*options: str) -> Path:
        targets.append(tmp_path / f"mount {len(targets)}")
        said = [*FRESH, f"only-dir:{prefix.rstrip('/')}", *options]
        asyncio.run(mounter.mount(Mount(gcs.bucket.name, "", said, True, targets[-1])))
        return targets[-1]

    yield mount
    for target in targets:
        asyncio.run(mounter.unmount(target))


def put(gcs: Gcs, name: str, data: bytes) -> Any:
    blob = gcs.bucket.blob(name)
    blob.upload_from_string(data)
    return blob


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


NAMES = [
    "plain.txt",
    "with space.bin",
    "한글-ünïcode.json",
    "percent%20sign",
    "a+b&c=d;e?f#g.txt",
    "nested/deep er/file.safetensors",
    "empty",
]


def test_every_name_is_there_with_its_bytes(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    contents = {name: b"" if name == "empty" else noise(100 + index) for index, name in enumerate(NAMES)}
    for name, data in contents.items():
        put(gcs, prefix + name, data)
    root = mounted()
    found = {
        str(path.relative_to(root)): path.read_bytes()
        for folder, _, files in os.walk(root)
        for path in (Path(folder) / file for file in files)
    }
    assert found == contents
    assert found == {
        blob.name.removeprefix(prefix): blob.download_as_bytes()
        for blob in gcs.client.list_blobs(gcs.bucket, prefix=prefix)
    }
    assert {name: (root / name).stat().st_size for name in contents} == {
        name: len(data) for name, data in contents.items()
    }
    assert (root / "nested" / "deep er").is_dir()


def test_a_folder_of_many_objects_is_listed_whole(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    """More than a page; folders that only names imply are among them."""
    names = [f"{'folder/' if index % 2 else ''}{index:04}" for index in range(2100)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(gcs, prefix + name, b""), names))
    root = mounted()
    assert sorted(os.listdir(root)) == sorted({name.split("/")[0] for name in names})
    assert len(os.listdir(root / "folder")) == 1050
    if gcs.emulated:
        pages = [entry["path"] for entry in gcs.requests() if "delimiter=%2F" in entry["path"]]
        assert any(re.search("pageToken=[^&]", path) for path in pages), pages


def test_any_range_of_a_file_can_be_read(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    data = noise(9 * 2**20 + 13)
    put(gcs, f"{prefix}file", data)
    file = os.open(mounted() / "file", os.O_RDONLY)
    try:
        for offset, size in ((0, 1), (1, 7), (4095, 2), (2**20 - 1, 2**20 + 3), (len(data) - 5, 100), (3, 2**17)):
            assert os.pread(file, size, offset) == data[offset : offset + size]
        assert os.pread(file, 10, len(data)) == os.pread(file, 10, len(data) + 1000) == b""
    finally:
        os.close(file)


@pytest.mark.parametrize("cache", [[], ["file-cache:max-size-mb:-1", "file-cache:enable-parallel-downloads:true"]])
def test_a_large_file_is_read_by_many_at_once(gcs: Gcs, prefix: str, mounted: Mounting, cache: list[str]) -> None:
    data = noise(48 * 2**20 + 1)
    put(gcs, f"{prefix}file", data)
    path = mounted(*cache) / "file"

    def read(part: int) -> str:
        with open(path, "rb") as file:
            file.seek(part * 12 * 2**20)
            return hashlib.sha256(file.read(12 * 2**20)).hexdigest()

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(read, range(4)))
    assert found == [hashlib.sha256(data[part * 12 * 2**20 :][: 12 * 2**20]).hexdigest() for part in range(4)]


def test_a_file_that_is_replaced_is_never_read_half_and_half(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    before, after = noise(64 * 2**20), noise(2**20)
    put(gcs, f"{prefix}file", before)
    path = mounted() / "file"
    with open(path, "rb", buffering=0) as file:
        assert os.pread(file.fileno(), 10, 0) == before[:10]
        put(gcs, f"{prefix}file", after)
        # Its generation is gone, and gcsfuse reads none other under an open file.
        with pytest.raises(OSError, match="Stale file handle"):
            os.pread(file.fileno(), 10, 63 * 2**20)
    assert path.read_bytes() == after


def test_what_is_not_there_is_not_found(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    blob = put(gcs, f"{prefix}file", b"x")
    root = mounted()
    with pytest.raises(FileNotFoundError):
        (root / "other").read_bytes()
    assert (root / "file").read_bytes() == b"x"
    blob.delete()
    with pytest.raises(FileNotFoundError):
        (root / "file").read_bytes()


def test_nothing_can_be_written(gcs: Gcs, prefix: str, mounted: Mounting) -> None:
    put(gcs, f"{prefix}file", b"x")
    root = mounted()
    for write in (lambda: (root / "new").write_bytes(b""), lambda: (root / "file").unlink()):
        with pytest.raises(OSError, match="Read-only file system"):
            write()


@pytest.mark.parametrize(
    "fault",
    [
        {"action": "status", "status": 503, "times": 2},
        {"action": "status", "status": 429, "times": 2},
        {"action": "reset", "after_bytes": 100_000},
        {"action": "truncate", "after_bytes": 3 * 2**20},
    ],
    ids=lambda fault: f"{fault['action']}-{fault.get('status', '')}",
)
def test_what_passes_is_tried_again(emulator: Gcs, prefix: str, mounted: Mounting, fault: dict[str, Any]) -> None:
    data = noise(5 * 2**20)
    put(emulator, f"{prefix}file", data)
    path = mounted() / "file"
    emulator.script({**fault, **READS})
    assert path.read_bytes() == data
    assert emulator.consumed() == [fault.get("times", 1)]


def test_what_is_forbidden_is_asked_for_twice(emulator: Gcs, prefix: str, mounted: Mounting) -> None:
    put(emulator, f"{prefix}file", b"x")
    path = mounted() / "file"
    emulator.script({"action": "status", "status": 403, "times": 2, **READS})
    with pytest.raises(OSError, match="Permission denied"):
        path.read_bytes()
    assert emulator.consumed() == [2]
    assert path.read_bytes() == b"x"
