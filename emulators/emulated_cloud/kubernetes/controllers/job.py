"""Jobs: pods that run to completion, retried with backoff, given up for the reasons a real Job is given up for.

Completions are not indexed: `completionMode: Indexed` is refused with an event.
"""

from __future__ import annotations

import asyncio
import copy

from emulated_cloud.kubernetes.client import (
    Client,
    Informers,
    Object,
    condition,
    key_of,
    owner_of,
    owner_reference,
    parse_time,
    seconds_since,
    timestamp,
)
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import is_active, is_finished, is_ready
from emulated_cloud.kubernetes.resources import JOBS, PODS
from emulated_cloud.kubernetes.workqueue import WorkQueue

BACKOFF_LIMIT = ("BackoffLimitExceeded", "Job has reached the specified backoff limit")
DEADLINE = ("DeadlineExceeded", "Job was active longer than specified deadline")


class JobController:
    """`backoff_seconds`: how long after a failed pod the next one comes, doubled with each failure."""

    def __init__(self, client: Client, informers: Informers, backoff_seconds: float):
        self._client, self._backoff_seconds = client, backoff_seconds
        self._jobs = informers.of(JOBS)
        self._pods = informers.of(PODS)
        # Pods that are gone, by their Job's key: Kubernetes holds them back by a finalizer until they are counted.
        self._gone: dict[str, list[Object]] = {}
        self._events = EventRecorder(client, "job-controller")
        self.queue = WorkQueue("job", self._reconcile)
        self._jobs.on_change(self.queue.changed)
        self._pods.on_change(self._pod_changed)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        pod = new or old or {}
        owner = owner_of(pod)
        if owner and owner["kind"] == "Job":
            key = f"{pod['metadata']['namespace']}/{owner['name']}"
            if new is None:
                phase = "Succeeded" if _phase(pod) == "Succeeded" else "Failed"
                gone = {**pod, "status": {**pod.get("status", {}), "phase": phase}}
                self._gone.setdefault(key, []).append(gone)
            self.queue.add(key)

    async def _reconcile(self, key: str) -> float | None:
        job = self._jobs.items.get(key)
        if job is None or job["metadata"].get("deletionTimestamp"):
            self._gone.pop(key, None)
            return None
        if finished := condition(job, "Complete") or condition(job, "Failed"):
            self._gone.pop(key, None)
            return await self._expire(job, finished)
        if job["spec"].get("completionMode") == "Indexed":
            self._events.event(job, "Warning", "Unsupported", "completionMode Indexed is not emulated")
            return None
        pods = self._owned(job)
        succeeded = [pod for pod in pods if _phase(pod) == "Succeeded"]
        failed = [pod for pod in pods if _has_failed(job, pod) and not _ignored(job, pod)]
        verdict = self._verdict(job, pods, succeeded, failed)
        after = None
        if verdict is None and not job["spec"].get("suspend"):
            after = await self._run(job, pods, succeeded, failed)
        else:
            await self._end(pods)
        await self._write_status(job, succeeded, failed, verdict)
        return after

    def _owned(self, job: Object) -> list[Object]:
        pods = self._pods.in_namespace(job["metadata"]["namespace"]) + self._gone.get(key_of(job), [])
        uid = job["metadata"]["uid"]
        return [pod for pod in pods if (owner := owner_of(pod)) and owner["uid"] == uid]

    def _verdict(
        self, job: Object, pods: list[Object], succeeded: list[Object], failed: list[Object]
    ) -> tuple[str, str, str] | None:
        """(condition, reason, message) once the Job is decided."""
        for kind in ("SuccessCriteriaMet", "FailureTarget"):
            if decided := condition(job, kind):
                return kind, decided["reason"], decided["message"]
        spec = job["spec"]
        for pod in pods:
            if _phase(pod) == "Failed" and (message := _fails_job(job, pod)):
                return "FailureTarget", "PodFailurePolicy", message
        limit = spec.get("backoffLimit", 6)
        if len(failed) > limit or (_restarts(job, pods) >= limit > 0) or (limit == 0 and _restarts(job, pods)):
            return "FailureTarget", *BACKOFF_LIMIT
        deadline, started = spec.get("activeDeadlineSeconds"), (job.get("status") or {}).get("startTime")
        if deadline is not None and started and seconds_since(started) >= deadline:
            return "FailureTarget", *DEADLINE
        completions = spec.get("completions")
        enough = len(succeeded) >= completions if completions is not None else bool(succeeded)
        if enough and (completions is not None or not any(is_active(pod) for pod in pods)):
            return "SuccessCriteriaMet", "CompletionsReached", "Reached expected number of succeeded pods"
        return None

    async def _run(
        self, job: Object, pods: list[Object], succeeded: list[Object], failed: list[Object]
    ) -> float | None:
        """Keeps as many pods running as the Job wants now; seconds until it has to be looked at again."""
        spec = job["spec"]
        parallelism, completions = spec.get("parallelism", 1), spec.get("completions")
        active = [pod for pod in pods if is_active(pod)]
        wanted = parallelism
        if completions is not None:
            wanted = min(parallelism, completions - len(succeeded))
        elif succeeded:
            wanted = len(active)
        waits = []
        status = job.get("status") or {}
        if (deadline := spec.get("activeDeadlineSeconds")) is not None:
            started = status.get("startTime")
            waits.append(deadline - seconds_since(started) if started else deadline)
        missing = wanted - len(active)
        if missing > 0:
            delay = self._backoff(failed)
            if delay > 0:
                waits.append(delay)
            else:
                await asyncio.gather(*(self._create_pod(job) for _ in range(missing)))
        elif missing < 0:
            await asyncio.gather(*(self._delete(pod) for pod in active[:-missing]))
        return max(0.01, min(waits)) if waits else None

    def _backoff(self, failed: list[Object]) -> float:
        """Seconds that are left of the wait after the latest failure."""
        if not failed:
            return 0.0
        latest = max(_finished_at(pod) for pod in failed)
        wait = min(self._backoff_seconds * 2 ** (len(failed) - 1), 600.0)
        return wait - seconds_since(latest)

    async def _create_pod(self, job: Object) -> None:
        template = copy.deepcopy(job["spec"]["template"])
        meta = template.setdefault("metadata", {})
        meta["generateName"] = job["metadata"]["name"][:57] + "-"
        meta["ownerReferences"] = [owner_reference(JOBS, job)]
        pod = await self._client.create(PODS, template, job["metadata"]["namespace"])
        self._pods.observe(pod)
        self._events.event(job, "Normal", "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")

    async def _end(self, pods: list[Object]) -> None:
        await asyncio.gather(*(self._delete(pod) for pod in pods if is_active(pod)))

    async def _delete(self, pod: Object) -> None:
        meta = pod["metadata"]
        self._pods.observe(await self._client.delete(PODS, meta["name"], meta["namespace"], uid=meta["uid"]))

    async def _write_status(
        self, job: Object, succeeded: list[Object], failed: list[Object], verdict: tuple[str, str, str] | None
    ) -> None:
        before = job.get("status") or {}
        pods = self._owned(job)
        active = [pod for pod in pods if is_active(pod)]
        terminating = [pod for pod in pods if pod["metadata"].get("deletionTimestamp") and not is_finished(pod)]
        status: Object = {
            "active": len(active),
            "ready": sum(is_ready(pod) for pod in active),
            "terminating": len(terminating),
            "succeeded": len(succeeded),
            "failed": len(failed),
        }
        status = {name: value for name, value in status.items() if value or name in ("ready", "terminating")}
        status["uncountedTerminatedPods"] = {}
        if not job["spec"].get("suspend"):
            status["startTime"] = before.get("startTime") or timestamp()
        conditions = [dict(entry) for entry in before.get("conditions") or []]
        if verdict:
            kind, reason, message = verdict
            final = "Complete" if kind == "SuccessCriteriaMet" else "Failed"
            if not any(entry["type"] == kind for entry in conditions):
                conditions.append(_condition(kind, reason, message))
            # A Job is finished only when its last pod has gone.
            if not active and not terminating:
                conditions.append(_condition(final, reason, message))
                if final == "Complete":
                    status["completionTime"] = timestamp()
                    self._events.event(job, "Normal", "Completed", "Job completed")
                else:
                    self._events.event(job, "Warning", reason, message)
        if conditions:
            status["conditions"] = conditions
        if status != before:
            answer = await self._client.update(JOBS, {**job, "status": status}, "status")
            self._jobs.observe(answer)
            if "startTime" not in before:
                self.queue.add(key_of(job))

    async def _expire(self, job: Object, finished: Object) -> float | None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or finished["status"] != "True":
            return None
        left = ttl - seconds_since(finished["lastTransitionTime"])
        if left > 0:
            return left
        meta = job["metadata"]
        await self._client.delete(
            JOBS,
            meta["name"],
            meta["namespace"],
            uid=meta["uid"],
            resource_version=meta["resourceVersion"],
            propagation="Foreground",
        )
        return None


def _condition(kind: str, reason: str, message: str) -> Object:
    now = timestamp()
    return {
        "type": kind,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastProbeTime": now,
        "lastTransitionTime": now,
    }


def _phase(pod: Object) -> str:
    return (pod.get("status") or {}).get("phase", "Pending")


def _has_failed(job: Object, pod: Object) -> bool:
    """A pod that is deleted before it has succeeded counts as failed at once, unless the Job waits for its phase."""
    spec = job["spec"]
    waits = spec.get("podFailurePolicy") or spec.get("podReplacementPolicy") == "Failed"
    deleted = bool(pod["metadata"].get("deletionTimestamp")) and not waits
    return _phase(pod) == "Failed" or (deleted and _phase(pod) != "Succeeded")


def _restarts(job: Object, pods: list[Object]) -> int:
    """With restartPolicy OnFailure the restarts of running pods count against the limit."""
    if job["spec"]["template"]["spec"].get("restartPolicy") != "OnFailure":
        return 0
    return sum(
        status.get("restartCount", 0)
        for pod in pods
        if _phase(pod) in ("Running", "Pending")
        for status in (pod.get("status") or {}).get("containerStatuses") or []
    )


def _finished_at(pod: Object) -> str:
    times = [
        entry["state"]["terminated"]["finishedAt"]
        for entry in (pod.get("status") or {}).get("containerStatuses") or []
        if (entry.get("state") or {}).get("terminated", {}).get("finishedAt")
    ]
    return max(times, default=pod["metadata"]["creationTimestamp"], key=parse_time)


def _ignored(job: Object, pod: Object) -> bool:
    rule = _matching_rule(job, pod)
    return rule is not None and rule[1]["action"] == "Ignore"


def _fails_job(job: Object, pod: Object) -> str:
    """The message of a FailJob rule of the podFailurePolicy that this failed pod meets, or nothing."""
    rule = _matching_rule(job, pod)
    if rule is None or rule[1]["action"] != "FailJob":
        return ""
    index, _, cause = rule
    meta = pod["metadata"]
    where = f"pod {meta['namespace']}/{meta['name']}"
    return f"{cause.format(pod=where)} matching FailJob rule at index {index}"


def _matching_rule(job: Object, pod: Object) -> tuple[int, Object, str] | None:
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules") or []
    for index, rule in enumerate(rules):
        if cause := _rule_met(rule, pod):
            return index, rule, cause
    return None


def _rule_met(rule: Object, pod: Object) -> str:
    if on_exit := rule.get("onExitCodes"):
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            code = (status.get("state") or {}).get("terminated", {}).get("exitCode", 0)
            named = on_exit.get("containerName") in (None, status["name"])
            listed = code in on_exit["values"]
            if code and named and (listed == (on_exit["operator"] == "In")):
                return f"Container {status['name']} for {{pod}} failed with exit code {code}"
    for pattern in rule.get("onPodConditions") or []:
        found = condition(pod, pattern["type"])
        if found and found["status"] == pattern.get("status", "True"):
            return f"Pod condition {pattern['type']} on {{pod}}"
    return ""
