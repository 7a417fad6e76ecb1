"""Volumes of Compute Engine's disks: made, attached, snapshotted, restored in several zones, taken away.

kubernetes_cluster.py says how to run this against a real control plane; there the snapshot controller is the real one too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.contract.kubernetes_cluster import ZONES, Cluster, Kube, cluster, exists, kube, pod_manifest, wait_for

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
        wait_for(lambda: not exists(lambda: self.core.read_persistent_volume(volume)))

    def run(self, name: str, code: str, claim: str, read_only: bool = False, **spec: Any) -> str:
        """A pod with a claim at /data, to its end: what it printed."""
        self.start(name, code, claim, read_only, **spec)
        self.kube.wait_phase(name, "Succeeded")
        return self.kube.log(name)

    def start(self, name: str, code: str, claim: str, read_only: bool = False, **spec: Any) -> None:
        volume = {"name": "data", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}
        container = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
        command = ["python", "-c", code.replace("{}", "/data")]
        # The first argument is a path, which is rewritten; the code's own are read from it.
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
    if os.geteuid() != 0:
        pytest.skip("read-only mounts need root; without it the files' modes keep writers out")
    storage.claim("model", storage.multi_zone(ZONES), "ReadOnlyMany", size="10Gi")
    volume = storage.bound("model")
    code = "import errno\ntry: open('{}/new', 'w')\nexcept OSError as error: print(errno.errorcode[error.errno])"
    assert storage.run("writer", code, "model") == "EROFS\n"
    assert not (storage.folder(volume, ZONES[0]) / "new").exists()
    storage.kube.core.delete_namespaced_pod("writer", storage.kube.namespace)
    storage.delete_claim("model")
    storage.gone(volume.metadata.name)
