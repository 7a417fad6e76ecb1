"""HorizontalPodAutoscalers (autoscaling/v2): as many pods as a metric of theirs asks for.

The algorithm is that of the real controller (kubernetes 1.35, pkg/controller/podautoscaler: horizontal.go,
replica_calculator.go): tolerance, pods without a metric, stabilization windows, policies, conditions. Metrics are of
type Pods alone, from custom.metrics.k8s.io, and, as GKE's own controller has them, from AutoscalingMetric objects.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, condition, key_of, timestamp
from emulated_cloud.kubernetes.controllers.gauges import Gauges, NoMetric
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import is_active
from emulated_cloud.kubernetes.quantity import canonical, parse_quantity
from emulated_cloud.kubernetes.resources import AUTOSCALERS, DEPLOYMENTS, PODS, REPLICA_SETS
from emulated_cloud.kubernetes.selectors import matches
from emulated_cloud.kubernetes.workqueue import WorkQueue

TOLERANCE = 0.1
DOWNSCALE_WINDOW = 300.0
_TARGETS = {"Deployment": DEPLOYMENTS, "ReplicaSet": REPLICA_SETS}


@dataclass
class History:
    """What the controller remembers of one autoscaler: (replicas, when), by time.monotonic."""

    recommendations: list[tuple[int, float]]
    ups: list[tuple[int, float]] = field(default_factory=list)
    downs: list[tuple[int, float]] = field(default_factory=list)


@dataclass
class Look:
    """One look at an autoscaler: its conditions as they come out."""

    conditions: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    def say(self, kind: str, status: bool, reason: str, message: str) -> None:
        self.conditions[kind] = ("True" if status else "False", reason, message)


class AutoscalerController:
    def __init__(self, client: Client, informers: Informers, period: float):
        self._client, self._period = client, period
        self._autoscalers = informers.of(AUTOSCALERS)
        self._pods = informers.of(PODS)
        self._gauges = Gauges(client, informers)
        self._events = EventRecorder(client, "horizontal-pod-autoscaler")
        self._histories: dict[str, History] = {}
        self.queue = WorkQueue("autoscaler", self._reconcile)
        self._autoscalers.on_change(self._changed)

    def _changed(self, old: Object | None, new: Object | None) -> None:
        if new is None:
            self._histories.pop(key_of(old or {}), None)
        elif old is None or old["metadata"]["uid"] != new["metadata"]["uid"]:
            self._histories.pop(key_of(new), None)
            self.queue.add(key_of(new))
        # A change waits for the next look, as the real controller's does: it has written most of them itself.

    async def _reconcile(self, key: str) -> float | None:
        autoscaler = self._autoscalers.items.get(key)
        if autoscaler is None or autoscaler["metadata"].get("deletionTimestamp"):
            return None
        await self._look(key, autoscaler)
        return self._period

    async def _look(self, key: str, autoscaler: Object) -> None:
        meta, spec, look = autoscaler["metadata"], autoscaler["spec"], Look()
        reference = spec["scaleTargetRef"]
        path = _TARGETS[reference["kind"]].path(meta["namespace"], reference["name"], "scale")
        try:
            scale = await self._client.request("GET", path)
        except ApiError as error:
            words = f"the HPA controller was unable to get the target's current scale: {error.message}"
            look.say("AbleToScale", False, "FailedGetScale", words)
            self._events.event(autoscaler, "Warning", "FailedGetScale", error.message)
            await self._write(autoscaler, look, {})
            return
        look.say(
            "AbleToScale", True, "SucceededGetScale", "the HPA controller was able to get the target's current scale"
        )
        current = scale["spec"].get("replicas", 0)
        least, most = spec.get("minReplicas", 1), spec["maxReplicas"]
        history = self._histories.setdefault(key, History([(current, time.monotonic())]))
        status: Object = {"currentReplicas": current, "desiredReplicas": current}
        reason, desired = "", current
        if current == 0:
            words = "scaling is disabled since the replica count of the target is zero"
            look.say("ScalingActive", False, "ScalingDisabled", words)
            status["desiredReplicas"] = 0
            await self._write(autoscaler, look, status)
            return
        if current > most:
            reason, desired = "Current number of replicas above Spec.MaxReplicas", most
        elif current < least:
            reason, desired = "Current number of replicas below Spec.MinReplicas", least
        else:
            try:
                proposed, status["currentMetrics"], name = await self._proposed(autoscaler, scale, current)
            except NoMetric as error:
                words = f"the HPA was unable to compute the replica count: {error}"
                look.say("ScalingActive", False, error.reason, words)
                self._events.event(autoscaler, "Warning", error.reason, str(error))
                self._events.event(
                    autoscaler,
                    "Warning",
                    "FailedComputeMetricsReplicas",
                    f"invalid metrics (1 invalid out of 1), first error is: {error}",
                )
                await self._write(autoscaler, look, {**status, "currentMetrics": None})
                return
            words = f"the HPA was able to successfully calculate a replica count from {name}"
            look.say("ScalingActive", True, "ValidMetricFound", words)
            if proposed > current:
                reason = f"{name} above target"
            elif proposed < current:
                reason = "All metrics below target"
            desired = self._normalized(spec, history, look, current, proposed, least, most)
        status["desiredReplicas"] = desired
        if desired != current:
            body = {**scale, "spec": {"replicas": desired}}
            try:
                await self._client.request("PUT", path, body)
            except ApiError as error:
                look.say(
                    "AbleToScale",
                    False,
                    "FailedUpdateScale",
                    f"the HPA controller was unable to update the target scale: {error.message}",
                )
                await self._write(autoscaler, look, {**status, "desiredReplicas": current})
                return
            words = f"the HPA controller was able to update the target scale to {desired}"
            look.say("AbleToScale", True, "SucceededRescale", words)
            self._events.event(autoscaler, "Normal", "SuccessfulRescale", f"New size: {desired}; reason: {reason}")
            changes = history.ups if desired > current else history.downs
            changes.append((abs(desired - current), time.monotonic()))
            status["lastScaleTime"] = timestamp()
        await self._write(autoscaler, look, status)

    # -- how many there should be ---------------------------------------------------------------------------

    async def _proposed(self, autoscaler: Object, scale: Object, current: int) -> tuple[int, list[Object], str]:
        """The replicas that the metric asks for, what it is now, and its name. Raises NoMetric."""
        namespace, selector = autoscaler["metadata"]["namespace"], scale["status"].get("selector", "")
        best, statuses, named = 0, [], ""
        for metric in autoscaler["spec"]["metrics"]:
            if metric["type"] != "Pods" or metric["pods"]["target"]["type"] != "AverageValue":
                raise NoMetric("InvalidMetricSourceType", f'metrics of type "{metric["type"]}" are not emulated')
            name = metric["pods"]["metric"]["name"]
            target = parse_quantity(metric["pods"]["target"]["averageValue"])
            try:
                values = await self._gauges.of_pods(namespace, selector, name)
            except (ApiError, aiohttp.ClientError, TimeoutError) as error:
                words = error.message if isinstance(error, ApiError) else str(error) or type(error).__name__
                raise NoMetric(
                    "FailedGetPodsMetric",
                    f"unable to get metric {name}: unable to fetch metrics from custom metrics API: {words}",
                ) from error
            labels = dict(part.split("=", 1) for part in selector.split(",") if "=" in part)
            pods = [
                p
                for p in self._pods.in_namespace(namespace)
                if matches({"matchLabels": labels}, p["metadata"].get("labels"))
            ]
            proposed, average = replicas_for(pods, values, current, target)
            best = max(best, proposed)
            named = f"pods metric {name}"
            statuses.append(
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": name},
                        "current": {"averageValue": canonical(f"{round(average * 1000)}m")},
                    },
                }
            )
        return best, statuses, named

    def _normalized(
        self, spec: Object, history: History, look: Look, current: int, proposed: int, least: int, most: int
    ) -> int:
        """What becomes of a proposal by windows, policies and bounds."""
        behavior = spec.get("behavior") or {}
        up = {"stabilizationWindowSeconds": 0, **(behavior.get("scaleUp") or _UP)}
        down = {"stabilizationWindowSeconds": DOWNSCALE_WINDOW, **(behavior.get("scaleDown") or _DOWN)}
        stabilized = _stabilized(history, look, current, proposed, up, down)
        now = time.monotonic()
        longest = max([p["periodSeconds"] for rules in (up, down) for p in rules["policies"]], default=0)
        for changes in (history.ups, history.downs):
            changes[:] = [change for change in changes if now - change[1] < longest]
        if stabilized > current:
            limit = max(current, _up_limit(current, history, up))
            return _limited(look, stabilized, limit, most, "ScaleUpLimit", "TooManyReplicas", min)
        if stabilized < current:
            limit = min(current, _down_limit(current, history, down))
            return _limited(look, stabilized, limit, least, "ScaleDownLimit", "TooFewReplicas", max)
        look.say("ScalingLimited", *_WITHIN)
        return stabilized

    # -- status ---------------------------------------------------------------------------------------------

    async def _write(self, autoscaler: Object, look: Look, status: Object) -> None:
        before = autoscaler.get("status") or {}
        conditions = []
        for kind, (value, reason, message) in look.conditions.items():
            old = condition(autoscaler, kind)
            since = old["lastTransitionTime"] if old and old["status"] == value else timestamp()
            conditions.append(
                {
                    "type": kind,
                    "status": value,
                    "lastTransitionTime": since,
                    "reason": reason,
                    "message": message,
                }
            )
        kept = [each for each in before.get("conditions") or [] if each["type"] not in look.conditions]
        new = {**before, **status, "conditions": [*conditions, *kept]}
        new.setdefault("desiredReplicas", 0)
        new.setdefault("currentMetrics", None)
        if new != before:
            answer = await self._client.update(AUTOSCALERS, {**autoscaler, "status": new}, "status")
            self._autoscalers.observe(answer)


_UP = {
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": 15},
        {"type": "Percent", "value": 100, "periodSeconds": 15},
    ],
}
_DOWN = {"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}
_WITHIN = (False, "DesiredWithinRange", "the desired count is within the acceptable range")


def replicas_for(pods: list[Object], values: dict[str, Decimal], current: int, target: Decimal) -> tuple[int, Decimal]:
    """The replicas that a metric's values by pod ask for, and their mean. Raises NoMetric when no pod has one.

    A pod without a value counts with the target when there are to be fewer, and with nothing when more; one that has
    not started counts with nothing when there are to be more.
    """
    active = {pod["metadata"]["name"]: pod for pod in pods if is_active(pod)}
    pending = {name for name, pod in active.items() if (pod.get("status") or {}).get("phase") == "Pending"}
    known = {name: value for name, value in values.items() if name in active and name not in pending}
    missing = active.keys() - known.keys() - pending
    if not known:
        words = "did not receive metrics for targeted pods (pods might be unready)"
        raise NoMetric("FailedGetPodsMetric", words)
    mean = sum(known.values(), Decimal(0)) / len(known)
    ratio = mean / target
    if not missing and not (pending and ratio > 1):
        if abs(ratio - 1) <= Decimal(str(TOLERANCE)):
            return current, mean
        return math.ceil(ratio * len(known)), mean
    filled = dict(known)
    if missing and ratio != 1:
        filled |= dict.fromkeys(missing, target if ratio < 1 else Decimal(0))
    if pending and ratio > 1:
        filled |= dict.fromkeys(pending, Decimal(0))
    again = sum(filled.values(), Decimal(0)) / len(filled) / target
    turned = (ratio < 1 < again) or (again < 1 < ratio)
    if abs(again - 1) <= Decimal(str(TOLERANCE)) or turned:
        return current, mean
    wanted = math.ceil(again * len(filled))
    if (again < 1 and wanted > current) or (again > 1 and wanted < current):
        return current, mean
    return wanted, mean


def _stabilized(history: History, look: Look, current: int, proposed: int, up: Object, down: Object) -> int:
    """The proposal, held back by those of the windows: the lowest of late before more, the highest before fewer."""
    now = time.monotonic()
    longest = max(up["stabilizationWindowSeconds"], down["stabilizationWindowSeconds"])
    upwards = downwards = proposed
    for replicas, at in history.recommendations:
        if now - at < up["stabilizationWindowSeconds"]:
            upwards = min(upwards, replicas)
        if now - at < down["stabilizationWindowSeconds"]:
            downwards = max(downwards, replicas)
    recommended = min(max(current, upwards), downwards)
    history.recommendations[:] = [entry for entry in history.recommendations if now - entry[1] < longest]
    history.recommendations.append((proposed, now))
    if recommended == proposed:
        look.say("AbleToScale", True, "ReadyForNewScale", "recommended size matches current size")
    elif recommended < proposed:
        words = "recent recommendations were lower than current one, applying the lowest recent recommendation"
        look.say("AbleToScale", True, "ScaleUpStabilized", words)
    else:
        words = "recent recommendations were higher than current one, applying the highest recent recommendation"
        look.say("AbleToScale", True, "ScaleDownStabilized", words)
    return recommended


def _up_limit(current: int, history: History, rules: Object) -> int:
    if rules.get("selectPolicy") == "Disabled":
        return current
    proposals = []
    for policy in rules["policies"]:
        start = current - _within(history.ups, policy) + _within(history.downs, policy)
        percent = math.ceil(start * (1 + Decimal(policy["value"]) / 100))
        proposals.append(start + policy["value"] if policy["type"] == "Pods" else percent)
    return min(proposals) if rules.get("selectPolicy") == "Min" else max(proposals)


def _down_limit(current: int, history: History, rules: Object) -> int:
    if rules.get("selectPolicy") == "Disabled":
        return current
    proposals = []
    for policy in rules["policies"]:
        start = current - _within(history.ups, policy) + _within(history.downs, policy)
        percent = int(start * (1 - Decimal(policy["value"]) / 100))
        proposals.append(start - policy["value"] if policy["type"] == "Pods" else percent)
    return max(proposals) if rules.get("selectPolicy") == "Min" else min(proposals)


def _within(changes: list[tuple[int, float]], policy: Object) -> int:
    """Replicas of the changes in a policy's period."""
    now = time.monotonic()
    return sum(replicas for replicas, at in changes if now - at < policy["periodSeconds"])


def _limited(look: Look, wanted: int, limit: int, bound: int, rate: str, range_: str, nearer: Any) -> int:
    """The wanted replicas, within what policies (`limit`) and bounds allow."""
    allowed = nearer(limit, bound)
    if nearer(wanted, allowed) == wanted:
        look.say("ScalingLimited", *_WITHIN)
        return wanted
    if allowed == bound:
        side = "more than the maximum" if nearer is min else "less than the minimum"
        look.say("ScalingLimited", True, range_, f"the desired replica count is {side} replica count")
    else:
        way = (
            "increasing faster than the maximum scale" if nearer is min else "decreasing faster than the maximum scale"
        )
        look.say("ScalingLimited", True, rate, f"the desired replica count is {way} rate")
    return int(allowed)
