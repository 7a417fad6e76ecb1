"""What GKE installs in a cluster by itself: CSIDriver objects and the StorageClasses that it ships."""

from __future__ import annotations

from emulated_cloud.kubernetes.client import ApiError, Client, Object
from emulated_cloud.kubernetes.gke import pd
from emulated_cloud.kubernetes.gke.gcsfuse import DRIVER
from emulated_cloud.kubernetes.gke.populator import NAMESPACE as POPULATOR_NAMESPACE
from emulated_cloud.kubernetes.resources import CSI_DRIVERS, NAMESPACES, STORAGE_CLASSES, Resource

MANAGED = {"addonmanager.kubernetes.io/mode": "Reconcile", "k8s-app": "gcp-compute-persistent-disk-csi-driver"}


def _profile(name: str) -> Object:
    """A profile of the GCS FUSE driver (GKE 1.35.1-gke.1616000 and later)."""
    return {
        "metadata": {"name": f"gcsfusecsi-{name}", "labels": {"gke-gcsfuse/profile": "true"}},
        "provisioner": DRIVER,
        "mountOptions": [f"profile:aiml-{name}"],
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }


def _disk(name: str, kind: str, default: bool = False) -> Object:
    meta: Object = {"name": name, "labels": MANAGED}
    if default:
        meta["annotations"] = {"storageclass.kubernetes.io/is-default-class": "true"}
    return {
        "metadata": meta,
        "provisioner": pd.DRIVER,
        "parameters": {"type": kind},
        "allowVolumeExpansion": True,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


ADDONS: list[tuple[Resource, Object]] = [
    (NAMESPACES, {"metadata": {"name": "gcs-fuse-csi-driver"}}),
    (NAMESPACES, {"metadata": {"name": POPULATOR_NAMESPACE}}),
    (
        CSI_DRIVERS,
        {
            "metadata": {"name": DRIVER},
            "spec": {
                "attachRequired": False,
                "podInfoOnMount": True,
                "requiresRepublish": True,
                "volumeLifecycleModes": ["Persistent", "Ephemeral"],
                "fsGroupPolicy": "ReadWriteOnceWithFSType",
            },
        },
    ),
    (
        CSI_DRIVERS,
        {
            "metadata": {"name": pd.DRIVER, "labels": MANAGED},
            "spec": {
                "attachRequired": True,
                "podInfoOnMount": False,
                "volumeLifecycleModes": ["Persistent"],
                "fsGroupPolicy": "ReadWriteOnceWithFSType",
            },
        },
    ),
    *((STORAGE_CLASSES, _profile(name)) for name in ("serving", "training", "checkpointing")),
    (STORAGE_CLASSES, _disk("standard-rwo", "pd-balanced", default=True)),
    (STORAGE_CLASSES, _disk("premium-rwo", "pd-ssd")),
]


async def install(client: Client) -> None:
    """Creates what is not there yet."""
    for resource, body in ADDONS:
        try:
            await client.get(resource, body["metadata"]["name"])
        except ApiError as error:
            if error.status != 404:
                raise
            try:
                await client.create(resource, body)
            except ApiError as conflict:
                if conflict.status != 409:
                    raise
