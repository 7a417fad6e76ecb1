"""Images: what a disk held, to make disks of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import errors, resources

if TYPE_CHECKING:
    from emulated_cloud.google.compute.service import Compute

_MULTI_REGIONS = {"asia": "asia", "europe": "eu"}


def insert(compute: Compute, call: Call) -> dict[str, Any]:
    body = call.body
    path = f"global/images/{resources.check_name(body)}"
    compute.check_new(path)
    if not body.get("sourceDisk"):
        raise errors.invalid("resource", "", "An image here is made of a sourceDisk.")
    source = resources.path_of(body["sourceDisk"], compute.project)[1]
    disk = compute.existing(source)
    for user in disk.get("users", []) if call.query.get("forceCreate") != "true" else []:
        instance = resources.path_of(user, compute.project)[1]
        if compute.existing(instance)["status"] != "TERMINATED":
            raise errors.in_use("disk", compute.name(source), compute.name(instance))
    fields = {
        "status": "PENDING",
        "sourceType": "RAW",
        "sourceDisk": disk["selfLink"],
        "sourceDiskId": disk["id"],
        "diskSizeGb": disk["sizeGb"],
        "architecture": body.get("architecture") or disk.get("architecture", "X86_64"),
        "storageLocations": body.get("storageLocations") or [_multi_region(compute)],
    }
    key = body.get("imageEncryptionKey") or disk.get("diskEncryptionKey")
    if key := resources.encryption_key(key):
        fields["imageEncryptionKey"] = key
    image = resources.new(compute.project, path, "image", body, **fields)
    compute.store.put(path, image)
    return compute.operations.begin(
        call, "insert", path, image["id"], lambda _: _make(compute, path, source), lambda _: _fail(compute, path)
    )


def delete(compute: Compute, call: Call, path: str) -> dict[str, Any]:
    image = compute.existing(path)
    before = image["status"]
    compute.store.change(path, status="DELETING")

    def work(_: dict[str, Any]) -> None:
        with compute.lock:
            compute.store.remove(path)

    def undo(_: errors.OperationFailed) -> None:
        with compute.lock:
            compute.store.change(path, status=before)

    return compute.operations.begin(call, "delete", path, image["id"], work, undo)


def from_family(compute: Compute, family: str) -> dict[str, Any]:
    found = compute.newest(family)
    if found is None:
        raise errors.not_found(compute.name(f"global/images/family/{family}"))
    return found


def recover(compute: Compute) -> None:
    """Ends what the emulator was in the middle of when it ended."""
    for path, image in list(compute.store.of_kind("images")):
        source = resources.path_of(image["sourceDisk"], compute.project)[1]
        if image["status"] == "DELETING":
            compute.store.remove(path)
        elif image["status"] == "PENDING":
            (_make(compute, path, source) if compute.store.get(source) else _fail(compute, path))


def _make(compute: Compute, path: str, source: str) -> None:
    if compute.store.get(path) is None:
        return  # Deleted before it was made.
    compute.check_quotas()
    compute.store.make_data(path, int(compute.existing(source)["sizeGb"]), source)
    with compute.lock:
        if compute.store.get(path):  # Not deleted meanwhile.
            stored = compute.store.data(path).stat().st_blocks * 512
            compute.store.change(path, status="READY", archiveSizeBytes=str(stored))


def _fail(compute: Compute, path: str) -> None:
    with compute.lock:
        if compute.store.get(path):
            compute.store.change(path, status="FAILED")


def _multi_region(compute: Compute) -> str:
    return _MULTI_REGIONS.get(compute.compute.region.partition("-")[0], "us")
