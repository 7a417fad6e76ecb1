"""What the CSI sidecar external-attacher does beside the persistent disk driver: the answers to VolumeAttachments.

Who wants which volume on which node is the attach/detach controller's (controllers/attachments.py, or the real one).
"""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client, Informers, Object, timestamp
from emulated_cloud.kubernetes.gke.pd import DRIVER, PersistentDiskDriver
from emulated_cloud.kubernetes.kubelet.csi import CsiError
from emulated_cloud.kubernetes.resources import NODES, VOLUME_ATTACHMENTS, VOLUMES
from emulated_cloud.kubernetes.workqueue import WorkQueue

FINALIZER = "external-attacher/pd-csi-storage-gke-io"
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 8.0
"""(GKE's waits for minutes in the end.)"""


class Attacher:
    def __init__(self, client: Client, informers: Informers, driver: PersistentDiskDriver):
        self._client, self._informers, self._driver = client, informers, driver
        self._attachments = informers.of(VOLUME_ATTACHMENTS)
        self._volumes = informers.of(VOLUMES)
        self._failures: dict[str, int] = {}
        self.queue = WorkQueue("attachments", self._reconcile)
        self._attachments.on_change(self.queue.changed)

    async def _reconcile(self, name: str) -> float | None:
        await self._informers.synced(VOLUME_ATTACHMENTS, VOLUMES, NODES)
        attachment = self._attachments.items.get(name)
        if attachment is None or attachment["spec"]["attacher"] != DRIVER:
            self._failures.pop(name, None)
            return None
        if attachment["metadata"].get("deletionTimestamp"):
            if csi := self._csi_of(attachment):
                await self._driver.detach(csi["volumeHandle"], attachment["spec"]["nodeName"])
            await self._set_finalizer(attachment, False)
            return None
        if (attachment.get("status") or {}).get("attached"):
            return None
        attachment = await self._set_finalizer(attachment, True)
        try:
            await self._attach(attachment)
        except CsiError as error:
            status: Object = {"attached": False, "attachError": {"message": str(error), "time": timestamp()}}
            await self._write(name, status)
            self._failures[name] = failures = self._failures.get(name, -1) + 1
            return min(RETRY_SECONDS * 2**failures, MAX_RETRY_SECONDS)
        await self._write(name, {"attached": True, "attachError": None})
        self._failures.pop(name, None)
        return None

    async def _attach(self, attachment: Object) -> None:
        spec = attachment["spec"]
        csi = self._csi_of(attachment)
        if csi is None:
            words = f'persistentvolume "{spec["source"].get("persistentVolumeName", "")}" not found'
            raise CsiError("NotFound", words)
        others = sum(
            other["spec"]["nodeName"] == spec["nodeName"] and bool((other.get("status") or {}).get("attached"))
            for other in self._attachments.items.values()
        )
        await self._driver.attach(csi["volumeHandle"], spec["nodeName"], bool(csi.get("readOnly")), others)

    def _csi_of(self, attachment: Object) -> Object | None:
        """The volume's, if that is still there."""
        volume = self._volumes.items.get(attachment["spec"]["source"].get("persistentVolumeName", ""))
        found: Object | None = volume and volume["spec"]["csi"]
        return found

    async def _set_finalizer(self, attachment: Object, wanted: bool) -> Object:
        meta = attachment["metadata"]
        finalizers = [name for name in meta.get("finalizers") or [] if name != FINALIZER]
        if wanted:
            finalizers.append(FINALIZER)
        if finalizers == (meta.get("finalizers") or []):
            return attachment
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": finalizers}}
        answer = await self._client.patch(VOLUME_ATTACHMENTS, meta["name"], "", patch)
        if wanted:
            self._attachments.observe(answer)
        return answer

    async def _write(self, name: str, status: Object) -> None:
        answer = await self._client.patch(VOLUME_ATTACHMENTS, name, "", {"status": status}, subresource="status")
        self._attachments.observe(answer)

    async def stop(self) -> None:
        await self.queue.stop()
