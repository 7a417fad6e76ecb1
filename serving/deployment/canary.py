"""A canary that goes on, as everybody sees it: the note on the entry, how it is ended from outside, and put back.

components/promote_generation/canary.py takes its steps.
"""

from __future__ import annotations

from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.deployment import draining, entrance, record, replicas
from serving.deployment.entrance import Note
from serving.errors import InconclusiveError
from serving.log import Say
from serving.settings import Settings


def going_on(cluster: Cluster, settings: Settings) -> Note | None:
    """The canary that the entry tells of, whoever left it; None without one, and where the entry is a Service."""
    return entrance.note_of(record.entry(cluster, settings)) if settings.has_gateway else None


def put_back(cluster: Cluster, settings: Settings, *, run_id: str, say: Say, patient: bool = True) -> str:
    """Ends a canary that goes on, whoever began it: all requests are the live generation's again, as they were before.
    When `patient`, a reference without a share goes from the entry once its generation has finished its requests.
    Returns the candidate; empty where there was no canary.

    Raises InconclusiveError, and leaves the shares as they are, when the live generation has no ready pod to take them.
    """
    if not settings.has_gateway:
        return ""
    note = going_on(cluster, settings)
    if note:
        _give_back(cluster, settings, note, say)
    if patient:
        _tidy(cluster, settings, run_id=run_id, say=say)
    return note.candidate if note else ""


def _give_back(cluster: Cluster, settings: Settings, note: Note, say: Say) -> None:
    live = cluster.get("Deployment", names.server(note.live), settings.namespace)
    if not replicas.answering(live):
        raise InconclusiveError(
            f"{note.live} has no ready pod that could take the requests of {note.candidate} back, so each keeps its "
            f"share. See `kubectl -n {settings.namespace} describe deployment {names.server(note.live)}`"
        )

    def same(there: Object | None) -> None:
        now = entrance.note_of(there)
        if now is None or (now.live, now.candidate) != (note.live, note.candidate):
            raise InconclusiveError(f"somebody moved the traffic of {settings.namespace}/{settings.name} meanwhile")

    entrance.send(cluster, settings, {note.live: 100, note.candidate: 0}, same)
    say(f"{settings.name} sends all requests to {note.live} again, none to {note.candidate}")


def _tidy(cluster: Cluster, settings: Settings, *, run_id: str, say: Say) -> None:
    """Takes the references that have no share any more out of the entry, when their generations are drained."""
    there = record.entry(cluster, settings)
    serving, idle = record.backends(there), entrance.shares_of(there).keys() - record.backends(there)
    if idle and len(serving) == 1:
        for generation in sorted(idle):
            draining.drain(cluster, settings, generation, run_id=run_id, say=say)
        take_out(cluster, settings, next(iter(serving)))


def take_out(cluster: Cluster, settings: Settings, generation: str) -> None:
    """Takes the references that have no share out of the entry, which sends all requests to `generation` already."""

    def alone(there: Object | None) -> None:
        if record.backends(there) != {generation}:
            raise InconclusiveError(f"somebody moved the traffic of {settings.namespace}/{settings.name} meanwhile")

    entrance.send(cluster, settings, {generation: 100}, alone)


def ask(cluster: Cluster, settings: Settings, note: Note, verb: str) -> None:
    """Tells the run whose canary this is how a person wants it to end: its step looks for that once a second."""

    def same(there: Object | None) -> None:
        if entrance.note_of(there) != note:
            raise InconclusiveError("the canary went on meanwhile. See `gemma-pipelines status`, and say it again")

    shares = entrance.shares_of(record.entry(cluster, settings))
    entrance.send(cluster, settings, shares, same, note.model_copy(update={"asked": verb}))
