"""Deployments: a ReplicaSet a template, rolled from the old to the new one.

The arithmetic of the rolling update (maxSurge, maxUnavailable, unhealthy old pods first), the conditions and their
words are those of kube-controller-manager.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import math
from collections.abc import Callable

from emulated_cloud.kubernetes.client import (
    ApiError,
    Client,
    Informers,
    Object,
    condition,
    key_of,
    owner_of,
    owner_reference,
    seconds_since,
    timestamp,
)
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.resources import DEPLOYMENTS, PODS, REPLICA_SETS, Resource
from emulated_cloud.kubernetes.workqueue import WorkQueue

REVISION = "deployment.kubernetes.io/revision"
HASH_LABEL = "pod-template-hash"
# A Deployment without a deadline is given this one by the API server.
NO_DEADLINE = 2**31 - 1


class DeploymentController:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._deployments = informers.of(DEPLOYMENTS)
        self._sets = informers.of(REPLICA_SETS)
        self._pods = informers.of(PODS)
        self._events = EventRecorder(client, "deployment-controller")
        self.queue = WorkQueue("deployment", self._reconcile)
        self._deployments.on_change(self.queue.changed)
        self._sets.on_change(self._set_changed)
        self._pods.on_change(self._pod_changed)

    def _set_changed(self, old: Object | None, new: Object | None) -> None:
        item = new or old or {}
        owner = owner_of(item)
        if owner and owner["kind"] == "Deployment":
            self.queue.add(f"{item['metadata']['namespace']}/{owner['name']}")

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """Only the strategy Recreate waits for pods to be gone."""
        if new is None and old and (owner := owner_of(old)):
            replica_set = self._sets.items.get(f"{old['metadata']['namespace']}/{owner['name']}")
            if replica_set:
                self._set_changed(None, replica_set)

    async def _reconcile(self, key: str) -> float | None:
        deployment = self._deployments.items.get(key)
        if deployment is None or deployment["metadata"].get("deletionTimestamp"):
            return None
        owned = self._owned(deployment)
        new = next((item for item in owned if _hash_of(item) == _template_hash(deployment)), None)
        old = [item for item in owned if item is not new]
        created = False
        if not deployment["spec"].get("paused"):
            if deployment["spec"].get("strategy", {}).get("type") == "Recreate":
                new, created = await self._recreate(deployment, new, old)
            else:
                new, created = await self._roll(deployment, new, old)
        elif new:
            await self._scale(deployment, new, deployment["spec"].get("replicas", 1))
        owned = self._owned(deployment)
        new = next((item for item in owned if _hash_of(item) == _template_hash(deployment)), None)
        after = await self._write_status(deployment, new, owned, created)
        await self._clean_up(deployment, new, owned)
        return after

    def _owned(self, deployment: Object) -> list[Object]:
        """Its ReplicaSets, oldest first."""
        uid = deployment["metadata"]["uid"]
        sets = self._sets.in_namespace(deployment["metadata"]["namespace"])
        return sorted(
            (item for item in sets if (owner := owner_of(item)) and owner["uid"] == uid),
            key=lambda item: _revision(item),
        )

    # -- strategies -----------------------------------------------------------------------------------------

    async def _recreate(self, deployment: Object, new: Object | None, old: list[Object]) -> tuple[Object | None, bool]:
        await asyncio.gather(*(self._scale(deployment, item, 0) for item in old))
        uids = {item["metadata"]["uid"] for item in old}
        for pod in self._pods.in_namespace(deployment["metadata"]["namespace"]):
            if (owner := owner_of(pod)) and owner["uid"] in uids and not is_finished(pod):
                return new, False
        replicas = deployment["spec"].get("replicas", 1)
        new, created = await self._ensure_new(deployment, new, old, replicas)
        return await self._scale(deployment, new, replicas), created

    async def _roll(self, deployment: Object, new: Object | None, old: list[Object]) -> tuple[Object, bool]:
        replicas = deployment["spec"].get("replicas", 1)
        surge, unavailable = rolling_bounds(deployment)
        others = sum(_replicas(item) for item in old)
        room = max(0, replicas + surge - others - (_replicas(new) if new else 0))
        current = _replicas(new) if new else 0
        wanted = replicas if current > replicas else min(replicas, current + room)
        new, created = await self._ensure_new(deployment, new, old, wanted)
        new = await self._scale(deployment, new, wanted)
        total = others + wanted
        lacking = wanted - _available(new)
        removable = total - (replicas - unavailable) - lacking
        if others and removable > 0:
            await self._shrink(deployment, new, old, removable, replicas - unavailable)
        return new, created

    async def _shrink(
        self, deployment: Object, new: Object, old: list[Object], removable: int, min_available: int
    ) -> None:
        """Takes `removable` pods from the old sets at most: unhealthy ones first, then healthy ones while
        `min_available` stay."""
        wanted = {item["metadata"]["name"]: _replicas(item) for item in old}
        for item in old:
            unhealthy = max(0, min(_replicas(item) - _available(item), removable))
            wanted[item["metadata"]["name"]] -= unhealthy
            removable -= unhealthy
        available = _available(new) + sum(_available(item) for item in old)
        spare = min(removable, available - min_available)
        for item in old:
            name = item["metadata"]["name"]
            step = max(0, min(wanted[name], spare))
            wanted[name] -= step
            spare -= step
        for item in old:
            await self._scale(deployment, item, wanted[item["metadata"]["name"]])

    async def _ensure_new(
        self, deployment: Object, new: Object | None, old: list[Object], replicas: int
    ) -> tuple[Object, bool]:
        """The ReplicaSet of the current template, its revision the highest; and whether it was created now."""
        revision = str(max((_revision(item) for item in old), default=0) + 1)
        if new is None:
            new, created = await self._create_set(deployment, replicas, revision), True
        else:
            created = False
            if _revision(new) < int(revision):
                new = await self._annotate(REPLICA_SETS, new, revision)
                self._sets.observe(new)
        current = str(_revision(new))
        if (deployment["metadata"].get("annotations") or {}).get(REVISION) != current:
            self._deployments.observe(await self._annotate(DEPLOYMENTS, deployment, current))
        return new, created

    async def _annotate(self, resource: Resource, item: Object, revision: str) -> Object:
        meta = item["metadata"]
        patch = {"metadata": {"annotations": {REVISION: revision}}}
        return await self._client.patch(resource, meta["name"], meta["namespace"], patch)

    async def _create_set(self, deployment: Object, replicas: int, revision: str) -> Object:
        meta, digest = deployment["metadata"], _template_hash(deployment)
        template = copy.deepcopy(deployment["spec"]["template"])
        template.setdefault("metadata", {}).setdefault("labels", {})[HASH_LABEL] = digest
        selector = copy.deepcopy(deployment["spec"]["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
        body = {
            "metadata": {
                "name": f"{meta['name']}-{digest}",
                "namespace": meta["namespace"],
                "labels": template["metadata"]["labels"],
                "annotations": {REVISION: revision},
                "ownerReferences": [owner_reference(DEPLOYMENTS, deployment)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": deployment["spec"].get("minReadySeconds", 0),
                "selector": selector,
                "template": template,
            },
        }
        try:
            made = await self._client.create(REPLICA_SETS, body, meta["namespace"])
        except ApiError as error:
            if error.status != 409:
                self._events.event(deployment, "Warning", "ReplicaSetCreateError", error.message)
            raise
        self._sets.observe(made)
        if replicas:
            self._scaled(deployment, made, 0, replicas)
        return made

    async def _scale(self, deployment: Object, replica_set: Object, replicas: int) -> Object:
        before = _replicas(replica_set)
        min_ready = deployment["spec"].get("minReadySeconds", 0)
        if before == replicas and replica_set["spec"].get("minReadySeconds", 0) == min_ready:
            return replica_set
        meta = replica_set["metadata"]
        patch = {
            "metadata": {"resourceVersion": meta["resourceVersion"]},
            "spec": {"replicas": replicas, "minReadySeconds": min_ready},
        }
        answer = await self._client.patch(REPLICA_SETS, meta["name"], meta["namespace"], patch)
        self._sets.observe(answer)
        if before != replicas:
            self._scaled(deployment, replica_set, before, replicas)
        return answer

    def _scaled(self, deployment: Object, replica_set: Object, before: int, after: int) -> None:
        direction = "up" if after > before else "down"
        name = replica_set["metadata"]["name"]
        message = f"Scaled {direction} replica set {name} from {before} to {after}"
        self._events.event(deployment, "Normal", "ScalingReplicaSet", message)

    async def _clean_up(self, deployment: Object, new: Object | None, owned: list[Object]) -> None:
        """Drops old, empty ReplicaSets beyond revisionHistoryLimit once the rollout is complete."""
        if new is None or not _complete(deployment, new, owned):
            return
        limit = deployment["spec"].get("revisionHistoryLimit", 10)
        empty = [
            item
            for item in owned
            if item is not new and _replicas(item) == 0 and not (item.get("status") or {}).get("replicas")
        ]
        for item in empty[: max(0, len(empty) - limit)]:
            meta = item["metadata"]
            await self._client.delete(REPLICA_SETS, meta["name"], meta["namespace"], uid=meta["uid"])

    # -- status ---------------------------------------------------------------------------------------------

    async def _write_status(
        self, deployment: Object, new: Object | None, owned: list[Object], created: bool
    ) -> float | None:
        """Writes what changed; seconds until the progress deadline has to be looked at."""
        deployment = self._deployments.items.get(key_of(deployment), deployment)
        replicas = deployment["spec"].get("replicas", 1)
        totals = [item.get("status") or {} for item in owned]
        count = sum(total.get("replicas", 0) for total in totals)
        available = sum(total.get("availableReplicas", 0) for total in totals)
        status: Object = {
            "observedGeneration": deployment["metadata"].get("generation", 0),
            "replicas": count,
            "updatedReplicas": (new.get("status") or {}).get("replicas", 0) if new else 0,
            "readyReplicas": sum(total.get("readyReplicas", 0) for total in totals),
            "availableReplicas": available,
            "unavailableReplicas": max(0, max(count, replicas) - available),
        }
        status = {name: value for name, value in status.items() if value}
        _, unavailable = rolling_bounds(deployment)
        conditions = {entry["type"]: entry for entry in (deployment.get("status") or {}).get("conditions") or []}
        enough = available >= replicas - unavailable
        _set_condition(
            conditions,
            "Available",
            "True" if enough else "False",
            "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
            f"Deployment {'has' if enough else 'does not have'} minimum availability.",
        )
        after = self._judge_progress(deployment, new, owned, created, status, conditions)
        conditions.pop("ReplicaFailure", None)
        for item in owned:
            if failure := condition(item, "ReplicaFailure"):
                conditions["ReplicaFailure"] = failure
        status["conditions"] = list(conditions.values())
        before = dict(deployment.get("status") or {})
        before.pop("collisionCount", None)
        before.pop("terminatingReplicas", None)
        if before != status:
            kept = {
                name: value
                for name, value in (deployment.get("status") or {}).items()
                if name in ("collisionCount", "terminatingReplicas")
            }
            answer = await self._client.update(DEPLOYMENTS, {**deployment, "status": {**status, **kept}}, "status")
            self._deployments.observe(answer)
        return after

    def _judge_progress(
        self,
        deployment: Object,
        new: Object | None,
        owned: list[Object],
        created: bool,
        status: Object,
        conditions: dict[str, Object],
    ) -> float | None:
        deadline = deployment["spec"].get("progressDeadlineSeconds", 600)
        if deadline == NO_DEADLINE:
            conditions.pop("Progressing", None)
            return None
        current = conditions.get("Progressing")
        name = new["metadata"]["name"] if new else ""
        if new and _complete(deployment, new, owned):
            words = f'ReplicaSet "{name}" has successfully progressed.'
            _set_condition(conditions, "Progressing", "True", "NewReplicaSetAvailable", words)
            return None
        if created:
            words = f'Created new replica set "{name}"'
            _set_condition(conditions, "Progressing", "True", "NewReplicaSetCreated", words)
            return float(deadline)
        if current is None:
            words = f'Found new replica set "{name}"'
            _set_condition(conditions, "Progressing", "True", "FoundNewReplicaSet", words)
            return float(deadline)
        if _progressed(deployment.get("status") or {}, status):
            words = f'ReplicaSet "{name}" is progressing.'
            # Each step forward starts the deadline anew.
            conditions.pop("Progressing")
            _set_condition(conditions, "Progressing", "True", "ReplicaSetUpdated", words)
            conditions["Progressing"]["lastTransitionTime"] = current["lastTransitionTime"]
            return float(deadline)
        if current["reason"] in ("NewReplicaSetAvailable", "ProgressDeadlineExceeded"):
            # A finished rollout that loses a pod is not a new rollout.
            return None
        left = deadline - seconds_since(current["lastUpdateTime"])
        if left > 0:
            return left + 1
        words = f'ReplicaSet "{name}" has timed out progressing.'
        _set_condition(conditions, "Progressing", "False", "ProgressDeadlineExceeded", words)
        return None


def _set_condition(conditions: dict[str, Object], kind: str, status: str, reason: str, message: str) -> None:
    old = conditions.get(kind)
    if old and (old["status"], old["reason"], old["message"]) == (status, reason, message):
        return
    now = timestamp()
    conditions[kind] = {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastUpdateTime": now,
        "lastTransitionTime": old["lastTransitionTime"] if old and old["status"] == status else now,
    }


def _progressed(before: Object, after: Object) -> bool:
    def old_replicas(status: Object) -> int:
        return status.get("replicas", 0) - status.get("updatedReplicas", 0)

    grew = any(
        after.get(name, 0) > before.get(name, 0) for name in ("updatedReplicas", "readyReplicas", "availableReplicas")
    )
    return grew or old_replicas(after) < old_replicas(before)


def _complete(deployment: Object, new: Object, owned: list[Object]) -> bool:
    replicas = deployment["spec"].get("replicas", 1)
    status = new.get("status") or {}
    total = sum((item.get("status") or {}).get("replicas", 0) for item in owned)
    return (
        status.get("replicas", 0) == replicas
        and total == replicas
        and status.get("availableReplicas", 0) == replicas
        and _replicas(new) == replicas
    )


def rolling_bounds(deployment: Object) -> tuple[int, int]:
    """(maxSurge, maxUnavailable) in pods: percentages round up and down; both zero means one unavailable."""
    replicas = deployment["spec"].get("replicas", 1)
    strategy = deployment["spec"].get("strategy") or {}
    if strategy.get("type") == "Recreate":
        return 0, 0
    rolling = strategy.get("rollingUpdate") or {}
    surge = _resolve(rolling.get("maxSurge", "25%"), replicas, math.ceil)
    unavailable = _resolve(rolling.get("maxUnavailable", "25%"), replicas, math.floor)
    return (0, 1) if not surge and not unavailable else (surge, min(unavailable, replicas))


def _resolve(value: int | str, replicas: int, round_: Callable[[float], int]) -> int:
    if isinstance(value, int):
        return value
    return round_(int(value.rstrip("%")) * replicas / 100)


def _template_hash(deployment: Object) -> str:
    """A short name for the template, in the alphabet that Kubernetes uses for such names."""
    digest = hashlib.sha256(json.dumps(deployment["spec"]["template"], sort_keys=True).encode()).digest()
    return "".join("bcdfghjklmnpqrstvwxz2456789"[byte % 27] for byte in digest[:10])


def _hash_of(replica_set: Object) -> str:
    return (replica_set["metadata"].get("labels") or {}).get(HASH_LABEL, "")


def _revision(item: Object) -> int:
    return int((item["metadata"].get("annotations") or {}).get(REVISION, "0"))


def _replicas(replica_set: Object) -> int:
    return replica_set["spec"].get("replicas", 1)


def _available(replica_set: Object) -> int:
    return (replica_set.get("status") or {}).get("availableReplicas", 0)
