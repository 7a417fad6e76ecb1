"""What the CSI sidecar external-provisioner does beside the persistent disk driver: volumes for claims that ask for
one, and the end of volumes that nobody claims any more.

A claim whose data source is neither a snapshot nor a claim is left to its populator. Words and finalizers are
external-provisioner's (v6.x).
"""

from __future__ import annotations

import uuid

from emulated_cloud.kubernetes.client import Client, Informers, Object
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.pd import DRIVER, ZONE_KEY, CreateVolume, PersistentDiskDriver, Volume
from emulated_cloud.kubernetes.kubelet.csi import CsiError
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import (
    CLAIMS,
    NODES,
    SNAPSHOT_CONTENTS,
    SNAPSHOTS,
    STORAGE_CLASSES,
    VOLUME_ATTACHMENTS,
    VOLUMES,
)
from emulated_cloud.kubernetes.workqueue import WorkQueue

FINALIZER = "external-provisioner.volume.kubernetes.io/finalizer"
PROVISIONED_BY = "pv.kubernetes.io/provisioned-by"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
ANNOTATIONS = ("volume.kubernetes.io/storage-provisioner", "volume.beta.kubernetes.io/storage-provisioner")
RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 8.0
"""(GKE's waits for minutes in the end.)"""
_READ = (CLAIMS, VOLUMES, STORAGE_CLASSES, VOLUME_ATTACHMENTS, NODES, SNAPSHOTS, SNAPSHOT_CONTENTS)


class ProvisioningError(Exception):
    """A claim that gets no volume now, in the sidecar's own words."""


class Provisioner:
    def __init__(self, client: Client, informers: Informers, driver: PersistentDiskDriver, zones: list[str]):
        self._client, self._informers, self._driver, self._zones = client, informers, driver, zones
        self._claims = informers.of(CLAIMS)
        self._volumes = informers.of(VOLUMES)
        self._classes = informers.of(STORAGE_CLASSES)
        self._attachments = informers.of(VOLUME_ATTACHMENTS)
        for resource in (NODES, SNAPSHOTS, SNAPSHOT_CONTENTS):
            informers.of(resource)
        self._events = EventRecorder(client, f"{DRIVER}_gke-{uuid.uuid4().hex[:20]}-vm_{uuid.uuid4()}")
        self._as_sidecar = EventRecorder(client, "external-provisioner")
        self._failures: dict[str, int] = {}
        self.queue = WorkQueue("provisioner", self._provision)
        self.deletions = WorkQueue("volume deletions", self._delete)
        self._claims.on_change(self.queue.changed)
        self._classes.on_change(lambda _old, _new: self._wake())
        self._volumes.on_change(self.deletions.changed)

    def _wake(self) -> None:
        for key in self._claims.items:
            self.queue.add(key)

    # -- claims ---------------------------------------------------------------------------------------------

    async def _provision(self, key: str) -> float | None:
        await self._informers.synced(*_READ)
        claim = self._claims.items.get(key)
        if claim is None or not self._is_ours(claim):
            self._failures.pop(key, None)
            return None
        meta = claim["metadata"]
        storage_class = self._classes.items.get(claim["spec"].get("storageClassName") or "")
        name = f"pvc-{meta['uid']}"
        if storage_class is None or name in self._volumes.items:
            return None
        words = f'External provisioner is provisioning volume for claim "{key}"'
        self._events.event(claim, "Normal", "Provisioning", words)
        if _is_populated(claim):
            words = "Assuming an external populator will provision the volume"
            self._as_sidecar.event(claim, "Normal", "Provisioning", words)
            return None
        try:
            volume = await self._driver.create_volume(self._request(claim, storage_class, name))
        except (CsiError, ProvisioningError) as error:
            words = f'failed to provision volume with StorageClass "{storage_class["metadata"]["name"]}": {error}'
            self._events.event(claim, "Warning", "ProvisioningFailed", words)
            self._failures[key] = failures = self._failures.get(key, -1) + 1
            return min(RETRY_SECONDS * 2**failures, MAX_RETRY_SECONDS)
        self._failures.pop(key, None)
        made = await self._client.create(VOLUMES, _volume_object(name, claim, storage_class, volume))
        self._volumes.observe(made)
        self._events.event(claim, "Normal", "ProvisioningSucceeded", f"Successfully provisioned volume {name}")
        return None

    def _is_ours(self, claim: Object) -> bool:
        meta = claim["metadata"]
        annotations = meta.get("annotations") or {}
        if claim["spec"].get("volumeName") or meta.get("deletionTimestamp"):
            return False
        return any(annotations.get(name) == DRIVER for name in ANNOTATIONS)

    def _request(self, claim: Object, storage_class: Object, name: str) -> CreateVolume:
        spec = claim["spec"]
        size = int(parse_quantity(spec["resources"]["requests"]["storage"]))
        source = spec.get("dataSource") or {}
        snapshot = ""
        if source.get("kind") == "VolumeSnapshot":
            try:
                snapshot = self._snapshot_handle(claim, source["name"], size)
            except ProvisioningError as error:
                kind = f"Type VolumeSnapshot by Name {source['name']}"
                raise ProvisioningError(f"error getting handle for DataSource {kind}: {error}") from error
        return CreateVolume(
            name,
            storage_class.get("parameters") or {},
            size,
            spec["accessModes"],
            self._zones_for(claim, storage_class),
            snapshot,
            source.get("kind") == "PersistentVolumeClaim",
        )

    def _snapshot_handle(self, claim: Object, name: str, size: int) -> str:
        snapshot = self._informers.of(SNAPSHOTS).items.get(f"{claim['metadata']['namespace']}/{name}")
        if snapshot is None:
            words = f'volumesnapshots.snapshot.storage.k8s.io "{name}" not found'
            raise ProvisioningError(f"error getting snapshot {name} from api server: {words}")
        if snapshot["metadata"].get("deletionTimestamp"):
            raise ProvisioningError(f"snapshot {name} is currently being deleted")
        status = snapshot.get("status") or {}
        if not status.get("boundVolumeSnapshotContentName"):
            raise ProvisioningError(f"snapshot {name} not bound")
        content = self._informers.of(SNAPSHOT_CONTENTS).items.get(status["boundVolumeSnapshotContentName"])
        if content is None or content["spec"]["volumeSnapshotRef"].get("uid") != snapshot["metadata"]["uid"]:
            raise ProvisioningError(f"snapshot {name} not bound")
        if content["spec"]["driver"] != DRIVER:
            raise ProvisioningError(f"snapshot {name} is not created by {DRIVER}")
        if not status.get("readyToUse"):
            raise ProvisioningError(f"snapshot {name} is not Ready")
        restored = int(parse_quantity(status.get("restoreSize", "0")))
        if size < restored:
            words = f"requested volume size {size} is less than the size {restored} for the source snapshot {name}"
            raise ProvisioningError(words)
        handle = (content.get("status") or {}).get("snapshotHandle")
        if not handle:
            raise ProvisioningError(f"snapshot handle {name} is not available")
        return str(handle)

    def _zones_for(self, claim: Object, storage_class: Object) -> list[str]:
        """The zones that the class allows, else those that have nodes, else the region's; the one of the node that the
        scheduler has chosen first."""
        nodes = self._informers.of(NODES).items
        zones = allowed_zones(storage_class) or sorted(
            {node["metadata"]["labels"][ZONE_KEY] for node in nodes.values() if ZONE_KEY in node["metadata"]["labels"]}
        )
        zones = zones or self._zones
        selected = (claim["metadata"].get("annotations") or {}).get(SELECTED_NODE)
        if not selected:
            return zones
        if selected not in nodes:
            raise ProvisioningError(f'error generating accessibility requirements: node "{selected}" not found')
        chosen = nodes[selected]["metadata"]["labels"][ZONE_KEY]
        if allowed_zones(storage_class) and chosen not in zones:
            words = f"topology map[{ZONE_KEY}:{chosen}] from selected node {selected!r} is not in requisite"
            raise ProvisioningError(f"error generating accessibility requirements: {words}")
        return [chosen, *(zone for zone in zones if zone != chosen)]

    # -- volumes --------------------------------------------------------------------------------------------

    async def _delete(self, key: str) -> float | None:
        await self._informers.synced(*_READ)
        volume = self._volumes.items.get(key)
        if volume is None or not _is_to_go(volume):
            return None
        meta, handle = volume["metadata"], volume["spec"]["csi"]["volumeHandle"]
        try:
            if node := self._attached_to(meta["name"]):
                raise ProvisioningError(f"persistentvolume {meta['name']} is still attached to node {node}")
            await self._driver.delete_volume(handle)
        except (CsiError, ProvisioningError) as error:
            self._events.event(volume, "Warning", "VolumeFailedDelete", str(error))
            return RETRY_SECONDS
        answer = await self._client.delete(VOLUMES, meta["name"], uid=meta["uid"])
        if answer is None:
            return None
        current = await self._client.get(VOLUMES, meta["name"])
        finalizers = [name for name in current["metadata"].get("finalizers") or [] if name != FINALIZER]
        patch = {
            "metadata": {"resourceVersion": current["metadata"]["resourceVersion"], "finalizers": finalizers},
        }
        await self._client.patch(VOLUMES, meta["name"], "", patch)
        return None

    def _attached_to(self, volume: str) -> str:
        for attachment in self._attachments.items.values():
            if attachment["spec"]["source"].get("persistentVolumeName") == volume:
                return str(attachment["spec"]["nodeName"])
        return ""

    async def stop(self) -> None:
        await self.queue.stop()
        await self.deletions.stop()


def allowed_zones(storage_class: Object) -> list[str]:
    """The zones of a StorageClass's allowedTopologies; empty when it names none."""
    return [
        value
        for term in storage_class.get("allowedTopologies") or []
        for expression in term.get("matchLabelExpressions") or []
        if expression["key"] in (ZONE_KEY, "topology.kubernetes.io/zone")
        for value in expression["values"]
    ]


def _is_populated(claim: Object) -> bool:
    """Whether the claim names a data source that this sidecar knows nothing of."""
    reference = claim["spec"].get("dataSourceRef") or {}
    known = {("", "PersistentVolumeClaim"), ("snapshot.storage.k8s.io", "VolumeSnapshot")}
    return bool(reference) and (reference.get("apiGroup") or "", reference["kind"]) not in known


def _is_to_go(volume: Object) -> bool:
    spec, meta = volume["spec"], volume["metadata"]
    if (spec.get("csi") or {}).get("driver") != DRIVER or spec.get("persistentVolumeReclaimPolicy") != "Delete":
        return False
    if (meta.get("annotations") or {}).get(PROVISIONED_BY) != DRIVER:
        return False
    if meta.get("deletionTimestamp") and FINALIZER not in (meta.get("finalizers") or []):
        return False
    phase = (volume.get("status") or {}).get("phase")
    return phase == "Released" or (phase == "Available" and bool(meta.get("deletionTimestamp")))


def _volume_object(name: str, claim: Object, storage_class: Object, volume: Volume) -> Object:
    meta, spec = claim["metadata"], claim["spec"]
    policy = storage_class.get("reclaimPolicy", "Delete")
    csi: Object = {
        "driver": DRIVER,
        "volumeHandle": volume.handle,
        "fsType": (storage_class.get("parameters") or {}).get("csi.storage.k8s.io/fstype", "ext4"),
        "volumeAttributes": {"storage.kubernetes.io/csiProvisionerIdentity": f"1-1-{DRIVER}"},
    }
    if spec["accessModes"] == ["ReadOnlyMany"]:
        csi["readOnly"] = True
    zones = [{"matchExpressions": [{"key": ZONE_KEY, "operator": "In", "values": [zone]}]} for zone in volume.zones]
    made: Object = {
        "metadata": {
            "name": name,
            "annotations": {
                PROVISIONED_BY: DRIVER,
                "volume.kubernetes.io/provisioner-deletion-secret-name": "",
                "volume.kubernetes.io/provisioner-deletion-secret-namespace": "",
            },
        },
        "spec": {
            "accessModes": spec["accessModes"],
            "capacity": {"storage": f"{volume.size // 2**30}Gi"},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": meta["namespace"],
                "name": meta["name"],
                "uid": meta["uid"],
                "resourceVersion": meta["resourceVersion"],
            },
            "csi": csi,
            "nodeAffinity": {"required": {"nodeSelectorTerms": zones}},
            "persistentVolumeReclaimPolicy": policy,
            "storageClassName": storage_class["metadata"]["name"],
            "volumeMode": spec.get("volumeMode", "Filesystem"),
        },
    }
    if policy == "Delete":
        made["metadata"]["finalizers"] = [FINALIZER]
    if options := storage_class.get("mountOptions"):
        made["spec"]["mountOptions"] = options
    return made
