"""Taking a generation that turned out to be bad out of the cluster, before it was promoted or while it was."""

from __future__ import annotations

from serving.clients.kubernetes import Cluster
from serving.deployment import adapters, disk_images, leftovers, record, replacement, traffic
from serving.errors import PipelineError
from serving.log import Say
from serving.settings import Settings
from serving.weights.release import Release


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
