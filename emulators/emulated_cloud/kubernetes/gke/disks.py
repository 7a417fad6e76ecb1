"""Compute Engine's disks and images, as far as volumes need them: folders that outlive the cluster.

DISKS/<disk>/<zone>/          what is on the disk, as its file system shows it
DISKS/<disk>/<zone>.json      what it is; there once the disk is whole
DISKS/.images/<image>/        what was on the disk that an image was made of, and <image>.json

A copy for reading shares its files with the image (hard links): it costs nothing, and nobody writes to it. A copy that
somebody may write to is one of bytes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from emulated_cloud.kubernetes.gke.disk_faults import DiskFaults

GIB = 2**30


@dataclass(frozen=True)
class Disk:
    """A zonal disk. `throughput` in MiB/s and `iops` are 0 where the type has none to set."""

    name: str
    zone: str
    type: str
    size_gb: int
    access_mode: str = "READ_WRITE_SINGLE"
    throughput: int = 0
    iops: int = 0
    kms_key: str = ""
    source_image: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    writer: str = ""
    """The machine that has it to write to."""
    open_journal: bool = False
    """Its file system is as one that was pulled out: somebody has to write to it before it can be read."""


@dataclass(frozen=True)
class Image:
    """What an image or a snapshot knows of the disk that it was made of."""

    name: str
    source_disk: str
    size_gb: int
    created: float
    open_journal: bool = False
    """The disk was some machine's when it was made."""


class Disks:
    """All disks and images of the project. Every change is whole or has not happened, whenever the process ends."""

    def __init__(self, root: Path, faults: DiskFaults):
        self._root, self._faults = root.absolute(), faults
        self._images = self._root / ".images"

    # -- disks ----------------------------------------------------------------------------------------------

    def folder(self, name: str, zone: str) -> Path:
        return self._root / name / zone

    def get(self, name: str, zone: str) -> Disk | None:
        path = self._description(name, zone)
        return Disk(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def zones_of(self, name: str) -> list[str]:
        """The zones that have a disk of this name."""
        return sorted(path.stem for path in (self._root / name).glob("*.json"))

    def insert(self, disk: Disk) -> None:
        """Makes a disk: from `source_image`, else with a new file system."""
        folder = self.folder(disk.name, disk.zone)
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        if disk.source_image:
            _copy(self._images / disk.source_image, folder, links=disk.access_mode == "READ_ONLY_MANY")
            self._corrupt(folder, disk.zone)
        else:
            folder.mkdir()
            # What mkfs.ext4 leaves in every new file system.
            (folder / "lost+found").mkdir(mode=0o700)
        self.describe(disk)

    def describe(self, disk: Disk) -> None:
        _write(self._description(disk.name, disk.zone), asdict(disk))

    def set_access_mode(self, disk: Disk, mode: str) -> None:
        self.describe(replace(disk, access_mode=mode))

    def fill(self, name: str, zone: str, source: Path, path: str, filled: str = "") -> None:
        """Copies a folder into `path` on a disk: bytes of the source, or links to those on the disk of this name in a
        zone that is filled already. Where one zone's are to be wrong, each has its own."""
        target = self.folder(name, zone) / path
        target.mkdir(parents=True, exist_ok=True)
        if not source.is_dir():
            raise FileNotFoundError(f"there is nothing in {source}")
        links = bool(filled) and not self._faults.is_scripted("corrupt")
        _copy(self.folder(name, filled) / path if links else source, target, links)
        self._corrupt(self.folder(name, zone), zone)

    def delete(self, name: str, zone: str) -> None:
        self._description(name, zone).unlink(missing_ok=True)
        shutil.rmtree(self.folder(name, zone), ignore_errors=True)
        folder = self._root / name
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()

    def _corrupt(self, folder: Path, zone: str) -> None:
        """Flips a byte in the middle of the largest file, if that is scripted; the other copies stay as they are."""
        files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
        if not files or not self._faults.take("corrupt", zone):
            return
        largest = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[len(data) // 2] ^= 1
        owner = largest.stat()
        largest.unlink()
        largest.write_bytes(data)
        os.chmod(largest, owner.st_mode)
        os.chown(largest, owner.st_uid, owner.st_gid)

    def _description(self, name: str, zone: str) -> Path:
        return self._root / name / f"{zone}.json"

    # -- images ---------------------------------------------------------------------------------------------

    def image(self, name: str) -> Image | None:
        path = self._images / f"{name}.json"
        return Image(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None

    def insert_image(self, image: Image, disk: Disk) -> None:
        """Takes the disk as it is now."""
        folder = self._images / image.name
        shutil.rmtree(folder, ignore_errors=True)
        self._images.mkdir(parents=True, exist_ok=True)
        _copy(self.folder(disk.name, disk.zone), folder, links=False)
        _write(self._images / f"{image.name}.json", asdict(image))

    def delete_image(self, name: str) -> None:
        (self._images / f"{name}.json").unlink(missing_ok=True)
        shutil.rmtree(self._images / name, ignore_errors=True)


def _write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)


def _copy(source: Path, target: Path, links: bool) -> None:
    """Copies a folder's contents, with owners, modes and times."""
    target.mkdir(exist_ok=True)
    command = ["cp", "-af", *(["--link"] if links else []), f"{source}/.", f"{target}/"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode:
        raise OSError(f"copying {source} to {target}: {done.stderr.strip()}")
