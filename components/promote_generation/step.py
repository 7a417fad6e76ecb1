"""The step that puts a validated generation into service, and the two commands that do it by hand."""

from __future__ import annotations

import time
from typing import Any

from serving.clients.kubernetes import Cluster
from serving.deployment import lease, record, traffic
from serving.deployment.record import Pin, Record
from serving.errors import InconclusiveError, RequestError
from serving.log import Say
from serving.settings import Settings
from serving.step import opened
from serving.weights.release import Release


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Promotes the release's generation, or with `promotion: manual` notes that it waits for a person."""
    with opened("promote_generation", settings, release) as step, step.cluster() as cluster:
        outcome, target = step.outcome, step.release
        if step.settings.promotion == "manual" and target.generation != target.live:
            wait_for_a_person(cluster, step.settings, target)
            outcome.skipped(f"{target.generation} is validated; `gemma-pipelines promote` puts it into service")
            outcome.details["decision"] = "validated"
        elif promote(cluster, step.settings, target, outcome.say):
            outcome.succeeded(f"{target.generation} serves")
        else:
            outcome.skipped(f"{target.generation} already served")


def promote(cluster: Cluster, settings: Settings, release: Release, say: Say) -> bool:
    """Moves the traffic to the release's generation. Returns False when it already served.

    Raises InconclusiveError when another generation is live than the one that this run found.
    """
    known = record.read(cluster, settings)
    if known.live not in (release.live, release.generation):
        raise InconclusiveError(
            f"{known.live} went live while this run worked on {release.generation}, when {release.live or 'none'} was. "
            "Run again"
        )
    known.remember(release)
    return traffic.move(cluster, settings, known, release.generation, run_id=release.run_id, say=say)


def wait_for_a_person(cluster: Cluster, settings: Settings, release: Release) -> None:
    """Notes in the record that the generation is validated: it stays beside the live one."""
    known = record.read(cluster, settings)
    known.remember(release)
    known.rejected.pop(release.generation, None)
    known.validated = release.generation
    known.write(cluster, settings)


def promote_by_hand(cluster: Cluster, settings: Settings, generation: str | None, say: Say) -> Record:
    """`gemma-pipelines promote`: the generation that waits, or a kept one; lifts a pin. Returns the record as written.

    Raises RequestError when there is nothing to promote, or no such generation.
    """
    return _by_hand(cluster, settings, "promote", generation, say)


def roll_back(cluster: Cluster, settings: Settings, generation: str | None, say: Say) -> Record:
    """`gemma-pipelines rollback`: back to the previous generation, or to a kept one. Pins it, so that no schedule
    undoes it. Returns the record as written.

    Raises RequestError when there is nothing to go back to, or no such generation.
    """
    return _by_hand(cluster, settings, "rollback", generation, say)


def _by_hand(cluster: Cluster, settings: Settings, verb: str, generation: str | None, say: Say) -> Record:
    run_id = f"{verb}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
    # Asked before the Lease is taken: a wrong request writes nothing.
    _target(record.read(cluster, settings), verb, generation)
    lease.take(cluster, settings, run_id, say)
    try:
        with lease.held(cluster, settings, run_id):
            known = record.read(cluster, settings)
            target = _target(known, verb, generation)
            known.pinned = (
                Pin(generation=target, at=record.now(), reason=f"rolled back from {known.live}")
                if verb == "rollback"
                else None
            )
            traffic.move(cluster, settings, known, target, run_id=run_id, say=say)
            return known
    finally:
        lease.give_back(cluster, settings, run_id)


def _target(known: Record, verb: str, generation: str | None) -> str:
    """The generation that the command means."""
    there = sorted(known.named - {known.live})
    choices = f"There are: {', '.join(there)}" if there else "There is no other generation in the cluster"
    if generation:
        if generation not in known.named:
            raise RequestError(f"generation {generation} is not in the cluster's record. {choices}")
        return generation
    found = known.previous if verb == "rollback" else known.validated
    if not found:
        nothing = "no previous generation to go back to" if verb == "rollback" else "no validated generation waiting"
        raise RequestError(f"{nothing}. {choices}" + (f"; name one with `{verb} --to GENERATION`" if there else ""))
    return found
