"""Writing the one object that says who is live: a Service's selector, or an HTTPRoute's weights with the note of a
canary. What says who is live is one write, under the version that was looked at, and never against another field
manager."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from serving import names
from serving.clients.kubernetes import Cluster, ConflictError, Object
from serving.deployment import record
from serving.errors import InconclusiveError, RequestError
from serving.rendering import render
from serving.settings import Settings

_SAYS_WHO_IS_LIVE = {"Service": ("selector", ""), "HTTPRoute": ("rules", "group: gateway.networking.k8s.io, ")}
"""Kind of an entry → the field of its spec that is the pipeline's alone, and the group as Argo CD wants it told."""


class Note(BaseModel):
    """The annotation names.CANARY: that two generations share the requests, and who of them is live."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    live: str
    candidate: str
    step: int
    """Which of canary.steps, from 1."""
    since: str
    """When the step began, UTC."""
    run: str
    """The run, or the person's command, that goes on with it and holds the Lease."""
    asked: str = ""
    """How a person wants it to end, for that run to obey: `promote` or `rollback`."""


def note_of(entry: Object | None) -> Note | None:
    """The note of a canary that an entry carries; None without one that can be read."""
    annotations = (entry or {}).get("metadata", {}).get("annotations") or {}
    try:
        return Note.model_validate_json(annotations.get(names.CANARY, ""))
    except ValidationError:
        return None


def shares_of(entry: Object | None) -> dict[str, int]:
    """Generation → its weight by an entry, zero included; 100 for the one that a Service selects."""
    if entry is None or entry["kind"] != "HTTPRoute":
        return dict.fromkeys(record.backends(entry), 100)
    rules = entry.get("spec", {}).get("rules") or []
    found = [backend for rule in rules for backend in rule.get("backendRefs") or []]
    return {names.generation_of(backend["name"]): int(backend.get("weight", 1)) for backend in found}


def has_backend(cluster: Cluster, settings: Settings, generation: str) -> bool:
    """Whether all that an entry names for a generation is in the cluster: one of another feature has no pool, say, and
    its share of the requests would be lost."""
    rules = render.entry(settings, {generation: 100})["spec"].get("rules") or []
    wanted = {(each.get("kind", "Service"), each["name"]) for rule in rules for each in rule.get("backendRefs") or []}
    return all(cluster.list(kind, settings.namespace, fields=f"metadata.name={name}") for kind, name in wanted)


def is_as_wanted(settings: Settings, shares: Mapping[str, int], entry: Object | None, note: Note | None = None) -> bool:
    """Whether an entry shares the requests so, carries this note, and is what promotion makes of the settings now:
    their patches, labels and exposure are part of it."""
    annotations = (entry or {}).get("metadata", {}).get("annotations") or {}
    says = annotations.get(names.CANARY, "") == (_text(note) if note else "")
    digest = render.digest_of([render.entry(settings, shares)])
    return says and shares_of(entry) == dict(shares) and annotations.get(names.SETTINGS) == digest


def send(
    cluster: Cluster,
    settings: Settings,
    shares: Mapping[str, int],
    check: Callable[[Object | None], None],
    note: Note | None = None,
) -> bool:
    """Has the entry share the requests so, and carry the note, in one write. `check` raises what forbids that, of the
    entry as it is now. Returns False when it is as wanted.

    Raises RequestError when another field manager owns what says who is live.
    """
    for _ in range(5):
        body = render.entry(settings, shares)
        digest = render.digest_of([body])  # Without what follows.
        annotations = body["metadata"].setdefault("annotations", {})
        annotations[names.SETTINGS] = digest
        if note:
            annotations[names.CANARY] = _text(note)
        there = record.entry(cluster, settings)
        if is_as_wanted(settings, shares, there, note):
            return False
        if there:
            check(there)
            body["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
        try:
            cluster.apply(body, force=False)
        except ConflictError as error:
            owners = [c for c in error.details.get("causes") or [] if c.get("reason") == "FieldManagerConflict"]
            if owners:
                raise _owned_by_another(body, owners) from error
            continue  # The entry changed since it was read: look at it again.
        return True
    raise InconclusiveError(f"the {body['kind']} {settings.namespace}/{settings.name} changes all the time. Run again")


def _text(note: Note) -> str:
    return note.model_dump_json(exclude_defaults=True)


def _owned_by_another(entry: Object, causes: list[Object]) -> RequestError:
    said = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes)
    kind, name, namespace = entry["kind"], entry["metadata"]["name"], entry["metadata"]["namespace"]
    field, group = _SAYS_WHO_IS_LIVE[kind]
    return RequestError(
        f"the {kind} {namespace}/{name} is also managed by somebody else ({said}), who would move "
        f"the traffic back. Leave its spec.{field} to this pipeline: in Argo CD, `ignoreDifferences: [{{{group}kind: "
        f"{kind}, name: {name}, jsonPointers: [/spec/{field}]}}]` and the sync option RespectIgnoreDifferences=true; "
        "in Flux, annotate it `kustomize.toolkit.fluxcd.io/ssa: IfNotPresent`, or take it out of what Flux applies"
    )
