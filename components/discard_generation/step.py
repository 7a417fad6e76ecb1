"""The step that ends a run whose release is bad: the generation goes, the reason stays, the old one serves on."""

from __future__ import annotations

from typing import Any

from serving.clients.kubernetes import Cluster
from serving.deployment import adapters, disk_images, leftovers, record, replacement, traffic
from serving.errors import PipelineError
from serving.log import Say
from serving.settings import Settings
from serving.step import opened
from serving.weights.release import Release


def run(settings: dict[str, Any], release: dict[str, Any], reasons: list[str]) -> None:
    """Discards the release's generation, then fails the run (SystemExit), as its outcome demands."""
    with opened("discard_generation", settings, release) as step, step.cluster() as cluster:
        step.outcome.succeeded(discard(cluster, step.settings, step.release, reasons, step.outcome.say))
        take_disk_image_away(cluster, step.settings, step.release, step.outcome.say)
    raise SystemExit(1)


def take_disk_image_away(cluster: Cluster, settings: Settings, release: Release, say: Say) -> None:
    """Deletes the disk image of the generation, unless another starts from it."""
    try:
        disk_images.collect(settings, record.read(cluster, settings), release.run_id, say)
    except PipelineError as error:
        say(f"could not take its disk image away ({error}); the next collection does")


def discard(cluster: Cluster, settings: Settings, release: Release, reasons: list[str], say: Say) -> str:
    """Takes the generation out of the cluster (never its weights) and records it as rejected; one that made room for it
    serves again then. Returns what it did.

    The generation that serves is left alone: a check that it fails now is no reason to serve nothing. Raises
    InconclusiveError when the one that made room is not ready in time.
    """
    known = record.read(cluster, settings)
    if release.generation == known.live and adapters.take_back(cluster, settings, known, say):
        if release.adapters_key:
            known.reject_adapters(release, reasons)
            known.write(cluster, settings)
        return f"{release.generation} is live and stays, with the adapters that it had: the new ones are rejected"
    if release.generation == known.live:
        return f"{release.generation} is live and stays: nothing else is there to serve"
    forgotten = known.reject(release, reasons)
    known.write(cluster, settings)
    if forgotten:
        say(f"the record is full: it forgets the oldest rejections ({', '.join(forgotten)}), which may be tried again")
    traffic.rest(cluster, settings, release.generation)
    leftovers.remove_generation(cluster, settings, release.generation, say)
    back = replacement.bring_back(cluster, settings, known, run_id=release.run_id, say=say)
    serving = f"; {known.live} serves {'again' if back else 'on'}" if known.live else ""
    return f"{release.generation} is rejected and will not be tried again without --retry{serving}"
