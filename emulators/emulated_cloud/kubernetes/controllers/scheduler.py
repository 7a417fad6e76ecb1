"""The scheduler: filters, the least allocated node, binding, and the words for a pod that fits nowhere."""

from __future__ import annotations

from emulated_cloud.kubernetes.client import (
    ApiError,
    Client,
    Informers,
    Object,
    condition,
    key_of,
    parse_time,
    timestamp,
)
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.resources import CLAIMS, CSI_DRIVERS, CSI_NODES, NODES, PODS, STORAGE_CLASSES, VOLUMES
from emulated_cloud.kubernetes.scheduling import (
    NodeState,
    VolumeNeeds,
    misfit,
    node_states,
    unschedulable_message,
    volume_needs,
)
from emulated_cloud.kubernetes.workqueue import WorkQueue

NAME = "default-scheduler"
SELECTED_NODE = "volume.kubernetes.io/selected-node"


class Scheduler:
    def __init__(self, client: Client, informers: Informers):
        self._client, self._informers = client, informers
        self._pods = informers.of(PODS)
        self._nodes = informers.of(NODES)
        self._claims = informers.of(CLAIMS)
        self._assumed: dict[str, str] = {}
        """uid → node of pods that were bound, until the watch shows it: they take their place at once."""
        self._events = EventRecorder(client, NAME)
        self.queue = WorkQueue("scheduler", self._schedule_all)
        self._pods.on_change(self._pod_changed)
        self._nodes.on_change(self._node_changed)
        for resource in (CLAIMS, VOLUMES, STORAGE_CLASSES, CSI_NODES, CSI_DRIVERS):
            informers.of(resource).on_change(lambda _old, _new: self._wake())

    def _wake(self) -> None:
        """One pass over all that wait, if any pod does."""
        if any(_waits(pod) for pod in self._pods.items.values()):
            self.queue.add("all")

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """A new pod, or room that one has left."""
        if new is None and old is not None:
            self._assumed.pop(old["metadata"]["uid"], None)
        if new is not None and _waits(new):
            if old is None or old["spec"] != new["spec"]:
                self.queue.add("all")
        elif new is None or (new.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            self._wake()

    def _node_changed(self, old: Object | None, new: Object | None) -> None:
        """Heartbeats are not news."""
        if not (old and new) or _seen_by_scheduler(old) != _seen_by_scheduler(new):
            self._wake()

    async def _schedule_all(self, _: str) -> None:
        pods = [self._as_bound(pod) for pod in self._pods.items.values()]
        states = node_states(
            (node for node in self._nodes.items.values() if not node["metadata"].get("deletionTimestamp")),
            pods,
            self._informers,
        )
        waiting = [pod for pod in pods if _waits(pod)]
        for pod in sorted(waiting, key=_order):
            await self._schedule(pod, states)

    def _as_bound(self, pod: Object) -> Object:
        """The pod on the node that it was bound to, though the watch has not shown it yet."""
        uid = pod["metadata"]["uid"]
        if pod["spec"].get("nodeName"):
            self._assumed.pop(uid, None)
        node = self._assumed.get(uid)
        return {**pod, "spec": {**pod["spec"], "nodeName": node}} if node else pod

    async def _schedule(self, pod: Object, states: list[NodeState]) -> None:
        needs = volume_needs(pod, self._informers)
        verdicts = [misfit(pod, state, needs, states) for state in states] if not needs.problem else []
        fitting = [state for state, (reasons, _) in zip(states, verdicts, strict=False) if not reasons]
        if not fitting:
            await self._report(pod, unschedulable_message(len(states), needs.problem, verdicts))
            return
        chosen = max(fitting, key=lambda state: (-_crowding(pod, state, states), state.free_share()))
        if not await self._choose_for_claims(needs, chosen):
            return
        await self._bind(pod, chosen)
        chosen.volumes |= needs.attached

    async def _choose_for_claims(self, needs: VolumeNeeds, chosen: NodeState) -> bool:
        """Tells claims that wait for their first consumer where it goes; the pod follows when they are bound."""
        for claim in needs.waiting:
            meta = claim["metadata"]
            if (meta.get("annotations") or {}).get(SELECTED_NODE) != chosen.name:
                patch = {"metadata": {"annotations": {SELECTED_NODE: chosen.name}}}
                self._claims.observe(await self._client.patch(CLAIMS, meta["name"], meta["namespace"], patch))
        return not needs.waiting

    async def _bind(self, pod: Object, chosen: NodeState) -> None:
        meta = pod["metadata"]
        binding = {
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": {"name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]},
            "target": {"apiVersion": "v1", "kind": "Node", "name": chosen.name},
        }
        try:
            await self._client.create(PODS, binding, meta["namespace"], "binding")
        except ApiError as error:
            # Deleted, or bound by a pass before this one.
            if error.status in (404, 409):
                return
            raise
        chosen.add(pod)
        self._assumed[meta["uid"]] = chosen.name
        words = f"Successfully assigned {key_of(pod)} to {chosen.name}"
        self._events.event(pod, "Normal", "Scheduled", words)

    async def _report(self, pod: Object, message: str) -> None:
        before = condition(pod, "PodScheduled")
        if before and before["status"] == "False" and before.get("message") == message:
            return
        now = timestamp()
        entry = {
            "type": "PodScheduled",
            "status": "False",
            "reason": "Unschedulable",
            "message": message,
            "lastProbeTime": None,
            "lastTransitionTime": before["lastTransitionTime"] if before and before["status"] == "False" else now,
        }
        meta = pod["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"conditions": [entry]}}
        try:
            answer = await self._client.patch(PODS, meta["name"], meta["namespace"], patch, "strategic", "status")
        except ApiError as error:
            if error.status in (404, 409):
                return
            raise
        self._pods.observe(answer)
        self._events.event(pod, "Warning", "FailedScheduling", message)


def _waits(pod: Object) -> bool:
    spec = pod["spec"]
    return (
        not spec.get("nodeName")
        and not spec.get("schedulingGates")
        and spec.get("schedulerName", NAME) == NAME
        and not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase", "Pending") == "Pending"
    )


def _order(pod: Object) -> tuple[int, object, str]:
    created = parse_time(pod["metadata"]["creationTimestamp"])
    return -(pod["spec"].get("priority") or 0), created, pod["metadata"]["name"]


def _crowding(pod: Object, state: NodeState, states: list[NodeState]) -> int:
    """How many pods of the same owner share the node's zone: replicas spread over zones where they can."""
    owners = {ref["uid"] for ref in pod["metadata"].get("ownerReferences") or []}
    zone = state.labels.get("topology.kubernetes.io/zone")
    return sum(
        bool(owners & {ref["uid"] for ref in mate["metadata"].get("ownerReferences") or []})
        for other in states
        if other.labels.get("topology.kubernetes.io/zone") == zone
        for mate in other.pods
    )


def _seen_by_scheduler(node: Object) -> tuple[object, ...]:
    return node["spec"], node["metadata"].get("labels"), node["status"].get("allocatable")
