"""A run on this machine: the unchanged pipeline and components against emulators.

The one package that knows `emulated_cloud`, a distribution of its own. A `site` is a state folder (state.py) with its
cloud up (cloud.py).
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pipelines.child import watched
from pipelines.local import cloud, state
from pipelines.local.cloud import programs, real_parts
from pipelines.local.report import emulated, keep_report, reports_folder
from serving.errors import InconclusiveError

if TYPE_CHECKING:
    from emulated_cloud.cloud import Cloud

    from serving.settings import Settings

__all__ = [
    "DEFAULTS",
    "Site",
    "bare",
    "buckets",
    "deployment",
    "emulated",
    "keep_report",
    "programs",
    "real_parts",
    "reports_folder",
    "serve_on",
    "settings_for",
    "site",
    "variables",
]

DEFAULTS: dict[str, Any] = {
    "project": "demo-project",
    "bucket": "demo-bucket",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
}
"""What a run without a settings file is about."""

_NONE: Mapping[str, Path] = MappingProxyType({})
_LEASE_DURATION, _LEASE_WAIT = "20s", "60s"
"""No step waits minutes for its machine here, so that a dead run is known as dead sooner. A third of it must be enough
for a renewal on a machine whose disk or processor has much else to do."""
_SCALES_DOWN = {"scale_down_window": "5s", "scale_down_period": "5s"}
"""Pods come and go in seconds here: nobody wants to wait minutes to see it."""
_CANARY = {"hold": "5s", "settle": "1s"}
"""Who tries a canary here watches it."""


def settings_for(values: dict[str, Any], file: Path | None) -> Settings:
    """Settings for a run on this machine from the values of `file`. Raises RequestError."""
    from serving.settings import Settings, in_seconds, validated

    asked = validated(Settings, values, file)
    wait = asked.lease.wait if in_seconds(asked.lease.wait) else _LEASE_WAIT
    # The cluster's certificate is its own, as at GKE's IP endpoint.
    differs: dict[str, Any] = {"endpoint": "ip", "lease": {"duration": _LEASE_DURATION, "wait": wait}}
    if "queue-hpa" in asked.chosen_features:
        differs["queue_hpa"] = {**_SCALES_DOWN, **values.get("queue_hpa", {})}
    if asked.has_gateway:
        differs["canary"] = {**_CANARY, **values.get("canary", {})}
    return validated(Settings, {**values, **differs}, file)


@dataclass(frozen=True)
class Site:
    """A state folder whose cloud is up."""

    folder: Path
    cloud: Cloud

    @property
    def endpoint(self) -> str | None:
        """The deployment's entry as this machine reaches it, which after a promotion may take a moment to answer: a
        Gateway probes its backends first. None if it does not answer."""
        return cloud.entry_of(self.folder, self.cloud)

    def loss(self) -> str:
        """What a run cannot go on without has gone, for a reader: a part of the cloud, or the room on its disk. Empty
        while all is there."""
        if words := self.cloud.loss:
            return f"{words}. {state.about_logs(self.folder)}"
        return state.about_disk(self.folder)


@contextmanager
def site(
    settings: Settings,
    folder: Path | None,
    weights: Path | None,
    real: Collection[str],
    say: Callable[[str], None],
    stand_ins: Mapping[str, Path] = _NONE,
) -> Iterator[Site]:
    """The settings' deployment on this machine, up while the block runs: what it was in `folder`, whose hub has the
    model in `weights` (else a tiny one) and whose `real` parts are real. Without a folder, one that goes afterwards.
    `stand_ins` are for images that others built (`programs`).

    Raises RequestError for a folder that is not fit, PipelineError when the emulators do not start.
    """
    with (
        state.taken(folder, settings.scenario, real, say) as ours,
        cloud.up(settings, ours, weights, real, say, stand_ins) as emulated,
    ):
        state.remember(ours, settings)
        yield Site(ours, emulated)


@contextmanager
def bare(
    settings: Settings,
    folder: Path | None,
    real: Collection[str],
    say: Callable[[str], None],
    stand_ins: Mapping[str, Path] = _NONE,
) -> Iterator[Site]:
    """The emulated cloud of the settings' project, up while the block runs, for whatever is sent to it. It is what it
    was in `folder`; without one it begins empty, and goes afterwards. Raises as `site`."""
    with (
        state.taken(folder, state.BARE, real, say) as ours,
        cloud.up(settings, ours, None, real, say, stand_ins) as emulated,
    ):
        yield Site(ours, emulated)


def variables(site: Site) -> dict[str, str]:
    """What a shell needs in its environment so that every command in it reaches this cloud."""
    return cloud.leading_to(site.cloud)


@contextmanager
def deployment(folder: Path, say: Callable[[str], None]) -> Iterator[tuple[Settings, dict[str, str]]]:
    """The deployment of a state folder, and the whole environment that reaches it while the block runs.

    Uses the cloud of a `run --keep` that is up, else starts it. Raises RequestError for a folder without a run.
    """
    settings = state.remembered(folder)
    if session := state.session_of(folder):
        yield settings, cloud.whole_environment(session["environment"])
        return
    real = real_parts(None, folder)
    say(f"starting the emulated cloud of {folder} and what serves in it, for this command alone")
    with site(settings, folder, None, real, say) as ours:
        yield settings, ours.cloud.environment


@contextmanager
def buckets(folder: Path, say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """The environment that reaches the buckets of a state folder while the block runs, and starts nothing else.

    Raises RequestError for a folder without a run.
    """
    settings = state.remembered(folder)
    if session := state.session_of(folder):
        yield session["environment"]
        return
    with (
        state.taken(folder, settings.scenario, state.parts(folder), say) as ours,
        cloud.buckets_up(settings, ours) as environment,
    ):
        yield environment


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
