"""The GCS FUSE CSI driver (gcsfuse.csi.storage.gke.io) on the folders of the storage emulator.

It checks what the real driver checks, in its order and words: the arguments, then through the storage API that the
pod's Kubernetes service account may read the bucket, then that the pod asked for the sidecar, then the flags of
gcsfuse. A mount is a link to the bucket's folder; `Mounter` is the seam where a real gcsfuse comes in.
Errors: the driver's docs/troubleshooting.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Protocol

from emulated_cloud.kubernetes.client import Object
from emulated_cloud.kubernetes.gke.config import Project
from emulated_cloud.kubernetes.gke.iam import NotReadable, check_reader, principal
from emulated_cloud.kubernetes.kubelet.csi import CsiError, PublishRequest

DRIVER = "gcsfuse.csi.storage.gke.io"
ENABLED = "gke-gcsfuse/volumes"
# What the driver and the kernel take besides gcsfuse's own flags.
_MOUNT_FLAGS = {"ro", "rw", "read_ahead_kb", "max_ratio", "noexec", "nosuid", "nodev"}
_ATTRIBUTES = {
    "bucketName",
    "disableMetrics",
    "enableMetrics",
    "fileCacheCapacity",
    "fileCacheForRangeRead",
    "gcsfuseLoggingSeverity",
    "gcsfuseMetadataPrefetchOnMount",
    "hostNetworkPodKSA",
    "identityProvider",
    "metadataCacheTTLSeconds",
    "metadataCacheTtlSeconds",
    "metadataStatCacheCapacity",
    "metadataTypeCacheCapacity",
    "mountOptions",
    "skipCSIBucketAccessCheck",
}


@dataclass(frozen=True)
class Mount:
    """One gcsfuse mount: what of which bucket, with which flags, where."""

    bucket: str
    directory: str
    options: list[str]
    read_only: bool
    target: Path


class Mounter(Protocol):
    """How a bucket becomes a folder. `unmount` of what is not mounted does nothing."""

    async def mount(self, mount: Mount) -> None: ...

    async def unmount(self, target: Path) -> None: ...


class LinkMounter:
    """A link to the folder in which the storage emulator keeps the bucket's objects."""

    def __init__(self, root: Path):
        self._root = root

    async def mount(self, mount: Mount) -> None:
        for option in mount.options:
            _check_flag(option)
        folder = self._root / mount.bucket / "objects" / mount.directory
        await self.unmount(mount.target)
        if folder.is_dir():
            mount.target.symlink_to(folder.absolute(), target_is_directory=True)
        else:
            # A prefix without objects is an empty folder to gcsfuse.
            mount.target.mkdir(exist_ok=True)

    async def unmount(self, target: Path) -> None:
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            target.rmdir()


class GcsFuseDriver:
    """The driver on every node. `class_options`: the mount options of a StorageClass, for the driver's profiles."""

    def __init__(
        self,
        endpoint: str,
        project: Project,
        mounter: Mounter,
        class_options: Callable[[str], list[str]] = lambda _: [],
    ):
        self._endpoint, self._project, self._mounter = endpoint, project, mounter
        self._class_options = class_options

    async def publish(self, request: PublishRequest) -> None:
        attributes = request.attributes
        bucket = attributes.get("bucketName", "") if request.ephemeral else request.volume_id.split(":")[0]
        if not bucket:
            words = 'NodePublishVolume VolumeContext "bucketName" must be provided for ephemeral storage'
            raise CsiError("InvalidArgument", words)
        for name in attributes:
            if name not in _ATTRIBUTES and not name.startswith("csi.storage.k8s.io/"):
                raise CsiError("InvalidArgument", f"invalid volume attribute {name!r}")
        skip = _boolean(attributes, "skipCSIBucketAccessCheck")
        if not skip:
            await self._check_access(request.pod, bucket, "failed to get GCS bucket {bucket}: {why}")
        if (request.pod["metadata"].get("annotations") or {}).get(ENABLED, "").lower() != "true":
            raise CsiError("FailedPrecondition", "failed to find the sidecar container in Pod spec")
        inline = [option for option in attributes.get("mountOptions", "").split(",") if option]
        options = [*self._class_options(request.storage_class), *request.mount_options, *inline]
        if skip:
            # The driver did not ask, so gcsfuse itself finds out.
            await self._check_access(request.pod, bucket, "gcsfuse failed with error: mountWithStorageHandle: {why}")
        directory = _value(options, "only-dir").strip("/")
        read_only = request.read_only or "ro" in options
        await self._mounter.mount(Mount(bucket, directory, options, read_only, request.target))

    async def unpublish(self, target: Path) -> None:
        await self._mounter.unmount(target)

    async def _check_access(self, pod: Object, bucket: str, words: str) -> None:
        """The pod's service account must be one that may read the bucket."""
        account = pod["spec"].get("serviceAccountName") or "default"
        who = principal(self._project, pod["metadata"]["namespace"], account)
        try:
            await check_reader(self._endpoint, bucket, who)
        except NotReadable as error:
            raise CsiError(error.code, words.format(bucket=f'"{bucket}"', why=error)) from error


def _boolean(attributes: dict[str, str], name: str) -> bool:
    value = attributes.get(name, "false")
    if value.lower() not in ("true", "false", "1", "0", "t", "f"):
        words = f'volume attribute {name} only accepts a valid bool value, got "{value}"'
        raise CsiError("InvalidArgument", words)
    return value.lower() in ("true", "1", "t")


@functools.cache
def _known_options() -> frozenset[str]:
    """Flags, and sections of the configuration file with a colon."""
    text = resources.files(__package__).joinpath("gcsfuse_flags.txt").read_text(encoding="utf-8")
    return frozenset(line for line in text.splitlines() if not line.startswith("#")) | _MOUNT_FLAGS


def _check_flag(option: str) -> None:
    word = option.split("=")[0]
    name = word.split(":")[0]
    if (f"{name}:" if ":" in word else name) not in _known_options():
        words = f"gcsfuse failed with error: Incorrect Usage. flag provided but not defined: -{name}"
        raise CsiError("InvalidArgument", words)


def _value(options: list[str], name: str) -> str:
    """The last value of an option, written `name=value` or `name:value`."""
    values = [option[len(name) + 1 :] for option in options if option.startswith((f"{name}=", f"{name}:"))]
    return values[-1] if values else ""
