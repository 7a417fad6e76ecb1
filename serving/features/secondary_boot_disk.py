"""The engine's image on every node before a pod asks for it: a secondary boot disk, or Artifact Registry's prewarming.

bake_disk_image makes the disk image, nodes come with a disk of it, verify_image_cache reads what they say of it.
Source: https://cloud.google.com/kubernetes-engine/docs/how-to/data-container-image-preloading
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from serving import names
from serving.clients import artifact_registry, registry
from serving.clients.compute import Compute
from serving.errors import InconclusiveError, RequestError
from serving.features import Explanation, Symptom, nodes
from serving.values import (
    Duration,
    Image,
    KmsKey,
    MachineType,
    Network,
    NetworkTag,
    ServiceAccount,
    Subnetwork,
    Word,
    Zone,
)
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

_LABEL = "cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-"
"""Label of nodes that have a disk of an image, whose name follows."""
_MODE = "CONTAINER_IMAGE_CACHE"
_CLASS = "cloud.google.com/compute-class"
_ARM_MACHINES = ("c4a", "n4a", "t2a")
_SINCE = {True: "1.30.1-gke.1329000", False: "1.28.3-gke.1067000"}
"""The first GKE version whose nodes have secondary boot disks, by whether the cluster is an Autopilot one."""
_OF_THE_DISK = re.compile(r"node affinity/selector|secondary.?boot|disk|image|allowlist", re.IGNORECASE)
"""In the autoscaler's words: it may be about the disk, and not about capacity."""


class Section(BaseSection):
    """How the engine's image gets to the nodes, and the machine that bakes the disk image."""

    image: Literal["disk", "streaming"] = "disk"
    """disk: a disk image that nodes start with; streaming: Artifact Registry keeps the image warm for image streaming,
    one call and nothing to bake, for images in *.pkg.dev alone."""
    form: Literal["autopilot", "node-pool", "compute-class"] = "autopilot"
    """How nodes come by the disk. autopilot: GKE adds it for pods that select it; compute-class: a ComputeClass of the
    generation's own; node-pool: node pools that you make, of which a run says what is missing."""
    zones: list[Zone] = Field([])
    """Where the image may be baked, tried in this order; empty takes the zones of the cluster's region."""
    machine_type: MachineType = "n2-standard-8"
    """The machine that bakes. It writes as many layers at once as it has processors."""
    network: Network = ""
    """Its network, `projects/HOST/global/networks/NAME` for a Shared VPC; empty takes the project's default."""
    subnetwork: Subnetwork = ""
    """Its subnetwork, `projects/HOST/regions/REGION/subnetworks/NAME`. It needs Private Google Access, and for images
    of other registries a way to them: the machine has no external address."""
    service_account: ServiceAccount = ""
    """The Google service account that it runs as, which reads images from Artifact Registry; empty gives it none, which
    does for public images."""
    kms_key: KmsKey = ""
    """A Cloud KMS key (projects/P/locations/L/keyRings/R/cryptoKeys/K) for the disks and the image."""
    boot_image_family: Word = "debian-13"
    """The image family that it boots from, resolved when it is made: python3 and mkfs.ext4 are all that is needed."""
    boot_image_project: Word = "debian-cloud"
    """The project of that family. An organization's policy may demand one of its own (compute.trustedImageProjects)."""
    tags: list[NetworkTag] = Field([])
    """Network tags of the machine."""
    disk_size_gb: int | None = Field(None, ge=10, le=65_536)
    """Size of the disk; null takes what the images need unpacked, and a tenth more."""
    timeout: Duration = "40m"
    """How long baking may take. Compute Engine itself deletes the machine after it."""
    retention_days: int | None = Field(None, ge=1, le=365)
    """With image: streaming, days that Artifact Registry keeps the image warm; null takes its own, 3. Each run that
    deploys something asks again."""
    threshold: float = Field(100.0, ge=0, le=100)
    """Percent of the engine image's layers that a node has to find in its cache before a generation is promoted."""
    verify_timeout: Duration = "5m"
    """How long the nodes' word on their cache is waited for in Cloud Logging."""
    further_images: list[Image] = Field([], max_length=16)
    """Other images that the disk has beside the engine's, named as their pods pull them: a sidecar's, say."""
    architecture: Literal["amd64", "arm64"] = "amd64"
    """Processors of the serving nodes, for which images are chosen and machine_type has to be."""

    @model_validator(mode="after")
    def _the_machine_is_of_the_architecture(self) -> Section:
        is_arm = self.machine_type.partition("-")[0] in _ARM_MACHINES
        if is_arm != (self.architecture == "arm64"):
            raise ValueError(
                f"machine_type {self.machine_type} is {'arm64' if is_arm else 'amd64'}, and the images are to be for "
                f"{self.architecture}: machines of {', '.join(_ARM_MACHINES)} are the arm64 ones"
            )
        return self


def has_disk(settings: Settings) -> bool:
    """Whether nodes start with a disk that a run bakes."""
    return _section(settings).image == "disk"


def node_label(disk_image: str) -> str:
    """The label of nodes with a disk of the image: 63 characters at most, since an image's name has 39."""
    return f"{_LABEL}{disk_image}"


def variant(settings: Settings) -> str:
    """How its nodes come by the image, which is how its manifests differ."""
    section = _section(settings)
    return section.form if section.image == "disk" else section.image


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the generation: which nodes its pods want, and who gives them the disk."""
    if release is None:
        return {}
    image = release.disk_image
    class_name = names.compute_class(settings, release.generation)
    on_nodes = {node_label(image): f"{_MODE}.{settings.project}"}
    selectors = {"streaming": {}, "compute-class": {_CLASS: class_name}}
    return {
        "cache_node_selector": selectors.get(variant(settings), on_nodes),
        # Anchored: without the $ it would let every image pass whose name only begins so.
        "disk_image_pattern": f"{_path(settings, image)}$",
        "compute_class": class_name,
        "class_toleration": {"key": _CLASS, "operator": "Equal", "value": class_name, "effect": "NoSchedule"},
        "compute_class_rule": {
            **nodes.class_rule(settings),
            "storage": {
                "secondaryBootDisks": [{"diskImageName": image, "project": settings.project, "mode": _MODE}],
            },
        },
    }


def identity(settings: Settings) -> dict[str, Any]:
    """Pods that come to their nodes in another way are other pods. (Which image it is, the release says.)"""
    return {"variant": variant(settings)}


def resolved(settings: Settings, image: str) -> dict[str, Any]:
    """What the registry has under the engine image's name now, as fields of the release: it is pulled by that digest.

    Raises RequestError for an image that is not there for the architecture, or that streaming cannot have.
    """
    section = _section(settings)
    platform = f"linux/{section.architecture}"
    if not has_disk(settings):
        artifact_registry.parse(image)  # Raises for another registry's.
        return {"image_digest": registry.resolve(image, platform).digest}
    found = [registry.resolve(name, platform) for name in (image, *section.further_images)]
    return {
        "image_digest": found[0].digest,
        "disk_image": names.disk_image_name(
            settings,
            (each.name for each in found),
            architecture=section.architecture,
            kms_key=section.kms_key,
        ),
    }


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster whose nodes cannot have the image in this way, before anything is spent."""
    if not has_disk(settings):
        return
    form, cluster = _section(settings).form, look()
    if form == "autopilot" and not cluster.autopilot:
        raise RequestError(
            f"{cluster.name} is a Standard cluster, whose pods do not get nodes with a disk by selecting them. Set "
            "secondary_boot_disk.form to compute-class, or to node-pool for node pools that you make"
        )
    if form == "node-pool" and cluster.autopilot:
        raise RequestError(
            f"{cluster.name} is an Autopilot cluster, which has no node pools of yours. Set secondary_boot_disk.form "
            "to autopilot or compute-class"
        )
    if not cluster.is_at_least(since := _SINCE[cluster.autopilot]):
        raise RequestError(
            f"{cluster.name} is GKE {cluster.version}; secondary boot disks need {since}. Upgrade it: `gcloud "
            f"container clusters upgrade {settings.cluster} --master --location {settings.location}`"
        )


def prepared(settings: Settings, release: Release, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError when no node pool has the disk that the pods are to select, with the command that makes one.

    There is an image by then, which a node pool cannot be made without.
    """
    if not has_disk(settings) or _section(settings).form != "node-pool":
        return
    cluster, path = look(), _path(settings, release.disk_image)
    having = [pool for pool in cluster.node_pools if any(image.endswith(path) for image in pool.disk_images)]
    where = f"--cluster {settings.cluster} --location {settings.location} --project {settings.project}"
    if not having:
        raise RequestError(
            f"no node pool of {cluster.name} has a disk of {release.disk_image}, which has the engine's image. Make "
            f"one, and run again: `gcloud container node-pools create {release.disk_image} {where} "
            f"--enable-image-streaming --secondary-boot-disk=disk-image={path},mode={_MODE} "
            f"{nodes.pool_flags(settings)} --enable-autoscaling --num-nodes 0 --min-nodes 0 --max-nodes NODES`"
        )
    if not any(pool.image_streaming for pool in having):
        raise RequestError(
            f"the node pool {having[0].name} of {cluster.name} has the disk of {release.disk_image} and no image "
            "streaming, without which nodes do not look at it. Turn it on, and run again: `gcloud container node-pools "
            f"update {having[0].name} {where} --enable-image-streaming`"
        )


def missing(settings: Settings, release: Release) -> str:
    """That the disk image is gone: the nodes that are there keep their disks, and no other comes."""
    if not has_disk(settings):
        return ""
    image = Compute(settings.project).image(release.disk_image)
    return "" if image and image.status == "READY" else f"its disk image {release.disk_image} is gone"


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What may be wrong with the disk when no node comes for a pod that selects one."""
    if symptom.kind != "no-node" or not has_disk(settings) or not _OF_THE_DISK.search(symptom.words):
        return None
    looked_at = {
        "autopilot": "the GCPResourceAllowlist that lets the cluster use it (`kubectl get gcpresourceallowlists -o "
        "yaml`)",
        "compute-class": "the ComputeClass that names it (`kubectl get computeclasses -o yaml`)",
        "node-pool": f"the node pools (`gcloud container node-pools list --cluster {settings.cluster} --location "
        f"{settings.location}`)",
    }
    return Explanation(
        InconclusiveError,
        f"no node for {symptom.pod}: {symptom.words}. It selects nodes with a disk of an image: see whether the image "
        f"is READY (`gcloud compute images list --project {settings.project} --filter name~^gp-`), and look at "
        f"{looked_at[_section(settings).form]}. If those are as they should be, it is capacity: try another "
        "accelerator or location, or wait longer (serving.capacity_timeout)",
    )


def _path(settings: Settings, image: str) -> str:
    return f"projects/{settings.project}/global/images/{image}"


def _section(settings: Settings) -> Section:
    section: Section = settings.section("secondary-boot-disk")
    return section
