"""Machines of the emulated Compute Engine: the startup script really runs, on a disk that really is one.

These want root and loop devices; the rest of Compute Engine is in test_compute.py.
"""

from __future__ import annotations

import subprocess
import textwrap
from pathlib import Path

import pytest
from emulated_cloud.google.compute import boot
from google.api_core import exceptions

from tests.contract.compute_service import ZONE, compute, new_compute

__all__ = ["compute", "new_compute"]

pytestmark = pytest.mark.skipif(not boot.is_possible(), reason="needs root and loop devices")

SCRIPT = textwrap.dedent("""\
    #!/usr/bin/python3
    import os, subprocess, urllib.request

    def ask(path):
        url = f"http://{os.environ['GCE_METADATA_HOST']}/computeMetadata/v1/{path}"
        request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
        return urllib.request.urlopen(request).read().decode()

    device = "/dev/disk/by-id/google-data"
    print("told", ask("instance/attributes/what-to-do"), flush=True)
    print("I am", ask("instance/service-accounts/default/email"), ask("instance/name"), flush=True)
    assert "access_token" in ask("instance/service-accounts/default/token")
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", device], check=True)
    os.makedirs("/mnt/disks/layers")
    subprocess.run(["mount", device, "/mnt/disks/layers"], check=True)
    with open("/mnt/disks/layers/greeting", "w") as file:
        file.write("hello from the machine")
    print("half", flush=True)
    subprocess.run(["umount", "/mnt/disks/layers"], check=True)
    subprocess.run(["e2fsck", "-fn", device], check=True)
    print("all done", flush=True)
    """)


def loops(folder: Path) -> list[str]:
    attached = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True)
    return [line for line in attached.stdout.decode().splitlines() if str(folder) in line]


def test_from_a_script_to_an_image(compute):
    compute.do(compute.insert("builder", script=SCRIPT, metadata={"what-to-do": "write"}))
    said = compute.wait_for_serial("builder", "startup-script exit status 0")
    assert "startup-script: told write\r\n" in said
    assert "startup-script: I am builder@demo.iam.gserviceaccount.com builder\r\n" in said
    assert "startup-script: all done\r\n" in said
    with pytest.raises(exceptions.BadRequest, match="already being used by 'projects/demo/zones/us-central1-a/inst"):
        compute.images.insert_unary(project="demo", image_resource=image("nodes-1", "builder-data"))

    there = {"project": "demo", "zone": ZONE, "instance": "builder"}
    compute.do(compute.instances.stop_unary(**there))
    assert compute.instances.get(**there).status == "TERMINATED"
    with pytest.raises(exceptions.BadRequest, match="is not ready"):
        compute.serial("builder")
    compute.do(compute.instances.set_disk_auto_delete_unary({**there, "device_name": "data", "auto_delete": False}))
    compute.do(compute.instances.delete_unary(**there))
    assert {"disks/builder-data"} == {each for each in compute.there() if "builder" in each}
    compute.do(compute.images.insert_unary(project="demo", image_resource=image("nodes-1", "builder-data")))
    compute.do(compute.disks.delete_unary(project="demo", zone=ZONE, disk="builder-data"))

    found = compute.images.get(project="demo", image="nodes-1")
    assert (found.status, found.disk_size_gb, dict(found.labels)) == ("READY", 1, {"made-by": "test"})
    raw = compute.folder / "compute" / "global" / "images" / "nodes-1.raw"
    read = subprocess.run(["debugfs", "-R", "cat /greeting", raw], capture_output=True, check=True)
    assert read.stdout == b"hello from the machine"
    assert subprocess.run(["e2fsck", "-fn", raw], capture_output=True).returncode == 0
    assert loops(compute.folder) == []


def image(name: str, disk: str) -> dict:
    source = f"projects/demo/zones/{ZONE}/disks/{disk}"
    return {"name": name, "source_disk": source, "labels": {"made-by": "test"}}
