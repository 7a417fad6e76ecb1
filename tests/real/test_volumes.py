"""Volumes on a real control plane with the real snapshot controller, for pods with roots and users of their own."""

from __future__ import annotations

import json
from typing import Any

from emulated_cloud.cloud import Cloud, wait_for

from .kube import PYTHON, USER, Object, kubectl, namespace

SPACE = "volumes"
C3 = {"cloud.google.com/machine-family": "c3", "cloud.google.com/compute-class": "Performance"}
WRITE = """
import os
open("/data/weights", "w").write("weights")
print(os.getuid(), os.stat("/data").st_gid, sorted(os.listdir("/data")))
"""
READ = """
import errno
print(open("/data/weights").read())
try:
    open("/data/new", "w")
except OSError as error:
    print(errno.errorcode[error.errno])
"""


def storage_class(name: str, mode: str, zones: list[str] | None = None, **parameters: str) -> Object:
    made: Object = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": name},
        "provisioner": "pd.csi.storage.gke.io",
        "parameters": parameters,
        "volumeBindingMode": mode,
    }
    if zones:
        rule = {"key": "topology.gke.io/zone", "values": zones}
        made["allowedTopologies"] = [{"matchLabelExpressions": [rule]}]
    return made


def claim(name: str, mode: str, **spec: Any) -> Object:
    resources = {"requests": {"storage": "4Gi"}}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {"accessModes": [mode], "storageClassName": name, "resources": resources, **spec},
    }


def pod(name: str, code: str, claimed: str, read_only: bool, **selector: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": SPACE},
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": {**C3, **selector},
            "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
            "containers": [
                {
                    "name": "main",
                    "image": PYTHON,
                    "command": ["python", "-c", code],
                    "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                }
            ],
            "volumes": [
                {"name": "data", "persistentVolumeClaim": {"claimName": claimed, "readOnly": read_only}},
            ],
        },
    }


def wait(cloud: Cloud, what: str, condition: str) -> None:
    kubectl(cloud, "-n", SPACE, "wait", what, f"--for={condition}", "--timeout=120s")


def test_a_user_writes_to_a_disk_and_every_zone_reads_it(cloud: Cloud) -> None:
    zones = ["us-central1-a", "us-central1-b"]
    snapshots = {"apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass"}
    classes = [
        storage_class("fresh", "WaitForFirstConsumer", type="hyperdisk-balanced"),
        storage_class("model", "Immediate", zones, type="hyperdisk-ml", **{"enable-multi-zone-provisioning": "true"}),
        {
            **snapshots,
            "metadata": {"name": "images"},
            "driver": "pd.csi.storage.gke.io",
            "deletionPolicy": "Delete",
            "parameters": {"snapshot-type": "images"},
        },
    ]
    kubectl(cloud, "apply", "-f", "-", objects=[namespace(SPACE), *classes])
    kubectl(cloud, "apply", "-f", "-", objects=[claim("fresh", "ReadWriteOnce"), pod("writer", WRITE, "fresh", False)])
    wait(cloud, "pod/writer", "jsonpath={.status.phase}=Succeeded")
    said = kubectl(cloud, "-n", SPACE, "logs", "writer").strip()
    assert said == f"{USER} {USER} ['lost+found', 'weights']"
    # Of a disk that a machine has, the copies could not be mounted for reading.
    assert wait_for(lambda: kubectl(cloud, "get", "volumeattachments", "-o", "name") == "", 120)
    snapshot = {
        **snapshots,
        "kind": "VolumeSnapshot",
        "metadata": {"name": "taken", "namespace": SPACE},
        "spec": {"volumeSnapshotClassName": "images", "source": {"persistentVolumeClaimName": "fresh"}},
    }
    kubectl(cloud, "apply", "-f", "-", objects=[snapshot])
    wait(cloud, "volumesnapshot/taken", "jsonpath={.status.readyToUse}=true")
    source = {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "taken"}
    kubectl(cloud, "apply", "-f", "-", objects=[claim("model", "ReadOnlyMany", dataSource=source)])
    wait(cloud, "pvc/model", "jsonpath={.status.phase}=Bound")
    for zone in zones:
        reader = pod(zone, READ, "model", True, **{"topology.kubernetes.io/zone": zone})
        kubectl(cloud, "apply", "-f", "-", objects=[reader])
    for zone in zones:
        wait(cloud, f"pod/{zone}", "jsonpath={.status.phase}=Succeeded")
        assert kubectl(cloud, "-n", SPACE, "logs", zone).split() == ["weights", "EROFS"]
    nodes = json.loads(kubectl(cloud, "-n", SPACE, "get", "pods", "-o", "json"))["items"]
    assert len({each["spec"]["nodeName"] for each in nodes}) >= len(zones)
    kubectl(cloud, "delete", "namespace", SPACE)
    assert wait_for(lambda: "pvc-" not in kubectl(cloud, "get", "pv", "-o", "name"), 120)
    assert kubectl(cloud, "get", "volumesnapshotcontents", "-o", "name") == ""
    assert list((cloud.folder / "disks").glob("pvc-*")) == []
