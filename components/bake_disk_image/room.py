"""How much room baking needs, and whether the project may have it: looked at before anything is made."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from serving.clients.compute import Compute, QuotaError, Room
from serving.features.secondary_boot_disk import Section

BOOT_GB = 10
_SMALLEST_GB = 10
_FOR_THE_FILE_SYSTEM = 1.1
_HYPERDISK_ALONE = re.compile(r"(n4|c4)[a-z]*-")
"""Machines that have no persistent disks."""
_OF_ALL_MACHINES = ("e2", "f1", "g1", "n1")
"""Series that count against the quota CPUS; any other has one of its own."""


def size_gb(unpacked: Mapping[str, int]) -> int:
    """The size of a disk for layers of so many bytes (by chain ID), in Compute Engine's GB, which are GiB."""
    return max(_SMALLEST_GB, math.ceil(sum(unpacked.values()) * _FOR_THE_FILE_SYSTEM / (1 << 30)))


def disk_type(machine_type: str) -> str:
    """The fast disks that a machine can have."""
    return "hyperdisk-balanced" if _HYPERDISK_ALONE.match(machine_type) else "pd-ssd"


def region_of(place: str) -> str:
    """Of a zone, or a region itself."""
    return "-".join(place.split("-")[:2])


@dataclass(frozen=True)
class Shortage:
    """A quota that has too little left for the machine, its disks and its image. `region` is empty for one of the whole
    project."""

    project: str
    region: str
    metric: str
    room: Room
    wanted: float

    def __str__(self) -> str:
        where = f"region {self.region}" if self.region else f"project {self.project}"
        left = f"{max(0, self.room.left):g} of {self.room.limit:g} {self.metric} left"
        return f"{where} has {left}; baking needs {self.wanted:g}"


def zones(compute: Compute, section: Section, location: str, disk_gb: int) -> list[str]:
    """Where the machine may be: the settings' zones or those of the cluster's region, as far as quotas have room.

    Raises QuotaError where none has.
    """
    usable, short = _usable(compute, section, location, disk_gb)
    if not usable:
        raise _error(short)
    return usable


def shortages(compute: Compute, section: Section, location: str, disk_gb: int) -> list[Shortage]:
    """For want of what there is no zone that the machine may be in; nothing where there is one."""
    usable, short = _usable(compute, section, location, disk_gb)
    return [] if usable else short


def _usable(compute: Compute, section: Section, location: str, disk_gb: int) -> tuple[list[str], list[Shortage]]:
    region = region_of(location)
    there, rooms = compute.region(region)
    known = {region: rooms}
    cpus = _cpus(section.machine_type)
    short = _short(compute, "", compute.project_quotas(), {"CPUS_ALL_REGIONS": cpus, "IMAGES": 1})
    if short:
        return [], short
    wanted = {
        _cpu_metric(section.machine_type): cpus,
        "SSD_TOTAL_GB" if disk_type(section.machine_type) == "pd-ssd" else "HDB_TOTAL_GB": disk_gb + BOOT_GB,
        "INSTANCES": 1,
    }
    usable = []
    for zone in section.zones or there:
        its = region_of(zone)
        if its not in known:
            known[its] = compute.region(its)[1]
        lacking = _short(compute, its, known[its], wanted)
        if not lacking:
            usable.append(zone)
        short += [each for each in lacking if each not in short]
    return usable, short


def _cpus(machine_type: str) -> int:
    """`n2-standard-8` has 8, `n2-custom-4-16384` has 4; those that do not say have two at most."""
    found = re.search(r"-(\d+)(-|$)", machine_type)
    return int(found[1]) if found else 2


def _cpu_metric(machine_type: str) -> str:
    series = machine_type.partition("-")[0]
    return "CPUS" if series in _OF_ALL_MACHINES else f"{series.upper()}_CPUS"


def _short(compute: Compute, region: str, rooms: Mapping[str, Room], wanted: Mapping[str, float]) -> list[Shortage]:
    """Quotas that have too little left. One that nobody speaks of has no limit that is known."""
    return [
        Shortage(compute.project, region, metric, rooms[metric], amount)
        for metric, amount in wanted.items()
        if metric in rooms and rooms[metric].left < amount
    ]


def _error(short: list[Shortage]) -> QuotaError:
    return QuotaError(
        f"{'; '.join(map(str, short))}. Ask for more (https://console.cloud.google.com/iam-admin/quotas), free what "
        "nobody needs, or set secondary_boot_disk.machine_type or zones"
    )
