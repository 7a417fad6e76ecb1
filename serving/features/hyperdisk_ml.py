"""Weights on a Hyperdisk ML volume of the generation's own, a read-only copy of it in every zone.

Sources: https://cloud.google.com/kubernetes-engine/docs/how-to/persistent-volumes/hyperdisk-ml,
https://cloud.google.com/kubernetes-engine/docs/how-to/persistent-volumes/volume-populator and the source of the
Compute Engine persistent disk CSI driver.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from serving import catalog, names
from serving.errors import InconclusiveError, RequestError
from serving.features import Binding, Explanation, Principal, Symptom, nodes
from serving.values import Duration, LabelValue, Word, Zone
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

VIEWER = "roles/storage.objectViewer"
_POPULATOR_SINCE = "1.33.2-gke.4780000"
_GIB = 1 << 30
_SMALLEST_GIB = 4
_MIB_PER_GIB = 0.12
"""MiB/s that the driver demands of a volume, a GiB; it raises what is lower without a word."""
_STAGING_THROUGHPUT = 600
"""MiB/s of the disk that weights are copied to first, as far as its size allows: what a machine of the Jobs does."""
_IOPS = 7000
_IOPS_PER_GIB = 500
"""What a Hyperdisk Balanced may have at most, a GiB."""
_IOPS_PER_MIB = 4
"""What it needs at least for its throughput, a MiB/s."""


class Section(BaseSection):
    """How the volume is made, and where."""

    method: Literal["snapshot", "populator"] = "snapshot"
    """snapshot: a Job copies the weights to a disk, verified on the way, and every zone gets a copy of its snapshot;
    populator: GKE's own transfer from Cloud Storage to every zone (GKE 1.33.2-gke.4780000 or newer). Either way a Job
    in each zone reads every byte back."""
    zones: list[Zone] = Field([])
    """The zones that get a copy: those with the accelerator, two or more. Empty takes all zones of the cluster. Each
    copy is paid for."""
    throughput: int = Field(1200, ge=400, le=2_097_152)
    """MiB/s of each zone's copy, which its pods share; never less than 0.12 for each GiB of it. It is paid for."""
    machine_family: Word = "c3"
    """The machines of the Jobs that copy and read back, one that attaches Hyperdisk ML."""
    compute_class: LabelValue | None = None
    """GKE's compute class of those machines; null is Performance on Autopilot, and none on Standard."""
    timeout: Duration = "1h"
    """How long each of these may take: copying, the snapshot, the volume, reading it back. The wait for a machine is
    serving.capacity_timeout."""

    @field_validator("machine_family")
    @classmethod
    def _attaches_the_volume(cls, family: str) -> str:
        if family not in catalog.hydrating_hyperdisk_ml():
            attaches = family in catalog.attaching_hyperdisk_ml()
            why = "runs no component image" if attaches else "cannot attach a Hyperdisk ML volume"
            raise ValueError(f"{family} {why}: name one of {', '.join(catalog.hydrating_hyperdisk_ml())}")
        return family


def check(settings: Settings) -> None:
    """Raises RequestError for an accelerator whose machines cannot attach the volume, and for zones elsewhere."""
    family, able = nodes.card(settings).machine_family, catalog.attaching_hyperdisk_ml()
    if family not in able:
        raise RequestError(
            f"accelerator.type: the machines of {settings.accelerator.type} ({family}) cannot attach a Hyperdisk ML "
            f"volume; those of {', '.join(able)} can. Take another accelerator, or features: [gcs-fuse]"
        )
    wanted = _section(settings).zones
    if elsewhere := [zone for zone in wanted if names.region(zone) != names.region(settings.location)]:
        raise RequestError(
            f"hyperdisk_ml.zones: {', '.join(elsewhere)} is not where the cluster is ({settings.location})"
        )
    if len(set(wanted)) != len(wanted):
        raise RequestError(f"hyperdisk_ml.zones: {', '.join(wanted)} names a zone twice")
    if len(wanted) == 1 and settings.serving.replicas > 1:
        raise RequestError(
            f"hyperdisk_ml.zones: {settings.serving.replicas} replicas are spread over zones, and {wanted[0]} is one. "
            "Name two or more"
        )


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster without GKE's populator, where that is to fill the volume."""
    if _section(settings).method == "populator" and not (cluster := look()).is_at_least(_POPULATOR_SINCE):
        raise RequestError(
            f"{cluster.name} is GKE {cluster.version}; its populator needs {_POPULATOR_SINCE}. Set "
            f"hyperdisk_ml.method: snapshot, or upgrade it: `gcloud container clusters upgrade {settings.cluster} "
            f"--master --location {settings.location}`"
        )


def zones(settings: Settings) -> list[str]:
    """The zones that the settings name."""
    return sorted(_section(settings).zones)


def variant(settings: Settings) -> str:
    """The way in which the volume is filled."""
    return _section(settings).method


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the volume: where it is, how large and how fast, and what it is filled from. Raises RequestError for a release
    that does not know its zones."""
    if release is None:
        return {}
    if not release.zones:
        raise RequestError("nobody knows the cluster's zones: name them in hyperdisk_ml.zones")
    size, server = size_gib(release.weights_bytes), names.server(release.generation)
    throughput = max(_section(settings).throughput, math.ceil(_MIB_PER_GIB * size))
    common = {
        "zones": release.zones,
        "zones_at_least": min(2, len(release.zones)),
        "volume_size": f"{size}Gi",
        "volume_throughput": f"{throughput}Mi",
    }
    if _section(settings).method == "populator":
        return {
            **common,
            "volume_source": {"apiGroup": "datalayer.gke.io", "kind": "GCPDataSource", "name": server},
            "weights_folder": f"{release.weights_uri}/",
        }
    iops = min(_IOPS, _IOPS_PER_GIB * size)
    return {
        **common,
        "volume_source": {"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": server},
        "staging_iops": str(iops),
        "staging_throughput": f"{min(_STAGING_THROUGHPUT, iops // _IOPS_PER_MIB)}Mi",
    }


def size_gib(weights_bytes: int) -> int:
    """GiB of a volume for these weights: some more for the file system, and whole."""
    return max(_SMALLEST_GIB, math.ceil(weights_bytes * 1.05 / _GIB + 1))


def bindings(settings: Settings, principal: Principal) -> list[Binding]:
    """Who fills the volume reads the bucket as the pods' own service account."""
    return [Binding(VIEWER, principal(settings.namespace, settings.serving.service_account))]


def rights(settings: Settings) -> dict[str, set[str]]:
    """hydrate_volume waits for claim and snapshot, and writes on the claim what it has verified; verify_placement looks
    at the volume, and at nodes and what is attached to them."""
    found = {
        "PersistentVolumeClaim": {"get", "list", "watch", "patch"},
        "PersistentVolume": {"get"},
        "VolumeAttachment": {"get"},
        "Node": {"get"},
    }
    if _section(settings).method == "snapshot":
        # The disk that weights are copied to is to be detached before it is taken.
        return {**found, "VolumeSnapshot": {"get", "list", "watch"}, "VolumeAttachment": {"get", "list"}}
    return {**found, "ComputeClass": {"get"}}


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What the driver means when a pod does not get its volume."""
    pod, words = symptom.pod, symptom.words
    if symptom.kind != "mount":
        return None
    if re.search(r"not a compatible disk type|cannot be used (by|with)", words):
        return Explanation(
            RequestError,
            f"the machine under {pod} cannot attach a Hyperdisk ML volume: {words}. Those of "
            f"{', '.join(catalog.attaching_hyperdisk_ml())} can; see `patches` and the node pools of the accelerator",
            at_once=True,
        )
    if re.search(r"maximum_persistent_disks|maximum number of (persistent )?disks", words):
        return Explanation(
            InconclusiveError, f"the node under {pod} has all the disks that it may have: {words}. Run again"
        )
    return None


def _section(settings: Settings) -> Section:
    section: Section = settings.section("hyperdisk-ml")
    return section
