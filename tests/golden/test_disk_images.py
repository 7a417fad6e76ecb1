"""What Compute Engine is asked for to bake a disk image: compared with golden files, and judged by its own document.

`make golden` writes them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from components.bake_disk_image import bodies
from components.bake_disk_image.bodies import Bake
from serving import names
from serving.clients.compute import Image
from serving.clients.registry import Layer, ResolvedImage
from serving.settings import Settings, validated
from tests.contract.discovery import Conformance, _validate

GOLDEN = Path(__file__).parent / "disk-images"
DIGEST = "sha256:" + "1" * 64
IMAGE = ResolvedImage(
    f"docker.io/vllm/vllm-openai@{DIGEST}",
    "https://registry-1.docker.io",
    "vllm/vllm-openai",
    DIGEST,
    ("sha256:" + "2" * 64,),
    (Layer("sha256:" + "3" * 64, 1000, "application/vnd.oci.image.layer.v1.tar+gzip"),),
    "anonymous",
)
PRIVATE = ResolvedImage(
    f"us-docker.pkg.dev/demo-project/images/side@{DIGEST}",
    "https://us-docker.pkg.dev",
    "demo-project/images/side",
    DIGEST,
    IMAGE.diff_ids,
    IMAGE.layers,
    "google",
)
HOUSE_RULES = {
    "location": "europe-west4",
    "labels": {"cost-center": "a1", "example.com/owner": "Nobody", "team": "assistants"},
    "secondary_boot_disk": {
        "machine_type": "c4a-standard-16",
        "architecture": "arm64",
        "network": "projects/host-project/global/networks/shared",
        "subnetwork": "projects/host-project/regions/europe-west4/subnetworks/builders",
        "service_account": "baker@demo-project.iam.gserviceaccount.com",
        "kms_key": "projects/demo-project/locations/europe-west4/keyRings/r/cryptoKeys/k",
        "boot_image_family": "debian-13-arm64",
        "tags": ["bake", "no-egress"],
        "timeout": "90m",
        "further_images": ["us-docker.pkg.dev/demo-project/images/side:v1"],
    },
}


def bake(changes: dict[str, Any], *images: ResolvedImage, disk_gb: int) -> Bake:
    given = {"scenario": "secondary-boot-disk", "project": "demo-project", "bucket": "demo-bucket", **changes}
    settings: Settings = validated(Settings, given)
    section = settings.section("secondary-boot-disk")
    name = names.disk_image_name(
        settings, [each.name for each in images], architecture=section.architecture, kms_key=section.kms_key
    )
    link = f"https://www.googleapis.com/compute/v1/projects/debian-cloud/global/images/{section.boot_image_family}-v1"
    boot_image = Image("debian", "1", "READY", link, bodies.ARCHITECTURES[section.architecture], 10, {})
    return Bake(settings, "run-1", name, images, disk_gb, boot_image)


BAKES = {
    "plain": (bake({}, IMAGE, disk_gb=31), "us-central1-a"),
    "house-rules": (bake(HOUSE_RULES, IMAGE, PRIVATE, disk_gb=40), "europe-west4-b"),
}


@pytest.mark.parametrize("name", BAKES)
def test_bodies_are_those_of_the_golden_files(name: str, update_golden: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "script", lambda: "#!/usr/bin/python3\n(images/disk-builder/build_disk.py)\n")
    wanted, zone = BAKES[name]
    made = {"machine": bodies.machine(wanted, zone), "image": bodies.image(wanted, zone)}
    compute = Conformance("compute", "v1")
    _validate("Instance", compute._requests, made["machine"], "machine")
    _validate("Image", compute._requests, made["image"], "image")
    text = json.dumps(made, indent=2) + "\n"
    path = GOLDEN / f"{name}.json"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, "run: make golden"


@pytest.mark.parametrize("name", BAKES)
def test_a_machine_has_no_address_outside_and_ends_by_itself(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "script", lambda: "")
    machine = bodies.machine(*BAKES[name])
    assert not any("accessConfigs" in interface for interface in machine["networkInterfaces"])
    assert all(disk["autoDelete"] for disk in machine["disks"])
    assert machine["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert all(machine["shieldedInstanceConfig"].values())


def test_the_script_is_the_one_that_is_shipped_and_fits_into_metadata():
    text = bodies.script()
    assert text.startswith("#!/usr/bin/python3\n")
    assert len(text.encode()) < 256 << 10
