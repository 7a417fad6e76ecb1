"""What GKE's admission adds to pods: tolerations for accelerators, Spot nodes and compute classes that they ask for.

On GKE a webhook does it before the pod is stored. Here it is done right afterwards, through the one change of a
stored pod's spec that the API allows there (adding tolerations), so that it works with any API server.
"""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client, Informers, Object, key_of, split_key
from emulated_cloud.kubernetes.gke.machines import (
    GPU_TAINT,
    SPOT_LABEL,
    SPOT_TAINT,
    TPU_TAINT,
    accelerator_of,
    class_taint,
    compute_class_of,
)
from emulated_cloud.kubernetes.resources import PODS
from emulated_cloud.kubernetes.selectors import tolerates
from emulated_cloud.kubernetes.workqueue import WorkQueue


class Admission:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._pods = informers.of(PODS)
        self.queue = WorkQueue("admission", self._admit)
        self._pods.on_change(self._pod_changed)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        if old is None and new is not None and missing_tolerations(new):
            self.queue.add(key_of(new), 0)

    async def _admit(self, key: str) -> None:
        pod = self._pods.items.get(key)
        if pod is None or not (missing := missing_tolerations(pod)):
            return
        tolerations = [*(pod["spec"].get("tolerations") or []), *missing]
        patch = {
            "metadata": {"resourceVersion": pod["metadata"]["resourceVersion"]},
            "spec": {"tolerations": tolerations},
        }
        namespace, name = split_key(key)
        self._pods.observe(await self._client.patch(PODS, name, namespace, patch))


def missing_tolerations(pod: Object) -> list[Object]:
    """The tolerations that admission is still to add to a pod."""
    if pod["spec"].get("nodeName") or pod["metadata"].get("deletionTimestamp"):
        return []
    accelerator = accelerator_of(pod)
    wanted = [taint for taint in (GPU_TAINT, TPU_TAINT) if taint["key"] == accelerator]
    if (pod["spec"].get("nodeSelector") or {}).get(SPOT_LABEL) == "true":
        wanted.append(SPOT_TAINT)
    if compute_class := compute_class_of(pod):
        wanted.append(class_taint(compute_class))
    return [
        {"key": taint["key"], "operator": "Equal", "value": taint["value"], "effect": taint["effect"]}
        if taint not in (GPU_TAINT, TPU_TAINT)
        else {"key": taint["key"], "operator": "Exists", "effect": taint["effect"]}
        for taint in wanted
        if not tolerates(pod["spec"].get("tolerations"), taint)
    ]
