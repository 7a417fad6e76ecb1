"""A state folder: what outlives a run on this machine, for one process at a time.

It holds buckets, the cluster, logs and reports. What a run needs only while it lasts is below its `tmp/`, which goes
with it; after a `kill -9` the next run removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from serving.errors import RequestError

if TYPE_CHECKING:
    from serving.settings import Settings

_PREFIX = "gemma-pipelines-"
_TAKEN = "session.json"
"""Who uses a state folder now, and the environment that reaches its cloud."""
BARE = "none"
"""The scenario of a cloud that whatever comes is sent to (`emulators up`)."""
_MARK = "scenario.json"
"""What a state folder is about: `{"scenario", "real": [PART…]}`."""
_SETTINGS = "settings.json"
"""The settings of its deployment, for `promote` and `rollback`."""
_ROOM = 16 << 20
"""Bytes. On a disk with less the smallest run cannot go on, and its parts would try again for minutes."""


@contextmanager
def taken(path: Path | None, scenario: str, real: Collection[str], say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of a run, ours alone while the block runs; without a path, one that goes afterwards.

    Waits while another process uses it. Raises RequestError for a folder of another scenario or another control plane,
    of something else, that cannot be written, or whose disk is full.
    """
    if path is None:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    else:
        folder = path.absolute()
        _check(folder, scenario, real)
    with _opened_lock(folder) as lock:
        _lock(lock, folder, say)
        try:
            if words := about_disk(folder):
                raise RequestError(words)
            replace(folder / _MARK, json.dumps({"scenario": scenario, "real": sorted(real)}))
            yield folder
        finally:
            (folder / _TAKEN).unlink(missing_ok=True)
            if path is None:
                shutil.rmtree(folder, ignore_errors=True)


def parts(folder: Path | None) -> list[str]:
    """The real parts that a state folder is used with; none of a folder that is none yet."""
    mark = _mark(folder) if folder else None
    return mark["real"] if mark else []


def write_session(folder: Path, environment: dict[str, str]) -> None:
    """Notes that this process uses the folder, and what of `environment` reaches its cloud."""
    changed = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    replace(folder / _TAKEN, json.dumps({"pid": os.getpid(), "environment": changed}))


def session_of(folder: Path) -> dict[str, Any] | None:
    """The session that uses a state folder: `{"pid", "environment"}`; None when none does, or while it begins.

    Whether anybody does, the folder's lock says: a process of any number may have come after one that was killed.
    """
    path = folder / _TAKEN
    if not os.path.exists(path) or not _is_held(folder / "lock"):
        return None
    session = _read(path, f"end the command that uses {folder}, or delete {path} and wait for it")
    environment = session.get("environment")
    if not isinstance(session.get("pid"), int) or not _is_environment(environment):
        raise _damaged(path, f"end the command that uses {folder}, or delete {path} and wait for it")
    return session


def remember(folder: Path, settings: Settings) -> None:
    """Notes which deployment the folder is about."""
    replace(folder / _SETTINGS, settings.model_dump_json(indent=2))


def remembered(folder: Path) -> Settings:
    """The settings of the folder's deployment. Raises RequestError for a folder without a run."""
    from serving.settings import Settings, validated

    path = folder / _SETTINGS
    if not os.path.exists(path):
        place = shlex.quote(str(folder)) if _is_fit(folder) else "DIR"
        raise RequestError(f"{folder} is not the state of a run. Make one: `gemma-pipelines run 03 --state {place}`")
    way_out = f"run again with `--state {shlex.quote(str(folder))}`: that writes it anew"
    try:
        return validated(Settings, _read(path, way_out))
    except RequestError as error:
        if error.__cause__ is None:
            raise
        raise _damaged(path, way_out, str(error)) from error


def about_logs(folder: Path) -> str:
    """Where a reader finds the logs of a cloud that failed."""
    if folder.name.startswith(_PREFIX) and folder.parent == Path(tempfile.gettempdir()):
        return "Its logs are kept with --state DIR"
    return f"Its logs are in {folder / 'logs'}"


def about_disk(folder: Path) -> str:
    """That a folder's disk is full, for a reader; empty while there is room."""
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize >= _ROOM and (disk.f_favail or not disk.f_files):
        return ""
    where = "Make room" if folder.parent != Path(tempfile.gettempdir()) else "Make room, or set TMPDIR to another disk"
    return f"the disk of {folder} is full ({_ROOM >> 20} MiB are needed). {where}"


def replace(path: Path, text: str) -> None:
    """Writes a file of ours alone, whole or not at all: who is killed, or has a full disk, leaves what was there."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _mark_file(folder: Path) -> Path:
    return folder / _MARK


def _mark(folder: Path) -> dict[str, Any] | None:
    """What a state folder is about: `{"scenario", "real"}`; None of a folder that is none yet."""
    path = _mark_file(folder)
    if not os.path.exists(path):
        return None
    way_out = f"delete {folder}, or name another folder with --state"
    mark = {"real": [], **_read(path, way_out)}  # A state of an earlier release does not name parts.
    real = mark["real"]
    if not isinstance(mark.get("scenario"), str) or not isinstance(real, list) or not all(map(_is_text, real)):
        raise _damaged(path, way_out)
    return mark


def _read(path: Path, way_out: str) -> dict[str, Any]:
    """The JSON object in a file of ours. Raises RequestError, with what to do about it, for anything else."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}. To go on, {way_out}") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, way_out) from error
    if not isinstance(found, dict):
        raise _damaged(path, way_out)
    return found


def _damaged(path: Path, way_out: str, why: str = "") -> RequestError:
    return RequestError(f"{path} is not what a run writes there{f' ({why})' if why else ''}. To go on, {way_out}")


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_environment(value: object) -> bool:
    return isinstance(value, dict) and all(_is_text(text) and "\0" not in text for text in value.values())


def _is_fit(folder: Path) -> bool:
    """Whether a run may begin there."""
    if not os.path.exists(folder) or os.path.exists(_mark_file(folder)):
        return True
    return folder.is_dir() and not any(folder.iterdir())


def _check(folder: Path, scenario: str, real: Collection[str]) -> None:
    if os.path.isfile(folder):
        raise RequestError(f"{folder} is a file. Name a folder with --state")
    mark = _mark(folder)
    if mark is None:
        if not _is_fit(folder):
            raise RequestError(f"{folder} is not empty, and not the state of a run. Name a new folder with --state")
        return
    if mark["scenario"] != scenario:
        its, wanted = (
            "`emulators up`" if each == BARE else f"scenario {each}" for each in (mark["scenario"], scenario)
        )
        raise RequestError(f"{folder} is the state of {its}. Name another folder for {wanted}, or delete it")
    if ("control-plane" in mark["real"]) != ("control-plane" in real):
        its = "the real control plane" if "control-plane" in mark["real"] else "the emulated control plane"
        raise RequestError(f"{folder} is the state of a cluster of {its}. Name another folder, or delete it")


def _opened_lock(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return open(folder / "lock", "ab")
    except OSError as error:
        raise RequestError(f"cannot write in {folder}: {error.strerror}. Name another folder with --state") from error


def _lock(lock: IO[bytes], folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"{folder} is in use by {_holder(folder)}; waiting for it to end")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _holder(folder: Path) -> str:
    try:
        session = session_of(folder)
    except RequestError:
        session = None
    return f"process {session['pid']}" if session else "another process"


def _is_held(lock: Path) -> bool:
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sweep() -> None:
    """Removes the folders of runs that were killed: those that nobody holds the lock of."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            with open(folder / "lock", "rb+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # In use, just being made, or somebody else's.
