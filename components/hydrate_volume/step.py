"""The step that makes a generation's volume: filled from the bucket, then read back in every zone, byte for byte.

What it makes has names of the generation's own, so whatever ends it, the next attempt finds what is there and goes on:
a copy that was begun, a snapshot, a volume that is bound. A volume that was read back says so itself, in an annotation
of its claim, and is never filled or read again.
"""

from __future__ import annotations

import json
from typing import Any

from components.hydrate_volume import populator, readers, snapshot
from components.hydrate_volume.hydration import Hydration, is_bound
from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import leftovers, record
from serving.errors import PipelineError, ReleaseError, ToldToEnd
from serving.outcome import Outcome
from serving.settings import Settings
from serving.step import opened
from serving.weights.release import Release

FILL = {"snapshot": snapshot.fill, "populator": populator.fill}
"""hyperdisk_ml.method → what fills the volume."""


def run(settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]) -> tuple[bool, list[str]]:
    """Makes the release's volume. Returns the verdict so far with its reasons: handed on as it is when the release has
    failed already, (False, what differs) when the volume has other bytes than the bucket."""
    with opened("hydrate_volume", settings, release) as step:
        if not passed:
            step.outcome.skipped("no volume is made: the release has failed already")
            return passed, reasons
        with step.cluster() as cluster:
            wrong = hydrate(cluster, step.settings, step.release, step.outcome)
        if wrong:
            step.outcome.failed(ReleaseError("; ".join(wrong)))
            return False, wrong
    return True, reasons


def hydrate(cluster: Cluster, settings: Settings, release: Release, outcome: Outcome) -> list[str]:
    """Makes the volume and reads it back. Returns in what it differs from the weights, a line each: empty for one that
    is right.

    Raises InconclusiveError for a zone without capacity and for whatever else does not come in time, RequestError for
    what a person has to change. When the step is told to end, what it has made and not finished goes.
    """
    hydration = Hydration(cluster, settings, release, outcome.say)
    outcome.details |= {"generation": release.generation, "volume": hydration.name, "zones": release.zones}
    claim = hydration.claim()
    if claim and is_verified(claim):
        leftovers.remove_temporary(cluster, settings, release, outcome.say)
        outcome.skipped(f"the volume {hydration.name} is there, and was read back in {', '.join(release.zones)}")
        return []
    try:
        hydration.put_service_account()
        if claim is None or not is_bound(claim) or method_of(settings) == "populator":
            claim = FILL[method_of(settings)](hydration)
        leftovers.remove_temporary(cluster, settings, release, outcome.say)
        found = readers.read(hydration)
    except ToldToEnd:
        give_back(hydration)
        raise
    outcome.details["read"] = found.figures
    if not found.reasons:
        mark_verified(hydration, claim)
        outcome.succeeded(f"the volume {hydration.name} has every byte in {', '.join(release.zones)}")
    return found.reasons


def method_of(settings: Settings) -> str:
    return str(settings.section("hyperdisk-ml").method)


def is_verified(claim: Object) -> bool:
    """Whether the claim says that the volume which it has now was read back."""
    try:
        volume = json.loads((claim["metadata"].get("annotations") or {})[names.VERIFIED])["volume"]
    except (KeyError, TypeError, ValueError):
        return False
    return bool(is_bound(claim) and volume == claim["spec"]["volumeName"])


def mark_verified(hydration: Hydration, claim: Object) -> None:
    """Writes on the claim that its volume was read back. Raises ConflictError for another claim of its name."""
    said = {
        "volume": claim["spec"]["volumeName"],
        "zones": hydration.release.zones,
        "at": record.now(),
        "run": hydration.release.run_id,
    }
    metadata = {"uid": claim["metadata"]["uid"], "annotations": {names.VERIFIED: json.dumps(said)}}
    hydration.cluster.patch(claim["kind"], hydration.name, hydration.settings.namespace, {"metadata": metadata})


def give_back(hydration: Hydration) -> None:
    """Takes away what costs money and nobody can use yet: disks. (That of a generation which the record names may be in
    use.) Never raises: the next run does what is left."""
    cluster, settings, release = hydration.cluster, hydration.settings, hydration.release
    try:
        leftovers.remove_temporary(cluster, settings, release, hydration.say)
        claim = hydration.claim()
        if claim and release.generation not in record.read(cluster, settings).named and cluster.delete(claim):
            hydration.say(f"deleted {claim['kind']}/{hydration.name}: it was not read back yet")
    except PipelineError as error:
        hydration.say(f"could not take {hydration.name} away ({error}); the next run does")
