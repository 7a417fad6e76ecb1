"""Repositories on disk: commits of folders, branches, and the objects that their files are served from.

    repository = Repository(root, "google/gemma-3-1b-it")
    sha = repository.commit(folder)             # on main; the same content always gives the same sha
    repository.commit(other_folder, "Release 2")
    repository.set_branch("main", sha)          # main goes back

Layout under `root`: `objects/<sha256>` (every content once), `repos/<org>/<name>/commits/<sha>.json`,
`repos/<org>/<name>/refs.json`; `hashes.json` is what was hashed before, `links.json` how linked objects look.
All of it is read afresh on every call and replaced atomically, so a running server sees what another process commits.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

REPO_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")

# Files below this many bytes are copied at commit; larger ones stay where they are, linked.
COPY_BELOW = 16 << 20

# What the .gitattributes of a model repository on the hub sends to LFS, and the size above which git is refused.
LFS_PATTERNS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.model", "tokenizer.json")
LFS_ABOVE = 10 << 20

# Never part of a repository: git's own folder, and what `hf download --local-dir` leaves behind.
IGNORED_FOLDERS = {".git", ".cache"}


class RepositoryError(Exception):
    """A repository, revision or folder that cannot be what was asked for."""


@dataclass(frozen=True)
class File:
    """A file of a commit; `blob_id` is git's, of the LFS pointer where `lfs`."""

    path: str
    size: int
    sha256: str
    blob_id: str
    lfs: bool
    pointer_size: int


@dataclass(frozen=True)
class Commit:
    """A commit: its 40 hex digits, its message and its files, by path."""

    sha: str
    message: str
    files: dict[str, File]


class Repository:
    """The model repository `repo_id` (ORG/NAME) below `root`; it exists from its first commit on.

    Raises RepositoryError for a name that the hub would not take.
    """

    def __init__(self, root: Path | str, repo_id: str):
        if not REPO_ID.fullmatch(repo_id) or ".." in repo_id:
            raise RepositoryError(f"not a repository id: {repo_id!r} (ORG/NAME is)")
        self.root, self.repo_id = Path(root), repo_id
        self._folder = self.root / "repos" / repo_id

    def exists(self) -> bool:
        return (self._folder / "refs.json").exists()

    def commit(
        self,
        folder: Path | str,
        message: str = "Upload folder",
        branch: str = "main",
        hashed: Callable[[int, int], None] = lambda done, total: None,
    ) -> str:
        """Commits the files that `folder` holds to `branch` and returns the commit's sha. `hashed` hears now and then
        how many bytes have been hashed, of how many. What is no regular file is left out, as by the hub's own client.

        The sha is a digest over message, paths and contents only: the same folder gives the same sha, here and in any
        other root. Later changes of the folder leave the commit as it is, except that a file of COPY_BELOW bytes or
        more must not be written in place (it is a link; replacing or deleting it is fine).
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise RepositoryError(f"not a folder: {folder}")
        with self._locked():
            paths = _walk(folder)
            done, total = 0, sum(path.stat().st_size for path in paths)

            def count(size: int) -> None:
                nonlocal done
                done += size
                hashed(done, total)

            files = [self._add(path, path.relative_to(folder).as_posix(), count) for path in paths]
            if not files:
                raise RepositoryError(f"nothing to commit in {folder}")
            content = [[file.path, file.sha256] for file in files]
            sha = hashlib.sha1(json.dumps([message, content]).encode(), usedforsecurity=False).hexdigest()
            record = {"sha": sha, "message": message, "files": [asdict(file) for file in files]}
            _write_json(self._folder / "commits" / f"{sha}.json", record)
            self._write_branches({**self.branches(), branch: sha})
        return sha

    def set_branch(self, name: str, sha: str) -> None:
        """Points the branch `name` at a commit that exists. Raises RepositoryError when it does not."""
        if self._read_commit(sha) is None:
            raise RepositoryError(f"{self.repo_id} has no commit {sha}")
        with self._locked():
            self._write_branches({**self.branches(), name: sha})

    def branches(self) -> dict[str, str]:
        """The commit of each branch."""
        return _read_json(self._folder / "refs.json", {})

    def resolve(self, revision: str) -> Commit | None:
        """The commit that a branch (`main`, `refs/heads/main`, `refs/pr/1`) or a full sha names, or None."""
        branch = revision.removeprefix("refs/heads/")
        return self._read_commit(self.branches().get(branch, revision))

    def object_path(self, file: File) -> Path:
        """Where the content of `file` is. Raises RepositoryError when what a link leads to is gone or was rewritten."""
        path = self.root / "objects" / file.sha256
        linked = _read_json(self.root / "links.json", {}).get(file.sha256)
        if linked is not None and _state(path) != linked:
            raise RepositoryError(f"{file.path} of {self.repo_id} was deleted or rewritten after it was committed")
        return path

    # -- below ----------------------------------------------------------------------------------------------

    def _read_commit(self, sha: str) -> Commit | None:
        if not re.fullmatch(r"[0-9a-f]{40}", sha):
            return None
        path = self._folder / "commits" / f"{sha}.json"
        return _load_commit(path, sha) if path.exists() else None

    def _write_branches(self, branches: dict[str, str]) -> None:
        _write_json(self._folder / "refs.json", branches)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time in a root, across processes."""
        self.root.mkdir(parents=True, exist_ok=True)
        with open(self.root / "lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    @cached_property
    def _objects(self) -> Path:
        objects = self.root / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        return objects

    def _add(self, source: Path, path: str, count: Callable[[int], None]) -> File:
        """Takes one file into the object store."""
        size = source.stat().st_size
        sha256, git_id = self._hash_linked(source, count) if size >= COPY_BELOW else _digests(source, count)
        target = self._objects / sha256
        if size >= COPY_BELOW:
            links = _read_json(self.root / "links.json", {})
            if not target.exists() or links.get(sha256) != _state(target):
                _replace(target, lambda temporary: _link(source, temporary))
                _write_json(self.root / "links.json", {**links, sha256: _state(target)})
        elif not target.exists():
            _replace(target, lambda temporary: shutil.copyfile(source, temporary))
        lfs = size > LFS_ABOVE or any(fnmatch(source.name, pattern) for pattern in LFS_PATTERNS)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
        return File(
            path=path,
            size=size,
            sha256=sha256,
            blob_id=_blob_id(pointer) if lfs else git_id,
            lfs=lfs,
            pointer_size=len(pointer) if lfs else 0,
        )

    def _hash_linked(self, source: Path, count: Callable[[int], None]) -> tuple[str, str]:
        """The digests of a large file, from the last time if size and mtime have not changed since."""
        hashes = _read_json(self.root / "hashes.json", {})
        key, state = str(source.resolve()), _state(source)
        if key not in hashes or hashes[key]["state"] != state:
            hashes[key] = {"state": state, "digests": _digests(source, count)}
            _write_json(self.root / "hashes.json", hashes)
        sha256, git_id = hashes[key]["digests"]
        return sha256, git_id


def _blob_id(data: bytes) -> str:
    """The id that git gives to a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@lru_cache(maxsize=16)
def _load_commit(path: Path, sha: str) -> Commit:
    """A commit never changes; of one with thousands of files, reading it for each of them would be all the work."""
    record = json.loads(path.read_bytes())
    return Commit(sha, record["message"], {file["path"]: File(**file) for file in record["files"]})


def _walk(folder: Path) -> list[Path]:
    """The files below `folder`, by path; links are followed, as the hub's own cache consists of them."""
    found = []
    for parent, folders, names in os.walk(folder, followlinks=True):
        here = Path(parent)
        if here.resolve() in (above.resolve() for above in here.parents if above.is_relative_to(folder)):
            folders.clear()  # A link leads back to where it lies.
            continue
        folders[:] = [name for name in folders if name not in IGNORED_FOLDERS]
        found += [here / name for name in names if (here / name).is_file()]
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _digests(path: Path, count: Callable[[int], None]) -> tuple[str, str]:
    """sha256 and git blob id of a file, in one pass."""
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            sha256.update(data)
            sha1.update(data)
            count(len(data))
    return sha256.hexdigest(), sha1.hexdigest()


def _state(path: Path) -> list[int] | None:
    """Size in bytes and mtime in ns, which tell whether a file is still the one that was hashed; None: it is gone."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def _link(source: Path, target: Path) -> None:
    """A hard link survives the deletion of `source`; across file systems, or where it is forbidden, a symbolic one."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        os.symlink(source.resolve(), target)


def _replace(target: Path, make: Callable[[Path], object]) -> None:
    """Makes a file under another name and moves it to `target`, so that nobody sees half of it."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    make(temporary)
    os.replace(temporary, target)
    # Renaming one hard link onto another of the same file leaves both names.
    temporary.unlink(missing_ok=True)


def _read_json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return default


def _write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=path.parent, delete=False) as file:
        json.dump(value, file, indent=1)
    os.replace(file.name, path)
