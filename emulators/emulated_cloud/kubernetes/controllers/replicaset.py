"""ReplicaSets: as many pods as asked for, and how many of them are ready and available."""

from __future__ import annotations

import asyncio
import copy

from emulated_cloud.kubernetes.client import (
    ApiError,
    Client,
    Informers,
    Object,
    key_of,
    owner_of,
    owner_reference,
    timestamp,
)
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import available_in, deletion_order, is_active, is_ready
from emulated_cloud.kubernetes.resources import PODS, REPLICA_SETS
from emulated_cloud.kubernetes.selectors import matches
from emulated_cloud.kubernetes.workqueue import WorkQueue


class ReplicaSetController:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._sets = informers.of(REPLICA_SETS)
        self._pods = informers.of(PODS)
        self._events = EventRecorder(client, "replicaset-controller")
        self.queue = WorkQueue("replicaset", self._reconcile)
        self._sets.on_change(self.queue.changed)
        self._pods.on_change(self._pod_changed)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old or {}
        owner = owner_of(pod)
        if owner and owner["kind"] == "ReplicaSet":
            self.queue.add(f"{pod['metadata']['namespace']}/{owner['name']}")
        elif owner is None:
            for candidate in self._sets.in_namespace(pod["metadata"]["namespace"]):
                if matches(candidate["spec"]["selector"], pod["metadata"].get("labels")):
                    self.queue.add(key_of(candidate))

    async def _reconcile(self, key: str) -> float | None:
        replica_set = self._sets.items.get(key)
        if replica_set is None:
            return None
        pods = [pod for pod in await self._claim(replica_set) if is_active(pod)]
        problem = None
        if not replica_set["metadata"].get("deletionTimestamp"):
            problem = await self._scale(replica_set, pods)
            pods = [pod for pod in self._owned(replica_set) if is_active(pod)]
        after = await self._write_status(replica_set, pods, problem)
        if problem:
            raise problem
        return after

    def _owned(self, replica_set: Object) -> list[Object]:
        uid = replica_set["metadata"]["uid"]
        pods = self._pods.in_namespace(replica_set["metadata"]["namespace"])
        return [pod for pod in pods if (owner := owner_of(pod)) and owner["uid"] == uid]

    async def _claim(self, replica_set: Object) -> list[Object]:
        """Its pods, with orphans that its selector matches adopted."""
        if not replica_set["metadata"].get("deletionTimestamp"):
            for pod in self._pods.in_namespace(replica_set["metadata"]["namespace"]):
                if (
                    owner_of(pod) is None
                    and is_active(pod)
                    and matches(replica_set["spec"]["selector"], pod["metadata"].get("labels"))
                ):
                    reference = owner_reference(REPLICA_SETS, replica_set)
                    patch = {"metadata": {"uid": pod["metadata"]["uid"], "ownerReferences": [reference]}}
                    answer = await self._client.patch(
                        PODS, pod["metadata"]["name"], pod["metadata"]["namespace"], patch, "strategic"
                    )
                    self._pods.observe(answer)
        return self._owned(replica_set)

    async def _scale(self, replica_set: Object, pods: list[Object]) -> ApiError | None:
        """Creates what is missing, deletes what is too much; the error that stopped a creation."""
        missing = replica_set["spec"].get("replicas", 1) - len(pods)
        if missing > 0:
            made = await asyncio.gather(
                *(self._create_pod(replica_set) for _ in range(missing)), return_exceptions=True
            )
            for problem in made:
                if isinstance(problem, ApiError):
                    self._events.event(replica_set, "Warning", "FailedCreate", f"Error creating: {problem.message}")
                    return problem
                if isinstance(problem, BaseException):
                    raise problem
        elif missing < 0:
            surplus = sorted(pods, key=deletion_order)[:-missing]
            await asyncio.gather(*(self._delete_pod(replica_set, pod) for pod in surplus))
        return None

    async def _create_pod(self, replica_set: Object) -> None:
        template = copy.deepcopy(replica_set["spec"]["template"])
        meta = template.setdefault("metadata", {})
        meta["generateName"] = replica_set["metadata"]["name"] + "-"
        meta["ownerReferences"] = [owner_reference(REPLICA_SETS, replica_set)]
        pod = await self._client.create(PODS, template, replica_set["metadata"]["namespace"])
        self._pods.observe(pod)
        self._events.event(replica_set, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    async def _delete_pod(self, replica_set: Object, pod: Object) -> None:
        meta = pod["metadata"]
        self._pods.observe(await self._client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"]))
        self._events.event(replica_set, "Normal", "SuccessfulDelete", f"Deleted pod: {meta['name']}")

    async def _write_status(self, replica_set: Object, pods: list[Object], problem: ApiError | None) -> float | None:
        """Seconds until the next pod counts as available."""
        min_ready = replica_set["spec"].get("minReadySeconds", 0)
        waits = [available_in(pod, min_ready) for pod in pods]
        labels = replica_set["spec"]["template"].get("metadata", {}).get("labels") or {}
        status: Object = {
            "replicas": len(pods),
            "fullyLabeledReplicas": sum(
                labels.items() <= (pod["metadata"].get("labels") or {}).items() for pod in pods
            ),
            "readyReplicas": sum(is_ready(pod) for pod in pods),
            "availableReplicas": sum(wait == 0 for wait in waits),
            "observedGeneration": replica_set["metadata"].get("generation", 0),
        }
        status = {name: value for name, value in status.items() if value or name in ("replicas", "observedGeneration")}
        if problem:
            status["conditions"] = [
                {
                    "type": "ReplicaFailure",
                    "status": "True",
                    "reason": "FailedCreate",
                    "message": problem.message,
                    "lastTransitionTime": timestamp(),
                }
            ]
        before = {**(replica_set.get("status") or {})}
        if _without_times(before) != _without_times(status):
            body = {**replica_set, "status": status}
            self._sets.observe(await self._client.update(REPLICA_SETS, body, "status"))
        return min((wait for wait in waits if wait), default=None)


def _without_times(status: Object) -> Object:
    conditions = [(entry["type"], entry["message"]) for entry in status.get("conditions") or []]
    numbers = {name: value for name, value in status.items() if value and name != "conditions"}
    return {**numbers, "conditions": conditions}
