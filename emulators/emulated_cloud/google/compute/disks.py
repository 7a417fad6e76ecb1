"""Disks: persistent disks of a zone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import errors, resources

if TYPE_CHECKING:
    from emulated_cloud.google.compute.service import Compute

DEFAULT_GB = {"pd-standard": 500, "pd-balanced": 100, "pd-ssd": 100}
TYPES = (*DEFAULT_GB, "pd-extreme", "hyperdisk-balanced", "hyperdisk-ml", "hyperdisk-throughput", "hyperdisk-extreme")


def insert(compute: Compute, call: Call, zone: str) -> dict[str, Any]:
    body = call.body
    path = f"zones/{zone}/disks/{resources.check_name(body)}"
    compute.check_new(path)
    source = call.query.get("sourceImage") or body.get("sourceImage", "")
    disk = described(compute, zone, path, {**body, **({"sourceImage": source} if source else {})})
    compute.store.put(path, {**disk, "status": "CREATING"})

    def work(_: dict[str, Any]) -> None:
        compute.check_quotas()
        make(compute, path)

    return compute.operations.begin(call, "insert", path, disk["id"], work, undo=lambda _: compute.store.remove(path))


def described(compute: Compute, zone: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """A new disk as it is shown. Raises HttpError for one that cannot be."""
    given = body.get("type") or f"zones/{zone}/diskTypes/pd-standard"
    kind = given.rpartition("/")[2]
    if f"zones/{zone}/diskTypes/" not in given:
        raise errors.invalid("resource.type", given, "The URL is malformed or of another zone.")
    if kind not in TYPES:
        raise errors.not_found(compute.name(f"zones/{zone}/diskTypes/{kind}"))
    size, origin = int(body.get("sizeGb") or 0), {}
    if body.get("sourceImage"):
        _, image = compute.image(body["sourceImage"])
        least = int(image["diskSizeGb"])
        if size and size < least:
            why = f"Requested disk size cannot be smaller than the image size ({least} GB)"
            raise errors.invalid("resource.sizeGb", size, why)
        size = size or least
        origin = {"sourceImage": image["selfLink"], "sourceImageId": image["id"]}
        origin |= {"architecture": image["architecture"]} if "architecture" in image else {}
    size = size or DEFAULT_GB.get(kind, 100)
    if not 1 <= size <= 65536:
        raise errors.invalid("resource.sizeGb", size, "Disk size must be between 1 GB and 65536 GB.")
    fields = {
        "zone": resources.link(compute.project, f"zones/{zone}"),
        "type": resources.link(compute.project, f"zones/{zone}/diskTypes/{kind}"),
        "sizeGb": str(size),
        "status": "READY",
        "physicalBlockSizeBytes": "4096",
        **origin,
    }
    if key := resources.encryption_key(body.get("diskEncryptionKey")):
        fields["diskEncryptionKey"] = key
    return resources.new(compute.project, path, "disk", body, **fields)


def make(compute: Compute, path: str) -> None:
    """Gives a disk that is described its bytes, unless it is deleted meanwhile."""
    if (disk := compute.store.get(path)) is None:
        return
    source = ""
    if "sourceImage" in disk:
        project, image = resources.path_of(disk["sourceImage"], compute.project)
        source = image if project == compute.project else ""
    compute.store.make_data(path, int(disk["sizeGb"]), source)
    with compute.lock:
        if compute.store.get(path):
            compute.store.change(path, status="READY")


def delete(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    disk = compute.existing(path)
    if users := disk.get("users"):
        raise errors.in_use("disk", compute.name(path), compute.name(resources.path_of(users[0], compute.project)[1]))
    for image_path, image in compute.store.of_kind("images"):
        if image["status"] == "PENDING" and image["sourceDiskId"] == disk["id"]:
            raise errors.in_use("disk", compute.name(path), compute.name(image_path))
    compute.store.change(path, status="DELETING")

    def work(_: dict[str, Any]) -> None:
        with compute.lock:
            compute.store.remove(path)

    def undo(_: errors.OperationFailed) -> None:
        with compute.lock:
            compute.store.change(path, status="READY")

    return compute.operations.begin(call, "delete", path, disk["id"], work, undo)


def recover(compute: Compute) -> None:
    """Ends what the emulator was in the middle of when it ended."""
    for path, disk in list(compute.store.of_kind("disks")):
        if disk["status"] != "READY":
            compute.store.remove(path)
