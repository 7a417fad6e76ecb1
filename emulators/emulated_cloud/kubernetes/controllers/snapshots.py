"""VolumeSnapshots: their binding to contents, their state, and protection of what is being made or used.

The snapshot controller (kubernetes-csi/external-snapshotter v8.7, pkg/common-controller), which GKE installs in every
cluster. Taking the snapshot is the CSI driver's, which is told by a VolumeSnapshotContent. Group snapshots and default
classes are left out.
"""

from __future__ import annotations

import datetime
from typing import Literal

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object, key_of, timestamp
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.quantity import canonical
from emulated_cloud.kubernetes.resources import (
    CLAIMS,
    SNAPSHOT_CLASSES,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    VOLUMES,
    Resource,
)
from emulated_cloud.kubernetes.workqueue import WorkQueue

CONTENT_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
BOUND_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshot-bound-protection"
SOURCE_FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshot-as-source-protection"
CLAIM_FINALIZER = "snapshot.storage.kubernetes.io/pvc-as-source-protection"
BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
RETRY_SECONDS = 1.0


class SnapshotError(Exception):
    """A snapshot that cannot be made now: the reason of its event, and words for its status."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class SnapshotController:
    def __init__(self, client: Client, informers: Informers):
        self._client, self._informers = client, informers
        self._snapshots = informers.of(SNAPSHOTS)
        self._contents = informers.of(SNAPSHOT_CONTENTS)
        self._classes = informers.of(SNAPSHOT_CLASSES)
        self._claims = informers.of(CLAIMS)
        self._volumes = informers.of(VOLUMES)
        self._events = EventRecorder(client, "snapshot-controller")
        self.queue = WorkQueue("volume snapshots", self._reconcile)
        self._snapshots.on_change(self.queue.changed)
        self._contents.on_change(self._content_changed)

    def _content_changed(self, old: Object | None, new: Object | None) -> None:
        reference = (new or old or {})["spec"]["volumeSnapshotRef"]
        self.queue.add(f"{reference['namespace']}/{reference['name']}")

    async def _reconcile(self, key: str) -> float | None:
        await self._informers.synced(SNAPSHOTS, SNAPSHOT_CONTENTS, SNAPSHOT_CLASSES, CLAIMS, VOLUMES)
        snapshot = self._snapshots.items.get(key)
        if snapshot is None:
            return None
        await self._release_claim(snapshot)
        content = self._content_of(snapshot)
        if snapshot["metadata"].get("deletionTimestamp"):
            return await self._delete(snapshot, content)
        try:
            return await self._bind(snapshot, content)
        except SnapshotError as error:
            await self._report(snapshot, error)
            return RETRY_SECONDS

    # -- binding --------------------------------------------------------------------------------------------

    async def _bind(self, snapshot: Object, content: Object | None) -> float | None:
        wanted = [SOURCE_FINALIZER]
        if content and content["spec"]["deletionPolicy"] == "Delete":
            wanted.append(BOUND_FINALIZER)
        snapshot = await self._set_finalizers(SNAPSHOTS, snapshot, add=wanted)
        if content is None:
            if snapshot["spec"]["source"].get("volumeSnapshotContentName"):
                raise SnapshotError("SnapshotContentMissing", "VolumeSnapshotContent is missing")
            content = await self._create_content(snapshot)
        elif not content["spec"]["volumeSnapshotRef"].get("uid"):
            patch = {"spec": {"volumeSnapshotRef": {"uid": snapshot["metadata"]["uid"]}}}
            content = await self._client.patch(SNAPSHOT_CONTENTS, content["metadata"]["name"], "", patch)
            self._contents.observe(content)
        content = await self._set_finalizers(SNAPSHOT_CONTENTS, content, add=[CONTENT_FINALIZER])
        await self._write_status(snapshot, content)
        return None

    def _content_of(self, snapshot: Object) -> Object | None:
        """The content that is this snapshot's, or waits for it."""
        meta = snapshot["metadata"]
        name = snapshot["spec"]["source"].get("volumeSnapshotContentName") or f"snapcontent-{meta['uid']}"
        content = self._contents.items.get(name)
        if content is None:
            return None
        reference = content["spec"]["volumeSnapshotRef"]
        same = (reference["namespace"], reference["name"]) == (meta["namespace"], meta["name"])
        return content if same and reference.get("uid", meta["uid"]) == meta["uid"] else None

    async def _create_content(self, snapshot: Object) -> Object:
        meta, spec = snapshot["metadata"], snapshot["spec"]
        claim = self._claims.items.get(f"{meta['namespace']}/{spec['source']['persistentVolumeClaimName']}")
        try:
            if claim is None:
                words = f"snapshot controller failed to update {meta['name']} on API server"
                raise LookupError(f"{words}: cannot get claim from snapshot")
            snapshot_class = self._class_of(snapshot)
            volume = self._volume_of(claim)
        except LookupError as error:
            words = f"Failed to create snapshot content with error {error.args[0]}"
            raise SnapshotError("SnapshotContentCreationFailed", words) from error
        await self._set_finalizers(CLAIMS, claim, add=[CLAIM_FINALIZER])
        body: Object = {
            "metadata": {"name": f"snapcontent-{meta['uid']}", "finalizers": [CONTENT_FINALIZER]},
            "spec": {
                "deletionPolicy": snapshot_class["deletionPolicy"],
                "driver": snapshot_class["driver"],
                "source": {"volumeHandle": volume["spec"]["csi"]["volumeHandle"]},
                "sourceVolumeMode": volume["spec"].get("volumeMode", "Filesystem"),
                "volumeSnapshotClassName": snapshot_class["metadata"]["name"],
                "volumeSnapshotRef": {
                    "apiVersion": SNAPSHOTS.api_version,
                    "kind": SNAPSHOTS.kind,
                    "namespace": meta["namespace"],
                    "name": meta["name"],
                    "uid": meta["uid"],
                    "resourceVersion": meta["resourceVersion"],
                },
            },
        }
        try:
            content = await self._client.create(SNAPSHOT_CONTENTS, body)
        except ApiError as error:
            if error.status != 409:
                raise
            # By a pass whose answer has not been seen.
            content = await self._client.get(SNAPSHOT_CONTENTS, body["metadata"]["name"])
        self._contents.observe(content)
        words = f"Waiting for a snapshot {key_of(snapshot)} to be created by the CSI driver."
        self._event(snapshot, "Normal", "CreatingSnapshot", words)
        return content

    def _class_of(self, snapshot: Object) -> Object:
        meta, name = snapshot["metadata"], snapshot["spec"].get("volumeSnapshotClassName")
        words = f'failed to get input parameters to create snapshot {meta["name"]}: "'
        if not name:
            raise LookupError(f'{words}failed to take snapshot {meta["name"]} without a snapshot class"')
        found = self._classes.items.get(name)
        if found is None:
            missing = f'volumesnapshotclass.snapshot.storage.k8s.io \\"{name}\\" not found'
            raise LookupError(f'{words}failed to retrieve snapshot class {name} from the informer: \\"{missing}\\""')
        return found

    def _volume_of(self, claim: Object) -> Object:
        meta = claim["metadata"]
        volume = self._volumes.items.get(claim["spec"].get("volumeName", ""))
        if (claim.get("status") or {}).get("phase") != "Bound" or volume is None:
            words = f"the PVC {meta['name']} is not yet bound to a PV, will not attempt to take a snapshot"
            raise LookupError(f'failed to get input parameters to create snapshot {meta["name"]}: "{words}"')
        if "csi" not in volume["spec"]:
            raise LookupError(f"cannot find CSI PersistentVolumeSource for volume {volume['metadata']['name']}")
        return volume

    # -- state ----------------------------------------------------------------------------------------------

    async def _write_status(self, snapshot: Object, content: Object) -> None:
        """What the content says, in the snapshot's own status."""
        made, before = content.get("status") or {}, snapshot.get("status") or {}
        status: Object = {
            "boundVolumeSnapshotContentName": content["metadata"]["name"],
            "readyToUse": bool(made.get("readyToUse")),
        }
        if made.get("creationTime"):
            status["creationTime"] = before.get("creationTime") or _time(made["creationTime"])
        if made.get("restoreSize") is not None:
            status["restoreSize"] = before.get("restoreSize") or _quantity(made["restoreSize"])
        if made.get("error") or before.get("error"):
            status["error"] = made.get("error")
        if all(before.get(key) == value for key, value in status.items()):
            return
        if "creationTime" in status and "creationTime" not in before:
            words = f"Snapshot {key_of(snapshot)} was successfully created by the CSI driver."
            self._event(snapshot, "Normal", "SnapshotCreated", words)
        if status["readyToUse"] and not before.get("readyToUse"):
            self._event(snapshot, "Normal", "SnapshotReady", f"Snapshot {key_of(snapshot)} is ready to use.")
        await self._patch_status(snapshot, status)

    async def _report(self, snapshot: Object, error: SnapshotError) -> None:
        before = ((snapshot.get("status") or {}).get("error") or {}).get("message")
        if before != str(error):
            self._event(snapshot, "Warning", error.reason, str(error))
            status = {"readyToUse": False, "error": {"message": str(error), "time": timestamp()}}
            await self._patch_status(snapshot, status)

    async def _patch_status(self, snapshot: Object, status: Object) -> None:
        meta = snapshot["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": status}
        answer = await self._client.patch(SNAPSHOTS, meta["name"], meta["namespace"], patch, subresource="status")
        self._snapshots.observe(answer)

    def _event(self, snapshot: Object, kind: Literal["Normal", "Warning"], reason: str, words: str) -> None:
        self._events.event(snapshot, kind, reason, words)

    # -- end ------------------------------------------------------------------------------------------------

    async def _delete(self, snapshot: Object, content: Object | None) -> float | None:
        finalizers = snapshot["metadata"].get("finalizers") or []
        if SOURCE_FINALIZER not in finalizers and BOUND_FINALIZER not in finalizers:
            return None
        if content is None:
            await self._set_finalizers(SNAPSHOTS, snapshot, remove=[SOURCE_FINALIZER, BOUND_FINALIZER])
            return None
        if self._is_being_restored(snapshot):
            self._event(snapshot, "Warning", "SnapshotDeletePending", "Snapshot is being used to restore a PVC")
            return RETRY_SECONDS
        meta = content["metadata"]
        if BEING_DELETED not in (meta.get("annotations") or {}):
            patch = {"metadata": {"annotations": {BEING_DELETED: "yes"}}}
            self._contents.observe(await self._client.patch(SNAPSHOT_CONTENTS, meta["name"], "", patch))
        done = [SOURCE_FINALIZER]
        if content["spec"]["deletionPolicy"] == "Delete":
            await self._client.delete(SNAPSHOT_CONTENTS, meta["name"], uid=meta["uid"])
        else:
            done.append(BOUND_FINALIZER)
        await self._set_finalizers(SNAPSHOTS, snapshot, remove=done)
        return None

    def _is_being_restored(self, snapshot: Object) -> bool:
        meta = snapshot["metadata"]
        return any(
            (claim["spec"].get("dataSource") or {}).get("kind") == SNAPSHOTS.kind
            and claim["spec"]["dataSource"]["name"] == meta["name"]
            and (claim.get("status") or {}).get("phase") == "Pending"
            for claim in self._claims.in_namespace(meta["namespace"])
        )

    async def _release_claim(self, snapshot: Object) -> None:
        """Takes the finalizer off a claim that no snapshot is being made of any more."""
        namespace, name = snapshot["metadata"]["namespace"], snapshot["spec"]["source"].get("persistentVolumeClaimName")
        claim = self._claims.items.get(f"{namespace}/{name}")
        if claim is None or CLAIM_FINALIZER not in (claim["metadata"].get("finalizers") or []):
            return
        in_use = any(
            other["spec"]["source"].get("persistentVolumeClaimName") == name
            and not (other.get("status") or {}).get("readyToUse")
            and not (other is snapshot and other["metadata"].get("deletionTimestamp"))
            for other in self._snapshots.in_namespace(namespace)
        )
        if not in_use:
            await self._set_finalizers(CLAIMS, claim, remove=[CLAIM_FINALIZER])

    async def _set_finalizers(
        self, resource: Resource, item: Object, add: list[str] | None = None, remove: list[str] | None = None
    ) -> Object:
        meta = item["metadata"]
        before = meta.get("finalizers") or []
        wanted = [name for name in before if name not in (remove or [])]
        wanted += [name for name in add or [] if name not in wanted]
        if wanted == before:
            return item
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": wanted}}
        answer = await self._client.patch(resource, meta["name"], meta.get("namespace", ""), patch)
        if not meta.get("deletionTimestamp"):
            self._informers.of(resource).observe(answer)
        return answer

    async def stop(self) -> None:
        await self.queue.stop()


def _time(nanoseconds: int) -> str:
    return timestamp(datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC))


def _quantity(size: int) -> str:
    """Bytes as resource.NewQuantity writes them in binary."""
    return canonical(f"{size // 1024}Ki") if size % 1024 == 0 else str(size)
