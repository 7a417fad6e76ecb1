"""Deletion: preconditions, grace periods of pods, finalizers and what becomes of dependents.

The server only marks and removes; dependents are the garbage collector's (a controller), which works through the
finalizers `orphan` and `foregroundDeletion` that are set here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.resources import Resource

Object = dict[str, Any]

RETURNED = {
    "CSIDriver",
    "CSINode",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "Pod",
    "PodTemplate",
    "ResourceQuota",
    "Service",
    "ServiceAccount",
    "StorageClass",
    "VolumeAttachment",
}
"""Kinds of which a deletion returns the object; of the others a Status, once they are gone."""

ORPHANED_JOBS = (
    "child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to remove them or set "
    "propagationPolicy=Orphan to suppress this warning"
)
"""What the server says to whoever deletes a Job without a propagation policy."""

# Kinds whose dependents stay unless told otherwise, for compatibility (DefaultGarbageCollectionPolicy).
_ORPHANING = {("batch", "Job"), ("", "ReplicationController")}


@dataclass(frozen=True)
class Wish:
    """What DeleteOptions ask for."""

    grace_seconds: int | None = None
    propagation: str = ""
    uid: str | None = None
    resource_version: str | None = None
    dry_run: bool = False

    @classmethod
    def of(cls, said: dict[str, Any]) -> Wish:
        """From a request's body, or its parameters. Raises ApiError."""
        try:
            grace = said.get("gracePeriodSeconds")
            grace = None if grace is None else int(grace)
        except ValueError as error:
            raise errors.bad_request(f'strconv.ParseInt: parsing "{grace}": invalid syntax') from error
        if grace is not None and grace < 0:
            grace = 1
        propagation = said.get("propagationPolicy") or ""
        if "orphanDependents" in said:
            if propagation:
                detail = "orphanDependents and deletionPropagation cannot be both set"
                cause = errors.invalid_value("propagationPolicy", propagation, detail)
                raise errors.invalid("meta.k8s.io", "DeleteOptions", "", [cause])
            propagation = "Orphan" if said["orphanDependents"] in (True, "true") else "Background"
        if propagation not in ("", "Background", "Foreground", "Orphan"):
            choices = 'supported values: "Foreground", "Background", "Orphan", "nil"'
            message = f"Unsupported value: {errors.quoted(propagation)}: {choices}"
            cause = errors.Cause("FieldValueNotSupported", message, "propagationPolicy")
            raise errors.invalid("meta.k8s.io", "DeleteOptions", "", [cause])
        dry_run = said.get("dryRun") or []
        dry_run = [dry_run] if isinstance(dry_run, str) else dry_run
        if any(word != "All" for word in dry_run):
            cause = errors.not_supported("dryRun", dry_run, ["All"])
            raise errors.invalid("meta.k8s.io", "DeleteOptions", "", [cause])
        preconditions = said.get("preconditions") or {}
        uid, version = preconditions.get("uid"), preconditions.get("resourceVersion")
        return cls(grace, propagation, uid, version, bool(dry_run))


_IMMORTAL = {"default", "kube-public", "kube-system"}


def refuse_immortal(resource: Resource, name: str) -> None:
    if (resource.group, resource.kind) == ("", "Namespace") and name in _IMMORTAL:
        raise errors.forbidden("", "namespaces", name, "this namespace may not be deleted")


def check_preconditions(resource: Resource, live: Object, wish: Wish) -> None:
    metadata = live["metadata"]
    why = ""
    if wish.uid is not None and wish.uid != metadata["uid"]:
        why = (
            f"the UID in the precondition ({wish.uid}) does not match the UID in record ({metadata['uid']}). "
            "The object might have been deleted and then recreated"
        )
    elif wish.resource_version is not None and wish.resource_version != metadata["resourceVersion"]:
        why = (
            f"the ResourceVersion in the precondition ({wish.resource_version}) does not match the ResourceVersion "
            f"in record ({metadata['resourceVersion']}). The object might have been modified"
        )
    if why:
        raise errors.conflict(resource.group, resource.kind, metadata["name"], why)


def marked(resource: Resource, live: Object, wish: Wish, moment: datetime) -> Object | None:
    """`live` as deletion leaves it (for the store, or gone when `is_finished`); None when nothing changes."""
    metadata = {**live["metadata"], "finalizers": _finalizers(resource, live, wish)}
    if not metadata["finalizers"]:
        del metadata["finalizers"]
    grace = _grace_seconds(resource, live, wish)
    if metadata.get("deletionTimestamp"):
        left = metadata.get("deletionGracePeriodSeconds", 0)
        if left and (wish.grace_seconds is None or wish.grace_seconds >= left) and grace:
            return None if metadata == live["metadata"] else {**live, "metadata": metadata}
        started = datetime.fromisoformat(metadata["deletionTimestamp"]) - timedelta(seconds=left)
        deadline = max(started + timedelta(seconds=grace), moment) if left else moment
    else:
        deadline = moment + timedelta(seconds=grace)
        if "generation" in metadata:
            metadata["generation"] += 1
    if not live["metadata"].get("deletionTimestamp") or metadata.get("deletionGracePeriodSeconds"):
        metadata["deletionTimestamp"] = deadline.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata["deletionGracePeriodSeconds"] = grace
    item = {**live, "metadata": metadata}
    if resource.kind == "Namespace" and not resource.group:
        # A namespace goes when its controller has emptied it and taken its finalizer off.
        metadata.pop("deletionGracePeriodSeconds", None)
        item["status"] = {**live.get("status", {}), "phase": "Terminating"}
    return item if item != live or is_finished(item) else None


def is_finished(item: Object) -> bool:
    """Whether nothing holds an object that is being deleted any longer."""
    metadata = item["metadata"]
    return bool(
        metadata.get("deletionTimestamp")
        and not metadata.get("deletionGracePeriodSeconds")
        and not metadata.get("finalizers")
        and not (item["kind"] == "Namespace" and item.get("spec", {}).get("finalizers"))
    )


def _grace_seconds(resource: Resource, live: Object, wish: Wish) -> int:
    """Only a pod on a node, and not yet finished, is given time: its kubelet takes it away."""
    if (resource.group, resource.kind) != ("", "Pod"):
        return 0
    if not live["spec"].get("nodeName") or live.get("status", {}).get("phase") in ("Succeeded", "Failed"):
        return 0
    if wish.grace_seconds is not None:
        return wish.grace_seconds
    return live["spec"].get("terminationGracePeriodSeconds", 30)


def _finalizers(resource: Resource, live: Object, wish: Wish) -> list[str]:
    finalizers = list(live["metadata"].get("finalizers", []))
    policy = wish.propagation
    if not policy:
        if {"orphan", "foregroundDeletion"} & set(finalizers):
            return finalizers
        policy = "Orphan" if (resource.group, resource.kind) in _ORPHANING else "Background"
    finalizers = [name for name in finalizers if name not in ("orphan", "foregroundDeletion")]
    wanted = {"Orphan": ["orphan"], "Foreground": ["foregroundDeletion"]}.get(policy, [])
    return finalizers + wanted
