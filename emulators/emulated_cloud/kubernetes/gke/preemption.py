"""Compute Engine takes a node away: what a Spot node's end, or any machine's, is to the cluster.

A test annotates a Node with `emulated-cloud/preempt: SECONDS`, the notice that it gets (Compute Engine: 30). The node
is tainted `cloud.google.com/impending-node-termination`, says that it shuts down, ends its pods within that time, and
is gone. Their controllers make others, for which the autoscaler finds another node. That it happened is the absence
of the Node.
Source: https://cloud.google.com/kubernetes-engine/docs/concepts/spot-vms (graceful termination).
"""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client, Informers, Object, timestamp
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.nodes import NodeKeeper
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.resources import NODES, PODS
from emulated_cloud.kubernetes.workqueue import WorkQueue

ANNOTATION = "emulated-cloud/preempt"
TAINT = {"key": "cloud.google.com/impending-node-termination", "value": "", "effect": "NoSchedule"}


class Preemption:
    def __init__(self, client: Client, informers: Informers, keeper: NodeKeeper):
        self._client, self._keeper = client, keeper
        self._nodes, self._pods = informers.of(NODES), informers.of(PODS)
        self._events = EventRecorder(client, "kubelet")
        self.queue = WorkQueue("preemption", self._take)
        self._nodes.on_change(self._changed)
        self._pods.on_change(self._pod_changed)

    def _changed(self, _old: Object | None, new: Object | None) -> None:
        if new is not None and _notice(new) is not None:
            self.queue.add(new["metadata"]["name"], 0)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """A pod that ends may be the last of its node."""
        node = self._nodes.items.get(((new or old) or {}).get("spec", {}).get("nodeName", ""))
        self._changed(None, node)

    async def _take(self, name: str) -> float | None:
        node = self._nodes.items.get(name)
        seconds = _notice(node) if node else None
        if node is None or seconds is None:
            return None
        if TAINT["key"] not in {taint["key"] for taint in node["spec"].get("taints") or []}:
            await self._announce(node)
        there = [
            pod for pod in self._pods.items.values() if pod["spec"].get("nodeName") == name and not is_finished(pod)
        ]
        for pod in there:
            if not pod["metadata"].get("deletionTimestamp"):
                await self._end(pod, seconds)
        if not there:
            await self._keeper.remove(node)
        return None

    async def _end(self, pod: Object, seconds: int) -> None:
        meta = pod["metadata"]
        target = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": "Pod was terminated in response to imminent node shutdown.",
            "lastTransitionTime": timestamp(),
        }
        body = {"status": {"conditions": [target]}}
        self._pods.observe(await self._client.patch(PODS, meta["name"], meta["namespace"], body, "strategic", "status"))
        grace = min(pod["spec"].get("terminationGracePeriodSeconds", 30), seconds)
        await self._client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"], grace_seconds=grace)

    async def _announce(self, node: Object) -> None:
        meta = node["metadata"]
        taints = [*(node["spec"].get("taints") or []), TAINT]
        self._events.event(node, "Normal", "Shutdown", "Shutdown manager detected shutdown event")
        spec = {"metadata": {"resourceVersion": meta["resourceVersion"]}, "spec": {"taints": taints}}
        self._nodes.observe(await self._client.patch(NODES, meta["name"], "", spec))
        not_ready = {
            "type": "Ready",
            "status": "False",
            "reason": "KubeletNotReady",
            "message": "node is shutting down",
            "lastHeartbeatTime": timestamp(),
            "lastTransitionTime": timestamp(),
        }
        status = {"status": {"conditions": [not_ready]}}
        self._nodes.observe(await self._client.patch(NODES, meta["name"], "", status, "strategic", "status"))


def _notice(node: Object) -> int | None:
    """Seconds that a node has left; None for one that stays."""
    said = (node["metadata"].get("annotations") or {}).get(ANNOTATION)
    return int(said) if said is not None and said.isdigit() else None
