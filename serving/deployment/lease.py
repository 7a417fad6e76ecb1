"""One run at a time: the Lease that every mutating run of a deployment holds first.

The Lease runs out by itself when a run dies (`lease.duration` after its last sign of life), and names its holder to
whoever wants it meanwhile.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from serving.clients.kubernetes import Cluster, ConflictError, Object, Subject
from serving.errors import InconclusiveError, LeaseHeldError, LeaseLostError
from serving.log import Say
from serving.settings import Settings, in_seconds

_MARGIN_SECONDS = 30
"""Before the Lease runs out, its holder keeps its hands off: a change takes a moment to arrive, and clocks differ.
No request takes longer (serving/clients/kubernetes/connection.py)."""


_LONGEST_PAUSE = 5.0
"""Seconds before a renewal that failed is tried again."""


def take(cluster: Cluster, settings: Settings, run_id: str, say: Say) -> None:
    """Makes this run the holder. Waits up to `lease.wait` for another to give it back or to die.

    Raises LeaseHeldError, naming the holder, when it does neither.
    """
    give_up = time.monotonic() + in_seconds(settings.lease.wait)
    told = ""
    while True:
        lease = cluster.get("Lease", settings.name, settings.namespace)
        if lease is None or free_at(lease) <= time.time() or holder(lease) == run_id:
            if _write(cluster, settings, run_id, lease):
                return
            continue  # Another was quicker: look again.
        if time.monotonic() >= give_up:
            raise LeaseHeldError(_held_by(lease, settings), holder(lease))
        if told != holder(lease):
            told = holder(lease)
            say(f"waiting for the Lease: {_held_by(lease, settings)}")
        _wait_for_change(cluster, settings, lease, give_up)


@contextmanager
def held(cluster: Cluster, settings: Settings, run_id: str) -> Iterator[None]:
    """Keeps the Lease alive while the block runs, and lets the block change the cluster only while it is.

    Raises LeaseLostError when the run does not hold it (any more), InconclusiveError when that is not known.
    """
    renewed = renew(cluster, settings, run_id)
    failure: Exception | None = None
    ended = threading.Event()
    lost: list[LeaseLostError] = []
    duration = in_seconds(settings.lease.duration)
    # The block's end waits for the keeper, which therefore never waits itself.
    impatient = cluster.impatient()

    def keep() -> None:
        nonlocal renewed, failure
        pause = duration / 3
        while not ended.wait(pause):
            try:
                renewed, pause = renew(impatient, settings, run_id), duration / 3
            except LeaseLostError as error:
                lost.append(error)
                return
            except Exception as error:  # noqa: BLE001 (whatever it is, the Lease is ours until another has it)
                failure, pause = error, min(duration / 30, _LONGEST_PAUSE)

    def trust(seconds: float) -> None:
        """Raises what forbids it so long after the last renewal."""
        if lost:
            raise lost[0]
        silent = time.time() - renewed
        if silent > seconds:
            raise InconclusiveError(
                f"this run last renewed the Lease {settings.namespace}/{settings.name} {silent:.0f} s ago, of "
                f"{settings.lease.duration} that it lasts: another may take it at any moment"
                f"{f' ({failure})' if failure else ''}. Nothing is changed; run again"
            ) from failure

    def check(kind: str) -> None:
        if kind != "Lease":
            trust(duration - min(_MARGIN_SECONDS, duration / 3))

    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        with cluster.changed_only_if(check):
            yield
    finally:
        ended.set()
        keeper.join()
    trust(duration)


def renew(cluster: Cluster, settings: Settings, run_id: str) -> float:
    """One sign of life; returns when it was, seconds since the epoch. Several steps of one run may give theirs at once.

    Raises LeaseLostError when another run has taken the Lease over.
    """
    while True:
        lease = cluster.get("Lease", settings.name, settings.namespace)
        if lease is None or holder(lease) != run_id:
            now_held_by = f"{holder(lease)} holds it" if lease and holder(lease) else "nobody holds it"
            raise LeaseLostError(
                f"this run lost the Lease {settings.namespace}/{settings.name}: {now_held_by}. It was silent for "
                f"longer than lease.duration ({settings.lease.duration}); run again"
            )
        now = time.time()
        if _write(cluster, settings, run_id, lease):
            return now
        # Another step of this run was quicker, or another run was: the Lease itself says which.


def give_back(cluster: Cluster, settings: Settings, run_id: str) -> bool:
    """Lets go of the Lease if this run holds it: returns whether it did."""
    while True:
        lease = cluster.get("Lease", settings.name, settings.namespace)
        if lease is None or holder(lease) != run_id:
            return False
        lease["spec"] = {**lease["spec"], "holderIdentity": "", "renewTime": _micro_time(time.time())}
        try:
            cluster.replace(lease)
        except ConflictError:
            continue  # A step of this run gave a last sign of life.
        return True


def is_held_by(cluster: Cluster, settings: Settings, run_id: str) -> bool:
    """Whether this run holds the Lease, which has not run out: it is alive, as far as anybody knows."""
    lease = cluster.get("Lease", settings.name, settings.namespace)
    return lease is not None and holder(lease) == run_id and free_at(lease) > time.time()


def holder(lease: Object) -> str:
    """The run that holds a Lease; empty when none does."""
    return str(lease.get("spec", {}).get("holderIdentity") or "")


def free_at(lease: Object) -> float:
    """When another may take the Lease: seconds since the epoch; 0 when nobody holds it."""
    spec = lease.get("spec", {})
    if not holder(lease) or not spec.get("renewTime"):
        return 0.0
    renewed = datetime.datetime.fromisoformat(spec["renewTime"].replace("Z", "+00:00")).timestamp()
    return renewed + float(spec.get("leaseDurationSeconds") or 0)


def _write(cluster: Cluster, settings: Settings, run_id: str, lease: Object | None) -> bool:
    """Writes this run as the holder unless the Lease changed since it was read; returns whether it did."""
    now = _micro_time(time.time())
    before = (lease or {}).get("spec", {})
    ours = lease is not None and holder(lease) == run_id
    body: Object = {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": settings.name, "namespace": settings.namespace},
        "spec": {
            "holderIdentity": run_id,
            "leaseDurationSeconds": max(1, round(in_seconds(settings.lease.duration))),
            "acquireTime": before.get("acquireTime", now) if ours else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if ours or lease is None else 1),
        },
    }
    try:
        if lease is None:
            cluster.create(body)
        else:
            body["metadata"]["resourceVersion"] = lease["metadata"]["resourceVersion"]
            cluster.replace(body)
    except ConflictError:
        return False
    return True


def _wait_for_change(cluster: Cluster, settings: Settings, lease: Object, give_up: float) -> None:
    """Until the Lease changes, runs out, or patience does."""
    until = min(give_up, time.monotonic() + max(0.0, free_at(lease) - time.time()))
    with cluster.follow(Subject("Lease", settings.namespace, fields=f"metadata.name={settings.name}")) as changes:
        for change in changes.until(until):
            if change and change[1]["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
                return


def _held_by(lease: Object, settings: Settings) -> str:
    left = max(0, round(free_at(lease) - time.time()))
    return (
        f"run {holder(lease)} holds the Lease {settings.namespace}/{settings.name}; if it is dead, the Lease runs out "
        f"in {left} s. Run again then, or with a longer lease.wait in the settings"
    )


def _micro_time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
