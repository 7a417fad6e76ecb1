"""A run on this machine: the unchanged pipeline and components against emulators (the one module that knows them).

A state folder holds what outlives a run: buckets, the cluster, logs, reports. One process at a time uses it. What a run
needs only while it lasts is below its `tmp/`, which goes with it; after a `kill -9` the next run removes it.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pipelines.child import watched
from serving.errors import InconclusiveError, PipelineError, RequestError
from serving.scenarios import Scenario

if TYPE_CHECKING:
    from emulated_cloud.cloud import Cloud

    from serving.settings import Settings

_PREFIX = "gemma-pipelines-"
_TAKEN = "session.json"
"""Who uses a state folder now, and the environment that reaches its cloud."""
_MARK = "scenario.json"
"""What a state folder is about: `{"scenario", "real": [PART…]}`."""

DEFAULTS: dict[str, Any] = {
    "project": "demo-project",
    "bucket": "demo-bucket",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
}
"""What a run without a settings file is about."""

OVERRIDES: dict[str, Any] = {"endpoint": "ip", "lease": {"duration": "10s", "wait": "60s"}}
"""Settings that differ here: the cluster's certificate is its own, as at GKE's IP endpoint, and no step waits minutes
for its machine, so that a dead run is known as dead sooner."""

SHOWN = [Path(__file__).parents[1] / name for name in ("components", "images", "manifests", "pipelines", "serving")]
"""What the component image carries, for containers that run on real parts."""

_COMES_BACK_SECONDS = {False: 60, True: 300}
"""How long a live generation may take, by whether its engine is vLLM itself."""


def real_parts(text: str | None, state: Path | None) -> list[str]:
    """The parts that `--real PART,…` names, each built and fit to run here; without the option, those of the state.

    Raises RequestError with the command that mends it.
    """
    from emulated_cloud.real.parts import RealPartError, require

    if text is None:
        mark = state / _MARK if state else None
        names = json.loads(mark.read_text()).get("real", []) if mark and mark.is_file() else []
    else:
        names = [name.strip() for name in text.split(",")]
    try:
        require(names, SHOWN)
    except RealPartError as error:
        raise RequestError(str(error)) from error
    return names


def settings_for(values: dict[str, Any], file: Path | None) -> Settings:
    """Settings for a run on this machine from the values of `file`. Raises RequestError."""
    from serving.settings import Settings, validated

    return validated(Settings, {**values, **OVERRIDES}, file)


@contextmanager
def state_folder(
    path: Path | None, scenario: Scenario, real: Collection[str], say: Callable[[str], None]
) -> Iterator[Path]:
    """The folder of a run, ours alone while the block runs; without a path, one that goes afterwards.

    Waits while another process uses it. Raises RequestError for a folder of another scenario or another control plane,
    or of something else.
    """
    if path is None:
        _sweep()
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    else:
        folder = path.absolute()
        _check_state(folder, scenario, real)
        folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a") as lock:
        _lock(lock, folder, say)
        (folder / _MARK).write_text(json.dumps({"scenario": scenario.name, "real": sorted(real)}))
        try:
            yield folder
        finally:
            (folder / _TAKEN).unlink(missing_ok=True)
            if path is None:
                shutil.rmtree(folder, ignore_errors=True)


def _check_state(folder: Path, scenario: Scenario, real: Collection[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise RequestError(f"{folder} is a file. Name a folder with --state")
    mark = folder / _MARK
    if mark.exists():
        there = json.loads(mark.read_text())
        if there["scenario"] != scenario.name:
            raise RequestError(
                f"{folder} is the state of scenario {there['scenario']}. Name another folder for {scenario.name}, or "
                "delete it"
            )
        its_parts = there.get("real", [])  # A state of an earlier release does not say.
        if ("control-plane" in its_parts) != ("control-plane" in real):
            its = "the real control plane" if "control-plane" in its_parts else "the emulated control plane"
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


def session_of(folder: Path) -> dict[str, Any] | None:
    """The session that uses a state folder: `{"pid", "environment"}`; None when none does."""
    try:
        session: dict[str, Any] = json.loads((folder / _TAKEN).read_text())
        os.kill(session["pid"], 0)
    except (OSError, ValueError):
        return None
    return session


@contextmanager
def cloud(
    settings: Settings, folder: Path, weights: Path | None, real: Collection[str], say: Callable[[str], None]
) -> Iterator[Cloud]:
    """The emulators of a state folder, and the parts that are real, up while the block runs; a live generation is ready
    again when it begins."""
    from emulated_cloud.cloud import Cloud, EmulatorFailed, wait_for

    from serving.rendering.render import as_yaml, pipeline_access

    endpoint, live = folder / "endpoint", folder / "live"
    served_before = live.exists() or endpoint.exists()
    endpoint.unlink(missing_ok=True)
    model = weights.absolute() if weights else _tiny_model(settings, folder)
    access = folder / "pipeline-access.yaml"
    access.write_text(as_yaml(pipeline_access(settings)))
    emulated = Cloud(
        folder,
        project=settings.project,
        location=settings.location,
        cluster=settings.cluster,
        buckets=_buckets(settings),
        repositories=_repositories(settings, model, folder),
        gated=[settings.model] if settings.hub.token_secret else [],
        secrets={settings.hub.token_secret.split("/")[3]: "hf_demo"} if settings.hub.token_secret else {},
        service_account=settings.pipeline_service_account,
        real=real,
        # As an administrator does it before the first run on GKE; the emulated API server enforces no roles.
        objects=[access],
        show=SHOWN,
        expose=[
            {
                "namespace": settings.namespace,
                "service": settings.name,
                "port": 8000,
                "address": "127.0.0.1:0",
                "file": str(endpoint),
            }
        ],
    )
    try:
        with emulated:
            _write_session(folder, emulated)
            seconds = _COMES_BACK_SECONDS["vllm" in real]
            if served_before and not wait_for(lambda: endpoint.exists() or bool(emulated.loss), seconds):
                say(f"the live generation of this state did not come back within {seconds} s; going on without it")
            try:
                yield emulated
            finally:
                if endpoint.exists():
                    live.touch()
                    endpoint.unlink()  # Nobody answers there any more.
    except EmulatorFailed as error:
        raise PipelineError(f"the emulators did not start: {error}. {_about_logs(folder)}") from error


def loss(emulated: Cloud, folder: Path) -> str:
    """Which part of the cloud has ended although it should not, for a reader; empty while all are there."""
    return f"{emulated.loss}. {_about_logs(folder)}" if emulated.loss else ""


def _about_logs(folder: Path) -> str:
    """Where a reader finds the logs of a cloud that failed."""
    if folder.name.startswith(_PREFIX) and folder.parent == Path(tempfile.gettempdir()):
        return "Its logs are kept with --state DIR"
    return f"Its logs are in {folder / 'logs'}"


def _buckets(settings: Settings) -> list[str]:
    """The buckets that the settings name: their own, the pipeline root's, and those that something comes from."""
    from serving.weights import repositories

    sources = [repository.source for repository in repositories.of(settings) if repository.source]
    return sorted({settings.bucket, *(url.split("/")[2] for url in (settings.pipeline_root, *sources))})


def _repositories(settings: Settings, model: Path, folder: Path) -> dict[str, Path]:
    """What the hub has: `model`, and beside it tiny adapters of it and a tiny assistant, as the settings name them."""
    from serving.weights import repositories

    found: dict[str, Path] = {}
    for wanted in repositories.of(settings):
        if wanted.source:
            continue
        if wanted.role == repositories.BASE:
            found[wanted.model] = model
        elif wanted.is_adapter:
            found[wanted.model] = _tiny_adapter(settings, wanted.model, model, folder)
        else:
            found[wanted.model] = _made(folder / "models" / "assistant", "gemma4-assistant")
    return found


def _tiny_model(settings: Settings, folder: Path) -> Path:
    """A checkpoint of the settings' family, made on the spot: deterministic, 4 MB, in seconds."""
    kind = "gemma4" if "gemma-4" in settings.model else "gemma3"
    return _made(folder / "models" / kind, kind)


def _tiny_adapter(settings: Settings, name: str, base: Path, folder: Path) -> Path:
    """A LoRA adapter of the model in `base`, as deterministic; another name is another adapter."""
    seed = str(zlib.crc32(name.encode()))
    options = ("--base", str(base), "--base-name", settings.model, "--seed", seed)
    return _made(folder / "models" / "adapters" / name, "lora", *options)


def _made(folder: Path, kind: str, *options: str) -> Path:
    """The folder with what emulated_cloud.hub.models makes of the kind; one that is there stays as it is."""
    if not (folder / "README.md").exists():  # It comes last.
        subprocess.run([sys.executable, "-m", "emulated_cloud.hub.models", kind, str(folder), *options], check=True)
    return folder


def _write_session(folder: Path, emulated: Cloud) -> None:
    changed = {key: value for key, value in emulated.environment.items() if os.environ.get(key) != value}
    path = folder / _TAKEN
    path.touch(mode=0o600)
    path.write_text(json.dumps({"pid": os.getpid(), "environment": changed}))


def remember(folder: Path, settings: Settings) -> None:
    """Notes in a state folder which deployment it is about, for `promote` and `rollback`."""
    (folder / "settings.json").write_text(settings.model_dump_json(indent=2))


@contextmanager
def deployment(state: Path, say: Callable[[str], None]) -> Iterator[tuple[Settings, dict[str, str]]]:
    """The deployment of a state folder, and the environment that reaches it while the block runs.

    Uses the cloud of a `run --keep` that is up, else starts it. Raises RequestError for a folder without a run.
    """
    from serving.scenarios import find
    from serving.settings import Settings

    remembered = state / "settings.json"
    if not remembered.exists():
        raise RequestError(f"{state} is not the state of a run. Make one: `gemma-pipelines run 03 --state {state}`")
    settings = Settings.model_validate_json(remembered.read_text())
    if session := session_of(state):
        yield settings, session["environment"]
        return
    real = real_parts(None, state)
    with (
        state_folder(state, find(settings.scenario), real, say) as folder,
        cloud(settings, folder, None, real, say) as emulated,
    ):
        yield settings, emulated.environment


def keep_report(found: dict[str, Any], folder: Path) -> Path | None:
    """Keeps a run's page where `gemma-pipelines report` looks; None when the run left none."""
    if not found["page"]:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{found['run_id']}.html"
    path.write_text(found["page"])
    return path


def reports_folder(state: Path | None) -> Path:
    """Where a run's report is kept for `gemma-pipelines report`: with the state, else with this user's other state."""
    if state:
        return state.absolute() / "reports"
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home) / "gemma-pipelines" / "reports"


def serve_on(lost: Callable[[], str]) -> None:
    """Returns on Ctrl-C or SIGTERM. Raises InconclusiveError, with the words of `lost`, when there are any."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    losses: queue.SimpleQueue[str] = queue.SimpleQueue()
    try:
        with watched(lost, losses.put):
            words = losses.get()
    except KeyboardInterrupt:
        return
    raise InconclusiveError(words)
