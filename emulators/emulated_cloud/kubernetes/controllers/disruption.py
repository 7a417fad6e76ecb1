"""PodDisruptionBudgets: how many of the pods that each selects may be evicted now."""

from __future__ import annotations

import math

from emulated_cloud.kubernetes.client import Client, Informers, Object, condition, key_of, timestamp
from emulated_cloud.kubernetes.pods import is_finished, is_ready
from emulated_cloud.kubernetes.resources import DISRUPTION_BUDGETS, PODS
from emulated_cloud.kubernetes.selectors import matches
from emulated_cloud.kubernetes.workqueue import WorkQueue


class DisruptionController:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._budgets = informers.of(DISRUPTION_BUDGETS)
        self._pods = informers.of(PODS)
        self.queue = WorkQueue("disruption", self._reconcile)
        self._budgets.on_change(self.queue.changed)
        self._pods.on_change(self._pod_changed)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        for pod in (old, new):
            if pod is not None:
                for budget in self._budgets.in_namespace(pod["metadata"]["namespace"]):
                    if matches(budget["spec"].get("selector"), pod["metadata"].get("labels")):
                        self.queue.add(key_of(budget))

    async def _reconcile(self, key: str) -> None:
        budget = self._budgets.items.get(key)
        if budget is None or budget["metadata"].get("deletionTimestamp"):
            return
        pods = [
            pod
            for pod in self._pods.in_namespace(budget["metadata"]["namespace"])
            if matches(budget["spec"].get("selector"), pod["metadata"].get("labels")) and not is_finished(pod)
        ]
        spec, expected = budget["spec"], len(pods)
        if "minAvailable" in spec:
            desired = _resolve(spec["minAvailable"], expected)
        else:
            desired = max(0, expected - _resolve(spec.get("maxUnavailable", 0), expected))
        healthy = sum(is_ready(pod) and not pod["metadata"].get("deletionTimestamp") for pod in pods)
        allowed = max(0, healthy - desired) if expected else 0
        before = budget.get("status") or {}
        status: Object = {
            "currentHealthy": healthy,
            "desiredHealthy": desired,
            "disruptionsAllowed": allowed,
            "expectedPods": expected,
            "observedGeneration": budget["metadata"].get("generation", 0),
            "conditions": [_condition(budget, allowed)],
        }
        if status != {name: before.get(name) for name in status}:
            answer = await self._client.update(DISRUPTION_BUDGETS, {**budget, "status": status}, "status")
            self._budgets.observe(answer)


def _condition(budget: Object, allowed: int) -> Object:
    status = "True" if allowed else "False"
    old = condition(budget, "DisruptionAllowed")
    return {
        "type": "DisruptionAllowed",
        "status": status,
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
        "observedGeneration": budget["metadata"].get("generation", 0),
        "lastTransitionTime": old["lastTransitionTime"] if old and old["status"] == status else timestamp(),
    }


def _resolve(value: int | str, expected: int) -> int:
    return value if isinstance(value, int) else math.ceil(int(value.rstrip("%")) * expected / 100)
