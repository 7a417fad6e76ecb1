"""What the attach/detach controller and the kubelet agree on: which volumes are attached, and by which object."""

from __future__ import annotations

import hashlib

from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.resources import CSI_DRIVERS


def attachment_name(volume: Object, node: str) -> str:
    """The VolumeAttachment of a CSI volume on a node, as Kubernetes names it."""
    csi = volume["spec"]["csi"]
    text = csi["volumeHandle"] + csi["driver"] + node
    return f"csi-{hashlib.sha256(text.encode()).hexdigest()}"


def unique_name(volume: Object) -> str:
    """A CSI volume as a node's status names it (`volumesInUse`, `volumesAttached`)."""
    csi = volume["spec"]["csi"]
    return f"kubernetes.io/csi/{csi['driver']}^{csi['volumeHandle']}"


def needs_attachment(volume: Object, informers: Informers) -> bool:
    """Whether a volume's driver is to attach it to the node first: so it is unless its CSIDriver says otherwise."""
    csi = volume["spec"].get("csi")
    if not csi:
        return False
    driver = informers.of(CSI_DRIVERS).items.get(csi["driver"]) or {}
    return bool((driver.get("spec") or {}).get("attachRequired", True))
