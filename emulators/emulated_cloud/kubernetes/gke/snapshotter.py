"""What the CSI sidecar external-snapshotter does beside the persistent disk driver: snapshots for
VolumeSnapshotContents, their state, and their end.

VolumeSnapshots are the snapshot controller's (controllers/snapshots.py, or the real one). Words and annotations are
external-snapshotter's (v8.7).
"""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client, Informers, Object, timestamp
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.pd import DRIVER, PersistentDiskDriver, Snapshot
from emulated_cloud.kubernetes.kubelet.csi import CsiError
from emulated_cloud.kubernetes.resources import SNAPSHOT_CLASSES, SNAPSHOT_CONTENTS
from emulated_cloud.kubernetes.workqueue import WorkQueue

FINALIZER = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
BEING_CREATED = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
BEING_DELETED = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
RETRY_SECONDS = 1.0


class Snapshotter:
    def __init__(self, client: Client, informers: Informers, driver: PersistentDiskDriver):
        self._client, self._informers, self._driver = client, informers, driver
        self._contents = informers.of(SNAPSHOT_CONTENTS)
        self._classes = informers.of(SNAPSHOT_CLASSES)
        self._events = EventRecorder(client, f"csi-snapshotter {DRIVER}")
        self.queue = WorkQueue("snapshots", self._reconcile)
        self._contents.on_change(self.queue.changed)

    async def _reconcile(self, name: str) -> float | None:
        await self._informers.synced(SNAPSHOT_CONTENTS, SNAPSHOT_CLASSES)
        content = self._contents.items.get(name)
        if content is None or content["spec"]["driver"] != DRIVER:
            return None
        if _is_to_go(content):
            await self._delete(content)
            return None
        status = content.get("status") or {}
        if content["metadata"].get("deletionTimestamp") or status.get("readyToUse"):
            return None
        try:
            snapshot = await self._look(content)
        except CsiError as error:
            await self._report(content, error)
            return RETRY_SECONDS
        await self._write_status(content, snapshot)
        return None if snapshot.ready else RETRY_SECONDS

    async def _look(self, content: Object) -> Snapshot:
        """The snapshot of a content: made if it is not there, or one that somebody else has made."""
        source = content["spec"]["source"]
        if handle := source.get("snapshotHandle"):
            found = self._driver.snapshot(handle)
            if found is None:
                raise CsiError("NotFound", f"snapshot {handle} does not exist")
            return found
        class_name = content["spec"].get("volumeSnapshotClassName") or ""
        snapshot_class = self._classes.items.get(class_name)
        if snapshot_class is None:
            words = f'volumesnapshotclass.snapshot.storage.k8s.io "{class_name}" not found'
            raise CsiError("Unknown", f"failed to retrieve snapshot class {class_name} from the informer: {words}")
        if (content.get("status") or {}).get("snapshotHandle") is None:
            # Until the driver has answered, nobody may forget the content: a snapshot may have been made.
            content = await self._annotate(content, {BEING_CREATED: "yes"})
        name = f"snapshot-{content['spec']['volumeSnapshotRef']['uid']}"
        return await self._driver.create_snapshot(name, source["volumeHandle"], snapshot_class.get("parameters") or {})

    async def _write_status(self, content: Object, snapshot: Snapshot) -> None:
        status = {
            "snapshotHandle": snapshot.handle,
            "creationTime": int(snapshot.created * 1e9),
            "restoreSize": snapshot.size,
            "readyToUse": snapshot.ready,
            "error": None,
        }
        name = content["metadata"]["name"]
        before = content.get("status") or {}
        if any(before.get(key) != value for key, value in status.items()):
            answer = await self._client.patch(SNAPSHOT_CONTENTS, name, "", {"status": status}, subresource="status")
            self._contents.observe(answer)
        await self._annotate(self._contents.items.get(name, content), {BEING_CREATED: None})

    async def _report(self, content: Object, error: CsiError) -> None:
        handle = content["spec"]["source"].get("volumeHandle")
        reason = "SnapshotCreationFailed" if handle else "SnapshotContentCheckandUpdateFailed"
        words = f"Failed to check and update snapshot content: {error}"
        if handle:
            words = f'Failed to create snapshot: failed to take snapshot of the volume {handle}: "{error}"'
        name = content["metadata"]["name"]
        content = await self._annotate(self._contents.items.get(name, content), {BEING_CREATED: None})
        before = ((content.get("status") or {}).get("error") or {}).get("message")
        self._events.event(content, "Warning", reason, words)
        if before != words:
            status = {"readyToUse": False, "error": {"message": words, "time": timestamp()}}
            answer = await self._client.patch(SNAPSHOT_CONTENTS, name, "", {"status": status}, subresource="status")
            self._contents.observe(answer)

    async def _delete(self, content: Object) -> None:
        name, status = content["metadata"]["name"], content.get("status") or {}
        handle = status.get("snapshotHandle") or content["spec"]["source"].get("snapshotHandle")
        if content["spec"]["deletionPolicy"] == "Delete" and handle:
            await self._driver.delete_snapshot(handle)
        finalizers = content["metadata"].get("finalizers") or []
        if FINALIZER in finalizers:
            left = [each for each in finalizers if each != FINALIZER]
            version = content["metadata"]["resourceVersion"]
            patch = {"metadata": {"resourceVersion": version, "finalizers": left}}
            await self._client.patch(SNAPSHOT_CONTENTS, name, "", patch)

    async def _annotate(self, content: Object, annotations: dict[str, str | None]) -> Object:
        meta = content["metadata"]
        before = meta.get("annotations") or {}
        if all(before.get(key) == value for key, value in annotations.items()):
            return content
        patch = {"metadata": {"annotations": annotations}}
        answer = await self._client.patch(SNAPSHOT_CONTENTS, meta["name"], "", patch)
        self._contents.observe(answer)
        return answer

    async def stop(self) -> None:
        await self.queue.stop()


def _is_to_go(content: Object) -> bool:
    meta, annotations = content["metadata"], content["metadata"].get("annotations") or {}
    if not meta.get("deletionTimestamp"):
        return False
    if not content["spec"]["volumeSnapshotRef"].get("uid"):
        return True
    return BEING_CREATED not in annotations and BEING_DELETED in annotations
