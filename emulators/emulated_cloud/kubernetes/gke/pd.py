"""The Compute Engine persistent disk CSI driver (pd.csi.storage.gke.io) on the folders of disks.py.

It checks what the real driver checks, in its order and words (kubernetes-sigs/gcp-compute-persistent-disk-csi-driver,
pkg/gce-pd-csi-driver, August 2026), and refuses what Compute Engine refuses behind it. The sidecars that call it have
modules of their own: provisioner.py, snapshotter.py, attacher.py; the kubelet calls `publish`.
What Compute Engine says of sizes and of a zone without resources is known; what it says of throughput, IOPS, access
modes and too many disks is not, and worded here.

Different on purpose: volumes are file systems, never block devices; there are no regional disks, storage pools or
clones; a disk takes what the machine's own file system has, whatever its size says.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from emulated_cloud.kubernetes.client import Informers
from emulated_cloud.kubernetes.gke.config import Project
from emulated_cloud.kubernetes.gke.disk_faults import DiskFaults
from emulated_cloud.kubernetes.gke.disks import GIB, Disk, Disks, Image
from emulated_cloud.kubernetes.gke.machines import attaches
from emulated_cloud.kubernetes.kubelet.csi import CsiError, PublishRequest
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import NODES

DRIVER = "pd.csi.storage.gke.io"
ZONE_KEY = "topology.gke.io/zone"
MULTI_ZONE = "multi-zone"
MULTI_ZONE_LABEL = "goog-gke-multi-zone"
MULTI_ZONE_PARAMETER = "enable-multi-zone-provisioning"
READ_WRITE, READ_ONLY = "READ_WRITE_SINGLE", "READ_ONLY_MANY"
ATTACH_LIMIT = 127
"""Disks a machine, its boot disk aside."""

_HANDLE = re.compile(r"projects/([^/]+)/zones/([^/]+)/disks/([^/]+)")
_IMAGE = re.compile(r"projects/([^/]+)/global/(images|snapshots)/([^/]+)")
_SIZES = {"hyperdisk-balanced": (4, 65536), "hyperdisk-ml": (4, 65536), "hyperdisk-throughput": (2048, 32768)}
_THROUGHPUT = {"hyperdisk-balanced": (140, 2400), "hyperdisk-ml": (400, 2097152)}
_IOPS = {"hyperdisk-balanced": (2000, 160000)}
# linux/mount.h, linux/sched.h
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 1, 32, 0x1000, 0x4000, 0x40000, 2
_CLONE_NEWNS = 0x20000
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class CreateVolume:
    """What the provisioner asks for. `zones` are those that the volume may be in, the preferred one first; `snapshot`
    is the handle of the one that it is to hold, `clone` says that it is to be a copy of another claim's volume."""

    name: str
    parameters: dict[str, str]
    size: int
    access_modes: list[str]
    zones: list[str]
    snapshot: str = ""
    clone: bool = False

    @property
    def read_only(self) -> bool:
        return self.access_modes == ["ReadOnlyMany"]


@dataclass(frozen=True)
class Volume:
    """A volume that there is: its handle, its zones, its size in bytes."""

    handle: str
    zones: list[str]
    size: int


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that there is. `created` in seconds of the epoch."""

    handle: str
    size: int
    created: float
    ready: bool


@dataclass(frozen=True)
class _Parameters:
    """A StorageClass's parameters, read."""

    type: str = "pd-standard"
    kms_key: str = ""
    throughput: int = 0
    iops: int = 0
    multi_zone: bool = False
    labels: tuple[tuple[str, str], ...] = ()


class Mounter(Protocol):
    """How a folder becomes one that nothing can be written to."""

    def mount_read_only(self, source: Path, target: Path) -> None: ...

    def unmount(self, target: Path) -> None:
        """Of what is not mounted it does nothing."""


class LinkMounter:
    """A link: who owns the files, or is root, may write to them all the same."""

    def mount_read_only(self, source: Path, target: Path) -> None:
        target.symlink_to(source, target_is_directory=True)

    def unmount(self, target: Path) -> None:
        pass


class BindMounter:
    """A read-only mount, which nobody can write to, root neither."""

    def mount_read_only(self, source: Path, target: Path) -> None:
        target.mkdir()
        _mount(source, target, _MS_BIND)
        _mount(None, target, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _kept_flags(target))

    def unmount(self, target: Path) -> None:
        _libc.umount2(os.fsencode(target), _MNT_DETACH)


def mounter() -> Mounter:
    """Takes this process, and so its pods, into a mount namespace of its own: its mounts go with the last of them.
    Links where that may not be. To be called before there is a second thread, which would stay outside."""
    if _libc.unshare(_CLONE_NEWNS):
        return LinkMounter()
    _mount(None, Path("/"), _MS_REC | _MS_PRIVATE)
    return BindMounter()


class PersistentDiskDriver:
    """The driver: its controller, and its part on every node."""

    def __init__(self, project: Project, disks: Disks, faults: DiskFaults, mounter: Mounter, informers: Informers):
        self._project, self._disks, self._faults, self._mounter = project, disks, faults, mounter
        self._nodes = informers.of(NODES)
        # One thing at a time: the real driver locks each volume.
        self._lock = asyncio.Lock()

    # -- controller: volumes --------------------------------------------------------------------------------

    async def create_volume(self, request: CreateVolume) -> Volume:
        """Idempotent by name. Raises CsiError; disks of a multi-zone volume that were made stay for the next try."""
        parameters = _read_parameters(request.parameters)
        if "ReadWriteMany" in request.access_modes:
            words = "VolumeCapabilities is invalid: specified multi writer with mount access type"
            raise CsiError("InvalidArgument", words)
        if request.read_only and not request.snapshot and not request.clone and parameters.type != "hyperdisk-ml":
            words = "VolumeContentSource must be provided when AccessMode is set to read only"
            raise CsiError("InvalidArgument", words)
        _check_multi_zone(request, parameters)
        if request.clone:
            raise CsiError("Unimplemented", "volumes are not cloned here")
        size_gb = -(-request.size // GIB)
        async with self._lock:
            if parameters.multi_zone:
                return await self._create_multi_zone(request, parameters, size_gb)
            zone = request.zones[0]
            mode = READ_ONLY if request.read_only and request.snapshot else READ_WRITE
            try:
                await self._create_disk(request, parameters, size_gb, zone, mode)
            except CsiError as error:
                raise CsiError(error.code, f"CreateVolume failed: {error}") from error
        return Volume(self._handle(zone, request.name), [zone], size_gb * GIB)

    async def _create_multi_zone(self, request: CreateVolume, parameters: _Parameters, size_gb: int) -> Volume:
        # Empty ones are made to be written to once, by the populator.
        mode = READ_ONLY if request.snapshot else READ_WRITE
        zones = sorted({*request.zones, *self._disks.zones_of(request.name)})
        failures: list[CsiError] = []
        for zone in zones:
            try:
                await self._create_disk(request, parameters, size_gb, zone, mode)
            except CsiError as error:
                failures.append(error)
        if failures:
            words = "\n".join(map(str, failures))
            raise CsiError(failures[0].code, f"Failed to create multi-zone disk: {words}")
        return Volume(self._handle(MULTI_ZONE, request.name), zones, size_gb * GIB)

    async def _create_disk(
        self, request: CreateVolume, parameters: _Parameters, size_gb: int, zone: str, mode: str
    ) -> None:
        if existing := self._disks.get(request.name, zone):
            if (existing.type, existing.size_gb) != (parameters.type, size_gb):
                words = "CreateVolume disk already exists with same name and is incompatible: "
                raise CsiError("AlreadyExists", f"{words}disk is {existing.size_gb} GB of type {existing.type}")
            return
        image = self._image(request.snapshot) if request.snapshot else None
        if request.snapshot and image is None:
            raise CsiError("NotFound", f"CreateVolume source snapshot {request.snapshot} does not exist")
        disk = Disk(
            request.name,
            zone,
            parameters.type,
            size_gb,
            mode,
            _throughput(parameters, size_gb),
            parameters.iops,
            parameters.kms_key,
            image.name if image else "",
            dict(parameters.labels),
            open_journal=bool(image and image.open_journal),
        )
        if problem := _refused(disk, image) or (
            self._faults.take("exhausted", zone) and _exhausted(self._project.id, zone)
        ):
            code, words = problem
            raise CsiError(
                code,
                f"CreateVolume failed to create single zonal disk {disk.name}: failed to insert zonal disk: {words}",
            )
        await asyncio.to_thread(self._disks.insert, disk)

    async def delete_volume(self, handle: str) -> None:
        zone, name = self._parse(handle)
        async with self._lock:
            for each in self._disks.zones_of(name) if zone == MULTI_ZONE else [zone]:
                await asyncio.to_thread(self._disks.delete, name, each)

    # -- controller: snapshots ------------------------------------------------------------------------------

    async def create_snapshot(self, name: str, handle: str, parameters: dict[str, str]) -> Snapshot:
        """Idempotent by name. Raises CsiError."""
        zone, disk_name = self._parse(handle)
        if zone == MULTI_ZONE:
            words = f"CreateSnapshot for volume {handle} failed. "
            raise CsiError(
                "InvalidArgument", f"{words}Snapshots are not supported with the multi-zone PV volumeHandle feature"
            )
        kind = _snapshot_type(parameters)
        disk = self._disks.get(disk_name, zone)
        if disk is None:
            raise CsiError("NotFound", f'CreateSnapshot could not find disk Key{{"{disk_name}", zone: "{zone}"}}')
        async with self._lock:
            if self._disks.image(name) is None:
                # A disk may be taken while a machine has it: as it is, with a file system that is mounted.
                image = Image(name, disk_name, disk.size_gb, time.time(), bool(disk.writer) or disk.open_journal)
                await asyncio.to_thread(self._disks.insert_image, image, disk)
        made = self.snapshot(f"projects/{self._project.id}/global/{kind}/{name}")
        assert made
        return made

    def snapshot(self, handle: str) -> Snapshot | None:
        image = self._image(handle)
        if image is None:
            return None
        ready = not self._faults.take("never_ready")
        return Snapshot(handle, image.size_gb * GIB, image.created, ready)

    async def delete_snapshot(self, handle: str) -> None:
        if found := _IMAGE.fullmatch(handle):
            await asyncio.to_thread(self._disks.delete_image, found[3])

    def _image(self, handle: str) -> Image | None:
        found = _IMAGE.fullmatch(handle)
        return self._disks.image(found[3]) if found else None

    # -- controller: attachment -----------------------------------------------------------------------------

    async def attach(self, handle: str, node: str, read_only: bool, attached: int) -> None:
        """ControllerPublishVolume on a node that has `attached` disks. Raises CsiError."""
        zone, name = self._parse(handle)
        machine, node_zone = self._machine(node)
        if zone == MULTI_ZONE:
            if not read_only:
                raise CsiError("InvalidArgument", f"'multi-zone' volume only supports 'readOnly': {handle}")
            zone = node_zone
        disk = self._disks.get(name, zone)
        if disk is None:
            raise CsiError("NotFound", f'Could not find disk Key{{"{name}", zone: "{zone}"}}: notFound')
        if self._parse(handle)[0] == MULTI_ZONE and MULTI_ZONE_LABEL not in disk.labels:
            words = f'Multi-zone volumeID "{handle}" points to disk that is missing label "{MULTI_ZONE_LABEL}"'
            raise CsiError("InvalidArgument", words)
        if zone != node_zone:
            words = f"The disk is in zone {zone}, the instance in {node_zone}"
            raise CsiError("InvalidArgument", f"Failed to Attach: googleapi: Error 400: {words}., invalid")
        if not attaches(machine, disk.type):
            raise CsiError(
                "InvalidArgument",
                f"'{disk.type}' is not a compatible disk type with the machine type {machine}, please review the GCP "
                "online documentation for available persistent disk options",
            )
        if attached >= ATTACH_LIMIT:
            words = f"Exceeded limit 'maximum_persistent_disks' on resource '{node}'. Limit: {ATTACH_LIMIT + 1}.0"
            raise CsiError("ResourceExhausted", f"Failed to Attach: failed when waiting for zonal op: {words}")
        if disk.access_mode == READ_ONLY and not read_only:
            words = f"The disk resource '{name}' has access mode {READ_ONLY} and cannot be attached in READ_WRITE mode"
            raise CsiError("InvalidArgument", f"Failed to Attach: googleapi: Error 400: {words}., badRequest")
        if disk.type == "hyperdisk-ml" and read_only and disk.access_mode == READ_WRITE:
            self._disks.set_access_mode(disk, READ_ONLY)
        if not read_only:
            self._disks.describe(replace(disk, writer=node))

    async def detach(self, handle: str, node: str) -> None:
        """ControllerUnpublishVolume. The kubelet has taken the file system down by then."""
        zone, name = self._parse(handle)
        disk = None if zone == MULTI_ZONE else self._disks.get(name, zone)
        if disk and disk.writer == node:
            self._disks.describe(replace(disk, writer=""))

    # -- node -----------------------------------------------------------------------------------------------

    async def publish(self, request: PublishRequest) -> None:
        zone, name = self._parse(request.volume_id)
        if zone == MULTI_ZONE:
            zone = self._machine(request.pod["spec"]["nodeName"])[1]
        folder = self._disks.folder(name, zone)
        disk = self._disks.get(name, zone)
        if disk is None:
            raise CsiError("Internal", f'Error when getting device path: rpc error: could not find disk "{name}"')
        if disk.open_journal and disk.access_mode == READ_ONLY:
            # ext4 replays its journal even where it is mounted for reading, and cannot on such a disk.
            device = f"/dev/disk/by-id/google-{name}"
            why = f"mount failed: exit status 32\nOutput: mount: {request.target}: cannot mount {device} read-only."
            raise CsiError("Internal", f"Failed to format and mount device from {device}: {why}")
        if disk.open_journal:
            self._disks.describe(replace(disk, open_journal=False))
        await self.unpublish(request.target)
        if request.read_only:
            self._mounter.mount_read_only(folder, request.target)
            return
        group = (request.pod["spec"].get("securityContext") or {}).get("fsGroup")
        if group is not None and os.geteuid() == 0:
            # fsGroupPolicy ReadWriteOnceWithFSType: the kubelet gives the files to the pod's group.
            await asyncio.to_thread(_give_to_group, folder, group)
        request.target.symlink_to(folder, target_is_directory=True)

    async def unpublish(self, target: Path) -> None:
        self._mounter.unmount(target)
        if target.is_symlink():
            target.unlink()
        elif target.is_dir():
            target.rmdir()

    # -- names ----------------------------------------------------------------------------------------------

    def _handle(self, zone: str, name: str) -> str:
        return f"projects/{self._project.id}/zones/{zone}/disks/{name}"

    def _parse(self, handle: str) -> tuple[str, str]:
        """(zone, name)."""
        found = _HANDLE.fullmatch(handle)
        if not found:
            words = "failed to get id components. Expected projects/{project}/zones/{zone}/disks/{name}"
            raise CsiError("NotFound", f"volume ID is invalid: {words}. Got: {handle}")
        return found[2], found[3]

    def _machine(self, node: str) -> tuple[str, str]:
        """(machine type, zone) of a node."""
        found = self._nodes.items.get(node)
        if found is None:
            raise CsiError("NotFound", f"Could not find instance {node}")
        labels = found["metadata"]["labels"]
        return labels["node.kubernetes.io/instance-type"], labels[ZONE_KEY]


# -- what a StorageClass says ---------------------------------------------------------------------------------


def _read_parameters(given: dict[str, str]) -> _Parameters:
    read: dict[str, object] = {}
    labels: dict[str, str] = {}
    for key, value in given.items():
        match key.lower():
            case "type":
                read["type"] = value.lower()
            case "disk-encryption-kms-key":
                read["kms_key"] = value
            case "provisioned-throughput-on-create":
                read["throughput"] = _number(value, "provisionedThroughputOnCreate", mebibytes=True)
            case "provisioned-iops-on-create":
                read["iops"] = _number(value, "provisionedIOPSOnCreate")
            case "labels":
                labels |= _pairs(value)
            case "enable-multi-zone-provisioning":
                if value.lower() not in ("true", "false"):
                    words = f"parameters contain invalid value for {MULTI_ZONE_PARAMETER} parameter: "
                    _invalid(f"{words}Unexpected boolean string {value}")
                read["multi_zone"] = value.lower() == "true"
            case "replication-type" if value == "none":
                pass
            case "resource-tags":
                pass
            case name if not name.startswith("csi.storage.k8s.io/"):
                _invalid(f'parameters contains invalid option "{key}"')
    if read.get("multi_zone"):
        labels[MULTI_ZONE_LABEL] = "true"
    return _Parameters(**read, labels=tuple(labels.items()))  # type: ignore[arg-type]


def _invalid(words: str) -> None:
    raise CsiError("InvalidArgument", f"failed to extract parameters: {words}")


def _number(text: str, name: str, mebibytes: bool = False) -> int:
    try:
        value = parse_quantity(text)
    except ValueError:
        _invalid(f"parameters contain invalid {name} parameter: {text!r} is no quantity")
        raise
    return -(-int(value) // 2**20) if mebibytes else int(value)


def _pairs(text: str) -> dict[str, str]:
    pairs = {}
    for pair in filter(None, text.split(",")):
        key, separator, value = pair.partition("=")
        if not separator:
            _invalid(f'parameters contain invalid labels parameter: labels "{text}" are invalid')
        pairs[key.strip()] = value.strip()
    return pairs


def _check_multi_zone(request: CreateVolume, parameters: _Parameters) -> None:
    if not parameters.multi_zone:
        return
    words = ""
    if request.clone:
        words = "parameter does not support volume cloning"
    elif request.snapshot and not request.read_only:
        words = "parameter does not support specifying volume content source in readwrite mode"
    elif parameters.type != "hyperdisk-ml":
        words = f"parameter with unsupported disk type: {parameters.type}"
    if words:
        raise CsiError(
            "InvalidArgument",
            f'CreateVolume failed to validate multi-zone provisioning request: "{MULTI_ZONE_PARAMETER}" {words}',
        )


def _throughput(parameters: _Parameters, size_gb: int) -> int:
    """What the disk gets: never less than its size demands, whatever was asked for, and nobody is told."""
    if parameters.type == "hyperdisk-ml":
        return max(parameters.throughput or _THROUGHPUT["hyperdisk-ml"][0], int(0.12 * size_gb))
    return parameters.throughput


def _snapshot_type(parameters: dict[str, str]) -> str:
    kind = "snapshots"
    for key, value in parameters.items():
        match key.lower():
            case "snapshot-type":
                if value not in ("snapshots", "images"):
                    words = f"invalid snapshot type {value}"
                    raise CsiError("InvalidArgument", f"Invalid snapshot parameters: {words}")
                kind = value
            case "storage-locations" | "image-family" | "labels" | "resource-tags":
                pass
            case name if not name.startswith("csi.storage.k8s.io/"):
                words = f'parameters contains invalid option "{key}"'
                raise CsiError("InvalidArgument", f"Invalid snapshot parameters: {words}")
    return kind


# -- what Compute Engine says ---------------------------------------------------------------------------------


def _refused(disk: Disk, image: Image | None) -> tuple[str, str] | None:
    """(code, words) of a disk that Compute Engine does not make."""
    problem = ""
    least, most = _SIZES.get(disk.type, (1, 65536))
    if disk.size_gb < least:
        problem = f"Disk size cannot be smaller than {least} GB for disk type {disk.type}."
    elif disk.size_gb > most:
        problem = f"Disk size cannot be larger than {most} GB for disk type {disk.type}."
    elif image and disk.size_gb < image.size_gb:
        problem = f"Requested disk size cannot be smaller than the image size ({image.size_gb} GB)"
    for name, value, limits in (("throughput", disk.throughput, _THROUGHPUT), ("iops", disk.iops, _IOPS)):
        if not problem and value:
            if disk.type not in limits:
                problem = f"Provisioned {name} is not supported for disk type {disk.type}."
            elif not limits[disk.type][0] <= value <= limits[disk.type][1]:
                least, most = limits[disk.type]
                problem = f"Requested provisioned {name} must be between {least} and {most}, got {value}."
    if not problem:
        return None
    return "InvalidArgument", f"unknown Insert disk error: googleapi: Error 400: {problem}, badRequest"


def _exhausted(project: str, zone: str) -> tuple[str, str]:
    operation = f"operation-{int(time.time() * 1000)}-{secrets.token_hex(7)[:13]}-{secrets.token_hex(4)}"
    return "Unavailable", (
        f"unknown error when polling the operation: rpc error: code = Unavailable desc = operation {operation} failed "
        f"(ZONE_RESOURCE_POOL_EXHAUSTED): The zone 'projects/{project}/zones/{zone}' does not have enough resources "
        "available to fulfill the request.  Try a different zone, or try again later."
    )


# -- mounts ---------------------------------------------------------------------------------------------------


def _mount(source: Path | None, target: Path, flags: int) -> None:
    origin = os.fsencode(source) if source else None
    if _libc.mount(origin, os.fsencode(target), None, ctypes.c_ulong(flags), None):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(target))


def _kept_flags(path: Path) -> int:
    """Flags of a mount that a user namespace may not take away when it changes another."""
    return os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_RELATIME)


def _give_to_group(folder: Path, group: int) -> None:
    """As a kubelet does: readable and writable for the group, and new files theirs."""
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            try:
                os.chown(path, -1, group)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                # A rootless namespace knows one group, which all pods have.
                return
            os.chmod(path, stat.S_IMODE(mode) | (0o2770 if stat.S_ISDIR(mode) else 0o660))


__all__ = ["DRIVER", "CreateVolume", "PersistentDiskDriver", "Snapshot", "Volume", "mounter"]
