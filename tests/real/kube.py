"""Objects for a real cluster, and how its state is waited for."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from emulated_cloud.cloud import Cloud, wait_for
from emulated_cloud.real.parts import PARTS

Object = dict[str, Any]
USER = 23456
"""A user whom nobody's passwd knows."""
PYTHON = "example.com/python:1"
KUBECTL = PARTS["control-plane"].folder / "kubectl"


def kubectl(
    cloud: Cloud, *args: str, objects: list[Object] | None = None, fails: bool = False, seconds: int = 180
) -> str:
    """What kubectl prints, run on this machine: outside of the cluster's network."""
    text = json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}) if objects else None
    argv = ["timeout", "-k", "5", str(seconds), str(KUBECTL), "--kubeconfig", str(cloud.kubeconfig), *args]
    done = subprocess.run(argv, input=text, capture_output=True, text=True)
    assert (done.returncode != 0) == fails, f"{' '.join(args)}: {done.stdout} {done.stderr}"
    return done.stdout + (done.stderr if fails else "")


def namespace(name: str) -> Object:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service(name: str) -> Object:
    spec = {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8000}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": name}, "spec": spec}


def deployment(name: str, container: Object, volumes: list[Object], **annotations: str) -> Object:
    """A Deployment of one pod as an unknown user, in a namespace of its name."""
    spec = {
        "securityContext": {"runAsUser": USER, "runAsGroup": USER, "fsGroup": USER},
        "enableServiceLinks": False,
        "containers": [{"name": "main", "securityContext": {"readOnlyRootFilesystem": True}, **container}],
        "volumes": volumes,
    }
    template = {"metadata": {"labels": {"app": name}, "annotations": annotations}, "spec": spec}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template},
    }


def bucket_volume(name: str, space: str, options: list[str]) -> list[Object]:
    """A claim and the volume of the bucket `demo-bucket` that is reserved for it."""
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": space, "name": name}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": "gcsfusecsi-serving"}
    csi = {"driver": "gcsfuse.csi.storage.gke.io", "volumeHandle": f"demo-bucket:{name}", "readOnly": True}
    volume = {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            **common,
            "capacity": {"storage": "1Ti"},
            "persistentVolumeReclaimPolicy": "Retain",
            "mountOptions": options,
            "claimRef": claim,
            "csi": csi,
        },
    }
    claimed = {"volumeName": name, "resources": {"requests": {"storage": "1Ti"}}, **common}
    return [
        volume,
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": space},
            "spec": claimed,
        },
    ]


def upload(cloud: Cloud, folder: Path, prefix: str, readers: list[str]) -> None:
    """Puts a folder into `demo-bucket`, readable by the default service accounts of these namespaces."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    client = storage.Client(
        "demo-project", AnonymousCredentials(), client_options={"api_endpoint": cloud.url("storage")}
    )
    bucket = client.bucket("demo-bucket")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            bucket.blob(f"{prefix}/{path.relative_to(folder)}").upload_from_filename(str(path))
    pool = "principal://iam.googleapis.com/projects/123456789012/locations/global/workloadIdentityPools/demo-project.svc.id.goog"
    policy = bucket.get_iam_policy(requested_policy_version=3)
    members = {f"{pool}/subject/ns/{reader}/sa/default" for reader in readers}
    policy.bindings.append({"role": "roles/storage.objectViewer", "members": members})
    bucket.set_iam_policy(policy)


def endpoint(file: str) -> str:
    """The address of an exposed Service, once it answers."""
    path = Path(file)
    assert wait_for(path.exists, 120), f"{file} was not written"
    return path.read_text().strip()


def mounts() -> list[str]:
    """gcsfuse mounts that this machine sees."""
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if "gcsfuse" in line]
