"""Brings weights from the bucket onto a disk: a file a thread, hashed on the way, the manifest last.

A file has its name when it is whole and lies on the disk, and not before; so whatever ends this (a kill, a node that
goes away), the next attempt reads again what has its name, keeps what is right, and brings the rest.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.hydrate_volume import volume
from components.hydrate_volume.volume import PART, Plan
from serving import progress
from serving.clients.patience import Interrupted, Patience
from serving.errors import InconclusiveError
from serving.log import Say
from serving.progress import Passed
from serving.weights import manifest
from serving.weights.manifest import File

_ATTEMPTS = 3
"""How often a file that arrives with other bytes is asked for."""


def copy(plan: Plan, say: Say, *, report_seconds: float = 3.0) -> dict[str, Any]:
    """Makes the volume hold what the manifest names, and nothing else.

    Returns `{"files", "bytes", "seconds", "kept"}`: what the volume holds now, how long it took, and how many of the
    files an earlier attempt had brought whole. Raises InconclusiveError when the volume is too small (before a byte has
    moved) or bytes keep arriving as others, OSError for what the disk refuses.
    """
    started = time.monotonic()
    known, text = volume.manifest_of(plan)
    with _alone(Path(plan.folder)):
        copying = _Copying(plan, known.files, say)
        copying.clear()
        copying.allocate()
        kept = progress.of_files(
            known.files, copying.bring, threads=plan.threads, say=say, report_seconds=report_seconds
        )
        copying.finish(text)
    return {
        "files": len(known.files),
        "bytes": sum(file.size for file in known.files),
        "seconds": round(time.monotonic() - started, 3),
        "kept": sum(kept),
    }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else writes the volume while the block runs: an attempt that was given up may still be ending."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def lock() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Interrupted("another process copies onto it") from error

    try:
        Patience().until_it_works(f"the volume at {folder}", lock)
        yield
    finally:
        os.close(fd)


class _Copying:
    """One volume, on its way to what a manifest says."""

    def __init__(self, plan: Plan, files: list[File], say: Say):
        self._weights_uri, self._folder, self._say = plan.weights_uri, Path(plan.folder), say
        self._files = {file.path: file for file in files}
        self._missing: list[File] = []

    def clear(self) -> None:
        """Takes away what cannot be a file of the manifest; the volume's own manifest first, since without it the
        volume does not count as complete."""
        (self._folder / manifest.NAME).unlink(missing_ok=True)
        there = volume.present(self._folder)
        right = {path for path, file in self._files.items() if volume.is_whole(there.get(path), file.size)}
        for path in sorted(there.keys() - right):
            self._say(f"removing {path}, which an older attempt left")
            (self._folder / path).unlink()
        for root, _, _ in reversed(list(volume.walk(self._folder))):
            # An empty folder may be where a file belongs.
            if root != self._folder and not os.listdir(root):
                root.rmdir()
        self._missing = [file for path, file in self._files.items() if path not in right]

    def allocate(self) -> None:
        """Takes the room of everything that is missing: a volume too small says so now, and not in an hour."""
        try:
            for file in self._missing:
                with _Part(self._folder / file.path) as part:
                    part.allocate(file.size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            for file in self._missing:
                _Part(self._folder / file.path).discard()
            needed = sum(file.size for file in self._missing)
            raise InconclusiveError(
                f"the volume at {self._folder} is too small: {needed} bytes are to be copied, and "
                f"{volume.free(self._folder)}. Make a larger one"
            ) from error

    def bring(self, file: File, passed: Passed) -> bool:
        """Makes one file whole. Returns whether it was."""
        path = self._folder / file.path
        if path.exists():
            if volume.sha256(path, passed) == file.sha256:
                return True
            self._say(f"{file.path} of an older attempt has other bytes: bringing it again")
            passed(-file.size)
            path.unlink()
        arrived = ""
        for _ in range(_ATTEMPTS):
            with _Part(path) as part:
                part.allocate(file.size)
                arrived = self._fetch(file, part, passed)
                if arrived == file.sha256:
                    part.keep()
                    return False
                part.discard()
            self._say(f"{file.path} arrived with other bytes: sha256 {arrived} instead of {file.sha256}")
        raise InconclusiveError(
            f"{self._weights_uri}/{file.path} arrived with other bytes {_ATTEMPTS} times: sha256 {arrived} instead of "
            f"{file.sha256}. Is the object what its manifest says? `gemma-pipelines verify-weights --read "
            f"{self._weights_uri}`"
        )

    def _fetch(self, file: File, part: _Part, passed: Passed) -> str:
        """Has the bytes written, and returns the sha256 of what arrived."""
        size = 0

        def take(piece: bytes) -> None:
            nonlocal size
            part.write(piece)
            size += len(piece)
            passed(len(piece))

        arrived = manifest.read_object(self._weights_uri, file, take, volume.PIECE)
        if arrived != file.sha256:
            passed(-size)
        return arrived

    def finish(self, text: bytes) -> None:
        """Has all names written to the disk, then the manifest: where it is, everything is."""
        for root, _, _ in volume.walk(self._folder):
            _write_names(root)
        with _Part(self._folder / manifest.NAME) as part:
            part.write(text)
            part.keep()
        _write_names(self._folder)


class _Part:
    """A file that is not whole yet, beside where it belongs."""

    def __init__(self, path: Path):
        self._path, self._part = path, path.with_name(path.name + PART)
        self._fd = -1
        self._written = self._forgotten = 0

    def __enter__(self) -> _Part:
        _make_folder(self._path.parent)
        self._fd = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        # Whoever reads the volume later is another user, and a volume for reading gets no fsGroup.
        os.fchmod(self._fd, 0o644)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def allocate(self, size: int) -> None:
        if size:
            os.posix_fallocate(self._fd, 0, size)

    def write(self, piece: bytes) -> None:
        view = memoryview(piece)
        while view:
            view = view[os.write(self._fd, view) :]
        self._written += len(piece)
        if self._written - self._forgotten >= volume.FORGOTTEN_AFTER:
            volume.forget(self._fd)
            self._forgotten = self._written

    def keep(self) -> None:
        """Gives the file its name, once all of it lies on the disk."""
        os.fsync(self._fd)
        volume.forget(self._fd)
        os.rename(self._part, self._path)

    def discard(self) -> None:
        self._part.unlink(missing_ok=True)


def _make_folder(folder: Path) -> None:
    if not folder.exists():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def _write_names(folder: Path) -> None:
    """Has the names in a folder written to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
