"""Reading a volume back: a Job in every zone, all at once, before any accelerator is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from components.hydrate_volume.hydration import Hydration
from serving.deployment.job import Work
from serving.errors import InconclusiveError, PipelineError, RequestError


@dataclass(frozen=True)
class Found:
    """What the zones' copies are."""

    reasons: list[str]
    """In what one differs from the weights, a line each, with its zone."""
    figures: dict[str, Any]
    """Zone → `{"files", "bytes", "seconds"}`."""


def read(hydration: Hydration) -> Found:
    """Has every zone's copy compared with the manifest, byte for byte.

    A copy with other bytes is a result, whatever became of the other zones. Raises InconclusiveError, or RequestError,
    for a zone in which nothing was learnt, a zone without capacity say.
    """
    zones = hydration.release.zones
    works = [Work([], zone, hydration.pod(hydration.name, read_only=True, zone=zone)) for zone in zones]
    ends = dict(zip(zones, hydration.run_jobs("verify", works), strict=True))
    results = {zone: end for zone, end in ends.items() if not isinstance(end, PipelineError)}
    reasons = [f"{zone}: {reason}" for zone, end in results.items() if not end["passed"] for reason in end["reasons"]]
    errors = {zone: end for zone, end in ends.items() if isinstance(end, PipelineError)}
    if errors and not reasons:
        words = "; ".join(f"the volume could not be read in {zone}: {error}" for zone, error in errors.items())
        raise (RequestError if any(isinstance(e, RequestError) for e in errors.values()) else InconclusiveError)(words)
    figures = {zone: {key: end[key] for key in ("files", "bytes", "seconds")} for zone, end in results.items()}
    return Found(reasons, figures)
