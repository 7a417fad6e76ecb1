"""PersistentVolumes and their claims: binding, phases, and protection of what is in use.

Making volumes is a CSI driver's business; a claim whose class has a provisioner is marked and left to it.
"""

from __future__ import annotations

from emulated_cloud.kubernetes.client import Client, Informers, Object, key_of
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.pods import is_finished
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import CLAIMS, PODS, STORAGE_CLASSES, VOLUMES, Resource
from emulated_cloud.kubernetes.scheduling import waits_for_consumer
from emulated_cloud.kubernetes.selectors import matches
from emulated_cloud.kubernetes.workqueue import WorkQueue

BIND_COMPLETED = "pv.kubernetes.io/bind-completed"
BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"
PROVISIONER = "volume.kubernetes.io/storage-provisioner"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
CLAIM_PROTECTION = "kubernetes.io/pvc-protection"
VOLUME_PROTECTION = "kubernetes.io/pv-protection"


class VolumeController:
    def __init__(self, client: Client, informers: Informers):
        self._client, self._informers = client, informers
        self._volumes = informers.of(VOLUMES)
        self._claims = informers.of(CLAIMS)
        self._pods = informers.of(PODS)
        self._classes = informers.of(STORAGE_CLASSES)
        self._events = EventRecorder(client, "persistentvolume-controller")
        self.queue = WorkQueue("claims", self._reconcile_claim)
        self.volume_queue = WorkQueue("volumes", self._reconcile_volume)
        self._claims.on_change(self._claim_changed)
        self._volumes.on_change(self._volume_changed)
        self._classes.on_change(lambda _old, _new: self._wake_pending())
        self._pods.on_change(self._pod_changed)

    def _claim_changed(self, old: Object | None, new: Object | None) -> None:
        claim = new or old or {}
        if new:
            self.queue.add(key_of(new))
        for volume in self._volumes.items.values():
            if _is_for(volume, claim):
                self.volume_queue.add(key_of(volume))

    def _volume_changed(self, old: Object | None, new: Object | None) -> None:
        if new:
            self.volume_queue.add(key_of(new))
        self._wake_pending()
        if old and (reference := old["spec"].get("claimRef")):
            self.queue.add(f"{reference['namespace']}/{reference['name']}")

    def _wake_pending(self) -> None:
        for key, claim in self._claims.items.items():
            if (claim.get("status") or {}).get("phase", "Pending") == "Pending":
                self.queue.add(key)

    def _pod_changed(self, old: Object | None, new: Object | None) -> None:
        """A pod that is gone may have been the last user of a claim that is to be deleted."""
        pod = new or old or {}
        if new is None or is_finished(pod):
            for name in _claim_names(pod):
                self.queue.add(f"{pod['metadata']['namespace']}/{name}")

    # -- claims ---------------------------------------------------------------------------------------------

    async def _reconcile_claim(self, key: str) -> None:
        claim = self._claims.items.get(key)
        if claim is None:
            return
        if await self._protect(CLAIMS, claim, CLAIM_PROTECTION, self._in_use(claim)):
            return
        bound_to = claim["spec"].get("volumeName")
        phase = (claim.get("status") or {}).get("phase", "Pending")
        if bound_to:
            volume = self._volumes.items.get(bound_to)
            if volume is None:
                if phase == "Bound":
                    self._events.event(claim, "Warning", "ClaimLost", "Bound claim has lost its PersistentVolume.")
                    await self._set_phase(CLAIMS, claim, "Lost")
                return
            if volume["spec"].get("claimRef") and not _is_for(volume, claim):
                if phase == "Bound":
                    await self._set_phase(CLAIMS, claim, "Lost")
                else:
                    words = f'volume "{bound_to}" already bound to a different claim.'
                    self._events.event(claim, "Warning", "FailedBinding", words)
                return
            await self._bind(claim, volume)
            return
        volume = self._find(claim)
        if volume:
            await self._bind(claim, volume)
        else:
            await self._wait_for_volume(claim)

    def _find(self, claim: Object) -> Object | None:
        """The volume that was made for this claim, else the smallest that is free and does."""
        candidates = [volume for volume in self._volumes.items.values() if _suits(volume, claim)]
        own = [volume for volume in candidates if volume["spec"].get("claimRef")]
        if own:
            return own[0]
        if waits_for_consumer(claim, self._informers) and SELECTED_NODE not in (
            claim["metadata"].get("annotations") or {}
        ):
            return None
        return min(candidates, key=lambda volume: parse_quantity(volume["spec"]["capacity"]["storage"]), default=None)

    async def _bind(self, claim: Object, volume: Object) -> None:
        """Volume first, then claim, as two writes each: whoever dies in between, the next pass goes on."""
        meta = claim["metadata"]
        reference = volume["spec"].get("claimRef") or {}
        if reference.get("uid") != meta["uid"]:
            annotations = {} if reference else {BOUND_BY_CONTROLLER: "yes"}
            patch = {
                "metadata": {
                    "resourceVersion": volume["metadata"]["resourceVersion"],
                    "annotations": annotations,
                },
                "spec": {
                    "claimRef": {
                        "apiVersion": "v1",
                        "kind": "PersistentVolumeClaim",
                        "namespace": meta["namespace"],
                        "name": meta["name"],
                        "uid": meta["uid"],
                        "resourceVersion": meta["resourceVersion"],
                    }
                },
            }
            volume = await self._client.patch(VOLUMES, volume["metadata"]["name"], "", patch)
            self._volumes.observe(volume)
        if (volume.get("status") or {}).get("phase") != "Bound":
            await self._set_phase(VOLUMES, volume, "Bound")
        if BIND_COMPLETED not in (meta.get("annotations") or {}):
            annotations = {BIND_COMPLETED: "yes"}
            if not claim["spec"].get("volumeName"):
                annotations[BOUND_BY_CONTROLLER] = "yes"
            patch = {
                "metadata": {"resourceVersion": meta["resourceVersion"], "annotations": annotations},
                "spec": {"volumeName": volume["metadata"]["name"]},
            }
            claim = await self._client.patch(CLAIMS, meta["name"], meta["namespace"], patch)
            self._claims.observe(claim)
        if (claim.get("status") or {}).get("phase") != "Bound":
            status = {
                "phase": "Bound",
                "accessModes": volume["spec"]["accessModes"],
                "capacity": volume["spec"]["capacity"],
            }
            answer = await self._client.patch(
                CLAIMS, meta["name"], meta["namespace"], {"status": status}, subresource="status"
            )
            self._claims.observe(answer)

    async def _wait_for_volume(self, claim: Object) -> None:
        name = claim["spec"].get("storageClassName") or ""
        if (claim.get("status") or {}).get("phase") != "Pending":
            await self._set_phase(CLAIMS, claim, "Pending")
            return
        found = self._classes.items.get(name)
        annotations = claim["metadata"].get("annotations") or {}
        if not name:
            words = "no persistent volumes available for this claim and no storage class is set"
            self._events.event(claim, "Normal", "FailedBinding", words)
        elif found is None:
            words = f'storageclass.storage.k8s.io "{name}" not found'
            self._events.event(claim, "Warning", "ProvisioningFailed", words)
        elif waits_for_consumer(claim, self._informers) and SELECTED_NODE not in annotations:
            words = "waiting for first consumer to be created before binding"
            self._events.event(claim, "Normal", "WaitForFirstConsumer", words)
        elif annotations.get(PROVISIONER) != found["provisioner"]:
            meta = claim["metadata"]
            patch = {"metadata": {"annotations": {PROVISIONER: found["provisioner"]}}}
            self._claims.observe(await self._client.patch(CLAIMS, meta["name"], meta["namespace"], patch))
            words = (
                "Waiting for a volume to be created either by the external provisioner "
                f"'{found['provisioner']}' or manually by the system administrator. If volume creation is delayed, "
                "please verify that the provisioner is running and correctly registered."
            )
            self._events.event(claim, "Normal", "ExternalProvisioning", words)

    def _in_use(self, claim: Object) -> bool:
        meta = claim["metadata"]
        return any(
            meta["name"] in _claim_names(pod) and not is_finished(pod)
            for pod in self._pods.in_namespace(meta["namespace"])
            if pod["spec"].get("nodeName")
        )

    # -- volumes --------------------------------------------------------------------------------------------

    async def _reconcile_volume(self, key: str) -> None:
        volume = self._volumes.items.get(key)
        if volume is None:
            return
        phase = (volume.get("status") or {}).get("phase")
        if await self._protect(VOLUMES, volume, VOLUME_PROTECTION, phase == "Bound"):
            return
        reference = volume["spec"].get("claimRef")
        if not reference or not reference.get("uid"):
            if phase != "Available":
                await self._set_phase(VOLUMES, volume, "Available")
            return
        claim = self._claims.items.get(f"{reference['namespace']}/{reference['name']}")
        if claim and claim["metadata"]["uid"] == reference["uid"]:
            self.queue.add(key_of(claim))
        elif phase != "Released":
            await self._set_phase(VOLUMES, volume, "Released")

    # -- both -----------------------------------------------------------------------------------------------

    async def _protect(self, resource: Resource, item: Object, finalizer: str, in_use: bool) -> bool:
        """Adds the finalizer that protects what is in use, or takes it off what is being deleted and is not; whether
        the object needs no further look now."""
        meta = item["metadata"]
        finalizers = meta.get("finalizers") or []
        if meta.get("deletionTimestamp"):
            if finalizer not in finalizers or in_use:
                return finalizer not in finalizers
            wanted = [name for name in finalizers if name != finalizer]
        elif finalizer in finalizers:
            return False
        else:
            wanted = [*finalizers, finalizer]
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": wanted}}
        answer = await self._client.patch(resource, meta["name"], meta.get("namespace", ""), patch)
        informer = self._claims if resource is CLAIMS else self._volumes
        if wanted or not meta.get("deletionTimestamp"):
            informer.observe(answer)
        return True

    async def _set_phase(self, resource: Resource, item: Object, phase: str) -> None:
        meta = item["metadata"]
        patch = {"metadata": {"uid": meta["uid"]}, "status": {"phase": phase}}
        answer = await self._client.patch(
            resource,
            meta["name"],
            meta.get("namespace", ""),
            patch,
            subresource="status",
        )
        (self._claims if resource is CLAIMS else self._volumes).observe(answer)

    async def stop(self) -> None:
        await self.queue.stop()
        await self.volume_queue.stop()


def _claim_names(pod: Object) -> list[str]:
    volumes = pod["spec"].get("volumes") or []
    return [entry["persistentVolumeClaim"]["claimName"] for entry in volumes if "persistentVolumeClaim" in entry]


def _is_for(volume: Object, claim: Object) -> bool:
    """Whether the volume's claimRef means this claim: by name, and by uid where one is given."""
    reference, meta = volume["spec"].get("claimRef"), claim["metadata"]
    return (
        bool(reference)
        and (reference["namespace"], reference["name"]) == (meta["namespace"], meta["name"])
        and reference.get("uid", meta["uid"]) == meta["uid"]
    )


def _suits(volume: Object, claim: Object) -> bool:
    spec, wanted = volume["spec"], claim["spec"]
    reference = spec.get("claimRef")
    if reference and not _is_for(volume, claim):
        return False
    if volume["metadata"].get("deletionTimestamp"):
        return False
    if not reference and (volume.get("status") or {}).get("phase") != "Available":
        return False
    return (
        (spec.get("storageClassName") or "") == (wanted.get("storageClassName") or "")
        and set(wanted["accessModes"]) <= set(spec["accessModes"])
        and spec.get("volumeMode", "Filesystem") == wanted.get("volumeMode", "Filesystem")
        and parse_quantity(spec["capacity"]["storage"]) >= parse_quantity(wanted["resources"]["requests"]["storage"])
        and ("selector" not in wanted or matches(wanted["selector"], volume["metadata"].get("labels")))
    )
