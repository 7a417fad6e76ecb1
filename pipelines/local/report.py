"""The page of a run on this machine: marked as one, and kept where `gemma-pipelines report` finds it."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.local import cloud
from pipelines.local.state import replace
from serving.errors import PipelineError, RequestError

if TYPE_CHECKING:
    from serving.settings import Settings

_MARK_STYLE = (
    "<style>.emulated { border: 1px solid var(--line); border-radius: 4px; padding: .3rem .7rem; color: var(--dim) }"
    "</style>"
)
"""In the colours of the page (components/write_report/report.html.j2), which itself knows of no emulators."""


_OF_GATEWAYS = {"gateway": "controller of Gateways (Envoy is real)", "inference-gateway": "endpoint picker"}


def emulated(settings: Settings, real: Collection[str]) -> str:
    """What of a deployment's run was emulated, for a reader, when these parts were real."""
    cluster = "GKE's parts of the cluster" if "control-plane" in real else "cluster"
    parts = ["hub", "bucket", "Google APIs", cluster]
    if "secondary-boot-disk" in settings.chosen_features:
        its_script = "its startup script is real" if cloud.runs_startup_scripts() else "its words are scripted"
        parts += ["image registry", f"machine that bakes ({its_script})"]
    if "queue-hpa" in settings.chosen_features:
        parts += ["autoscaler's metrics" if "control-plane" in real else "autoscaler and its metrics"]
    if "hyperdisk-ml" in settings.chosen_features:
        parts += ["disks"]
    elif "gcsfuse" not in real:
        parts += ["FUSE mount"]
    if "gateway" not in real:
        parts += [words for feature, words in _OF_GATEWAYS.items() if feature in settings.chosen_features]
    parts += [] if "vllm" in real else ["engine (answers and figures are made up)"]
    return ", ".join(parts)


def reports_folder(state: Path | None) -> Path:
    """Where a run's report is kept for `gemma-pipelines report`: with the state, else with this user's other state."""
    if state:
        return state.absolute() / "reports"
    try:
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    except RuntimeError as error:
        raise RequestError("there is no home folder to keep reports in. Set XDG_STATE_HOME, or give --state") from error
    return Path(home) / "gemma-pipelines" / "reports"


def keep_report(
    found: dict[str, Any], settings: Settings, state: Path | None, real: Collection[str], say: Callable[[str], None]
) -> Path | None:
    """Keeps the page of a run (what pipelines/execute.py found) there. None when the run left none, or when it cannot
    be kept: says so, since a run that did well is not to end for that."""
    if not found["page"]:
        return None
    mark = f'{_MARK_STYLE}<p class="emulated">On this machine; emulated: {html.escape(emulated(settings, real))}</p>'
    page = found["page"].replace("<body>", f"<body>\n{mark}", 1)
    try:
        folder = reports_folder(state)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{found['run_id']}.html"
        replace(path, page)
    except OSError as error:
        say(f"cannot keep the report in {folder}: {error.strerror}. Keep it elsewhere with --state DIR")
        return None
    except PipelineError as error:
        say(f"cannot keep the report: {error}")
        return None
    return path
