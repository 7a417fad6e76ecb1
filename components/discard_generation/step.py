"""The step that ends a run whose release is bad: the generation goes, the reason stays, the old one serves on."""

from __future__ import annotations

from typing import Any

from serving.deployment.discarding import discard, take_disk_image_away
from serving.step import opened


def run(settings: dict[str, Any], release: dict[str, Any], reasons: list[str]) -> None:
    """Discards the release's generation, then fails the run (SystemExit), as its outcome demands."""
    with opened("discard_generation", settings, release) as step, step.cluster() as cluster:
        step.outcome.succeeded(discard(cluster, step.settings, step.release, reasons, step.outcome.say))
        take_disk_image_away(cluster, step.settings, step.release, step.outcome.say)
    raise SystemExit(1)
