"""What is asked of a pod: is it active, ready, available, and which one goes first."""

from __future__ import annotations

import datetime

from emulated_cloud.kubernetes.client import Object, condition, parse_time, seconds_since


def is_finished(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    """Neither finished nor being deleted."""
    return not is_finished(pod) and not pod["metadata"].get("deletionTimestamp")


def is_ready(pod: Object) -> bool:
    ready = condition(pod, "Ready")
    return ready is not None and ready["status"] == "True"


def available_in(pod: Object, min_ready_seconds: int) -> float | None:
    """Seconds until a ready pod counts as available, 0 when it does already; None while it is not ready."""
    ready = condition(pod, "Ready")
    if ready is None or ready["status"] != "True":
        return None
    if not min_ready_seconds:
        return 0
    return max(0.0, min_ready_seconds - seconds_since(ready["lastTransitionTime"]))


def deletion_order(pod: Object) -> tuple[bool, int, bool, int, float]:
    """Sorts pods as a ReplicaSet deletes them: unassigned, pending, not ready, cheap to delete, young ones first."""
    status = pod.get("status") or {}
    phases = {"Pending": 0, "Unknown": 1}
    cost = (pod["metadata"].get("annotations") or {}).get("controller.kubernetes.io/pod-deletion-cost", "0")
    created = parse_time(pod["metadata"]["creationTimestamp"])
    age = (datetime.datetime.now(datetime.UTC) - created).total_seconds()
    return bool(pod["spec"].get("nodeName")), phases.get(status.get("phase", ""), 2), is_ready(pod), int(cost), age
