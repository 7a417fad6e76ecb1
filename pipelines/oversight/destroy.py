"""Taking a deployment away: what its runs made, and nothing else.

In the order that works: no new run begins, those that run end, the Lease is taken, and only then its objects, disks,
images and, if that is asked for, weights go. Whoever is ended in the middle begins anew, with what is left.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from components.collect_garbage.step import free_own_weights, own_weights
from pipelines.oversight import runs
from pipelines.vertex import schedule
from serving import names
from serving.clients import kubernetes, storage
from serving.clients.kubernetes import Cluster, Object
from serving.clients.vertex import Body, Vertex
from serving.deployment import bindings, caches, disk_images, lease, record, removal
from serving.deployment.bindings import Known
from serving.deployment.record import Record
from serving.errors import RequestError
from serving.log import Say
from serving.settings import Settings


@dataclass(frozen=True)
class Found:
    """What there is of a deployment, and is to go."""

    objects: list[Object]
    """In the cluster, in the order in which they go; the Lease is last."""
    namespace: bool
    compute: list[str]
    """Machines, disks and disk images, in words."""
    caches: list[str]
    """Zones of the bucket's caches."""
    bindings: list[Known]
    """Roles on the bucket that runs gave; those that others need stay."""
    weights: list[str]
    """Prefixes of all sets of weights that nobody else names; they go only when that is asked for."""
    shared_weights: list[str]
    """Those that another deployment names too; they stay."""
    named: bool
    """Whether the bucket says that the deployment uses weights."""
    schedule: Body | None = None
    runs: list[Body] = field(default_factory=list)
    """Those that go on; they end before anything goes."""

    def lines(self, settings: Settings, *, weights: bool) -> list[str]:
        """What goes, a line each."""
        lines = [f"{runs.called(run)}, which goes on, once it has ended" for run in self.runs]
        lines += [_called(self.schedule)] if self.schedule else []
        lines += [f"{item['kind']}/{item['metadata']['name']}" for item in self.objects]
        lines += [f"Namespace/{settings.namespace}"] if self.namespace else []
        lines += self.compute
        lines += [f"Rapid Cache of gs://{settings.bucket} in {zone}" for zone in self.caches]
        for known in self.bindings:
            shared = "its need of " if len(known.needed_by) > 1 else ""
            lines.append(f"{shared}{bindings.called(settings, known)}")
        if weights:
            lines += [*self.weights, *([names.weights_in_use(settings)] if self.named else [])]
        return lines


def find(settings: Settings, vertex: Vertex | None = None) -> Found:
    """What there is of the deployment. Reads only; a cluster that is gone holds nothing."""
    cluster = _cluster(settings)
    objects = removal.find(cluster, settings) if cluster else []
    known = _record(cluster, settings) if objects else Record()
    named = storage.stat(names.weights_in_use(settings)) is not None
    return Found(
        objects,
        cluster is not None and removal.removable_namespace(cluster, settings, objects) is not None,
        disk_images.present(settings),
        caches.present(settings),
        # Where IAM is somebody else's, what was given before is, too.
        bindings.present(settings) if settings.access == "manage" else [],
        *own_weights(settings, known),
        named,
        schedule.find(vertex, settings) if vertex else None,
        runs.active(vertex, settings) if vertex else [],
    )


def destroy(
    settings: Settings,
    found: Found,
    say: Say,
    *,
    weights: bool,
    vertex: Vertex | None = None,
    cancel: bool = False,
    wait_seconds: float = 3600,
) -> list[str]:
    """Takes away what was found, and what a run made before it ended. Returns what went, a line each. cancel: runs that
    go on are told to end, else they are waited for, so many seconds.

    Raises LeaseHeldError while a run holds the Lease, InconclusiveError for what does not end or does not go.
    """
    if vertex:
        if found.schedule and found.schedule["state"] == schedule.ACTIVE:
            vertex.pause_schedule(found.schedule["name"])
            say("paused the schedule")
        if runs.wait_until_ended(vertex, settings, say, cancel=cancel, seconds=wait_seconds):
            found = _again(settings, vertex, found, say)
    run_id = f"destroy-{time.strftime('%Y%m%d%H%M%S', time.gmtime())}"
    cluster, gone = _cluster(settings), list[str]()
    if cluster and found.objects:
        lease.take(cluster, settings, run_id, say)
        try:
            with lease.held(cluster, settings, run_id):
                # Whoever held the Lease until now may have changed things.
                found = _again(settings, vertex, found, say)
                gone += _schedule(vertex, found, say)
                _name_weights(settings, found)
                gone += removal.remove(cluster, settings, _without_lease(found.objects), say)
                gone += _outside(settings, found, run_id, say)
        finally:
            lease.give_back(cluster, settings, run_id)
        gone += removal.remove(cluster, settings, _lease(cluster, settings), say)
    else:
        gone += _schedule(vertex, found, say)
        gone += _outside(settings, found, run_id, say)
    if cluster and removal.remove_namespace(cluster, settings, say):
        gone.append(f"Namespace/{settings.namespace}")
    if weights:
        gone += free_own_weights(settings, found.weights, say)
    return gone


def kept_weights(settings: Settings) -> list[str]:
    """The sets of weights of a deployment that is gone, as the bucket names them, which are no other's."""
    return own_weights(settings, Record())[0]


def _again(settings: Settings, vertex: Vertex | None, before: Found, say: Say) -> Found:
    """What there is now. What came since is the deployment's as well, and is told."""
    found = find(settings, vertex)
    shown = before.lines(settings, weights=True)
    for line in found.lines(settings, weights=True):
        if line not in shown:
            say(f"made meanwhile, and goes too: {line}")
    return found


def _schedule(vertex: Vertex | None, found: Found, say: Say) -> list[str]:
    if not vertex or not found.schedule:
        return []
    vertex.delete_schedule(found.schedule["name"])
    say(f"deleted {_called(found.schedule)}")
    return [_called(found.schedule)]


def _called(schedule: Body) -> str:
    return f"schedule {schedule['name']}"


def _outside(settings: Settings, found: Found, run_id: str, say: Say) -> list[str]:
    """What is not in the cluster, weights aside."""
    given = bindings.leave_all(settings, say) if found.bindings else []
    gone = [bindings.called(settings, known) for known in given]
    gone += [f"disk image {name}" for name in disk_images.remove_all(settings, run_id, say)]
    return gone + [f"Rapid Cache of gs://{settings.bucket} in {zone}" for zone in caches.leave_all(settings, say)]


def _name_weights(settings: Settings, found: Found) -> None:
    """Has the bucket name the weights that stay: no other deployment collects them, and a `destroy --weights` later on
    finds them without a record."""
    if found.weights:
        keys = sorted({prefix.rpartition("/")[2] for prefix in found.weights})
        storage.write_json_if_changed(names.weights_in_use(settings), {"weights_keys": keys})


def _cluster(settings: Settings) -> Cluster | None:
    """None where there is no such cluster any more."""
    try:
        return kubernetes.connect(settings)
    except RequestError as error:
        if "does not exist" in str(error):
            return None
        raise


def _record(cluster: Cluster | None, settings: Settings) -> Record:
    """What the record says; of one that cannot be read, nothing."""
    try:
        return record.read(cluster, settings) if cluster else Record()
    except RequestError:
        return Record()


def _without_lease(objects: list[Object]) -> list[Object]:
    return [item for item in objects if item["kind"] != "Lease"]


def _lease(cluster: Cluster, settings: Settings) -> list[Object]:
    there = cluster.get("Lease", settings.name, settings.namespace)
    return [there] if there else []
