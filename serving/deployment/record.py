"""What a deployment remembers: one ConfigMap in its namespace, written only by who holds the Lease.

`kubectl get configmap NAME-generations -o yaml` shows it as JSON under `record.json`. What a newer version of this tool
wrote there, and this one does not know, stays as it is.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from serving import names
from serving.clients.kubernetes import Cluster, ConflictError, Object
from serving.errors import InconclusiveError, RequestError
from serving.rendering import render
from serving.settings import Settings
from serving.weights.release import Release

_KEY = "record.json"
_LARGEST = 256 << 10
"""Bytes of a record. A ConfigMap holds a mebibyte."""
_LONGEST_REASON = 2000
"""Characters: the whole is in the run's report."""
_UNKNOWN_KEYS_STAY = ConfigDict(extra="allow")


class Rejection(BaseModel):
    """Why a generation is not tried again without `--retry`."""

    model_config = _UNKNOWN_KEYS_STAY

    reason: str
    at: str
    run_id: str


class Pin(BaseModel):
    """A person's decision for a generation, which no scheduled run may undo."""

    model_config = _UNKNOWN_KEYS_STAY

    generation: str
    at: str
    reason: str


class Down(BaseModel):
    """The live generation was taken down on purpose, to make room for another (serving/deployment/replacement.py)."""

    model_config = _UNKNOWN_KEYS_STAY

    generation: str
    candidate: str
    """The one that it made room for."""
    replicas: int
    """Pods that it had, and is to have again."""
    since: str
    run_id: str


class Downtime(BaseModel):
    """How long nothing served the last time that one generation made room for another."""

    model_config = _UNKNOWN_KEYS_STAY

    seconds: float
    at: str
    """When it was over."""
    run_id: str


class Measured(BaseModel):
    """What a generation's own validation measured at its highest concurrency, before anybody else called it."""

    model_config = _UNKNOWN_KEYS_STAY

    load: str
    """Digest of the load: figures of another one compare with nothing."""
    tokens_per_second: float
    p95_time_to_first_token_ms: float
    p95_inter_token_latency_ms: float


class Scaled(BaseModel):
    """That a generation was seen to get more pods under load, and to give them back (verify_autoscaling)."""

    model_config = _UNKNOWN_KEYS_STAY

    generation: str
    at: str
    run_id: str
    settings: str
    """Digest of all that it hangs on: how the deployment scales, the engine's flags, the accelerator."""


class Known(BaseModel):
    """Where a generation came from, and how fast it was."""

    model_config = _UNKNOWN_KEYS_STAY

    model: str
    commit: str
    weights_key: str
    weights_uri: str
    disk_image: str = ""
    """The disk image that its nodes start with; empty without."""
    adapters_key: str = ""
    """The set of adapters that it is to serve; empty without one of its own (serving/deployment/adapters.py)."""
    run_id: str = ""
    """The run that validated it; empty where a version before noted it, or the record was lost."""
    measured: Measured | None = None
    """None where nothing loaded it, a version before noted it, or the record was lost."""


class Record(BaseModel):
    """The generations of one deployment."""

    model_config = _UNKNOWN_KEYS_STAY

    live: str = ""
    """The generation that the entry sends requests to."""
    since: str = ""
    """When that began; empty where a version before wrote the record."""
    previous: str = ""
    """The generation that was live before it, and that `rollback` goes back to."""
    kept: list[str] = []
    """Generations kept at zero replicas, the newest first."""
    validated: str = ""
    """With `promotion: manual`: the generation that waits for `gemma-pipelines promote`."""
    rejected: dict[str, Rejection] = {}
    pinned: Pin | None = None
    down: Down | None = None
    """That the live generation is down on purpose: noted before it is taken down, until it or another serves."""
    downtime: Downtime | None = None
    scaled: Scaled | None = None
    """The last time that autoscaling was seen; None without, or where the record was lost."""
    generations: dict[str, Known] = {}
    """Origin of every generation named above."""

    _found: Object | None = PrivateAttr(default=None)
    """The ConfigMap that it was read from."""

    @property
    def was_lost(self) -> bool:
        """Whether it was made of what is in the cluster, for want of a ConfigMap."""
        return self._found is None and bool(self.named)

    @property
    def named(self) -> set[str]:
        """The generations whose objects belong in the cluster."""
        return {self.live, self.previous, self.validated, *self.kept} - {""}

    @property
    def weights_in_use(self) -> set[str]:
        """The weights keys that a generation in the cluster may still read, as far as its origin is known."""
        there = [known for name, known in self.generations.items() if name in self.named]
        return {key for known in there for key in (known.weights_key, known.adapters_key) if key}

    @property
    def disk_images_in_use(self) -> set[str]:
        """The disk images that nodes of a generation in the cluster may still be made of, as far as that is known."""
        return {known.disk_image for name, known in self.generations.items() if name in self.named} - {""}

    @property
    def runs(self) -> set[str]:
        """The runs whose reports tell why generations are here, or are not."""
        of_generations = {known.run_id for name, known in self.generations.items() if name in self.named}
        return of_generations | {rejection.run_id for rejection in self.rejected.values()}

    @property
    def of_unknown_origin(self) -> set[str]:
        """The generations in the cluster of which nobody knows what weights they read."""
        return self.named - self.generations.keys()

    def what_serves(self) -> dict[str, str | None]:
        """The live generation and where it came from, as a run reports it: `{"generation", "model", "commit"}`, null
        where that is not known."""
        origin = self.generations.get(self.live)
        return {
            "generation": self.live or None,
            "model": origin.model if origin else None,
            "commit": origin.commit if origin else None,
        }

    def remember(self, release: Release, measured: Measured | None = None) -> None:
        """Notes where the release's generation came from, and what its validation measured. Where a run put nothing
        under load (it changed settings in place), the one before stands."""
        before = self.generations.get(release.generation)
        known = Known.model_validate(release.model_dump(include=set(Known.model_fields)))
        known.measured = measured
        if before and before.measured and not measured:
            known.measured, known.run_id = before.measured, before.run_id
        self.generations[release.generation] = known

    def put_live(self, generation: str) -> None:
        """`generation` serves from now on; the one that served is kept, and first to go back to."""
        if generation == self.live:
            return
        self.kept = [name for name in [self.live, *self.kept] if name and name != generation]
        self.previous, self.live, self.since = self.live, generation, now()
        self.rejected.pop(generation, None)
        if self.validated == generation:
            self.validated = ""

    def serves_again(self, run_id: str) -> None:
        """What was down is ready again, or what it made room for serves. How long that took is noted where one run did
        all of it: another's death in between would tell nothing about the next time."""
        if self.down and self.down.run_id == run_id:
            since = datetime.datetime.fromisoformat(self.down.since)
            seconds = (datetime.datetime.now(datetime.UTC) - since).total_seconds()
            self.downtime = Downtime(seconds=round(seconds), at=now(), run_id=run_id)
        self.down = None

    def forget(self, generation: str) -> None:
        """The generation's objects are gone from the cluster."""
        self.kept = [name for name in self.kept if name != generation]
        if self.previous == generation:
            self.previous = self.kept[0] if self.kept else ""
        if self.validated == generation:
            self.validated = ""

    def reject(self, release: Release, reasons: list[str]) -> list[str]:
        """The release's generation is not tried again by itself, and its objects go from the cluster.

        Returns the generations whose rejection is forgotten for it, the oldest: a record has to fit its ConfigMap.
        """
        self.remember(release)
        return self.turn_down(release.generation, reasons, release.run_id)

    def turn_down(self, generation: str, reasons: list[str], run_id: str) -> list[str]:
        """The same of a generation whose origin is noted."""
        reason = "; ".join(reasons) or "it did not pass"
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}… (the report of {run_id} has the rest)"
        self.forget(generation)
        self.rejected.pop(generation, None)
        older = sorted(self.rejected, key=lambda name: self.rejected[name].at)
        self.rejected[generation] = Rejection(reason=reason, at=now(), run_id=run_id)
        forgotten = []
        while older and len(self._text().encode()) > _LARGEST:
            forgotten.append(older.pop(0))
            del self.rejected[forgotten[-1]]
        return forgotten

    def rejection_of(self, release: Release) -> Rejection | None:
        """Why the release is not tried again by itself: its generation was rejected, with the adapters that it has."""
        rejected, origin = self.rejected.get(release.generation), self.generations.get(release.generation)
        same = origin is None or origin.adapters_key == release.adapters_key
        return (rejected if same else None) or self.rejected.get(release.adapters_key)

    def reject_adapters(self, release: Release, reasons: list[str]) -> None:
        """The release's set of adapters is not tried again by itself, of whatever generation."""
        reason = ("; ".join(reasons) or "they did not pass")[:_LONGEST_REASON]
        self.rejected[release.adapters_key] = Rejection(reason=reason, at=now(), run_id=release.run_id)

    def write(self, cluster: Cluster, settings: Settings) -> None:
        """Writes the record if it changed and nobody else has written it since it was read.

        Raises InconclusiveError if somebody has.
        """
        text = self._text()
        if self._found and text == self._found["data"][_KEY]:
            return
        try:
            if self._found:
                # Whatever else it holds stays.
                self._found = cluster.replace({**self._found, "data": {**self._found["data"], _KEY: text}})
            else:
                self._found = cluster.create(_config_map(settings, text))
        except ConflictError as error:
            raise InconclusiveError(
                f"the record {settings.namespace}/{names.record(settings)} changed while this run held the Lease. See "
                f"`kubectl -n {settings.namespace} get configmap {names.record(settings)} -o yaml`, then run again"
            ) from error

    def _text(self) -> str:
        """The record as it is written: without the origins of generations that nothing names."""
        needed = {name: known for name, known in self.generations.items() if name in self.named | self.rejected.keys()}
        return self.model_copy(update={"generations": needed}).model_dump_json(indent=2)


def read(cluster: Cluster, settings: Settings) -> Record:
    """The deployment's record; an empty one before its first run.

    Who is live is for the entry to say: a run killed between moving the traffic and writing the record is put right
    here. A record that was lost is made again of what is in the cluster: every generation there is live or kept; what
    was rejected or pinned is lost.

    Raises RequestError for a ConfigMap that holds no record.
    """
    found = cluster.get("ConfigMap", names.record(settings), settings.namespace)
    record = _parsed(found, settings) if found else _rebuilt(cluster, settings)
    serving = serving_generation(entry(cluster, settings))
    if serving and serving != record.live:
        record.put_live(serving)
    if record.down and record.down.generation != record.live:
        record.down = None  # What it made room for went live.
    if record.of_unknown_origin:
        _learn_origins(cluster, settings, record)
    return record


def _parsed(found: Object, settings: Settings) -> Record:
    try:
        record = Record.model_validate_json(found["data"][_KEY])
    except (KeyError, TypeError, ValidationError) as error:
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else f"it has no {_KEY}"
        name, namespace = names.record(settings), settings.namespace
        raise RequestError(
            f"the ConfigMap {namespace}/{name} holds no record that this version can read ({why}). Mend it: `kubectl "
            f"-n {namespace} edit configmap {name}`. Deleted, it is made again of the generations in the cluster, and "
            "what was rejected or pinned is lost"
        ) from error
    record._found = found
    return record


def _rebuilt(cluster: Cluster, settings: Settings) -> Record:
    """A record by which everything stays. None of it may be one to go back to unasked: not every generation that is
    there has served."""
    there = cluster.list("Deployment", settings.namespace, labels=f"{names.selector(settings)},{names.GENERATION}")
    newest_first = sorted(there, key=lambda item: str(item["metadata"].get("creationTimestamp")), reverse=True)
    servers = [item for item in newest_first if names.generation_of(item["metadata"]["name"])]
    return Record(kept=[item["metadata"]["labels"][names.GENERATION] for item in servers])


def _learn_origins(cluster: Cluster, settings: Settings, record: Record) -> None:
    """Takes from the Deployments what the record does not say."""
    unknown = record.of_unknown_origin
    for item in cluster.list("Deployment", settings.namespace, labels=f"{names.selector(settings)},{names.GENERATION}"):
        generation = item["metadata"]["labels"][names.GENERATION]
        if generation in unknown:
            try:
                said = (item["metadata"].get("annotations") or {})[names.RELEASE]
                record.generations[generation] = Known.model_validate_json(said)
            except (KeyError, ValidationError):
                continue  # A version before made it, or somebody changed it.


def _config_map(settings: Settings, text: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names.record(settings),
            "namespace": settings.namespace,
            "labels": {names.DEPLOYMENT: settings.name, "app.kubernetes.io/managed-by": "gemma-gke-pipelines"},
        },
        "data": {_KEY: text},
    }


def entry(cluster: Cluster, settings: Settings) -> Object | None:
    """The one object whose selector or weights say who is live, as it is in the cluster: None before a promotion."""
    same_for_all = render.entry(settings, {"GENERATION": 100})
    return cluster.get(same_for_all["kind"], same_for_all["metadata"]["name"], settings.namespace)


def serving_generation(entry: Object | None) -> str:
    """The generation that is live by an entry: the only one that it sends requests to, and of several the one that its
    annotation names.CANARY calls live. Empty when there is no entry, it is not ours, or it does not say."""
    serving = backends(entry)
    if len(serving) == 1:
        return next(iter(serving))
    annotations = (entry or {}).get("metadata", {}).get("annotations") or {}
    try:
        live = str(json.loads(annotations[names.CANARY])["live"])
    except (KeyError, TypeError, ValueError):
        return ""
    return live if live in serving else ""


def backends(entry: Object | None) -> set[str]:
    """The generations that an entry sends requests to: the one that a Service selects, or those that an HTTPRoute gives
    weight. One that is not ours is an empty name."""
    spec: dict[str, Any] = (entry or {}).get("spec", {})
    if entry is None or entry["kind"] == "Service":
        generation = (spec.get("selector") or {}).get(names.GENERATION)
        return {generation} if generation else set()
    found = [backend for rule in spec.get("rules") or [] for backend in rule.get("backendRefs") or []]
    # A backend that has no weight has 1.
    return {names.generation_of(backend["name"]) for backend in found if backend.get("weight", 1) > 0}


def command(verb: str, generation: str = "") -> str:
    """What a person types to move the traffic by hand, for a message's end."""
    to = f" --to {generation}" if generation else ""
    return f"`gemma-pipelines {verb}{to} -f FILE` (`--state DIR` instead of the file where `run` had it)"


def now() -> str:
    """The time in UTC, to the second, as the record keeps it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
