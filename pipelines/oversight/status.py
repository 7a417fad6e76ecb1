"""How a deployment is: what serves, since when, of which commit, what its last runs came to, and what is not as it
should be. Reads only."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from components.resolve_model.decision import Situation
from components.resolve_model.step import Found, key_version, look_around, look_up, name_release, zones
from pipelines.oversight import objects, runs
from pipelines.vertex import preflight, schedule
from serving import names
from serving.clients import google, kubernetes, proxies
from serving.clients.kubernetes import Cluster, Object
from serving.clients.vertex import Body, Vertex
from serving.deployment import canary, entrance, gateway, lease, record, replicas
from serving.deployment.record import Down, Known, Record
from serving.errors import PipelineError
from serving.rendering import render
from serving.settings import Settings
from serving.weights import repositories
from serving.weights.release import Release

Drift = dict[str, str]
"""`{"what", "why", "command"}`."""


def status(settings: Settings, now: datetime.datetime, *, on_vertex: bool) -> dict[str, Any]:
    """`{"schedule", "runs", "live", "canary", "kept", "drift", "unseen"}`. A part that does not answer leaves its word
    in `drift` and `unseen`, and the others are told all the same; Vertex AI switched off is no drift, and in `unseen`
    alone. Raises AccessError without credentials: no part answers then.

    on_vertex: whether the deployment is in a project; a run on this machine has no Vertex AI to look at.
    """
    google.check_credentials()
    unknown: list[Drift] = []

    def told(what: str, ask: Callable[[], Any], without: Any) -> Any:
        try:
            return ask()
        except PipelineError as error:
            unknown.append(drifted(what, str(error)))
            return without

    vertex = told("Vertex AI", lambda: runs.vertex_of(settings), None) if on_vertex else None
    off = [switched_off(settings)] if on_vertex and vertex is None and not unknown else []
    found = told("schedule", lambda: schedule.find(vertex, settings) if vertex else None, None)
    of_schedule: list[dict[str, Any]] = []
    if vertex and not unknown:
        of_schedule = told("schedule", lambda: _schedule_drift(settings, vertex, found, now), [])
    of_runs = told("runs", lambda: runs.latest(vertex, settings), [])
    live, shares, kept, drift = None, None, list[dict[str, Any]](), list[Drift]()
    if cluster := told("cluster", lambda: kubernetes.connect(settings), None):
        known = told("record", lambda: record.read(cluster, settings), Record())
        live = told("live", lambda: _live(cluster, settings, known), None)
        shares = told("canary", lambda: _canary(cluster, settings), None)
        kept = told("kept", lambda: [_kept(cluster, settings, known, name) for name in _others(known)], [])
        drift = told("drift", lambda: list(_drift(cluster, settings, known, shares)), [])
    return {
        "schedule": _schedule(found, now, of_schedule),
        "runs": of_runs,
        "live": live,
        "canary": shares,
        "kept": kept,
        "drift": unknown + [_of_field(each) for each in of_schedule] + drift,
        "unseen": unknown + off,
    }


def switched_off(settings: Settings) -> Drift:
    """That the project has Vertex AI switched off: what was there before comes back with it."""
    return drifted(
        "Vertex AI",
        f"it is switched off in {settings.project}: a schedule there is not seen, and starts no run until it is on "
        "again",
        f"gcloud services enable aiplatform.googleapis.com --project={settings.project}",
    )


# -- the schedule ---------------------------------------------------------------------------------------------


def _schedule(found: Body | None, now: datetime.datetime, differs: list[dict[str, Any]]) -> dict[str, Any] | None:
    if found is None:
        return None
    return {**schedule.as_shown(found, now, differs), "last_error": schedule.start_error(found) or None}


def _schedule_drift(
    settings: Settings, vertex: Vertex, found: Body | None, now: datetime.datetime
) -> list[dict[str, Any]]:
    """In what the schedule's runs are not what the settings ask for today."""
    cron = settings.schedule.cron
    if found is None:
        return [{"field": "schedule", "there": None, "wanted": cron}] if cron else []
    if not cron:
        return [{"field": "schedule", "there": found["cron"], "wanted": None}]
    try:
        image = preflight.digest_of(settings)
    except PipelineError:
        image = schedule.image_of(found)
    asked = schedule.wanted(settings, preflight.job_with(settings, image), vertex.parent, now)
    return schedule.drift(asked, found)


def _of_field(differs: dict[str, Any]) -> Drift:
    apply = "gemma-pipelines schedule apply -f FILE"
    if differs["field"] == "schedule":
        if differs["wanted"] is None:
            return drifted("schedule", "the settings have none", "gemma-pipelines schedule delete -f FILE")
        return drifted("schedule", f"there is none, and the settings ask for {differs['wanted']}", apply)
    return drifted(f"schedule {differs['field']}", schedule.in_words(differs), apply)


# -- generations ----------------------------------------------------------------------------------------------


def _live(cluster: Cluster, settings: Settings, known: Record) -> dict[str, Any] | None:
    """The chain of what serves: commit, weights, volume or disk image, pods, validation."""
    if not known.live:
        return None
    deployment = _deployment(cluster, settings, known.live)
    labels = (deployment or {}).get("metadata", {}).get("labels") or {}
    return {
        **_origin(known, known.live),
        "since": known.since or _written(record.entry(cluster, settings)),
        "volume": _volume(cluster, settings, known.live),
        "pods": _pods(deployment),
        "endpoint": _endpoint(cluster, settings),
        "unreachable": gateway.problems(cluster, settings, [known.live]),
        "pinned": known.pinned.reason if known.pinned else None,
        "down": known.down.model_dump() if known.down else None,
        "validated": runs.validation_of(settings, labels[names.RUN]) if names.RUN in labels else None,
    }


def _canary(cluster: Cluster, settings: Settings) -> dict[str, Any] | None:
    """A promotion that goes on in steps, or that a dead run left; `percent` is the candidate's share."""
    note = canary.going_on(cluster, settings)
    if note is None:
        return None
    percent = entrance.shares_of(record.entry(cluster, settings)).get(note.candidate, 0)
    alive = lease.is_held_by(cluster, settings, note.run)
    return {**note.model_dump(), "percent": percent, "steps": settings.canary.steps, "alive": alive}


def _endpoint(cluster: Cluster, settings: Settings) -> str:
    """Where clients call."""
    if settings.has_gateway:
        return gateway.called(cluster, settings) or f"the Gateway {settings.name}, which has no address"
    return f"{settings.name}.{settings.namespace}.svc:{names.PORT}"


def _kept(cluster: Cluster, settings: Settings, known: Record, generation: str) -> dict[str, Any]:
    return {
        **_origin(known, generation),
        "pods": _pods(_deployment(cluster, settings, generation)),
        "waits": generation == known.validated,
    }


def _others(known: Record) -> list[str]:
    """What is in the cluster beside the live generation: what waits for a person first, then the newest."""
    order = [known.validated, known.previous, *known.kept]
    return [name for name in dict.fromkeys(order) if name and name != known.live]


def _origin(known: Record, generation: str) -> dict[str, Any]:
    origin = known.generations.get(generation) or Known(model="", commit="", weights_key="", weights_uri="")
    return {
        "generation": generation,
        "model": origin.model or None,
        "commit": origin.commit or None,
        "weights_key": origin.weights_key or None,
        "weights": origin.weights_uri or None,
        "disk_image": origin.disk_image or None,
    }


def _volume(cluster: Cluster, settings: Settings, generation: str) -> str | None:
    claim = cluster.get("PersistentVolumeClaim", names.server(generation), settings.namespace)
    if claim is None:
        return None
    return f"{claim['spec'].get('volumeName') or 'none yet'} ({(claim.get('status') or {}).get('phase', 'Pending')})"


def _deployment(cluster: Cluster, settings: Settings, generation: str) -> Object | None:
    return cluster.get("Deployment", names.server(generation), settings.namespace)


def _pods(deployment: Object | None) -> dict[str, int]:
    return {"wanted": replicas.wanted(deployment) if deployment else 0, "ready": replicas.ready(deployment)}


def _written(entry: Object | None) -> str | None:
    """When an object was last written, as far as it says."""
    times = [
        str(each["time"]) for each in (entry or {}).get("metadata", {}).get("managedFields") or [] if "time" in each
    ]
    return max(times, default=None)


# -- drift ----------------------------------------------------------------------------------------------------


def _drift(cluster: Cluster, settings: Settings, known: Record, shares: dict[str, Any] | None) -> Iterator[Drift]:
    """Everything in which the live generation, or what the settings name, is not what it was made of or should be."""
    if not known.live:
        return
    if known.down:
        yield _down(cluster, settings, known.down)
    if shares and not shares["alive"]:
        words = (
            f"{shares['candidate']} has {shares['percent']} % of the requests, and its run {shares['run']} has ended"
        )
        yield drifted("canary", f"{words}; the next run gives them back", "gemma-pipelines rollback -f FILE")
    try:
        newest = look_up(settings)
    except PipelineError as error:
        yield drifted("revision", str(error))
        newest = None
    origin = known.generations.get(known.live)
    if newest and origin:
        yield from _of_revision(settings, origin, newest)
    if (found := _as_live(settings, origin, newest)) is None:
        return
    release = name_release(
        settings,
        "status",
        found,
        live=known.live,
        key_version=key_version(settings),
        zones=zones(settings),
        proxy_ranges=proxies.ranges(settings),
    )
    if release.generation != known.live:
        yield drifted(
            "settings",
            f"they ask for {release.generation} of the same weights, and {known.live} is live: the engine, its flags, "
            "accelerator or volume are others",
            _SUBMIT,
        )
        return
    if known.down:
        return  # Pods that it lacks are no drift of their own.
    yield from _of_situation(settings, look_around(cluster, settings, release, known), release)
    yield from _of_objects(cluster, settings, release)


_SUBMIT = "gemma-pipelines submit SCENARIO -f FILE"


def _down(cluster: Cluster, settings: Settings, down: Down) -> Drift:
    """That the live generation is down on purpose, and who brings it back."""
    words = f"it is down since {down.since}: the run {down.run_id} had it make room for {down.candidate}"
    held = cluster.get("Lease", settings.name, settings.namespace)
    if held and lease.free_at(held) > time.time():
        return drifted(f"generation {down.generation}", f"{words}, and {lease.holder(held)} is at work")
    return drifted(
        f"generation {down.generation}",
        f"{words} and has ended; the next run brings it back, or who does not want to wait",
        "gemma-pipelines rollback -f FILE",
    )


def _of_revision(settings: Settings, origin: Known, newest: Found) -> Iterator[Drift]:
    asked = settings.source or f"{settings.model} {settings.revision}"
    if newest.weights_key != origin.weights_key:
        words = f"{asked} is {newest.commit[:12]}, with other weights than the live {origin.commit[:12]}"
        yield drifted("revision", words, _SUBMIT)
    elif newest.commit != origin.commit:
        words = f"{asked} is {newest.commit[:12]}, with the weights of the live {origin.commit[:12]}: no run is needed"
        yield drifted("revision", words)


def _as_live(settings: Settings, origin: Known | None, newest: Found | None) -> Found | None:
    """What the live weights are; None where nobody can tell any more."""
    if origin is None:
        return None
    if newest and newest.weights_key == origin.weights_key:
        # The generation keeps the commit that it was made of.
        return replace(newest, commit=origin.commit)
    if settings.source or len(repositories.of(settings)) > 1:
        return None  # Of adapters and assistant the record knows no commits.
    try:
        return look_up(settings.model_copy(update={"revision": origin.commit, "model": origin.model}))
    except PipelineError:
        return None


def _of_situation(settings: Settings, seen: Situation, release: Release) -> Iterator[Drift]:
    kubectl = f"kubectl -n {settings.namespace}"
    deployment = f"Deployment/{names.server(release.generation)}"
    if not seen.settings_digest:
        yield drifted(deployment, "it is gone", _SUBMIT)
        return
    if not seen.entry_as_wanted and not seen.canary:
        yield drifted("entry", f"{settings.name} is not what the settings ask for", _SUBMIT)
    if seen.key_version != release.api_key_version:
        yield drifted(
            "API key", f"pods have {seen.key_version or 'none'}, {release.api_key_version or 'none'} is newest", _SUBMIT
        )
    for what, words in (("adapters", seen.adapters), ("autoscaler", seen.autoscaler), ("gateway", seen.gateway)):
        if words:
            yield drifted(what, words, _SUBMIT)
    if not seen.settled:
        yield drifted(deployment, f"{seen.replicas} replicas, the settings say {settings.serving.replicas}", _SUBMIT)
    if not seen.rolled_out:
        words = f"{seen.ready} of {seen.replicas} pods are ready with its present settings"
        yield drifted(deployment, words, f"{kubectl} describe deployment {names.server(release.generation)}")
    for words in seen.damage[:3]:
        yield drifted("weights", words, f"gemma-pipelines verify-weights {release.weights_uri}")
    for words in (seen.caches, *seen.missing):
        if words:
            yield drifted("outside of the cluster", words, _SUBMIT)
    for left in seen.leftovers:
        yield drifted(left, "a dead run left it", _SUBMIT)
    if seen.dead_holder:
        yield drifted("Lease", f"the dead run {seen.dead_holder} holds it; the next run takes it over", _SUBMIT)


def _of_objects(cluster: Cluster, settings: Settings, release: Release) -> Iterator[Drift]:
    """What somebody changed by hand, or takes away, or what the settings have since changed in place."""
    deployment = _deployment(cluster, settings, release.generation)
    labels = (deployment or {}).get("metadata", {}).get("labels") or {}
    # As the run that made it rendered it.
    rendered = render.render(settings, release.model_copy(update={"run_id": labels.get(names.RUN, "status")}))
    for body in [*rendered.shared, *rendered.generation]:
        found = objects.compare(cluster, body)
        if found["change"] == "create":
            yield drifted(found["what"], "it is gone", _SUBMIT)
        elif found["change"] == "change":
            yield drifted(found["what"], "; ".join(found["details"]), _SUBMIT)


def drifted(what: str, why: str, command: str = "") -> Drift:
    return {"what": what, "why": why, "command": command}
