"""What Compute Engine has to offer: zones, machine types, quotas, images that anybody may start from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from emulated_cloud.google.compute import resources

PROJECT_QUOTAS = {"CPUS_ALL_REGIONS": 72.0, "GPUS_ALL_REGIONS": 16.0, "IMAGES": 2000.0, "SNAPSHOTS": 5000.0}
REGION_QUOTAS = {
    "CPUS": 72.0,
    "N2_CPUS": 72.0,
    "N2D_CPUS": 72.0,
    "C3_CPUS": 72.0,
    "T2A_CPUS": 72.0,
    "INSTANCES": 720.0,
    "DISKS_TOTAL_GB": 40960.0,
    "HDB_TOTAL_GB": 8192.0,
    "NVIDIA_L4_GPUS": 16.0,
    "PREEMPTIBLE_NVIDIA_L4_GPUS": 16.0,
    "SSD_TOTAL_GB": 8192.0,
}
"""What a project may use unless the configuration says otherwise, in all and in a region. Newer machine families have
quotas of their own that no region shows; here they have none."""

PUBLIC_IMAGES = {
    "cos-cloud": ["cos-stable", "cos-arm64-stable"],
    "debian-cloud": ["debian-12", "debian-12-arm64", "debian-13", "debian-13-arm64"],
    "ubuntu-os-cloud": ["ubuntu-2404-lts-amd64", "ubuntu-2404-lts-arm64"],
}
"""Families, by the project that has them."""

_ACCELERATORS = (
    ("nvidia-l4", "NVIDIA L4", 8),
    ("nvidia-tesla-a100", "NVIDIA A100 40GB", 16),
    ("nvidia-a100-80gb", "NVIDIA A100 80GB", 8),
    ("nvidia-h100-80gb", "NVIDIA H100 80GB", 8),
)
"""Name, description, and how many a machine may have."""

_CPUS = (2, 4, 8, 16, 32, 48)
_GB_PER_CPU = {"highcpu": 1, "standard": 4, "highmem": 8}
_FAMILIES = ("e2", "n1", "n2", "n2d", "c3", "c4", "c4a", "c4d", "n4", "n4a", "n4d", "t2a")
_ARM = ("c4a", "n4a", "t2a")
_HYPERDISKS_ALONE = ("c4", "c4a", "c4d", "n4", "n4a", "n4d")
# Those that count against the quota of all machines, not against one of their own.
_COMMON = ("e2", "n1")


def machine_types(project: str, zone: str) -> list[dict[str, Any]]:
    return [
        _machine_type(project, zone, family, shape, cpus, gb * cpus)
        for family in _FAMILIES
        for shape, gb in _GB_PER_CPU.items()
        for cpus in _CPUS
    ]


def _machine_type(project: str, zone: str, family: str, shape: str, cpus: int, gb: int) -> dict[str, Any]:
    name = f"{family}-{shape}-{cpus}"
    return {
        "kind": "compute#machineType",
        "id": str(sum(ord(letter) << place for place, letter in enumerate(name))),
        "creationTimestamp": "2026-01-01T00:00:00.000-08:00",
        "name": name,
        "description": f"{cpus} vCPUs, {gb} GB RAM",
        "guestCpus": cpus,
        "memoryMb": gb << 10,
        "maximumPersistentDisks": 128,
        "maximumPersistentDisksSizeGb": "263168",
        "zone": zone,
        "isSharedCpu": False,
        "architecture": "ARM64" if family in _ARM else "X86_64",
        "selfLink": resources.link(project, f"zones/{zone}/machineTypes/{name}"),
    }


def has_hyperdisks_alone(machine_type: str) -> bool:
    return machine_type.partition("-")[0] in _HYPERDISKS_ALONE


def cpu_quota(machine_type: str) -> str:
    """The quota that a machine's vCPUs count against, beside that of all regions."""
    family = machine_type.partition("-")[0]
    return "CPUS" if family in _COMMON else f"{family.upper()}_CPUS"


def disk_quota(disk_type: str) -> str:
    """The quota that a disk's size counts against; empty for the types that no region shows one of."""
    if disk_type.startswith("hyperdisk-"):
        return "HDB_TOTAL_GB" if disk_type == "hyperdisk-balanced" else ""
    return "DISKS_TOTAL_GB" if disk_type == "pd-standard" else "SSD_TOTAL_GB"


def quotas(limits: dict[str, float], given: dict[str, float], used: dict[str, float]) -> list[dict[str, Any]]:
    """Those of `limits`, as the configuration changes them, and what is used of each."""
    return [
        {"metric": metric, "limit": float(given.get(metric, limit)), "usage": used.get(metric, 0.0)}
        for metric, limit in limits.items()
    ]


def accelerator_types(project: str, zone: str) -> list[dict[str, Any]]:
    return [
        {
            "kind": "compute#acceleratorType",
            "id": str(10_000 + number),
            "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
            "name": name,
            "description": description,
            "maximumCardsPerInstance": cards,
            "zone": resources.link(project, f"zones/{zone}"),
            "selfLink": resources.link(project, f"zones/{zone}/acceleratorTypes/{name}"),
        }
        for number, (name, description, cards) in enumerate(_ACCELERATORS)
    ]


def zone_resource(project: str, name: str) -> dict[str, Any]:
    return {
        "kind": "compute#zone",
        "id": str(2000 + ord(name[-1])),
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "name": name,
        "description": name,
        "status": "UP",
        "region": resources.link(project, f"regions/{name.rpartition('-')[0]}"),
        "selfLink": resources.link(project, f"zones/{name}"),
    }


def region_resource(project: str, name: str, zones: Iterable[str], quotas: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "kind": "compute#region",
        "id": "1000",
        "creationTimestamp": "1969-12-31T16:00:00.000-08:00",
        "name": name,
        "description": name,
        "status": "UP",
        "zones": [resources.link(project, f"zones/{zone}") for zone in zones],
        "quotas": quotas,
        "selfLink": resources.link(project, f"regions/{name}"),
    }


def public_image(project: str, family: str) -> dict[str, Any]:
    """The newest image of a public family; its name has a date in it."""
    name = f"{family}-v20261110"
    return {
        "kind": "compute#image",
        "id": str(sum(ord(letter) << place for place, letter in enumerate(name))),
        "creationTimestamp": "2026-11-10T00:00:00.000-08:00",
        "name": name,
        "family": family,
        "status": "READY",
        "sourceType": "RAW",
        "diskSizeGb": "10",
        "archiveSizeBytes": "1200000000",
        "architecture": "ARM64" if "arm64" in family else "X86_64",
        "selfLink": resources.link(project, f"global/images/{name}"),
    }


def family_of(name: str) -> str:
    return re.sub(r"-v\d{8}$", "", name)
