"""The step that puts a validated generation into service, and the two commands that do it by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from components.promote_generation.canary import Walk
from serving.clients import storage
from serving.clients.kubernetes import Cluster
from serving.deployment import canary, lease, leftovers, record, replacement, traffic
from serving.deployment.discarding import discard, take_disk_image_away
from serving.deployment.entrance import Note
from serving.deployment.record import Measured, Pin, Record
from serving.errors import InconclusiveError, PipelineError, ReleaseError, RequestError
from serving.log import Say
from serving.settings import Settings, in_seconds
from serving.step import opened
from serving.weights.release import Release


def run(settings: dict[str, Any], release: dict[str, Any]) -> None:
    """Promotes the release's generation, or with `promotion: manual` notes that it waits for a person. One that turns
    out worse than the live one while it takes over is discarded, and the run fails."""
    with opened("promote_generation", settings, release) as step, step.cluster() as cluster:
        outcome, target = step.outcome, step.release
        measured = measured_in(outcome.folder)
        if step.settings.promotion == "manual" and target.generation != target.live:
            wait_for_a_person(cluster, step.settings, target, measured)
            outcome.skipped(f"{target.generation} is validated; {record.command('promote')} puts it into service")
            outcome.details["decision"] = "validated"
            return
        walk = Walk(cluster, step.settings, target.run_id, outcome.say)
        try:
            moved = promote(cluster, step.settings, target, outcome.say, measured, walk)
        except ReleaseError as error:
            discard(cluster, step.settings, target, [str(error)], outcome.say)
            take_disk_image_away(cluster, step.settings, target, outcome.say)
            raise
        finally:
            if walk.steps:
                outcome.details["canary"] = walk.steps
                outcome.details["warnings"] = walk.warnings
        if moved:
            outcome.succeeded(f"{target.generation} serves{words(walk)}")
        else:
            outcome.skipped(f"{target.generation} already served")


def words(walk: Walk) -> str:
    """What a canary came to that went to its end, for the outcome's message."""
    if not walk.steps:
        return ""
    last = f", {walk.warnings[-1]}" if walk.warnings else ""
    count = len(walk.steps)
    return f" after {count} step{'s' if count > 1 else ''} of a canary{last}"


def measured_in(folder: str) -> Measured | None:
    """What the validation of the run with this folder measured; None where it put nothing under load."""
    found = storage.read_json(f"{folder}/steps/validate_server.json") or {}
    return Measured.model_validate(found["measured"]) if found.get("measured") else None


def promote(
    cluster: Cluster,
    settings: Settings,
    release: Release,
    say: Say,
    measured: Measured | None = None,
    gradually: traffic.Gradually | None = None,
) -> bool:
    """Moves the traffic to the release's generation. Returns False when it already served.

    Raises InconclusiveError when another generation is live than the one that this run found.
    """
    known = record.read(cluster, settings)
    if known.live not in (release.live, release.generation):
        raise InconclusiveError(
            f"{known.live} went live while this run worked on {release.generation}, when {release.live or 'none'} was. "
            "Run again"
        )
    known.remember(release, measured)
    run_id, generation = release.run_id, release.generation
    return traffic.move(cluster, settings, known, generation, run_id=run_id, say=say, gradually=gradually)


def wait_for_a_person(cluster: Cluster, settings: Settings, release: Release, measured: Measured | None = None) -> None:
    """Notes in the record that the generation is validated: it stays beside the live one."""
    known = record.read(cluster, settings)
    known.remember(release, measured)
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
    undoes it; one that is live already is pinned alone, and `say` says so. Returns the record as written.

    Raises RequestError when there is nothing to go back to, or no such generation.
    """
    return _by_hand(cluster, settings, "rollback", generation, say)


def _by_hand(cluster: Cluster, settings: Settings, verb: str, generation: str | None, say: Say) -> Record:
    run_id = f"{verb}-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
    # Asked before the Lease is taken: a wrong request writes nothing.
    there = canary.going_on(cluster, settings)
    target = _target(record.read(cluster, settings), verb, generation, there)
    if there and lease.is_held_by(cluster, settings, there.run):
        settings = _end_canary(cluster, settings, there, "promote" if target == there.candidate else "rollback", say)
    lease.take(cluster, settings, run_id, say)
    try:
        with lease.held(cluster, settings, run_id):
            known = record.read(cluster, settings)
            there = canary.going_on(cluster, settings)
            target, before, pinned = _target(known, verb, target, there), known.live, known.pinned
            known.pinned = _pin(known, target) if verb == "rollback" else None
            # Who goes back, or has seen a canary, wants no other.
            at_once = verb == "rollback" or (there is not None and there.candidate == target)
            walk = None if at_once else Walk(cluster, settings, run_id, say)
            try:
                _make_way(cluster, settings, known, target, run_id, say)
                traffic.move(cluster, settings, known, target, run_id=run_id, say=say, gradually=walk)
            except BaseException as error:
                if known.live != target:
                    # Nothing moved: it stays as it was, the pin too.
                    known.pinned = pinned
                    _take_back(cluster, settings, known, run_id, say, in_a_hurry=not isinstance(error, PipelineError))
                    if isinstance(error, ReleaseError):
                        _turn_down(cluster, settings, known, target, run_id, error, say)
                raise
            for line in _what_became(before, pinned, known):
                say(line)
            return known
    finally:
        lease.give_back(cluster, settings, run_id)


def _end_canary(cluster: Cluster, settings: Settings, there: Note, verb: str, say: Say) -> Settings:
    """Has the run whose canary it is end it, which takes it a second. Returns the settings with the patience that it
    needs until that run has cleaned up and given the Lease back, or until its Lease has run out."""
    canary.ask(cluster, settings, there, verb)
    ends = f"give {there.candidate} all requests" if verb == "promote" else f"give {there.live} all requests again"
    say(f"told the run {there.run} to {ends}; it ends by itself")
    wait = max(in_seconds(settings.lease.wait), in_seconds(settings.lease.duration))
    return settings.model_copy(update={"lease": settings.lease.model_copy(update={"wait": f"{wait:.0f}s"})})


def _turn_down(
    cluster: Cluster, settings: Settings, known: Record, generation: str, run_id: str, error: ReleaseError, say: Say
) -> None:
    """Has a generation that was worse rejected and taken away; one that has served before stays, at rest."""
    traffic.rest(cluster, settings, generation)
    if generation in known.kept and generation != known.validated:
        return
    known.turn_down(generation, [str(error)], run_id)
    known.write(cluster, settings)
    leftovers.remove_generation(cluster, settings, generation, say)


def _make_way(cluster: Cluster, settings: Settings, known: Record, target: str, run_id: str, say: Say) -> None:
    """Where one generation serves at a time: takes the live one down for another, or brings it back if it is down."""
    if target == known.live:
        replacement.bring_back(cluster, settings, known, run_id=run_id, say=say)
    elif settings.rollout == "replace":
        replacement.make_room(cluster, settings, known, target, run_id=run_id, say=say)


def _take_back(cluster: Cluster, settings: Settings, known: Record, run_id: str, say: Say, *, in_a_hurry: bool) -> None:
    """Leaves everything as it was before a command that did not work; `in_a_hurry`, without waiting for it."""
    try:
        if in_a_hurry:
            replacement.come_back(cluster, settings, known, say, patient=False)
        else:
            replacement.bring_back(cluster, settings, known, run_id=run_id, say=say)
    except PipelineError as error:
        say(f"{known.live} does not come back ({error}); the next run, or {record.command('rollback')}, tries it again")
    known.write(cluster, settings)


def _pin(known: Record, target: str) -> Pin:
    """The pin of a rollback: the one that there is, if it is to the same generation."""
    if known.pinned and known.pinned.generation == target:
        return known.pinned
    reason = "a person keeps it live" if target == known.live else f"rolled back from {known.live}"
    return Pin(generation=target, at=record.now(), reason=reason)


def _what_became(before: str, pinned: Pin | None, known: Record) -> Iterator[str]:
    """What a command did beside moving traffic, and that it moved none: `before` it, that was live and that the pin."""
    if before == known.live:
        yield f"{known.live} was live already: no traffic moved"
    if known.pinned and known.pinned != pinned:
        lifted = record.command("promote", known.live)
        yield f"{known.live} is pinned: no run replaces it by itself until {lifted}"
    if pinned and not known.pinned:
        yield f"the pin to {pinned.generation} is lifted"


def _target(known: Record, verb: str, generation: str | None, there: Note | None) -> str:
    """The generation that the command means; `there`: a canary that goes on, or was left."""
    named = known.named | ({there.candidate} if there else set())
    others = sorted(named - {known.live})
    choices = f"There are: {', '.join(others)}" if others else "There is no other generation in the cluster"
    if generation:
        if generation not in named:
            raise RequestError(f"generation {generation} is not in the cluster's record. {choices}")
        return generation
    if there:
        return there.candidate if verb == "promote" else there.live
    if verb == "rollback" and known.down:
        return known.live  # It made room for another, and nobody is there to bring it back.
    found = known.previous if verb == "rollback" else known.validated
    if not found:
        nothing = "no previous generation to go back to" if verb == "rollback" else "no validated generation waiting"
        raise RequestError(f"{nothing}. {choices}" + (f"; name one with `{verb} --to GENERATION`" if others else ""))
    return found
