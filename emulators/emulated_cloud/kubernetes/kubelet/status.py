"""A pod's status as a kubelet writes it: phase, conditions, addresses, the states of its containers."""

from __future__ import annotations

from typing import Protocol

from emulated_cloud.kubernetes.client import Object, timestamp
from emulated_cloud.kubernetes.kubelet.container import Container, Worker


class Progress(Worker, Protocol):
    """How far a pod has come: the part of PodWorker that its status is made from."""

    init: list[Container]
    main: list[Container]
    initialized: bool
    """The init containers have run."""
    sandbox: bool
    """Volumes and address are there."""
    start_time: str
    verdict: tuple[str, str] | None
    """(reason, message) of a pod that the kubelet itself has failed."""
    lost: bool
    """It ran, and what it ran is gone without a trace."""

    def finished_before(self) -> bool:
        """It had run to its end before this process started."""


def pod_status(worker: Progress, before: list[Object]) -> Object:
    """`before`: the conditions as they were, whose transition times stay while their status does."""
    if worker.finished_before():
        # Nothing that ended changes any more.
        return {"phase": worker.pod["status"]["phase"], "conditions": before}
    phase = _phase(worker)
    status: Object = {
        "phase": phase,
        "conditions": _conditions(worker, phase, before),
        "hostIP": worker.node.host_ip,
        "hostIPs": [{"ip": worker.node.host_ip}],
        "startTime": worker.start_time,
        "containerStatuses": [container.status() for container in worker.main],
    }
    if worker.init:
        status["initContainerStatuses"] = [container.status() for container in worker.init]
    if worker.around.pod_ip:
        status["podIP"] = worker.around.pod_ip
        status["podIPs"] = [{"ip": worker.around.pod_ip}]
    if worker.verdict:
        status["reason"], status["message"] = worker.verdict
    return status


def _phase(worker: Progress) -> str:
    if worker.verdict or worker.lost:
        return "Failed"
    for container in worker.init:
        code = _exit_code(container)
        if container.kind == "init" and code is not None and code != 0 and not worker.restarts("init", code):
            return "Failed"
    if worker.has_init and not worker.initialized:
        return "Pending"
    codes = [_exit_code(container) for container in worker.main]
    if all(code is not None and not worker.restarts("main", code) for code in codes):
        if any(container.kind == "sidecar" and "running" in container.state for container in worker.init):
            return "Running"  # Sidecars go last, and no pod has ended before its last container.
        return "Failed" if any(codes) else "Succeeded"
    return "Running" if any(container.has_run for container in worker.main) else "Pending"


def _exit_code(container: Container) -> int | None:
    terminated = container.state.get("terminated")
    return terminated["exitCode"] if terminated else None


def _conditions(worker: Progress, phase: str, before: list[Object]) -> list[Object]:
    times = {entry["type"]: (entry["status"], entry.get("lastTransitionTime")) for entry in before}
    succeeded, ended = phase == "Succeeded", phase in ("Succeeded", "Failed")
    waiting = [container.name for container in worker.main if not container.ready]
    waiting_init = [
        container.name
        for container in worker.init
        if (container.kind == "init" and _exit_code(container) != 0)
        or (container.kind == "sidecar" and not container.started)
    ]
    if succeeded:
        reasons = ("PodCompleted", "")
    elif ended:
        reasons = ("PodFailed", "")
    else:
        reasons = ("ContainersNotReady", f"containers with unready status: [{' '.join(waiting)}]")
    ready = not waiting and not ended
    initialized = worker.initialized or not worker.has_init or succeeded
    gates = [gate["conditionType"] for gate in worker.pod["spec"].get("readinessGates") or []]
    current = {entry["type"]: entry for entry in (worker.pod.get("status") or {}).get("conditions") or []}
    lacking = [gate for gate in gates if current.get(gate, {}).get("status") != "True"]
    values: dict[str, tuple[bool, str, str]] = {
        "PodReadyToStartContainers": (worker.sandbox and not ended, "", ""),
        "Initialized": (
            initialized,
            "PodCompleted" if succeeded else "ContainersNotInitialized",
            "" if succeeded else f"containers with incomplete status: [{' '.join(waiting_init)}]",
        ),
        "ContainersReady": (ready, *reasons),
        "Ready": (
            ready and not lacking,
            *(("ReadinessGatesNotReady", "the status of pod readiness gates is not True") if ready else reasons),
        ),
        "PodScheduled": (True, "", ""),
    }
    now = timestamp()
    conditions = []
    for kind, (value, reason, message) in values.items():
        status = "True" if value else "False"
        then, since = times.get(kind, ("", None))
        entry: Object = {
            "type": kind,
            "status": status,
            "lastProbeTime": None,
            "lastTransitionTime": since if then == status and since else now,
            # A strategic merge keeps what it is not told to drop.
            "reason": reason if (not value or (succeeded and kind == "Initialized")) and reason else None,
            "message": message if not value and message else None,
        }
        conditions.append(entry)
    return conditions
