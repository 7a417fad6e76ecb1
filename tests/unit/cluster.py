"""A cluster in memory with the interface of serving.clients.kubernetes.Cluster, for logic about order and
preconditions. What the API server really does is for the contract tests to say."""

from __future__ import annotations

import copy
import functools
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving.clients.kubernetes import ApiError, ConflictError, kinds

Object = dict[str, Any]
MANAGER = "gemma-gke-pipelines"


class MemoryCluster:
    """Objects by (kind, namespace, name). `calls` lists every write as (verb, kind, name); `scale` is a verb."""

    name = "the cluster in memory"

    def __init__(self, *objects: Object):
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.calls: list[tuple[str, str, str]] = []
        self.owners: dict[tuple[str, str], str] = {}
        """(kind, name) → the manager that owns what says who is live."""
        self.before_write: Callable[[str, str, str], None] = lambda verb, kind, name: None
        """Called before a write is done: raise to be killed at that moment."""
        self.denied: set[tuple[str, str]] = set()
        """(verb, resource) that nobody may do."""
        self._annotations: dict[tuple[str, str, str], set[str]] = {}
        """Keys of the annotations that were applied."""
        self._version = 0
        self._lock = threading.RLock()
        """One write at a time, as the API server has it."""
        self._may_change: Callable[[str], None] = lambda kind: None
        self._watchers: list[queue.SimpleQueue[tuple[str, Object]]] = []
        for body in objects:
            self._store(copy.deepcopy(body))
        self.calls.clear()

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        return copy.deepcopy(self.objects.get((kind, namespace or "", name)))

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        assert not fields or fields.startswith("metadata.name=")
        named = fields.removeprefix("metadata.name=")
        return [
            copy.deepcopy(body)
            for (its_kind, its_namespace, its_name), body in self.objects.items()
            if its_kind == kind and namespace in (None, its_namespace) and named in ("", its_name)
            if _selected(body, labels)
        ]

    def apply(self, body: Object, *, force: bool = True) -> Object:
        with self._writing("apply", body):
            return self._apply(body, force)

    def _apply(self, body: Object, force: bool) -> Object:
        if body["kind"] == "Deployment":
            assert "replicas" not in body["spec"], "replicas are set by /scale"
        there = self.objects.get(_key(body))
        version = body["metadata"].get("resourceVersion")
        if there and version and version != there["metadata"]["resourceVersion"]:
            raise ConflictError("the object has been modified", 409, "Conflict", {})
        owner = self.owners.get((body["kind"], body["metadata"]["name"]), MANAGER)
        if there and not force and owner != MANAGER and there["spec"] != body["spec"]:
            cause = {
                "reason": "FieldManagerConflict",
                "message": f'conflict with "{owner}" using v1',
                "field": ".spec.selector" if body["kind"] == "Service" else ".spec.rules",
            }
            raise ConflictError("Apply failed with 1 conflict", 409, "Conflict", {"causes": [cause]})
        merged = _merged(there or {}, body)
        # What was applied before and is left out now goes.
        said = set(body["metadata"].get("annotations") or {})
        for left_out in self._annotations.get(_key(body), set()) - said:
            merged["metadata"].get("annotations", {}).pop(left_out, None)
        self._annotations[_key(body)] = said
        if body["kind"] == "Deployment":
            merged["spec"].setdefault("replicas", 1)
        return self._store(merged)

    def would_be(self, body: Object) -> Object:
        return _merged(self.objects.get(_key(body)) or {}, body)

    def allows(self, user: str | None, namespace: str, name: str, *, group: str, resource: str, verb: str) -> bool:
        return (verb, resource) not in self.denied

    def create(self, body: Object) -> Object:
        with self._writing("create", body):
            if _key(body) in self.objects:
                raise ConflictError("already exists", 409, "AlreadyExists", {})
            return self._store(copy.deepcopy(body))

    def replace(self, body: Object) -> Object:
        with self._writing("replace", body):
            there = self.objects[_key(body)]
            if body["metadata"].get("resourceVersion") != there["metadata"]["resourceVersion"]:
                raise ConflictError("the object has been modified", 409, "Conflict", {})
            return self._store(copy.deepcopy(body))

    def patch(self, kind: str, name: str, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        there = self.objects.get((kind, namespace or "", name))
        if there is None:
            raise ApiError(f"{kind} {name} not found", 404, "NotFound", {})
        with self._writing(subresource or "patch", there):
            assert subresource == "scale" or "replicas" not in body.get("spec", {}), "replicas are set by /scale"
            return self._store(_merged(self.objects[_key(there)], body))

    def delete(self, body: Object) -> bool:
        with self._writing("delete", body):
            there = self.objects.get(_key(body))
            if there is None or there["metadata"]["uid"] != body["metadata"]["uid"]:
                return False
            del self.objects[_key(body)]
            return True

    @contextmanager
    def changed_only_if(self, check: Callable[[str], None]) -> Iterator[None]:
        before, self._may_change = self._may_change, check
        try:
            yield
        finally:
            self._may_change = before

    def impatient(self) -> MemoryCluster:
        return self

    def everything_in(self, namespace: str) -> list[Object]:
        return [copy.deepcopy(body) for (_, its, _), body in self.objects.items() if its == namespace]

    def serves(self, kind: str) -> bool:
        return True

    def has_group(self, group: str) -> bool:
        return True

    @contextmanager
    def follow(self, *subjects: Any) -> Iterator[Any]:
        changes: queue.SimpleQueue[tuple[str, Object]] = queue.SimpleQueue()
        self._watchers.append(changes)
        for body in list(self.objects.values()):
            changes.put(("ADDED", copy.deepcopy(body)))
        yield _Changes(changes, subjects)
        self._watchers.remove(changes)

    # -- for tests ------------------------------------------------------------------------------------------

    def set_status(self, kind: str, name: str, namespace: str, **status: Any) -> None:
        """What a controller would write."""
        self._store(_merged(self.objects[(kind, namespace, name)], {"status": status}))

    def names(self, kind: str) -> set[str]:
        return {name for its_kind, _, name in self.objects if its_kind == kind}

    @contextmanager
    def _writing(self, verb: str, body: Object) -> Iterator[None]:
        with self._lock:
            self._may_change(body["kind"])
            self.before_write(verb, body["kind"], body["metadata"]["name"])
            self.calls.append((verb, body["kind"], body["metadata"]["name"]))
            yield

    def _store(self, body: Object) -> Object:
        self._version += 1
        body["metadata"].setdefault("uid", str(uuid.uuid4()))
        body["metadata"]["resourceVersion"] = str(self._version)
        body["metadata"].setdefault("generation", 1)
        self.objects[_key(body)] = body
        for watcher in self._watchers:
            watcher.put(("MODIFIED", copy.deepcopy(body)))
        return copy.deepcopy(body)


class _Changes:
    def __init__(self, changes: queue.SimpleQueue[tuple[str, Object]], subjects: tuple[Any, ...]):
        self._changes, self._subjects = changes, subjects

    def until(self, deadline: float, *, tick: float = 1.0) -> Iterator[tuple[str, Object] | None]:
        while (left := deadline - time.monotonic()) > 0:
            try:
                change = self._changes.get(timeout=min(tick, left))
            except queue.Empty:
                yield None
                continue
            if any(_watched(change[1], subject) for subject in self._subjects):
                yield change


def _watched(body: Object, subject: Any) -> bool:
    for term in filter(None, subject.fields.split(",")):
        path, _, value = term.partition("=")
        if functools.reduce(lambda part, key: part.get(key, {}), path.split("."), body) != value:
            return False
    return bool(body["kind"] == subject.kind) and _selected(body, subject.labels)


def _key(body: Object) -> tuple[str, str, str]:
    return kinds.find(body["kind"]).kind, body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _selected(body: Object, labels: str) -> bool:
    there = body["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        name, equals, value = term.partition("=")
        if name not in there or (equals and there[name] != value):
            return False
    return True


def _merged(there: Object, change: Object) -> Object:
    merged = copy.deepcopy(there)
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "selector":
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
