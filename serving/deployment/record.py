"""What a deployment remembers: one ConfigMap in its namespace, written only by who holds the Lease.

`kubectl get configmap NAME-generations -o yaml` shows it as JSON under `record.json`.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from pydantic import BaseModel, ConfigDict, PrivateAttr

from serving import names
from serving.clients.kubernetes import Cluster, ConflictError, Object
from serving.errors import InconclusiveError
from serving.rendering import render
from serving.settings import Settings
from serving.weights.release import Release

_KEY = "record.json"


class Rejection(BaseModel):
    """Why a generation is not tried again without `--retry`."""

    reason: str
    at: str
    run_id: str


class Pin(BaseModel):
    """A person's decision for a generation, which no scheduled run may undo."""

    generation: str
    at: str
    reason: str


class Known(BaseModel):
    """Where a generation came from."""

    model: str
    commit: str
    weights_key: str
    weights_uri: str


class Record(BaseModel):
    """The generations of one deployment."""

    model_config = ConfigDict(extra="forbid")

    live: str = ""
    """The generation that the entry sends requests to."""
    previous: str = ""
    """The generation that was live before it, and that `rollback` goes back to."""
    kept: list[str] = []
    """Generations kept at zero replicas, the newest first."""
    validated: str = ""
    """With `promotion: manual`: the generation that waits for `gemma-pipelines promote`."""
    rejected: dict[str, Rejection] = {}
    pinned: Pin | None = None
    generations: dict[str, Known] = {}
    """Origin of every generation named above."""

    _resource_version: str = PrivateAttr(default="")
    _stored: str = PrivateAttr(default="")

    @property
    def named(self) -> set[str]:
        """The generations whose objects belong in the cluster."""
        return {self.live, self.previous, self.validated, *self.kept} - {""}

    @property
    def weights_in_use(self) -> set[str]:
        """The weights keys that a generation in the cluster may still read."""
        return {known.weights_key for name, known in self.generations.items() if name in self.named}

    def remember(self, release: Release) -> None:
        """Notes where the release's generation came from."""
        known = Known.model_validate(release.model_dump(include=set(Known.model_fields)))
        self.generations[release.generation] = known

    def put_live(self, generation: str) -> None:
        """`generation` serves from now on; the one that served is kept, and first to go back to."""
        if generation == self.live:
            return
        self.kept = [name for name in [self.live, *self.kept] if name and name != generation]
        self.previous, self.live = self.live, generation
        self.rejected.pop(generation, None)
        if self.validated == generation:
            self.validated = ""

    def forget(self, generation: str) -> None:
        """The generation's objects are gone from the cluster."""
        self.kept = [name for name in self.kept if name != generation]
        if self.previous == generation:
            self.previous = self.kept[0] if self.kept else ""
        if self.validated == generation:
            self.validated = ""

    def write(self, cluster: Cluster, settings: Settings) -> None:
        """Writes the record if it changed and nobody else has written it since it was read.

        Raises InconclusiveError if somebody has.
        """
        self.generations = {
            name: known for name, known in self.generations.items() if name in self.named or name in self.rejected
        }
        text = self.model_dump_json(indent=2)
        if text == self._stored:
            return
        body: Object = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": names.record(settings),
                "namespace": settings.namespace,
                "labels": {names.DEPLOYMENT: settings.name, "app.kubernetes.io/managed-by": "gemma-gke-pipelines"},
            },
            "data": {_KEY: text},
        }
        try:
            if self._resource_version:
                body["metadata"]["resourceVersion"] = self._resource_version
                written = cluster.replace(body)
            else:
                written = cluster.create(body)
        except ConflictError as error:
            raise InconclusiveError(
                f"the record {settings.namespace}/{names.record(settings)} changed while this run held the Lease. See "
                f"`kubectl -n {settings.namespace} get configmap {names.record(settings)} -o yaml`, then run again"
            ) from error
        self._resource_version = written["metadata"]["resourceVersion"]
        self._stored = text


def read(cluster: Cluster, settings: Settings) -> Record:
    """The deployment's record; an empty one before its first run.

    Who is live is for the entry to say: a run killed between moving the traffic and writing the record is put right
    here.
    """
    found = cluster.get("ConfigMap", names.record(settings), settings.namespace)
    record = Record.model_validate_json(found["data"][_KEY]) if found else Record()
    if found:
        record._resource_version = found["metadata"]["resourceVersion"]
        record._stored = found["data"][_KEY]
    serving = serving_generation(entry(cluster, settings))
    if serving and serving != record.live:
        record.put_live(serving)
    return record


def entry(cluster: Cluster, settings: Settings) -> Object | None:
    """The one object whose selector or weights say who is live, as it is in the cluster: None before a promotion."""
    same_for_all = render.entry(settings, "GENERATION")
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


def now() -> str:
    """The time in UTC, to the second, as the record keeps it."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
