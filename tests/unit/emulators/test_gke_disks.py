"""The persistent disk driver and its disks without a cluster: what is made, what is refused, what a kill leaves."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from emulated_cloud.kubernetes.gke.config import Project
from emulated_cloud.kubernetes.gke.disk_faults import DiskFaults
from emulated_cloud.kubernetes.gke.disks import GIB, Disks
from emulated_cloud.kubernetes.gke.machines import MACHINE_TYPES, attaches, node_template
from emulated_cloud.kubernetes.gke.pd import ATTACH_LIMIT, CreateVolume, LinkMounter, PersistentDiskDriver
from emulated_cloud.kubernetes.kubelet.csi import CsiError, PublishRequest

A, B = "us-central1-a", "us-central1-b"
ML = {"type": "hyperdisk-ml", "provisioned-throughput-on-create": "400Mi"}
MULTI_ZONE = {**ML, "enable-multi-zone-provisioning": "true"}
BALANCED = {"type": "hyperdisk-balanced", "provisioned-iops-on-create": "7000"}


class Site:
    """A driver on a folder, with a node of each of some machine types in each zone."""

    def __init__(self, folder: Path):
        self.folder, self.config = folder / "disks", folder / "gke.json"
        self.script()
        self.faults = DiskFaults(self.config)
        self.disks = Disks(self.folder, self.faults)
        nodes = {}
        for machine in MACHINE_TYPES:
            for zone in (A, B):
                name = f"{machine.name}-{zone}"
                nodes[name] = node_template(machine, zone, "c", "p", False, "", name)
        informers: Any = SimpleNamespace(of=lambda _resource: SimpleNamespace(items=nodes))
        self.driver = PersistentDiskDriver(Project("p", "1"), self.disks, self.faults, LinkMounter(), informers)

    def script(self, **faults: Any) -> None:
        self.config.write_text(json.dumps({"disk_faults": faults}))

    def create(self, name: str = "pvc-1", size: int = 4 * GIB, **given: Any) -> Any:
        wanted = {"parameters": MULTI_ZONE, "access_modes": ["ReadOnlyMany"], "zones": [A, B], **given}
        return asyncio.run(self.driver.create_volume(CreateVolume(name, size=size, **wanted)))

    def written(self, data: bytes = b"weights") -> str:
        """A disk that somebody wrote to, and the handle of its image."""
        made = self.create("source", parameters=BALANCED, access_modes=["ReadWriteOnce"], zones=[A])
        (self.disks.folder("source", A) / "file").write_bytes(data)
        snapshot = self.driver.create_snapshot("snapshot-1", made.handle, {"snapshot-type": "images"})
        return asyncio.run(snapshot).handle

    def publish(self, handle: str, target: Path, node: str, read_only: bool, **security: int) -> None:
        pod = {"spec": {"nodeName": node, "securityContext": security}}
        request = PublishRequest(handle, {}, [], read_only, False, pod, target)
        asyncio.run(self.driver.publish(request))


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused(call: Any) -> str:
    with pytest.raises(CsiError) as error:
        call()
    return str(error.value)


# -- volumes --------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_once(site: Site) -> None:
    first = site.create()
    (site.disks.folder("pvc-1", A) / "file").write_bytes(b"x")
    assert site.create() == first
    assert (site.disks.folder("pvc-1", A) / "file").exists()
    assert (first.handle, first.zones) == ("projects/p/zones/multi-zone/disks/pvc-1", [A, B])
    words = refused(lambda: site.create(size=8 * GIB))
    assert words.startswith("rpc error: code = AlreadyExists desc = Failed to create multi-zone disk: ")


def test_zones_that_have_a_disk_of_the_name_stay_the_volumes(site: Site) -> None:
    site.create(zones=[A])
    assert site.create(zones=[B]).zones == [A, B]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": 3 * GIB}, "Disk size cannot be smaller than 4 GB for disk type hyperdisk-ml., badRequest"),
        ({"size": 65537 * GIB}, "Disk size cannot be larger than 65536 GB for disk type hyperdisk-ml."),
        (
            {"parameters": {**ML, "provisioned-throughput-on-create": "300Mi"}},
            "throughput must be between 400 and 2097152",
        ),
        (
            {"parameters": {**ML, "provisioned-iops-on-create": "7000"}},
            "iops is not supported for disk type hyperdisk-ml",
        ),
        ({"parameters": {**ML, "provisioned-throughput-on-create": "many"}}, "invalid provisionedThroughputOnCreate"),
        (
            {"parameters": {**ML, "typo": "1"}},
            'failed to extract parameters: parameters contains invalid option "typo"',
        ),
        ({"parameters": {**MULTI_ZONE, "enable-multi-zone-provisioning": "yes"}}, "Unexpected boolean string yes"),
        ({"parameters": {**MULTI_ZONE, "labels": "a"}}, 'labels "a" are invalid'),
        ({"access_modes": ["ReadWriteMany"]}, "specified multi writer with mount access type"),
        ({"parameters": BALANCED}, "VolumeContentSource must be provided when AccessMode is set to read only"),
        ({"snapshot": "projects/p/global/images/none"}, "source snapshot projects/p/global/images/none does not exist"),
        ({"clone": True}, '"enable-multi-zone-provisioning" parameter does not support volume cloning'),
        (
            {"snapshot": "projects/p/global/images/none", "access_modes": ["ReadWriteOnce"]},
            "parameter does not support specifying volume content source in readwrite mode",
        ),
    ],
)
def test_what_is_refused(site: Site, given: dict[str, Any], words: str) -> None:
    assert words in refused(lambda: site.create(**given))
    assert not list(site.folder.glob("*/*.json")), "and no disk is left"


def test_a_disk_is_never_slower_than_its_size_demands(site: Site) -> None:
    site.create(size=1000 * GIB)
    assert site.disks.get("pvc-1", A).throughput == 400
    site.create("pvc-2", size=10000 * GIB)
    assert site.disks.get("pvc-2", A).throughput == 1200


def test_an_image_fits_on_disks_that_are_as_large(site: Site) -> None:
    handle = site.written()
    site.create(snapshot=handle)
    small = {"parameters": BALANCED, "access_modes": ["ReadWriteOnce"], "zones": [A], "snapshot": handle}
    site.create("pvc-2", **small)
    made = site.create("large", parameters=BALANCED, access_modes=["ReadWriteOnce"], zones=[A], size=8 * GIB)
    image = asyncio.run(site.driver.create_snapshot("snapshot-2", made.handle, {"snapshot-type": "images"})).handle
    assert "cannot be smaller than the image size (8 GB)" in refused(lambda: site.create("pvc-3", snapshot=image))


def test_what_was_begun_when_the_process_ended_is_made_anew(site: Site) -> None:
    half = site.disks.folder("pvc-1", A)
    half.mkdir(parents=True)
    (half / "half").write_bytes(b"x")
    site.create()
    assert [path.name for path in half.iterdir()] == ["lost+found"]
    asyncio.run(site.driver.delete_volume("projects/p/zones/multi-zone/disks/pvc-1"))
    asyncio.run(site.driver.delete_volume("projects/p/zones/multi-zone/disks/pvc-1"))
    assert not (site.folder / "pvc-1").exists()


# -- snapshots ------------------------------------------------------------------------------------------------------


def test_a_disk_that_a_machine_has_makes_copies_that_cannot_be_mounted_for_reading(site: Site, tmp_path: Path) -> None:
    made = site.create("source", parameters=BALANCED, access_modes=["ReadWriteOnce"], zones=[A])
    node = f"c3-standard-4-{A}"
    images = []
    steps = (site.driver.attach(made.handle, node, False, 0), site.driver.detach(made.handle, node))
    for number, step in enumerate(steps):
        asyncio.run(step)
        snapshot = site.driver.create_snapshot(f"snapshot-{number}", made.handle, {"snapshot-type": "images"})
        images.append(asyncio.run(snapshot).handle)
    mounted, clean = (site.create(f"pvc-{number}", snapshot=image) for number, image in enumerate(images))
    words = refused(lambda: site.publish(mounted.handle, tmp_path / "target", node, read_only=True))
    assert "cannot mount /dev/disk/by-id/google-pvc-0 read-only." in words
    site.publish(clean.handle, tmp_path / "target", node, read_only=True)
    again = {"parameters": BALANCED, "access_modes": ["ReadWriteOnce"], "zones": [A]}
    writable = site.create("pvc-9", snapshot=images[0], **again)
    site.publish(writable.handle, tmp_path / "other", node, read_only=False)


def test_a_snapshot_is_the_disk_as_it_was(site: Site) -> None:
    handle = site.written(b"before")
    with open(site.disks.folder("source", A) / "file", "r+b") as file:
        file.write(b"after!")
    site.create(snapshot=handle)
    for zone in (A, B):
        assert (site.disks.folder("pvc-1", zone) / "file").read_bytes() == b"before"
    one, other = ((site.disks.folder("pvc-1", zone) / "file").stat().st_ino for zone in (A, B))
    assert one == other, "copies for reading cost nothing"
    asyncio.run(site.driver.delete_snapshot(handle))
    assert site.driver.snapshot(handle) is None
    assert (site.disks.folder("pvc-1", A) / "file").read_bytes() == b"before", "a disk outlives its image"


def test_a_volume_in_several_zones_is_not_snapshotted(site: Site) -> None:
    handle = site.create().handle
    words = refused(lambda: asyncio.run(site.driver.create_snapshot("s", handle, {})))
    assert "Snapshots are not supported with the multi-zone PV volumeHandle feature" in words


@pytest.mark.parametrize(
    ("parameters", "words"),
    [({"snapshot-type": "tape"}, "invalid snapshot type tape"), ({"typo": "1"}, 'invalid option "typo"')],
)
def test_a_snapshot_class_with_a_mistake_is_refused(site: Site, parameters: dict[str, str], words: str) -> None:
    handle = site.create(parameters=BALANCED, access_modes=["ReadWriteOnce"], zones=[A]).handle
    assert words in refused(lambda: asyncio.run(site.driver.create_snapshot("s", handle, parameters)))


# -- attachment -----------------------------------------------------------------------------------------------------


def attach(site: Site, handle: str, machine: str, read_only: bool = True, zone: str = A, attached: int = 0) -> None:
    asyncio.run(site.driver.attach(handle, f"{machine}-{zone}", read_only, attached))


def test_who_may_have_a_disk(site: Site) -> None:
    handle = site.create().handle
    attach(site, handle, "c3-standard-4")
    assert site.disks.get("pvc-1", A).access_mode == "READ_ONLY_MANY", "once it is read, nobody writes to it any more"
    assert site.disks.get("pvc-1", B).access_mode == "READ_WRITE_SINGLE"
    assert "only supports 'readOnly'" in refused(lambda: attach(site, handle, "c3-standard-4", read_only=False))
    for machine in ("e2-standard-4", "n2-standard-4"):
        words = refused(lambda machine=machine: attach(site, handle, machine))
        assert f"'hyperdisk-ml' is not a compatible disk type with the machine type {machine}" in words
    full = refused(lambda: attach(site, handle, "c3-standard-4", attached=ATTACH_LIMIT))
    assert "Exceeded limit 'maximum_persistent_disks'" in full
    one = site.create("one", parameters=ML, zones=[B]).handle
    assert "The disk is in zone us-central1-b" in refused(lambda: attach(site, one, "c3-standard-4"))
    none = f"projects/p/zones/{A}/disks/none"
    assert "Could not find disk" in refused(lambda: attach(site, none, "c3-standard-4"))
    assert "volume ID is invalid" in refused(lambda: attach(site, "disks/none", "c3-standard-4"))


def test_machines_and_the_disks_that_they_attach() -> None:
    for machine in (
        "g2-standard-8",
        "a2-highgpu-1g",
        "a3-highgpu-1g",
        "c3-standard-4",
        "c3d-standard-4",
        "ct6e-standard-4t",
    ):
        assert attaches(machine, "hyperdisk-ml"), machine
    for machine in ("e2-standard-4", "n2-standard-4"):
        assert not attaches(machine, "hyperdisk-ml"), machine
        assert attaches(machine, "pd-balanced")
    assert attaches("c3-standard-4", "hyperdisk-balanced")
    assert not attaches("g2-standard-8", "hyperdisk-balanced")
    assert not attaches("c4-standard-4", "pd-balanced")


def test_a_pod_finds_its_zones_disk_at_its_mount(site: Site, tmp_path: Path) -> None:
    handle = site.create(snapshot=site.written()).handle
    for zone in (A, B):
        target = tmp_path / zone
        site.publish(handle, target, f"c3-standard-4-{zone}", True)
        site.publish(handle, target, f"c3-standard-4-{zone}", True)
        assert target.resolve() == site.disks.folder("pvc-1", zone).resolve()
        asyncio.run(site.driver.unpublish(target))
        asyncio.run(site.driver.unpublish(target))
        assert not os.path.lexists(target)
    assert (site.disks.folder("pvc-1", A) / "file").exists(), "unmounting leaves the disk whole"


@pytest.mark.skipif(os.geteuid() != 0, reason="files are given to groups by root alone")
def test_what_is_written_to_belongs_to_the_pods_group(site: Site, tmp_path: Path) -> None:
    handle = site.create(parameters=BALANCED, access_modes=["ReadWriteOnce"], zones=[A]).handle
    site.publish(handle, tmp_path / "volume", f"c3-standard-4-{A}", False, fsGroup=4711)
    found = site.disks.folder("pvc-1", A).stat()
    assert (found.st_gid, oct(found.st_mode)[-4:]) == (4711, "2775")


# -- faults ---------------------------------------------------------------------------------------------------------


def test_a_zone_without_capacity_keeps_what_the_others_have(site: Site) -> None:
    site.script(exhausted=[B])
    words = refused(site.create)
    assert "(ZONE_RESOURCE_POOL_EXHAUSTED): The zone 'projects/p/zones/us-central1-b' does not have enough" in words
    assert site.disks.zones_of("pvc-1") == [A]
    assert site.faults.consumed() == {"exhausted": {B: 1}}
    site.script()
    assert site.create().zones == [A, B]


def test_one_byte_of_one_zones_copy_is_another(site: Site) -> None:
    site.script(corrupt=[B])
    handle = site.written(b"weights" * 10)
    site.create(snapshot=handle)
    right, wrong = ((site.disks.folder("pvc-1", zone) / "file").read_bytes() for zone in (A, B))
    assert right == b"weights" * 10
    assert sum(one != other for one, other in zip(right, wrong, strict=True)) == 1
    assert site.faults.consumed() == {"corrupt": {B: 1}}
    site.script()
    site.create("pvc-2", snapshot=handle)
    assert (site.disks.folder("pvc-2", B) / "file").read_bytes() == right, "the image is whole"


def test_a_snapshot_stays_unready_as_long_as_that_is_scripted(site: Site) -> None:
    handle = site.written()
    site.script(never_ready=True)
    assert not site.driver.snapshot(handle).ready
    assert site.faults.consumed() == {"never_ready": {"": 1}}
    site.script()
    assert site.driver.snapshot(handle).ready
