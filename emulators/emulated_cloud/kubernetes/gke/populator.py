"""The GKE Volume Populator: what a GCPDataSource names, on a Hyperdisk ML volume, before its claim is bound.

The order of events, finalizers and temporary claims is that of kubernetes-csi/lib-volume-populator, which the real one
is made with; the words are those of Google's guide. For each zone there is a transfer Job there, in the populator's own
namespace, on a node of the ComputeClass `gcs-to-hdml-compute-class`: here the process itself copies, once that
ComputeClass is there. What the real one says of a transfer that fails is not known: here it is an event
PopulateOperationFailed, and it goes on for ever as the real one does.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object
from emulated_cloud.kubernetes.events import EventRecorder
from emulated_cloud.kubernetes.gke.config import Project
from emulated_cloud.kubernetes.gke.disk_faults import DiskFaults
from emulated_cloud.kubernetes.gke.disks import Disks
from emulated_cloud.kubernetes.gke.iam import NotReadable, check_reader, principal
from emulated_cloud.kubernetes.resources import CLAIMS, COMPUTE_CLASSES, DATA_SOURCES, STORAGE_CLASSES, VOLUMES
from emulated_cloud.kubernetes.workqueue import WorkQueue

NAMESPACE = "gke-managed-volumepopulator"
FINALIZER = "gkevolumepopulator/populate-target-protection"
POPULATED_FROM = "gkevolumepopulator/populated-from"
SELECTED_NODE = "volume.kubernetes.io/selected-node"
TRANSFER_PATH = "volume-populator.datalayer.gke.io/transfer-path"
COMPUTE_CLASS = "gcs-to-hdml-compute-class"
RETRY_SECONDS = 0.5
_URI = re.compile(r"gs://([^/]+)/(.*)")


@dataclass
class _Transfer:
    """How far the copying for one claim is: the zones that are done, and whether it was announced."""

    started: bool = False
    done: set[str] = field(default_factory=set)


class TransferError(Exception):
    """A transfer to a zone that has failed: it is tried again."""


class Populator:
    """`endpoint` and `root`: the storage emulator's address and folder."""

    def __init__(
        self,
        client: Client,
        informers: Informers,
        disks: Disks,
        faults: DiskFaults,
        project: Project,
        endpoint: str,
        root: Path,
    ):
        self._client, self._informers, self._disks, self._faults = client, informers, disks, faults
        self._project, self._endpoint, self._root = project, endpoint, root
        self._claims = informers.of(CLAIMS)
        self._volumes = informers.of(VOLUMES)
        self._classes = informers.of(STORAGE_CLASSES)
        self._sources = informers.of(DATA_SOURCES)
        informers.of(COMPUTE_CLASSES)
        self._events = EventRecorder(client, "gkevolumepopulator-populator")
        self._binder_events = EventRecorder(client, "persistentvolume-controller")
        self._transfers: dict[str, _Transfer] = {}
        self.queue = WorkQueue("populator", self._reconcile)
        self._claims.on_change(self._claim_changed)
        for resource in (DATA_SOURCES, STORAGE_CLASSES, VOLUMES):
            informers.of(resource).on_change(lambda _old, _new: self._wake())

    def _claim_changed(self, old: Object | None, new: Object | None) -> None:
        claim = new or old or {}
        if claim["metadata"]["namespace"] == NAMESPACE:
            self._wake()
        elif new and _source_of(new):
            self.queue.changed(old, new)

    def _wake(self) -> None:
        for key, claim in self._claims.items.items():
            if _source_of(claim) and claim["metadata"]["namespace"] != NAMESPACE:
                self.queue.add(key)

    async def _reconcile(self, key: str) -> float | None:
        await self._informers.synced(CLAIMS, VOLUMES, STORAGE_CLASSES, DATA_SOURCES)
        claim = self._claims.items.get(key)
        if claim is None:
            return None
        meta = claim["metadata"]
        prime = self._claims.items.get(f"{NAMESPACE}/prime-{meta['uid']}")
        if prime is None and (claim["spec"].get("volumeName") and FINALIZER not in (meta.get("finalizers") or [])):
            return None
        source = self._sources.items.get(f"{meta['namespace']}/{_source_of(claim)}")
        if source is None:
            words = f"Data source {meta['namespace']}/{_source_of(claim)} not found"
            self._event(claim, "Warning", "PopulatorDataSourceNotFound", words)
            return None
        storage_class = self._classes.items.get(claim["spec"].get("storageClassName") or "")
        if storage_class is None or _waits_for_node(claim, storage_class):
            return None
        if not meta.get("deletionTimestamp"):
            if not claim["spec"].get("volumeName"):
                return await self._populate(claim, prime, source)
            if prime and (prime.get("status") or {}).get("phase") != "Lost":
                return None
            self._event(claim, "Normal", "PopulatorFinished", "Populator finished")
        await self._clean_up(claim, prime)
        return None

    async def _populate(self, claim: Object, prime: Object | None, source: Object) -> float | None:
        if prime is None:
            prime = await self._create_prime(claim)
        claim = await self._set_finalizer(claim, True)
        volume = self._volumes.items.get(prime["spec"].get("volumeName") or "")
        if volume is None or (prime.get("status") or {}).get("phase") == "Pending":
            return None
        if not await self._transfer(claim, volume, source):
            return RETRY_SECONDS
        self._event(claim, "Normal", "PopulateOperationFinished", "Populate operation finished")
        meta, reference = claim["metadata"], volume["spec"]["claimRef"]
        if reference.get("uid") != meta["uid"]:
            patch: Object = {
                "metadata": {"annotations": {POPULATED_FROM: f"{meta['namespace']}/{_source_of(claim)}"}},
                "spec": {
                    "claimRef": {
                        "namespace": meta["namespace"],
                        "name": meta["name"],
                        "uid": meta["uid"],
                        "resourceVersion": meta["resourceVersion"],
                    }
                },
            }
            answer = await self._client.patch(VOLUMES, volume["metadata"]["name"], "", patch, "strategic")
            self._volumes.observe(answer)
        return None

    async def _create_prime(self, claim: Object) -> Object:
        """The temporary claim that the volume is made for."""
        meta, spec = claim["metadata"], claim["spec"]
        # Harmless, and what everybody sees first.
        words = (
            f'Error saving claim: Operation cannot be fulfilled on persistentvolumeclaims "{meta["name"]}": the object '
            "has been modified; please apply your changes to the latest version and try again"
        )
        self._binder_events.event(claim, "Warning", "ProvisioningFailed", words)
        body: Object = {
            "metadata": {"name": f"prime-{meta['uid']}"},
            "spec": {key: spec[key] for key in ("accessModes", "resources", "storageClassName", "volumeMode")},
        }
        if node := (meta.get("annotations") or {}).get(SELECTED_NODE):
            body["metadata"]["annotations"] = {SELECTED_NODE: node}
        try:
            prime = await self._client.create(CLAIMS, body, NAMESPACE)
        except ApiError as error:
            if error.status != 409:
                raise
            prime = await self._client.get(CLAIMS, body["metadata"]["name"], NAMESPACE)
        self._claims.observe(prime)
        return prime

    # -- the transfer ---------------------------------------------------------------------------------------

    async def _transfer(self, claim: Object, volume: Object, source: Object) -> bool:
        """One look at the transfer; whether all zones have everything."""
        meta = claim["metadata"]
        name = volume["spec"]["csi"]["volumeHandle"].rpartition("/")[2]
        zones = self._disks.zones_of(name)
        state = self._transfers.setdefault(meta["uid"], _Transfer())
        job = f"transfer job with request ID populator-job-{meta['uid']}"
        if not state.started:
            state.started = True
            for zone in zones:
                words = f"populateFn: Populate operation started for zone {zone}"
                self._event(claim, "Normal", "PopulateOperationStartSuccess", words)
                self._progress(claim, f"{job} in zone {zone} waiting for pod to get created")
        running = COMPUTE_CLASS in self._informers.of(COMPUTE_CLASSES).items
        for zone in zones:
            if zone in state.done:
                continue
            phase = "Running" if running else "Pending"
            where = f"transfer job in zone {zone} with request ID populator-job-{meta['uid']}"
            self._progress(claim, f"{where} is still active with pod status as - Phase: {phase}")
            if not running:
                continue
            try:
                await self._copy(claim, source, name, zone, sorted(state.done))
            except TransferError as error:
                words = f"Population operation failed: {_for(claim)}{job} in zone {zone} failed: {error}"
                self._event(claim, "Warning", "PopulateOperationFailed", words)
                continue
            state.done.add(zone)
            words = f"job with request ID populator-job-{meta['uid']} for zone {zone} completed successfully"
            self._event(claim, "Normal", "TransferJobCompleted", _for(claim) + words)
        if not zones or state.done != set(zones):
            return False
        words = f"{_for(claim)}transfer job for all zones have completed successfully"
        self._event(claim, "Normal", "TransferJobCompleted", words)
        return True

    async def _copy(self, claim: Object, source: Object, name: str, zone: str, done: list[str]) -> None:
        if words := self._faults.take("populate", zone):
            raise TransferError(words)
        storage = source["spec"].get("cloudStorage") or {}
        found = _URI.fullmatch(storage.get("uri", ""))
        if not found:
            raise TransferError(f"{storage.get('uri', '')!r} is no gs://BUCKET/FOLDER/")
        bucket, folder = found.groups()
        account = storage.get("serviceAccountName") or "default"
        try:
            who = principal(self._project, source["metadata"]["namespace"], account)
            await check_reader(self._endpoint, bucket, who)
        except NotReadable as error:
            raise TransferError(str(error)) from error
        path = (claim["metadata"].get("annotations") or {}).get(TRANSFER_PATH, "").strip("/")
        objects = self._root / bucket / "objects" / folder
        try:
            await asyncio.to_thread(self._disks.fill, name, zone, objects, path, done[0] if done else "")
        except OSError as error:
            raise TransferError(str(error)) from error

    # -- the end --------------------------------------------------------------------------------------------

    async def _clean_up(self, claim: Object, prime: Object | None) -> None:
        if prime and not prime["metadata"].get("deletionTimestamp"):
            await self._client.delete(CLAIMS, prime["metadata"]["name"], NAMESPACE, uid=prime["metadata"]["uid"])
        await self._set_finalizer(claim, False)
        self._transfers.pop(claim["metadata"]["uid"], None)

    async def _set_finalizer(self, claim: Object, wanted: bool) -> Object:
        meta = claim["metadata"]
        finalizers = [name for name in meta.get("finalizers") or [] if name != FINALIZER]
        if wanted:
            finalizers.append(FINALIZER)
        if finalizers == (meta.get("finalizers") or []):
            return claim
        patch = {"metadata": {"resourceVersion": meta["resourceVersion"], "finalizers": finalizers}}
        answer = await self._client.patch(CLAIMS, meta["name"], meta["namespace"], patch)
        if wanted:
            self._claims.observe(answer)
        return answer

    def _progress(self, claim: Object, words: str) -> None:
        self._event(claim, "Normal", "TransferInProgress", _for(claim) + words)

    def _event(self, claim: Object, kind: Literal["Normal", "Warning"], reason: str, words: str) -> None:
        self._events.event(claim, kind, reason, words)

    async def stop(self) -> None:
        await self.queue.stop()


def _for(claim: Object) -> str:
    meta = claim["metadata"]
    return f"populateCompleteFn: For PVC {meta['name']} in namespace {meta['namespace']}, "


def _source_of(claim: Object) -> str:
    """The GCPDataSource that a claim names; empty when it names none."""
    reference = claim["spec"].get("dataSourceRef") or {}
    if (reference.get("apiGroup"), reference.get("kind")) != (DATA_SOURCES.group, DATA_SOURCES.kind):
        return ""
    return str(reference["name"])


def _waits_for_node(claim: Object, storage_class: Object) -> bool:
    if storage_class.get("volumeBindingMode") != "WaitForFirstConsumer":
        return False
    return SELECTED_NODE not in (claim["metadata"].get("annotations") or {})
