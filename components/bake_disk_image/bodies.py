"""What Compute Engine is asked to make, in its own JSON: the machine that bakes, and the image of its disk.

Both carry the labels by which they are found again. The machine ends by itself: Compute Engine deletes it and its disks
when its time is up, whatever has become of the run.
"""

from __future__ import annotations

import importlib.resources
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from components.bake_disk_image import room
from serving import names
from serving.clients.compute import Image
from serving.clients.registry import ResolvedImage
from serving.features.secondary_boot_disk import Section
from serving.settings import Settings
from serving.values import in_seconds

DEVICE = "secondary-disk-image-disk"
ARCHITECTURES = {"amd64": "X86_64", "arm64": "ARM64"}
_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
"""What a service account may is said by its roles."""
_LEAST_SECONDS = 30
"""No machine's time is shorter."""
_LONGEST_TEXT = 2048
"""Characters of a description."""


@dataclass(frozen=True)
class Bake:
    """A disk image that is to be made."""

    settings: Settings
    run_id: str
    disk_image: str
    images: Sequence[ResolvedImage]
    disk_gb: int
    boot_image: Image
    heartbeat_seconds: int = 10

    @property
    def section(self) -> Section:
        section: Section = self.settings.section("secondary-boot-disk")
        return section

    @property
    def labels(self) -> dict[str, str]:
        """The settings' own as far as Compute Engine knows such labels, and ours."""
        given = {key: value for key, value in self.settings.labels.items() if _is_label(key, value)}
        return given | names.compute_labels(self.settings, self.run_id, self.disk_image)


def script() -> str:
    """What the machine runs when it has started."""
    return importlib.resources.files("images").joinpath("disk-builder", "build_disk.py").read_text(encoding="utf-8")


def machine(bake: Bake, zone: str) -> dict[str, Any]:
    """The machine: no address outside, all that shields it, two disks of its own."""
    section, project = bake.section, bake.settings.project
    machine_type = f"projects/{project}/zones/{zone}/machineTypes/{section.machine_type}"
    boot_gb = max(room.BOOT_GB, bake.boot_image.disk_size_gb)
    return {
        "name": bake.disk_image,
        "description": f"bakes the disk image {bake.disk_image} for {names.place(bake.settings)}",
        "machineType": machine_type,
        "labels": bake.labels,
        "tags": {"items": section.tags},
        "disks": [
            _disk(bake, zone, "boot", boot_gb, boot=True, source={"sourceImage": bake.boot_image.self_link}),
            _disk(bake, zone, DEVICE, bake.disk_gb),
        ],
        "networkInterfaces": [_network(section)],
        "serviceAccounts": [{"email": section.service_account, "scopes": [_SCOPE]}] if section.service_account else [],
        "shieldedInstanceConfig": {"enableSecureBoot": True, "enableVtpm": True, "enableIntegrityMonitoring": True},
        "scheduling": {
            "maxRunDuration": {"seconds": str(max(_LEAST_SECONDS, math.ceil(in_seconds(section.timeout))))},
            "instanceTerminationAction": "DELETE",
            "automaticRestart": False,
        },
        "metadata": {
            "items": [
                {"key": "startup-script", "value": script()},
                {"key": "gemma-pipelines-bake", "value": json.dumps(_order(bake))},
                # Nobody logs in.
                {"key": "block-project-ssh-keys", "value": "TRUE"},
            ]
        },
    }


def image(bake: Bake, zone: str) -> dict[str, Any]:
    """The image of the machine's second disk."""
    key = bake.section.kms_key
    project = bake.settings.project
    return {
        "name": bake.disk_image,
        "description": _description(bake.images),
        "family": f"gemma-pipelines-{bake.settings.name}",
        "labels": bake.labels | {"gemma-pipelines-layout": str(names.DISK_LAYOUT)},
        "sourceDisk": f"projects/{project}/zones/{zone}/disks/{_disk_name(bake, DEVICE)}",
        # Where the nodes are, wherever it is baked.
        "storageLocations": [room.region_of(bake.settings.location)],
        "architecture": ARCHITECTURES[bake.section.architecture],
        **({"imageEncryptionKey": {"kmsKeyName": key}} if key else {}),
    }


def _order(bake: Bake) -> dict[str, Any]:
    """What the script is to do."""
    return {
        "device": f"/dev/disk/by-id/google-{DEVICE}",
        "heartbeat_seconds": bake.heartbeat_seconds,
        "images": [
            {
                "name": image.name,
                "registry": image.registry_url,
                "repository": image.repository,
                "digest": image.digest,
                "auth": image.auth,
            }
            for image in bake.images
        ],
    }


def _disk(
    bake: Bake, zone: str, device: str, size_gb: int, *, boot: bool = False, source: dict[str, str] | None = None
) -> dict[str, Any]:
    key, project = bake.section.kms_key, bake.settings.project
    return {
        "boot": boot,
        # With the machine everything of it goes.
        "autoDelete": True,
        "deviceName": device,
        "initializeParams": {
            "diskName": _disk_name(bake, device),
            "diskSizeGb": str(size_gb),
            "diskType": f"projects/{project}/zones/{zone}/diskTypes/{room.disk_type(bake.section.machine_type)}",
            "labels": bake.labels,
            **(source or {}),
        },
        **({"diskEncryptionKey": {"kmsKeyName": key}} if key else {}),
    }


def _disk_name(bake: Bake, device: str) -> str:
    return f"{bake.disk_image}-{'data' if device == DEVICE else device}"


def _network(section: Section) -> dict[str, str]:
    """Without accessConfigs there is no address outside."""
    named = {"network": section.network, "subnetwork": section.subnetwork}
    return {key: value for key, value in named.items() if value} or {"network": "global/networks/default"}


def _description(images: Sequence[ResolvedImage]) -> str:
    text = json.dumps({"layout": names.DISK_LAYOUT, "images": [image.name for image in images]})
    return text if len(text) <= _LONGEST_TEXT else json.dumps({"layout": names.DISK_LAYOUT})


def _is_label(key: str, value: str) -> bool:
    return bool(re.fullmatch(r"[a-z][-_a-z0-9]{0,62}", key) and re.fullmatch(r"[-_a-z0-9]{0,63}", value))
