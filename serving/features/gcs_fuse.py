"""Weights in a bucket, mounted into the server by GKE's Cloud Storage FUSE driver.

Source: https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-perf
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from serving.errors import AccessError, InconclusiveError, RequestError
from serving.features import Binding, Caching, Explanation, Principal, Symptom, far_from_bucket
from serving.values import Duration, Zone, in_seconds
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.clients.google import ClusterTraits
    from serving.settings import Settings
    from serving.weights.release import Release

VIEWER = "roles/storage.objectViewer"
PROFILE_ROLE = "gke.gcsfuse.profileUser"
"""The custom role that Google's guide makes for the controller of the FUSE profiles; it has to exist in the project."""
PROFILE_PERMISSIONS = (
    "storage.objects.list,storage.buckets.get,storage.anywhereCaches.create,storage.anywhereCaches.get,"
    "storage.anywhereCaches.list,storage.anywhereCaches.update"
)
_PROFILES_SINCE = "1.35.1-gke.1616000"
"""https://cloud.google.com/kubernetes-engine/docs/how-to/cloud-storage-fuse-csi-driver-perf"""
PROFILE_CONTROLLER = ("gcs-fuse-csi-driver", "gcs-fuse-csi-controller-sa")
"""Namespace and service account of GKE's controller that looks at a bucket before pods mount it by profile."""
_SIDECAR = "gke-gcsfuse-sidecar"
_LOST_MOUNT = re.compile(r"transport endpoint is not connected", re.IGNORECASE)
"""ENOTCONN: a FUSE mount whose process has ended."""
_CHANGED_BELOW = re.compile(r"stale (NFS )?file handle", re.IGNORECASE)
"""ESTALE: an object that was written again or deleted after it was opened."""

_MANUAL_OPTIONS = (
    # The prefix is named after its content and never changes: whatever is known of it stays true.
    "metadata-cache:ttl-secs:-1",
    "metadata-cache:stat-cache-max-size-mb:-1",
    "metadata-cache:type-cache-max-size-mb:-1",
    "file-cache:max-size-mb:-1",
    "file-cache:cache-file-for-range-read:true",
    "file-cache:enable-parallel-downloads:true",
    "read_ahead_kb=1024",
)


RENAMED = {"volume": "gcs_fuse: volume.profile is gcs_fuse.profile"}


class Section(BaseSection):
    """How the bucket is mounted."""

    profile: Literal["serving", "manual"] = "serving"
    """serving: GKE's StorageClass gcsfusecsi-serving, which tunes itself (GKE 1.35.1-gke.1616000 or newer); manual:
    mount options for older clusters."""
    rapid_cache: bool = False
    """Keep weights in Rapid Cache (once Anywhere Cache) in the serving zones: made where it is missing, read into
    before a new generation's pods start, disabled when no deployment needs it any more. What lies in it is paid for.
    With profile manual alone: serving makes caches of its own."""
    rapid_cache_zones: list[Zone] = Field([])
    """The zones that get one: those with the accelerator. Empty takes all zones of the cluster."""
    rapid_cache_ttl: Duration = "24h"
    """How long a cache keeps what nobody reads, 1h to 168h: pods that start later than that read the bucket again."""
    rapid_cache_timeout: Duration = "1h"
    """How long it may take to make a cache, and then to read the weights into it. The wait for a machine is
    serving.capacity_timeout."""

    @field_validator("rapid_cache_ttl")
    @classmethod
    def _as_long_as_caches_keep(cls, ttl: str) -> str:
        seconds = in_seconds(ttl)
        if not 3600 <= seconds <= 7 * 86400 or seconds != int(seconds):
            raise ValueError(f"a cache keeps what nobody reads for 1h to 168h, not for {ttl}")
        return ttl


def check(settings: Settings) -> None:
    """Raises RequestError for caches that the profile makes itself, and for zones elsewhere."""
    section = _section(settings)
    if not section.rapid_cache:
        return
    if section.profile == "serving":
        raise RequestError(
            "gcs_fuse.rapid_cache: the profile serving makes caches of its own, in all zones. Set gcs_fuse.profile: "
            "manual, or leave rapid_cache out"
        )
    region = "-".join(settings.location.split("-")[:2])
    if elsewhere := [zone for zone in section.rapid_cache_zones if not zone.startswith(f"{region}-")]:
        raise RequestError(
            f"gcs_fuse.rapid_cache_zones: {', '.join(elsewhere)} is not where the cluster is ({settings.location})"
        )


def suits(settings: Settings, look: Callable[[], ClusterTraits]) -> None:
    """Raises RequestError for a cluster that has no such profile."""
    if _section(settings).profile != "serving" or (cluster := look()).is_at_least(_PROFILES_SINCE):
        return
    raise RequestError(
        f"{cluster.name} is GKE {cluster.version}; the profile serving needs {_PROFILES_SINCE}. Set gcs_fuse.profile: "
        f"manual, or upgrade it: `gcloud container clusters upgrade {settings.cluster} --master --location "
        f"{settings.location}`"
    )


def caching(settings: Settings) -> Caching | None:
    """The caches that the settings ask for."""
    section = _section(settings)
    if not section.rapid_cache:
        return None
    return Caching(
        sorted(set(section.rapid_cache_zones)),
        in_seconds(section.rapid_cache_ttl),
        in_seconds(section.rapid_cache_timeout),
    )


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """Of the volume: where in the bucket the weights are, and how the profile mounts them. Raises RequestError for
    weights in another bucket than the one that is mounted."""
    if release is None:
        return {}
    if not release.weights_uri.startswith(f"gs://{settings.bucket}/"):
        raise RequestError(f"the weights are in {release.weights_uri}, the volume mounts bucket {settings.bucket}")
    common = {"prefix": release.weights_uri.removeprefix(f"gs://{settings.bucket}/").rstrip("/")}
    if _section(settings).profile == "serving":
        # Read-ahead, buffered reads and Anywhere Cache as GKE tunes them for serving.
        return {**common, "storage_class": "gcsfusecsi-serving", "mount_options": [], "volume_attributes": {}}
    return {
        **common,
        "storage_class": "",
        "mount_options": list(_MANUAL_OPTIONS),
        # The driver's own check of the bucket stays on: a missing grant then fails the mount with its reason.
        "volume_attributes": {"gcsfuseMetadataPrefetchOnMount": "true"},
    }


def flags(settings: Settings, release: Release) -> list[str]:
    """Reads the shards in parallel and ahead, which is what a network file system wants."""
    return ["--safetensors-load-strategy", "prefetch"]


def bindings(settings: Settings, principal: Principal) -> list[Binding]:
    """Pods read the bucket as their own service account; for the serving profile GKE's controller looks at it first."""
    wanted = [Binding(VIEWER, principal(settings.namespace, settings.serving.service_account))]
    if _section(settings).profile == "serving":
        wanted.append(
            Binding(
                f"projects/{settings.project}/roles/{PROFILE_ROLE}",
                principal(*PROFILE_CONTROLLER),
                f"gcloud iam roles create {PROFILE_ROLE} --project={settings.project} "
                f"--permissions={PROFILE_PERMISSIONS}",
            )
        )
    return wanted


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What the driver, its sidecar and GKE's controller mean."""
    pod, bucket, words = symptom.pod, settings.bucket, symptom.words
    if symptom.kind == "gated":
        return Explanation(
            AccessError,
            f"GKE holds {pod} back, because it cannot look at the bucket {bucket}. The serving profile needs a role on "
            f"it for GKE's {PROFILE_CONTROLLER[1]}: run with access: check to be told which, see `gcloud storage "
            f"buckets get-iam-policy gs://{bucket}`, or set gcs_fuse.profile: manual",
        )
    if symptom.kind == "slow":
        return far_from_bucket(settings)
    if symptom.kind == "out-of-memory" and symptom.container == _SIDECAR:
        return Explanation(InconclusiveError, "the annotation gke-gcsfuse/memory-limit sets it")
    if symptom.kind in ("words", "mount") and _LOST_MOUNT.search(words):
        return Explanation(
            InconclusiveError,
            f"the volume of {pod} has lost its gcsfuse, and a mount does not come back as long as its pod is there. "
            f"Run again; if it is still there then, `kubectl -n {settings.namespace} delete pod {pod}`",
            at_once=True,
        )
    if symptom.kind == "words" and _CHANGED_BELOW.search(words):
        return Explanation(
            InconclusiveError,
            f"the objects under the mount of {pod} were written again or deleted while it read them. See who writes to "
            f"gs://{bucket}, then run again; `gemma-pipelines verify-weights` says whether the weights are whole",
        )
    return _of_mount(settings, symptom) if symptom.kind == "mount" else None


def _of_mount(settings: Settings, symptom: Symptom) -> Explanation | None:
    pod, bucket, words, account = symptom.pod, settings.bucket, symptom.words, symptom.service_account
    if re.search(r"bucket doesn't exist|code = NotFound", words):
        return Explanation(RequestError, f"the bucket {bucket} cannot be mounted: {words}", at_once=True)
    if re.search(r"PermissionDenied|Unauthenticated|\b40[13]\b|forbidden", words, re.IGNORECASE):
        return Explanation(
            AccessError,
            f"{pod} cannot mount the bucket {bucket}: {words}. Grant the service account {account} {VIEWER} on it: "
            f"`gcloud storage buckets add-iam-policy-binding gs://{bucket} "
            f"--member=principal://…/subject/ns/{settings.namespace}/sa/{account} --role={VIEWER}`",
        )
    if "not found in the list of registered CSI drivers" in words:
        return Explanation(
            RequestError,
            f"the cluster has no GCS FUSE driver: {words}. Turn it on: `gcloud container clusters update CLUSTER "
            "--update-addons GcsFuseCsiDriver=ENABLED`",
        )
    return None


def _section(settings: Settings) -> Section:
    section: Section = settings.section("gcs-fuse")
    return section
