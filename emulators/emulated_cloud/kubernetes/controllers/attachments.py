"""Which volume is to be attached to which node: the attach/detach controller, by VolumeAttachments.

A CSI driver answers them (its external-attacher); the kubelet waits for the answer. Volumes of drivers that need no
attachment (CSIDriver `attachRequired: false`) are not of its business.
"""

from __future__ import annotations

from emulated_cloud.kubernetes.attachment import attachment_name, needs_attachment, unique_name
from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.resources import CLAIMS, CSI_DRIVERS, NODES, PODS, VOLUME_ATTACHMENTS, VOLUMES
from emulated_cloud.kubernetes.workqueue import WorkQueue


class AttachmentController:
    def __init__(self, client: Client, informers: Informers):
        self._client, self._informers = client, informers
        self._attachments = informers.of(VOLUME_ATTACHMENTS)
        self._pods = informers.of(PODS)
        self._volumes = informers.of(VOLUMES)
        self._claims = informers.of(CLAIMS)
        self._nodes = informers.of(NODES)
        self._events = EventRecorder(client, "attachdetach-controller")
        self._told: set[tuple[str, str, str]] = set()
        self.queue = WorkQueue("attach/detach", self._reconcile)
        for resource in (PODS, CLAIMS, VOLUMES, CSI_DRIVERS, NODES):
            informers.of(resource).on_change(lambda _old, _new: self.queue.add("all"))
        self._attachments.on_change(self._attachment_changed)

    def _attachment_changed(self, old: Object | None, new: Object | None) -> None:
        self.queue.add("all")
        if new:
            self._tell(new)

    async def _reconcile(self, _: str) -> None:
        # What is not seen yet is not unwanted.
        await self._informers.synced(PODS, CLAIMS, VOLUMES, VOLUME_ATTACHMENTS, CSI_DRIVERS, NODES)
        wanted = self._wanted()
        for name, attachment in list(self._attachments.items.items()):
            if (
                name not in wanted
                and not attachment["metadata"].get("deletionTimestamp")
                and not self._is_used(attachment)
            ):
                answer = await self._client.delete(VOLUME_ATTACHMENTS, name, uid=attachment["metadata"]["uid"])
                if answer and answer.get("kind") == VOLUME_ATTACHMENTS.kind:
                    self._attachments.observe(answer)
        for name, (pod, volume) in wanted.items():
            if name in self._attachments.items or self._is_elsewhere(pod, volume):
                continue
            spec = {
                "attacher": volume["spec"]["csi"]["driver"],
                "nodeName": pod["spec"]["nodeName"],
                "source": {"persistentVolumeName": volume["metadata"]["name"]},
            }
            try:
                made = await self._client.create(VOLUME_ATTACHMENTS, {"metadata": {"name": name}, "spec": spec})
            except ApiError as error:
                if error.status != 409:
                    raise
            else:
                self._attachments.observe(made)

    def _is_used(self, attachment: Object) -> bool:
        """Whether the kubelet has not taken the volume down yet."""
        node = self._nodes.items.get(attachment["spec"]["nodeName"]) or {}
        volume = self._volumes.items.get(attachment["spec"]["source"].get("persistentVolumeName", ""))
        in_use = (node.get("status") or {}).get("volumesInUse") or []
        return volume is not None and "csi" in volume["spec"] and unique_name(volume) in in_use

    def _wanted(self) -> dict[str, tuple[Object, Object]]:
        """A pod and a volume for each attachment that there is to be."""
        wanted = {}
        for pod in self._pods.items.values():
            if pod["spec"].get("nodeName") and not is_finished(pod):
                for volume in self._volumes_of(pod):
                    wanted[attachment_name(volume, pod["spec"]["nodeName"])] = (pod, volume)
        return wanted

    def _volumes_of(self, pod: Object) -> list[Object]:
        found = []
        for entry in pod["spec"].get("volumes") or []:
            name = (entry.get("persistentVolumeClaim") or {}).get("claimName")
            claim = self._claims.items.get(f"{pod['metadata']['namespace']}/{name}") if name else None
            volume = self._volumes.items.get(claim["spec"].get("volumeName", "")) if claim else None
            if volume and needs_attachment(volume, self._informers):
                found.append(volume)
        return found

    def _is_elsewhere(self, pod: Object, volume: Object) -> bool:
        """Whether a volume that one node may have is another's still."""
        name, modes = volume["metadata"]["name"], set(volume["spec"]["accessModes"])
        others = [
            attachment["spec"]["nodeName"]
            for attachment in self._attachments.items.values()
            if attachment["spec"]["source"].get("persistentVolumeName") == name
            and attachment["spec"]["nodeName"] != pod["spec"]["nodeName"]
        ]
        if not others or modes & {"ReadOnlyMany", "ReadWriteMany"}:
            return False
        users = [
            other["metadata"]["name"]
            for other in self._pods.in_namespace(pod["metadata"]["namespace"])
            if other["spec"].get("nodeName") in others
            and not is_finished(other)
            and any(each["metadata"]["name"] == name for each in self._volumes_of(other))
        ]
        words = "Volume is already exclusively attached to one node and can't be attached to another"
        if users:
            words = f"Volume is already used by pod(s) {', '.join(sorted(users))}"
        self._say(pod, "FailedAttachVolume", f'Multi-Attach error for volume "{name}" {words}', again=False)
        return True

    def _tell(self, attachment: Object) -> None:
        """Says to the pods that wait what has become of their volume."""
        spec, status = attachment["spec"], attachment.get("status") or {}
        volume = spec["source"].get("persistentVolumeName", "")
        error = (status.get("attachError") or {}).get("message")
        for pod in self._pods.items.values():
            if pod["spec"].get("nodeName") != spec["nodeName"] or is_finished(pod):
                continue
            if all(each["metadata"]["name"] != volume for each in self._volumes_of(pod)):
                continue
            if status.get("attached"):
                words = f'AttachVolume.Attach succeeded for volume "{volume}" '
                self._say(pod, "SuccessfulAttachVolume", words, again=False)
            elif error:
                self._say(pod, "FailedAttachVolume", f'AttachVolume.Attach failed for volume "{volume}" : {error}')

    def _say(self, pod: Object, reason: str, words: str, again: bool = True) -> None:
        key = (pod["metadata"]["uid"], reason, words)
        if again or key not in self._told:
            self._told.add(key)
            self._events.event(pod, "Warning" if reason.startswith("Failed") else "Normal", reason, words)

    async def stop(self) -> None:
        await self.queue.stop()
