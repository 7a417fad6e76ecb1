"""What the Jobs of a volume share: their plan, the manifest in the bucket, and the volume's folder."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field

from serving.clients.patience import DEFAULT
from serving.errors import InconclusiveError, PipelineError, RequestError
from serving.progress import Passed
from serving.values import in_seconds
from serving.weights import manifest
from serving.weights.manifest import Manifest

PIECE = 256 << 10
"""Bytes read at a time."""
FORGOTTEN_AFTER = 64 << 20
"""Bytes of a file that the page cache may hold: it counts as the pod's memory."""
PART = ".part"
"""Ends the name of a file that is not whole yet."""
_OF_THE_FILE_SYSTEM = "lost+found"


class Plan(BaseModel):
    """What a Job of a volume is to do."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights_uri: str
    """`gs://BUCKET/models/ORG/NAME/KEY`: complete weights, read as the pod's service account."""
    folder: str
    """Where the volume is mounted."""
    threads: int = Field(default=8, ge=1, le=8)
    """Files at once."""
    patience_seconds: float = Field(default=in_seconds(DEFAULT), ge=0)
    """How long a bucket that is away, or not open to this pod yet, is waited for."""


def manifest_of(plan: Plan) -> tuple[Manifest, bytes]:
    """The manifest of the weights, read and as it is stored. Raises RequestError when there is none, or it names what
    no folder can hold, InconclusiveError when this pod may not read it."""
    known, text = manifest.read_through(plan.weights_uri)
    for file in known.files:
        path = PurePosixPath(file.path)
        if str(path) != file.path or path.is_absolute() or ".." in path.parts or path.name.endswith(PART):
            raise RequestError(f"{manifest.uri(plan.weights_uri)} names {file.path!r}, which is no file of weights")
    return known, text


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk over a volume, errors raised. What the file system keeps for itself is left out: it is nobody else's."""

    def fail(error: OSError) -> None:
        raise error

    for root, folders, files in os.walk(folder, onerror=fail):
        if Path(root) == folder and _OF_THE_FILE_SYSTEM in folders:
            folders.remove(_OF_THE_FILE_SYSTEM)
        yield Path(root), folders, files


def present(folder: Path) -> dict[str, os.stat_result]:
    """Path → what the disk says of it, for everything in a volume that is no folder."""
    found = {}
    for root, folders, files in walk(folder):
        links = [name for name in folders if (root / name).is_symlink()]
        for name in (*files, *links):
            path = root / name
            found[path.relative_to(folder).as_posix()] = path.lstat()
    return found


def is_whole(there: os.stat_result | None, size: int) -> bool:
    """Whether this can be a file of so many bytes."""
    return there is not None and stat.S_ISREG(there.st_mode) and there.st_size == size


def sha256(path: Path, passed: Passed) -> str:
    """The digest, in hex, of the bytes that lie on the disk."""
    digest, buffer = hashlib.sha256(), bytearray(PIECE)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0, opener=_no_link) as file:
        forget(file.fileno())  # What this machine remembers of the file is not what the disk would say.
        position = forgotten = 0
        while count := file.readinto(buffer):
            digest.update(view[:count])
            passed(count)
            position += count
            if position - forgotten >= FORGOTTEN_AFTER:
                forget(file.fileno())
                forgotten = position
        forget(file.fileno())
    return digest.hexdigest()


def forget(fd: int) -> None:
    """Takes a file out of the page cache, as far as it lies on the disk, and has the rest written."""
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def told(error: OSError, folder: str) -> PipelineError:
    """What a disk refused, in our words."""
    said = f"{error.filename or folder}: {error.strerror or error}"
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return RequestError(f"{said}. Is the volume mounted at {folder}?")
        case errno.EACCES | errno.EPERM:
            return RequestError(
                f"{said}. This pod may not use the volume: whoever writes it needs `fsGroup`, and a volume that was "
                "written by somebody else is made anew (delete its claim and run again)"
            )
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return InconclusiveError(f"{said}. The volume is too small: {free(Path(folder))}. Make a larger one")
        case errno.EROFS:
            return InconclusiveError(
                f"{said}. It is mounted for reading, or its disk failed; if nobody meant it, delete the claim and run "
                "again"
            )
    return InconclusiveError(f"{said}. The disk failed; delete its claim and run again, which makes another")


def free(folder: Path) -> str:
    """How much room a volume has, in words."""
    try:
        room = os.statvfs(folder)
    except OSError:
        return "it cannot be asked"
    return f"{room.f_bavail * room.f_frsize} bytes of {room.f_blocks * room.f_frsize} are free"
