"""Volumes of Compute Engine's disks: made, attached, snapshotted, restored in several zones, taken away.

kubernetes_cluster.py says how to run this against a real control plane: the snapshot controller is the real one there.
"""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.contract.kubernetes_cluster import ZONES, Kube, cluster, exists, kube, pod_manifest, wait_for

__all__ = ["cluster", "kube"]

DRIVER = "pd.csi.storage.gke.io"
SNAPSHOTS = ("snapshot.storage.k8s.io", "v1")
C3 = {"cloud.google.com/machine-family": "c3", "cloud.google.com/compute-class": "Performance"}
WRITE = "import pathlib; pathlib.Path('{}/weights').write_bytes(b'weights' * 1000)"
READ = "import pathlib, os; print(pathlib.Path('{}/weights').read_bytes() == b'weights' * 1000)"


class Storage:
    """What the tests make of cluster-scoped objects goes with them."""

    def __init__(self, kube: Kube):
        self.kube, self.core = kube, kube.core
        self.classes = client.StorageV1Api(kube.raw)
        self.custom = client.CustomObjectsApi(kube.raw)

    def storage_class(
        self, name: str, mode: str = "Immediate", zones: list[str] | None = None, **parameters: str
    ) -> str:
        body: dict[str, Any] = {
            "metadata": {"name": self.own(name), "labels": {"test": self.kube.namespace}},
            "provisioner": DRIVER,
            "parameters": parameters,
            "reclaimPolicy": "Delete",
            "volumeBindingMode": mode,
        }
        if zones:
            rule = {"key": "topology.gke.io/zone", "values": zones}
            body["allowedTopologies"] = [{"matchLabelExpressions": [rule]}]
        self.classes.create_storage_class(body)
        return self.own(name)

    def multi_zone(self, zones: list[str], throughput: str = "400Mi") -> str:
        parameters = {"type": "hyperdisk-ml", "provisioned-throughput-on-create": throughput}
        return self.storage_class("ml", zones=zones, **parameters, **{"enable-multi-zone-provisioning": "true"})

    def balanced(self) -> str:
        parameters = {"type": "hyperdisk-balanced", "provisioned-throughput-on-create": "250Mi"}
        return self.storage_class("balanced", "WaitForFirstConsumer", **parameters)

    def own(self, name: str) -> str:
        return f"{self.kube.namespace}-{name}"

    def claim(self, name: str, storage_class: str, mode: str = "ReadWriteOnce", size: str = "4Gi", **spec: Any) -> None:
        resources = {"requests": {"storage": size}}
        body = {
            "metadata": {"name": name},
            "spec": {"accessModes": [mode], "storageClassName": storage_class, "resources": resources, **spec},
        }
        self.core.create_namespaced_persistent_volume_claim(self.kube.namespace, body)

    def read_claim(self, name: str) -> Any:
        return self.core.read_namespaced_persistent_volume_claim(name, self.kube.namespace)

    def bound(self, name: str) -> Any:
        """The volume of a claim, once it has one."""
        wait_for(lambda: self.read_claim(name).status.phase == "Bound", what=lambda: self.kube.events(name))
        return self.core.read_persistent_volume(self.read_claim(name).spec.volume_name)

    def delete_claim(self, name: str) -> None:
        self.core.delete_namespaced_persistent_volume_claim(name, self.kube.namespace)

    def gone(self, volume: str) -> None:
        def left() -> Any:
            return self.core.read_persistent_volume(volume), self.attachments(volume), self.events_of(volume)

        wait_for(lambda: not exists(lambda: self.core.read_persistent_volume(volume)), what=left)

    def attachments(self, volume: str) -> list[Any]:
        items = self.classes.list_volume_attachment().items
        return [each for each in items if each.spec.source.persistent_volume_name == volume]

    def events_of(self, volume: str) -> list[str]:
        items = self.core.list_namespaced_event("default", field_selector=f"involvedObject.name={volume}").items
        return [event.message for event in items]

    def run(self, name: str, code: str, claim: str, read_only: bool = False, **spec: Any) -> str:
        """A pod with a claim at /data, to its end: what it printed."""
        self.start(name, code, claim, read_only, **spec)
        self.kube.wait_phase(name, "Succeeded")
        return self.kube.log(name)

    def start(self, name: str, code: str, claim: str, read_only: bool = False, **spec: Any) -> None:
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
        container = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
        # The last argument is a path, which is rewritten where roots are shared.
        command = ["python", "-c", "import sys; exec(sys.argv[1].replace('{}', sys.argv[2]))", code, "/data"]
        spec.setdefault("nodeSelector", C3)
        body = pod_manifest(name, command, volumes=[volume], container=container, **spec)
        self.core.create_namespaced_pod(self.kube.namespace, body)

    def snapshot_class(self) -> str:
        body = {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshotClass",
            "metadata": {"name": self.own("images"), "labels": {"test": self.kube.namespace}},
            "driver": DRIVER,
            "deletionPolicy": "Delete",
            "parameters": {"snapshot-type": "images", "image-family": "tests"},
        }
        self.custom.create_cluster_custom_object(*SNAPSHOTS, "volumesnapshotclasses", body)
        return self.own("images")

    def snapshot(self, name: str, claim: str, snapshot_class: str) -> None:
        spec = {"volumeSnapshotClassName": snapshot_class, "source": {"persistentVolumeClaimName": claim}}
        body = {
            "apiVersion": "snapshot.storage.k8s.io/v1",
            "kind": "VolumeSnapshot",
            "metadata": {"name": name},
            "spec": spec,
        }
        self.custom.create_namespaced_custom_object(*SNAPSHOTS, self.kube.namespace, "volumesnapshots", body)

    def read_snapshot(self, name: str) -> dict[str, Any]:
        return self.custom.get_namespaced_custom_object(*SNAPSHOTS, self.kube.namespace, "volumesnapshots", name)

    def ready(self, name: str) -> dict[str, Any]:
        def look() -> Any:
            status = self.read_snapshot(name).get("status") or {}
            return status if status.get("readyToUse") else None

        return wait_for(look, what=lambda: (self.read_snapshot(name), self.kube.events(name)))

    def delete_snapshot(self, name: str) -> None:
        self.custom.delete_namespaced_custom_object(*SNAPSHOTS, self.kube.namespace, "volumesnapshots", name)

    def contents(self) -> list[dict[str, Any]]:
        items = self.custom.list_cluster_custom_object(*SNAPSHOTS, "volumesnapshotcontents")["items"]
        return [item for item in items if item["spec"]["volumeSnapshotRef"]["namespace"] == self.kube.namespace]

    def disk(self, volume: Any, zone: str) -> dict[str, Any]:
        """What Compute Engine knows of a volume's disk in a zone."""
        file = self.folder(volume, zone).with_name(f"{zone}.json")
        return json.loads(file.read_text())

    def folder(self, volume: Any, zone: str) -> Path:
        name = volume.spec.csi.volume_handle.rpartition("/")[2]
        return self.kube.cluster.folder / "disks" / name / zone

    def clean_up(self) -> None:
        selector = f"test={self.kube.namespace}"
        for item in self.classes.list_storage_class(label_selector=selector).items:
            self.classes.delete_storage_class(item.metadata.name)
        classes = self.custom.list_cluster_custom_object(*SNAPSHOTS, "volumesnapshotclasses", label_selector=selector)
        for item in classes["items"]:
            name = item["metadata"]["name"]
            self.custom.delete_cluster_custom_object(*SNAPSHOTS, "volumesnapshotclasses", name)


@pytest.fixture
def storage(kube: Kube) -> Iterator[Storage]:
    made = Storage(kube)
    yield made
    kube.cluster.configure(disk_faults={})
    made.clean_up()


def test_weights_go_through_a_snapshot_to_a_disk_in_each_zone(storage: Storage) -> None:
    kube = storage.kube
    storage.claim("fresh", storage.balanced())
    assert kube.wait_event("fresh", "WaitForFirstConsumer")
    assert "True" in storage.run("writer", WRITE + "; " + READ, "fresh")
    fresh = storage.bound("fresh")
    [zone] = [term.match_expressions[0].values[0] for term in fresh.spec.node_affinity.required.node_selector_terms]
    assert fresh.spec.csi.volume_handle == f"projects/demo-project/zones/{zone}/disks/{fresh.metadata.name}"
    assert fresh.metadata.name == f"pvc-{storage.read_claim('fresh').metadata.uid}"
    assert sorted(path.name for path in storage.folder(fresh, zone).iterdir()) == ["lost+found", "weights"]
    assert kube.wait_event("fresh", "ProvisioningSucceeded") == f"Successfully provisioned volume {fresh.metadata.name}"
    assert kube.wait_event("writer", "SuccessfulAttachVolume")

    # Of a disk that a machine has, the copies could not be mounted for reading.
    wait_for(lambda: not storage.attachments(fresh.metadata.name))
    snapshot_class = storage.snapshot_class()
    storage.snapshot("taken", "fresh", snapshot_class)
    status = storage.ready("taken")
    assert status["restoreSize"] == "4Gi"
    assert kube.wait_event("taken", "SnapshotReady") == f"Snapshot {kube.namespace}/taken is ready to use."
    [content] = storage.contents()
    assert content["status"]["snapshotHandle"].startswith("projects/demo-project/global/images/snapshot-")
    kube.core.delete_namespaced_pod("writer", kube.namespace)
    storage.delete_claim("fresh")
    storage.gone(fresh.metadata.name)

    ml = storage.multi_zone(ZONES)
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "taken"}
    storage.claim("model", ml, "ReadOnlyMany", dataSource=source)
    volume = storage.bound("model")
    assert volume.spec.csi.volume_handle.startswith("projects/demo-project/zones/multi-zone/disks/pvc-")
    assert volume.spec.csi.read_only
    storage.delete_snapshot("taken")
    wait_for(lambda: not storage.contents())
    for number, zone in enumerate(ZONES):
        selector = {**C3, "topology.kubernetes.io/zone": zone}
        assert storage.run(f"reader-{number}", READ, "model", True, nodeSelector=selector) == "True\n"
        assert storage.disk(volume, zone)["access_mode"] == "READ_ONLY_MANY"
    for number in range(len(ZONES)):
        kube.core.delete_namespaced_pod(f"reader-{number}", kube.namespace)
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
    assert not storage.folder(volume, ZONES[0]).parent.exists()


def test_nothing_is_written_to_a_volume_for_reading(storage: Storage) -> None:
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a read-only mount needs a mount namespace, which this user may not have")
    storage.claim("model", storage.multi_zone(ZONES), "ReadOnlyMany", size="10Gi")
    volume = storage.bound("model")
    code = "import errno\ntry: open('{}/new', 'w')\nexcept OSError as error: print(errno.errorcode[error.errno])"
    assert storage.run("writer", code, "model") == "EROFS\n"
    assert not (storage.folder(volume, ZONES[0]) / "new").exists()
    storage.kube.core.delete_namespaced_pod("writer", storage.kube.namespace)
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)


def refused(storage: Storage, name: str, words: str, **claim: Any) -> None:
    storage.claim(name, **claim)
    found = storage.kube.wait_event(name, "ProvisioningFailed", words)
    assert found.startswith(f'failed to provision volume with StorageClass "{claim["storage_class"]}": ')
    storage.delete_claim(name)


def test_what_the_driver_does_not_make_it_refuses_in_its_words(storage: Storage) -> None:
    ml = storage.multi_zone(ZONES)
    small = "Disk size cannot be smaller than 4 GB for disk type hyperdisk-ml., badRequest"
    refused(storage, "small", small, storage_class=ml, mode="ReadOnlyMany", size="1Gi")
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "none"}
    words = "error getting handle for DataSource Type VolumeSnapshot by Name none: error getting snapshot none from api"
    refused(storage, "absent", words, storage_class=ml, mode="ReadOnlyMany", dataSource=source)
    storage.claim("first", ml, "ReadOnlyMany")
    storage.bound("first")
    clone = {"kind": "PersistentVolumeClaim", "name": "first"}
    words = '"enable-multi-zone-provisioning" parameter does not support volume cloning'
    refused(storage, "clone", words, storage_class=ml, mode="ReadOnlyMany", dataSource=clone)
    balanced = storage.storage_class("reading", type="hyperdisk-balanced")
    words = "VolumeContentSource must be provided when AccessMode is set to read only"
    refused(storage, "reading", words, storage_class=balanced, mode="ReadOnlyMany")
    odd = storage.storage_class("odd", **{"type": "hyperdisk-ml", "provisioned-througput-on-create": "400Mi"})
    refused(storage, "odd", 'parameters contains invalid option "provisioned-througput-on-create"', storage_class=odd)
    both = storage.storage_class("both", **{"type": "hyperdisk-balanced", "enable-multi-zone-provisioning": "true"})
    refused(storage, "both", "parameter with unsupported disk type: hyperdisk-balanced", storage_class=both)
    storage.delete_claim("first")


def test_a_disk_has_the_throughput_that_its_size_demands(storage: Storage) -> None:
    storage.claim("large", storage.multi_zone(ZONES[:1], "400Mi"), "ReadOnlyMany", size="10Ti")
    volume = storage.bound("large")
    assert storage.disk(volume, ZONES[0])["throughput"] == int(0.12 * 10 * 1024)
    assert not storage.folder(volume, ZONES[1]).exists(), "the class allows one zone"
    storage.delete_claim("large")
    storage.gone(volume.metadata.name)


def test_a_zone_without_capacity_fails_the_volume_and_keeps_the_other_zones_disk(storage: Storage) -> None:
    storage.kube.cluster.configure(disk_faults={"exhausted": [ZONES[1]]})
    storage.claim("model", storage.multi_zone(ZONES), "ReadOnlyMany")
    words = storage.kube.wait_event("model", "ProvisioningFailed", "ZONE_RESOURCE_POOL_EXHAUSTED")
    assert "rpc error: code = Unavailable desc = Failed to create multi-zone disk: " in words
    assert f"The zone 'projects/demo-project/zones/{ZONES[1]}' does not have enough resources" in words
    name = f"pvc-{storage.read_claim('model').metadata.uid}"
    folder = storage.kube.cluster.folder / "disks" / name
    assert [path.name for path in folder.glob("*.json")] == [f"{ZONES[0]}.json"]
    assert storage.kube.cluster.consumed()["exhausted"][ZONES[1]] >= 1
    storage.kube.cluster.configure(disk_faults={})
    storage.bound("model")
    storage.delete_claim("model")
    storage.gone(name)


def test_a_machine_that_cannot_have_the_disk_says_so(storage: Storage) -> None:
    storage.claim("model", storage.multi_zone(ZONES), "ReadOnlyMany")
    volume = storage.bound("model").metadata.name
    n2 = {"cloud.google.com/machine-family": "n2"}
    storage.start("reader", READ, "model", True, nodeSelector=n2)
    words = storage.kube.wait_event("reader", "FailedAttachVolume", "is not a compatible disk type")
    assert words.startswith(
        f'AttachVolume.Attach failed for volume "{volume}" : rpc error: code = InvalidArgument desc = '
    )
    assert "'hyperdisk-ml' is not a compatible disk type with the machine type n2-standard-2" in words
    [status] = storage.kube.pod("reader").status.container_statuses
    assert status.state.waiting.reason == "ContainerCreating"
    storage.kube.core.delete_namespaced_pod("reader", storage.kube.namespace)
    wait_for(
        lambda: not storage.attachments(volume),
        # A kubelet that had not come to the volume yet has nothing to take back: its next report tells.
        seconds=120,
        what=lambda: [(n.metadata.name, n.status.volumes_in_use) for n in storage.core.list_node().items],
    )
    storage.delete_claim("model")
    storage.gone(volume)


def test_a_pod_goes_where_its_class_may_make_the_volume(storage: Storage) -> None:
    kube = storage.kube
    there = storage.storage_class("there", "WaitForFirstConsumer", ZONES[1:], type="hyperdisk-balanced")
    storage.claim("fresh", there)
    elsewhere = {**C3, "topology.kubernetes.io/zone": ZONES[0]}
    storage.start("elsewhere", READ, "fresh", nodeSelector=elsewhere)
    # Of nodes in the zone that it asks for; of others, that it asks for another.
    words = "node(s) didn't find available persistent volumes to bind"
    assert words in kube.wait_event("elsewhere", "NotTriggerScaleUp", words)
    assert storage.read_claim("fresh").status.phase == "Pending"
    kube.core.delete_namespaced_pod("elsewhere", kube.namespace)
    storage.run("writer", WRITE, "fresh")
    volume = storage.bound("fresh")
    assert storage.folder(volume, ZONES[1]).is_dir()
    node = storage.core.read_node(kube.pod("writer").spec.node_name)
    assert node.metadata.labels["topology.gke.io/zone"] == ZONES[1]
    [driver] = storage.classes.read_csi_node(node.metadata.name).spec.drivers
    assert (driver.name, driver.topology_keys, driver.allocatable.count) == (DRIVER, ["topology.gke.io/zone"], 127)
    kube.core.delete_namespaced_pod("writer", kube.namespace)
    storage.delete_claim("fresh")
    storage.gone(volume.metadata.name)


def test_a_disk_to_write_to_is_one_nodes(storage: Storage) -> None:
    kube = storage.kube
    storage.claim("fresh", storage.storage_class("b", type="hyperdisk-balanced"))
    volume = storage.bound("fresh").metadata.name
    storage.start("first", "import time; print('up', flush=True); time.sleep(600)", "fresh")
    kube.wait_phase("first", "Running")
    storage.start("second", READ, "fresh", nodeSelector={"cloud.google.com/machine-family": "c3d"})
    words = f'Multi-Attach error for volume "{volume}" Volume is already used by pod(s) first'
    assert kube.wait_event("second", "FailedAttachVolume") == words
    [node] = [node for node in storage.core.list_node().items if node.metadata.name == kube.pod("first").spec.node_name]
    assert [name.rpartition("/")[2] for name in node.status.volumes_in_use] == [volume]
    kube.core.delete_namespaced_pod("second", kube.namespace)
    kube.core.delete_namespaced_pod("first", kube.namespace)
    wait_for(lambda: not storage.attachments(volume))
    storage.delete_claim("fresh")
    storage.gone(volume)


def test_a_snapshot_that_never_becomes_ready_restores_nothing(storage: Storage) -> None:
    storage.claim("fresh", storage.storage_class("b", type="hyperdisk-balanced"))
    storage.bound("fresh")
    storage.kube.cluster.configure(disk_faults={"never_ready": True})
    storage.snapshot("taken", "fresh", storage.snapshot_class())
    assert storage.kube.wait_event("taken", "SnapshotCreated")
    assert storage.read_snapshot("taken")["status"]["readyToUse"] is False
    assert "snapshot.storage.kubernetes.io/pvc-as-source-protection" in storage.read_claim("fresh").metadata.finalizers
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "taken"}
    ml = storage.multi_zone(ZONES)
    refused(storage, "m", "snapshot taken is not Ready", storage_class=ml, mode="ReadOnlyMany", dataSource=source)
    assert storage.kube.cluster.consumed()["never_ready"][""] >= 1
    storage.kube.cluster.configure(disk_faults={})
    storage.ready("taken")
    storage.delete_snapshot("taken")
    wait_for(lambda: not storage.contents())
    storage.delete_claim("fresh")
    wait_for(lambda: not exists(lambda: storage.read_claim("fresh")))


def test_a_claim_that_is_not_bound_is_not_snapshotted(storage: Storage) -> None:
    storage.snapshot("taken", "absent", storage.snapshot_class())
    words = storage.kube.wait_event("taken", "SnapshotContentCreationFailed")
    assert words.startswith("Failed to create snapshot content with error ")
    assert storage.read_snapshot("taken")["status"]["error"]["message"] == words
    storage.delete_snapshot("taken")


def test_an_image_that_somebody_else_made_is_a_snapshot_too(storage: Storage) -> None:
    """The road of an image that was baked: content and snapshot are written by hand."""
    storage.claim("fresh", storage.storage_class("b", type="hyperdisk-balanced"))
    storage.bound("fresh")
    snapshot_class = storage.snapshot_class()
    storage.snapshot("taken", "fresh", snapshot_class)
    storage.ready("taken")
    [content] = storage.contents()
    handle = content["status"]["snapshotHandle"]
    name = storage.own("given")
    reference = {"namespace": storage.kube.namespace, "name": "given"}
    spec = {"deletionPolicy": "Retain", "driver": DRIVER, "source": {"snapshotHandle": handle}}
    body = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshotContent",
        "metadata": {"name": name},
        "spec": {**spec, "volumeSnapshotRef": reference},
    }
    storage.custom.create_cluster_custom_object(*SNAPSHOTS, "volumesnapshotcontents", body)
    body = {
        "apiVersion": "snapshot.storage.k8s.io/v1",
        "kind": "VolumeSnapshot",
        "metadata": {"name": "given"},
        "spec": {"source": {"volumeSnapshotContentName": name}},
    }
    storage.custom.create_namespaced_custom_object(*SNAPSHOTS, storage.kube.namespace, "volumesnapshots", body)
    assert storage.ready("given")["restoreSize"] == "4Gi"
    storage.delete_snapshot("given")
    storage.custom.delete_cluster_custom_object(*SNAPSHOTS, "volumesnapshotcontents", name)
    wait_for(lambda: [each["metadata"]["name"] for each in storage.contents()] == [content["metadata"]["name"]])
    storage.delete_snapshot("taken")
    storage.delete_claim("fresh")


# -- the populator ------------------------------------------------------------------------------------------------

CLASS = "gcs-to-hdml-compute-class"
FINALIZER = "gkevolumepopulator/populate-target-protection"


@pytest.fixture
def compute_class(storage: Storage) -> Iterator[None]:
    body = {
        "apiVersion": "cloud.google.com/v1",
        "kind": "ComputeClass",
        "metadata": {"name": CLASS},
        "spec": {"priorities": [{"machineFamily": "c3"}], "nodePoolAutoCreation": {"enabled": True}},
    }
    storage.custom.create_cluster_custom_object("cloud.google.com", "v1", "computeclasses", body)
    yield
    storage.custom.delete_cluster_custom_object("cloud.google.com", "v1", "computeclasses", CLASS)


def populated(storage: Storage, zones: list[str]) -> str:
    """A claim `model` of what lies in the bucket below models/; its temporary claim's name."""
    storage.kube.cluster.upload("models/weights", b"weights" * 1000)
    storage.kube.cluster.grant(storage.kube.namespace, "default")
    source = {
        "apiVersion": "datalayer.gke.io/v1",
        "kind": "GCPDataSource",
        "metadata": {"name": "model"},
        "spec": {"cloudStorage": {"uri": "gs://weights/models/", "serviceAccountName": "default"}},
    }
    where = ("datalayer.gke.io", "v1", storage.kube.namespace, "gcpdatasources")
    storage.custom.create_namespaced_custom_object(*where, source)
    reference = {"apiGroup": "datalayer.gke.io", "kind": "GCPDataSource", "name": "model"}
    storage.claim("model", storage.multi_zone(zones), "ReadOnlyMany", dataSourceRef=reference)
    return f"prime-{storage.read_claim('model').metadata.uid}"


def delete_source(storage: Storage) -> None:
    where = ("datalayer.gke.io", "v1", storage.kube.namespace, "gcpdatasources", "model")
    storage.custom.delete_namespaced_custom_object(*where)


def test_the_populator_fills_a_disk_in_each_zone_and_says_how_far_it_is(storage: Storage, compute_class: None) -> None:
    kube = storage.kube
    prime = populated(storage, ZONES)
    volume = storage.bound("model")
    kube.wait_event("model", "PopulatorFinished", "Populator finished")
    uid = storage.read_claim("model").metadata.uid
    told = kube.events("model")
    for_claim = f"populateCompleteFn: For PVC model in namespace {kube.namespace}, "
    job = f"job with request ID populator-job-{uid}"
    expected = [
        (
            "Warning",
            "ProvisioningFailed",
            'Error saving claim: Operation cannot be fulfilled on persistentvolumeclaims "',
        ),
        ("Normal", "Provisioning", f'External provisioner is provisioning volume for claim "{kube.namespace}/model"'),
        ("Normal", "Provisioning", "Assuming an external populator will provision the volume"),
        *(
            ("Normal", "PopulateOperationStartSuccess", f"populateFn: Populate operation started for zone {zone}")
            for zone in ZONES
        ),
        *(
            ("Normal", "TransferInProgress", f"{for_claim}transfer {job} in zone {zone} waiting for pod to get created")
            for zone in ZONES
        ),
        *(
            ("Normal", "TransferJobCompleted", f"{for_claim}{job} for zone {zone} completed successfully")
            for zone in ZONES
        ),
        ("Normal", "TransferJobCompleted", f"{for_claim}transfer job for all zones have completed successfully"),
        ("Normal", "PopulateOperationFinished", "Populate operation finished"),
        ("Normal", "PopulatorFinished", "Populator finished"),
    ]
    missing = [event for event in expected if not any(event[:2] == each[:2] and event[2] in each[2] for each in told)]
    assert missing == [], told
    order = [reason for _, reason, _ in told if reason.startswith(("Populat", "TransferJob"))]
    assert order[0] == "PopulateOperationStartSuccess"
    assert order[-1] == "PopulatorFinished"
    wait_for(lambda: FINALIZER not in storage.read_claim("model").metadata.finalizers)
    wait_for(
        lambda: (
            not exists(
                lambda: storage.core.read_namespaced_persistent_volume_claim(prime, "gke-managed-volumepopulator")
            )
        )
    )
    assert volume.spec.claim_ref.uid == uid
    for zone in ZONES:
        assert (storage.folder(volume, zone) / "weights").read_bytes() == b"weights" * 1000
    assert storage.disk(volume, ZONES[0])["access_mode"] == "READ_WRITE_SINGLE", "until it is attached for reading"
    selector = {**C3, "topology.kubernetes.io/zone": ZONES[0]}
    assert storage.run("reader", READ, "model", True, nodeSelector=selector) == "True\n"
    assert storage.disk(volume, ZONES[0])["access_mode"] == "READ_ONLY_MANY"
    kube.core.delete_namespaced_pod("reader", kube.namespace)
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
    delete_source(storage)


def test_a_zone_that_cannot_be_filled_is_tried_for_ever(storage: Storage, compute_class: None) -> None:
    cluster = storage.kube.cluster
    cluster.configure(disk_faults={"populate": {ZONES[1]: "no machine"}})
    populated(storage, ZONES)
    words = storage.kube.wait_event("model", "PopulateOperationFailed")
    assert f"in zone {ZONES[1]} failed: no machine" in words
    wait_for(lambda: cluster.consumed()["populate"][ZONES[1]] >= 2)
    assert storage.read_claim("model").status.phase == "Pending"
    cluster.configure(disk_faults={})
    volume = storage.bound("model")
    storage.kube.wait_event("model", "PopulatorFinished")
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
    delete_source(storage)


def test_a_claim_outlives_its_source_that_was_deleted_first(storage: Storage) -> None:
    """Without the ComputeClass the transfer's pods stay pending; whoever takes away the source then is stuck."""
    prime = populated(storage, ZONES)
    storage.kube.wait_event("model", "TransferInProgress", "Phase: Pending")
    delete_source(storage)
    storage.delete_claim("model")
    storage.kube.wait_event("model", "PopulatorDataSourceNotFound")
    wait_for(lambda: storage.read_claim("model").metadata.finalizers == [FINALIZER])
    patch = {"metadata": {"finalizers": None}}
    storage.core.patch_namespaced_persistent_volume_claim("model", storage.kube.namespace, patch)
    wait_for(lambda: not exists(lambda: storage.read_claim("model")))
    space = "gke-managed-volumepopulator"
    volume = storage.core.read_namespaced_persistent_volume_claim(prime, space).spec.volume_name
    storage.core.delete_namespaced_persistent_volume_claim(prime, space)
    storage.gone(volume)


def test_a_claim_that_is_deleted_midway_takes_everything_with_it(storage: Storage) -> None:
    prime = populated(storage, ZONES)
    storage.kube.wait_event("model", "TransferInProgress", "Phase: Pending")
    space = "gke-managed-volumepopulator"
    volume = storage.core.read_namespaced_persistent_volume_claim(prime, space).spec.volume_name
    storage.delete_claim("model")
    wait_for(lambda: not exists(lambda: storage.read_claim("model")))
    storage.gone(volume)
    delete_source(storage)


def test_one_zones_copy_may_be_wrong(storage: Storage, compute_class: None) -> None:
    storage.kube.cluster.configure(disk_faults={"corrupt": [ZONES[1]]})
    populated(storage, ZONES)
    volume = storage.bound("model")
    right, wrong = ((storage.folder(volume, zone) / "weights").read_bytes() for zone in ZONES)
    assert right == b"weights" * 1000
    assert sum(one != other for one, other in zip(right, wrong, strict=True)) == 1
    assert storage.kube.cluster.consumed()["corrupt"] == {ZONES[1]: 1}
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
    delete_source(storage)


# -- the process, killed and started again ------------------------------------------------------------------------


def kill_gke(kube: Kube) -> None:
    process = kube.cluster.processes["gke"]
    process.popen.send_signal(signal.SIGKILL)
    process.popen.wait(120)
    process.stop()


def test_what_was_begun_is_finished_by_the_next_process(storage: Storage, request: pytest.FixtureRequest) -> None:
    populated(storage, ZONES)
    storage.kube.wait_event("model", "TransferInProgress", "Phase: Pending")
    kill_gke(storage.kube)
    request.getfixturevalue("compute_class")
    storage.kube.cluster.start_gke()
    volume = storage.bound("model")
    storage.kube.wait_event("model", "PopulatorFinished")
    for zone in ZONES:
        assert (storage.folder(volume, zone) / "weights").read_bytes() == b"weights" * 1000
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
    delete_source(storage)


def test_a_pod_finds_its_disk_again_after_its_node_came_back(storage: Storage) -> None:
    kube = storage.kube
    storage.claim("fresh", storage.storage_class("b", type="hyperdisk-balanced"))
    volume = storage.bound("fresh").metadata.name
    code = "import time; open('{}/log', 'a').write('up\\n'); print(open('{}/log').read(), flush=True); time.sleep(600)"
    storage.start("writer", code, "fresh", restartPolicy="Always")
    kube.wait_phase("writer", "Running")
    wait_for(lambda: kube.log("writer") == "up\n\n")
    kill_gke(kube)
    kube.cluster.start_gke()
    wait_for(lambda: kube.log("writer") == "up\nup\n\n", what=lambda: kube.pod("writer").status)
    [attachment] = storage.attachments(volume)
    assert attachment.status.attached
    kube.core.delete_namespaced_pod("writer", kube.namespace)
    wait_for(lambda: not storage.attachments(volume))
    storage.delete_claim("fresh")
    storage.gone(volume)
