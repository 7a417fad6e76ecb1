"""In which zones a generation serves, and that each of its pods reads the disk of its own zone.

A zone that has no accelerators left says nothing about a release: what is not as it should be is inconclusive here, and
the next run looks again.
"""

from __future__ import annotations

import hashlib

from components.verify_placement.pods import node_of
from serving import names
from serving.clients.kubernetes import Cluster, Object
from serving.deployment.pods import ready
from serving.errors import InconclusiveError
from serving.settings import Settings
from serving.weights.release import Release

_ZONE = "topology.kubernetes.io/zone"
_VOLUMES_ZONE = "topology.gke.io/zone"
"""The driver's own key."""


def verify(cluster: Cluster, settings: Settings, release: Release) -> dict[str, list[str]]:
    """The ready pods of each zone.

    Raises InconclusiveError for a pod that has no disk of its zone attached, for several pods in one zone, and where
    there is no pod at all.
    """
    claim = cluster.get("PersistentVolumeClaim", names.server(release.generation), settings.namespace)
    volume = claim and cluster.get("PersistentVolume", claim["spec"].get("volumeName") or "none")
    if volume is None:
        raise InconclusiveError(f"the volume of {release.generation} is not there any more. Run again")
    placement: dict[str, list[str]] = {}
    for pod in ready(cluster, settings, release.generation):
        name, node_name = pod["metadata"]["name"], pod["spec"]["nodeName"]
        zone = node_of(cluster, pod)["metadata"]["labels"].get(_ZONE, "no zone")
        if zone not in _zones_of(volume) or not _is_attached(cluster, volume, node_name):
            raise InconclusiveError(
                f"{name} is on {node_name} in {zone}, which has no disk of the volume {volume['metadata']['name']} "
                f"attached (it has disks in {', '.join(_zones_of(volume))}). See `kubectl describe node {node_name}`, "
                "then run again"
            )
        placement.setdefault(zone, []).append(name)
    pods = sum(map(len, placement.values()))
    if not pods or (pods > 1 and len(placement) < 2):
        where = f"all {pods} ready pods are in {next(iter(placement))}" if pods else "there is no ready pod"
        raise InconclusiveError(
            f"{release.generation} is to serve from zones of its own, and {where}. The others may be out of "
            f"accelerators: see `kubectl -n {settings.namespace} get pods -o wide`, then run again"
        )
    return dict(sorted(placement.items()))


def _zones_of(volume: Object) -> list[str]:
    """Where a volume has disks: one volume, a disk of one name in every zone."""
    required = ((volume["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []
    return sorted(
        {
            zone
            for term in required
            for rule in term.get("matchExpressions") or []
            if rule["key"] == _VOLUMES_ZONE
            for zone in rule.get("values") or []
        }
    )


def _is_attached(cluster: Cluster, volume: Object, node: str) -> bool:
    csi = volume["spec"]["csi"]
    # The name that Kubernetes gives it: pkg/volume/csi/csi_attacher.go, getAttachmentName.
    digest = hashlib.sha256(f"{csi['volumeHandle']}{csi['driver']}{node}".encode()).hexdigest()
    attachment = cluster.get("VolumeAttachment", f"csi-{digest}")
    return bool(attachment and (attachment.get("status") or {}).get("attached"))
