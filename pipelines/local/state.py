"""A state folder: what outlives a run on this machine, for one process at a time.

It holds buckets, the cluster, logs and reports. What a run needs only while it lasts is below its `tmp/`, which goes
with it; after a `kill -9` the next run removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
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
_MARK = "scenario.json"
"""What a state folder is about: `{"scenario", "real": [PART…]}`."""
_SETTINGS = "settings.json"
"""The settings of its deployment, for `promote` and `rollback`."""


@contextmanager
def taken(path: Path | None, scenario: str, real: Collection[str], say: Callable[[str], None]) -> Iterator[Path]:
    """The folder of a run, ours alone while the block runs; without a path, one that goes afterwards.

    Waits while another process uses it. Raises RequestError for a folder of another scenario or another control plane,
    or of something else.
    """
    if path is None:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    else:
        folder = path.absolute()
        _check(folder, scenario, real)
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        _lock(lock, folder, say)
        (folder / _MARK).write_text(json.dumps({"scenario": scenario, "real": sorted(real)}))
        try:
            yield folder
        finally:
            (folder / _TAKEN).unlink(missing_ok=True)
            if path is None:
                shutil.rmtree(folder, ignore_errors=True)


def parts(folder: Path | None) -> list[str]:
    """The real parts that a state folder is used with; none of a folder that is none yet."""
    mark = folder / _MARK if folder else None
    # A state of an earlier release does not say.
    return json.loads(mark.read_text()).get("real", []) if mark and mark.is_file() else []


def write_session(folder: Path, environment: dict[str, str]) -> None:
    """Notes that this process uses the folder, and what of `environment` reaches its cloud."""
    changed = {key: value for key, value in environment.items() if os.environ.get(key) != value}
    path = folder / _TAKEN
    path.touch(mode=0o600)
    path.write_text(json.dumps({"pid": os.getpid(), "environment": changed}))


def session_of(folder: Path) -> dict[str, Any] | None:
    """The session that uses a state folder: `{"pid", "environment"}`; None when none does."""
    try:
        session: dict[str, Any] = json.loads((folder / _TAKEN).read_text())
        os.kill(session["pid"], 0)
    except (OSError, ValueError):
        return None
    return session


def remember(folder: Path, settings: Settings) -> None:
    """Notes which deployment the folder is about."""
    (folder / _SETTINGS).write_text(settings.model_dump_json(indent=2))


def remembered(folder: Path) -> Settings:
    """The settings of the folder's deployment. Raises RequestError for a folder without a run."""
    from serving.settings import Settings

    path = folder / _SETTINGS
    if not path.exists():
        raise RequestError(f"{folder} is not the state of a run. Make one: `gemma-pipelines run 03 --state {folder}`")
    return Settings.model_validate_json(path.read_text())


def about_logs(folder: Path) -> str:
    """Where a reader finds the logs of a cloud that failed."""
    if folder.name.startswith(_PREFIX) and folder.parent == Path(tempfile.gettempdir()):
        return "Its logs are kept with --state DIR"
    return f"Its logs are in {folder / 'logs'}"


def reports_folder(state: Path | None) -> Path:
    """Where a run's report is kept for `gemma-pipelines report`: with the state, else with this user's other state."""
    if state:
        return state.absolute() / "reports"
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gemma-pipelines" / "reports"


def keep_report(found: dict[str, Any], state: Path | None) -> Path | None:
    """Keeps the page of a run (what pipelines/execute.py found) there; None when the run left none."""
    if not found["page"]:
        return None
    folder = reports_folder(state)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['run_id']}.html"
    path.write_text(found["page"])
    return path


def _check(folder: Path, scenario: str, real: Collection[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file. Name a folder with --state")
    mark = folder / _MARK
    if mark.exists():
        there = json.loads(mark.read_text())["scenario"]
        if there != scenario:
            raise RequestError(
                f"{folder} is the state of scenario {there}. Name another folder for {scenario}, or delete it"
            )
        if ("control-plane" in parts(folder)) != ("control-plane" in real):
            its = "the real control plane" if "control-plane" in parts(folder) else "the emulated control plane"
            raise RequestError(f"{folder} is the state of a cluster of {its}. Name another folder, or delete it")
    elif folder.is_dir() and any(folder.iterdir()):
        raise RequestError(f"{folder} is not empty, and not the state of a run. Name a new folder with --state")


def _lock(lock: IO[str], folder: Path, say: Callable[[str], None]) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        session = session_of(folder)
        who = f"process {session['pid']}" if session else "another process"
        say(f"{folder} is in use by {who}; waiting for it to end")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _sweep() -> None:
    """Removes the folders of runs that were killed: those that nobody holds the lock of."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        try:
            with open(folder / "lock", "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue  # In use, just being made, or somebody else's.
