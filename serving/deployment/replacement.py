"""One generation at a time (`rollout: replace`), where there are accelerators for one alone.

The live generation makes room before another comes up, and comes back when that one does not go live. The record says
that it is down, and how many pods it had, before its first pod goes: whoever dies meanwhile, the exit task, the next
run or `gemma-pipelines rollback` finds it there and brings it back before anything else. The entry stays with it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import replicas, traffic
from serving.deployment.record import Down, Record, now
from serving.errors import InconclusiveError
from serving.log import Say
from serving.settings import Settings

_NODE_SECONDS = 60
"""How long after its time to end a pod may take to be gone."""


def make_room(cluster: Cluster, settings: Settings, record: Record, generation: str, *, run_id: str, say: Say) -> None:
    """Takes all other generations' pods away, so that `generation` finds their accelerators; one that is up stays.

    Raises InconclusiveError when a pod does not go.
    """
    live = cluster.get("Deployment", names.server(record.live), settings.namespace) if record.live else None
    if record.down:
        record.down.candidate = generation  # An earlier run took it down, and it did not come back.
    elif live and replicas.wanted(live) and record.live != generation:
        had = replicas.wanted(live)
        record.down = Down(generation=record.live, candidate=generation, replicas=had, since=now(), run_id=run_id)
        say(announcement(record, generation))
    record.write(cluster, settings)
    for other in _running(cluster, settings, generation):
        traffic.rest(cluster, settings, other)
    if stuck := _left_of_others(cluster, settings, generation):
        raise InconclusiveError(
            f"{', '.join(stuck)} did not end in time and may hold accelerators: see `kubectl -n {settings.namespace} "
            f"describe pod {stuck[0]}`, then run again"
        )


def come_back(cluster: Cluster, settings: Settings, record: Record, say: Say, *, patient: bool = True) -> None:
    """Gives the generation that is down its pods back, and takes every other's away. Waits for nothing else than, when
    `patient`, for those to be gone; else the cluster has the new ones wait for the accelerators."""
    if record.down is None:
        return
    down = record.down
    for other in _running(cluster, settings, down.generation):
        traffic.rest(cluster, settings, other)
        say(f"scaled Deployment/{names.server(other)} to zero: nothing serves from it yet")
    if patient and (stuck := _left_of_others(cluster, settings, down.generation)):
        say(f"{', '.join(stuck)} did not end in time and may hold accelerators")
    there = cluster.get("Deployment", names.server(down.generation), settings.namespace)
    if there and replicas.wanted(there) < down.replicas:
        say(f"scaling {names.server(down.generation)} to {down.replicas} again: it had made room for {down.candidate}")
        replicas.scale(cluster, settings, down.generation, down.replicas)


def bring_back(cluster: Cluster, settings: Settings, record: Record, *, run_id: str, say: Say) -> str:
    """The same, until it serves again. Returns the generation; empty where none was down.

    Raises RequestError when it is not in the cluster any more, InconclusiveError when it is not ready in time.
    """
    if record.down is None:
        return ""
    down = record.down
    come_back(cluster, settings, record, say)
    # An autoscaler may take some of them back meanwhile.
    least = down.replicas if replicas.owner(settings) == "settings" else min(down.replicas, settings.serving.replicas)
    traffic.bring_up(cluster, settings, down.generation, max(1, least), say)
    record.serves_again(run_id)
    record.write(cluster, settings)
    say(f"{down.generation} serves again, which was down since {down.since}")
    return down.generation


def announcement(record: Record, generation: str) -> str:
    """That nothing serves while the live generation makes room for another, and how long that was the last time."""
    return (
        f"rollout: replace: {record.live} makes room for {generation}, and nothing serves until that one has passed or "
        f"{record.live} is back. {last_time(record)}"
    )


def last_time(record: Record) -> str:
    """How long nothing served the last time, in words."""
    if record.downtime is None:
        return "How long that takes is not known: it is the first time"
    return f"The last time it was {record.downtime.seconds:.0f} s (until {record.downtime.at})"


def _running(cluster: Cluster, settings: Settings, generation: str) -> Iterator[str]:
    """The generations with pods other than `generation`, whether the record names them or a dead run left them."""
    for item in cluster.list("Deployment", settings.namespace, labels=f"{names.selector(settings)},{names.GENERATION}"):
        other = item["metadata"]["labels"][names.GENERATION]
        is_server = item["metadata"]["name"] == names.server(other)
        if is_server and other != generation and replicas.wanted(item) > 0:
            yield other


def _left_of_others(cluster: Cluster, settings: Settings, generation: str) -> list[str]:
    """Waits until no pod of another generation is left; returns those that outlive the time that they have to end."""
    labels = f"{names.selector(settings)},{names.GENERATION}"

    def left() -> list[Object]:
        return [
            pod
            for pod in cluster.list("Pod", settings.namespace, labels=labels)
            if pod["metadata"]["labels"][names.GENERATION] != generation
            # One that has ended holds nothing.
            if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        ]

    pods = left()
    grace = max((pod["spec"].get("terminationGracePeriodSeconds") or 0 for pod in pods), default=0)
    if pods:
        with cluster.follow(Subject("Pod", settings.namespace, labels=labels)) as changes:
            for change in changes.until(time.monotonic() + grace + _NODE_SECONDS):
                if (change is None or change[0] == "DELETED") and not (pods := left()):
                    break
    return [pod["metadata"]["name"] for pod in pods]
