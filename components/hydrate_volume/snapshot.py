"""Filling a volume by way of a snapshot: the weights are copied to one disk, of which every zone then gets a copy.

A volume of several zones is read-only from its first moment, unless GKE's populator fills it. So the copying is done on
a balanced disk, in any one zone, by a Job that verifies what it writes; the snapshot is an image, which disks in all
zones can be made of at once.
"""

from __future__ import annotations

import time

from components.hydrate_volume.hydration import Hydration, is_bound, is_warning, wait_until_bound
from serving.clients.kubernetes import Object, Subject
from serving.deployment import objects
from serving.deployment.job import Work
from serving.errors import InconclusiveError, PipelineError
from serving.rendering import render

_SNAPSHOT = "VolumeSnapshot"
_CLAIM = "PersistentVolumeClaim"
_ATTACHMENT = "VolumeAttachment"
_GOES_SECONDS = 60.0
"""How long a claim is seen out of the cluster: its pod goes first."""


def fill(hydration: Hydration) -> Object:
    """Fills the generation's volume, and returns its claim. What an earlier attempt did is not done again."""
    cluster, namespace = hydration.cluster, hydration.settings.namespace
    needed = render.temporary(hydration.settings, hydration.release)
    *before, snapshot = [item for item in needed if item["kind"] != "HTTPRoute"]  # That one is for validation.
    name = snapshot["metadata"]["name"]
    # It is made when all is copied, and not before.
    if cluster.get(_SNAPSHOT, name, namespace) is None:
        for item in before:
            objects.put(cluster, item, hydration.say)
        staging = snapshot["spec"]["source"]["persistentVolumeClaimName"]
        copy(hydration, staging)
        wait_until_detached(hydration, staging)
        objects.put(cluster, snapshot, hydration.say)
    wait_until_ready(hydration, name)
    return wait_until_bound(hydration, hydration.put_claim(), hydration.seconds, words=lambda: "a disk in every zone")


def copy(hydration: Hydration, claim: str) -> None:
    """Has the weights copied to the claim's disk. Raises what `run_job` raises, with the driver's words where there is
    no disk for the claim."""
    (end,) = hydration.run_jobs("copy", [Work([], "copy", hydration.pod(claim, read_only=False))])
    if isinstance(end, PipelineError):
        raise _without_a_disk(hydration, claim, end) or end
    hydration.say(f"copied {end['files']} files, {end['bytes']} bytes, in {end['seconds']:.0f} s")


def _without_a_disk(hydration: Hydration, claim: str, end: PipelineError) -> InconclusiveError | None:
    """How the Job ended, if its pod never had the claim's disk. The claim then goes: it is tied to the machine that was
    chosen for it, and so to that one's zone, where another attempt would want its disk again."""
    cluster, namespace = hydration.cluster, hydration.settings.namespace
    there = cluster.get(_CLAIM, claim, namespace)
    if there is None or is_bound(there):
        return None
    events = cluster.list("Event", namespace, fields=f"involvedObject.uid={there['metadata']['uid']}")
    warnings = sorted((event.get("lastTimestamp") or "", event["message"]) for event in events if is_warning(event))
    if cluster.delete(there):
        objects.is_gone(cluster, there, time.monotonic() + _GOES_SECONDS)
    if not warnings:
        return None
    return InconclusiveError(
        f"{end}. {_CLAIM}/{claim} got no disk: {warnings[-1][1]}. Run again: another zone may have room; one that "
        "never has can be left out with hyperdisk_ml.zones"
    )


def wait_until_detached(hydration: Hydration, claim: str) -> None:
    """Waits until no machine has the claim's disk any more. The end of a Job is not that of its mount, and the journal
    of a file system that is mounted is open: a copy for reading alone could not be mounted, since it is to be replayed.

    Raises InconclusiveError when a machine does not let go of it in time.
    """
    cluster, namespace = hydration.cluster, hydration.settings.namespace
    volume = ((cluster.get(_CLAIM, claim, namespace) or {}).get("spec") or {}).get("volumeName")
    for attachment in cluster.list(_ATTACHMENT):
        if attachment["spec"]["source"].get("persistentVolumeName") == volume:
            _wait_until_gone(hydration, claim, attachment)


def _wait_until_gone(hydration: Hydration, claim: str, attachment: Object) -> None:
    name = attachment["metadata"]["name"]
    words = f"{_CLAIM}/{claim} is still attached to {attachment['spec']['nodeName']}"
    # Attachments are the whole cluster's: this one is looked at once a second, and nobody else's is followed.
    subject = Subject(_CLAIM, hydration.settings.namespace, fields=f"metadata.name={claim}")
    for _ in hydration.waited([subject], hydration.seconds, lambda: words):
        if hydration.cluster.get(_ATTACHMENT, name) is None:
            return
    raise InconclusiveError(
        f"{words}, after hyperdisk_ml.timeout ({hydration.section.timeout}). See `kubectl describe volumeattachment "
        f"{name}`, then run again"
    )


def wait_until_ready(hydration: Hydration, name: str) -> None:
    """Waits for the snapshot. Raises InconclusiveError when it is not ready in time, with what its controller says."""
    namespace, error = hydration.settings.namespace, ""

    def state() -> str:
        return f"{_SNAPSHOT}/{name} is not ready" + (f": {error}" if error else "")

    subject = Subject(_SNAPSHOT, namespace, fields=f"metadata.name={name}")
    for change in hydration.waited([subject], hydration.seconds, state):
        if change is None:
            continue
        if change[0] == "DELETED":
            raise InconclusiveError(f"{_SNAPSHOT}/{name} was deleted by somebody else. Run again")
        status = change[1].get("status") or {}
        if status.get("readyToUse"):
            return
        # Not an end: the controller tries again.
        error = (status.get("error") or {}).get("message", "")
    raise InconclusiveError(
        f"{state()}, after hyperdisk_ml.timeout ({hydration.section.timeout}). See `kubectl -n {namespace} describe "
        f"volumesnapshot {name}`, then run again"
    )
