"""What baking a disk image reads and asks for: a machine's own words, the room that it needs, quotas."""

from __future__ import annotations

from typing import Any, cast

import pytest

from components.bake_disk_image import room
from components.bake_disk_image.serial import Serial
from serving.clients.compute import Compute, QuotaError, Room
from serving.features.secondary_boot_disk import Section

GIB = 1 << 30
DONE = "d" * 64


def heard(*pieces: str) -> Serial:
    serial = Serial()
    for piece in pieces:
        serial.take(piece)
    return serial


def test_words_are_found_behind_whatever_the_system_puts_before_them():
    serial = heard(
        "[    3.1] systemd[1]: Started.\r\n",
        "\x1b[0;32mgoogle_metadata_script_runner[612]: startup-script: GP-BAKE heartbeat 0\x1b[0m\r\n",
        "google_metadata_script_runner[612]: startup-script: GP-BAKE progress 42 layer 3 of 27: 1.2 of 3.0 GB\r\n",
    )
    assert (serial.heartbeats, serial.percent, serial.words) == (2, 42, "layer 3 of 27: 1.2 of 3.0 GB")
    assert not serial.done
    assert not serial.failed


def test_a_line_may_come_in_pieces_and_counts_when_it_is_whole():
    serial = heard("… GP-BAKE pro", "gress 7 a", " b\n… GP-BAKE done dd")
    assert (serial.percent, serial.words, serial.done) == (7, "a b", "")
    serial.take("d" * 62 + "\n")
    assert serial.done == DONE


@pytest.mark.parametrize(
    ("lines", "done", "failed"),
    [
        ([f"GP-BAKE done {DONE}", "GP-BAKE failed too late"], DONE, ""),
        (["GP-BAKE failed no such blob", f"GP-BAKE done {DONE}"], "", "no such blob"),
        (["GP-BAKE failed "], "", "it does not say why"),
        (["GP-BAKE done", f"GP-BAKE done {DONE[:40]}", "GP-BAKES failed x", "GP-BAKE heartbeat soon"], "", ""),
    ],
    ids=["done first", "failed first", "no reason", "nothing of ours"],
)
def test_the_first_last_word_counts(lines: list[str], done: str, failed: str):
    serial = heard("".join(f"{line}\n" for line in lines))
    assert (serial.done, serial.failed) == (done, failed)


def test_the_last_forty_lines_are_kept_and_none_of_them_floods_a_log():
    serial = heard("".join(f"line {number}\n" for number in range(100)), "x" * 10_000 + "\n", "never ends" * 100_000)
    *others, last = serial.tail.splitlines()
    assert others[0] == "line 61"
    assert len(others) == 39
    assert last == "x" * 500
    assert len(serial._part) < 100_000
    assert heard().tail == "(nothing)"


@pytest.mark.parametrize(
    ("unpacked", "size_gb"),
    [({"a": 1}, 10), ({"a": 10 * GIB}, 11), ({"a": 10 * GIB, "b": 10 * GIB}, 22), ({"a": 20 * GIB + 1}, 23)],
)
def test_a_disk_has_room_for_the_layers_and_a_tenth_more(unpacked: dict[str, int], size_gb: int):
    assert room.size_gb(unpacked) == size_gb


class Regions:
    """What Compute Engine says of quotas."""

    project = "demo"

    def __init__(self, regions: dict[str, dict[str, float]], project: dict[str, float] | None = None):
        self._regions, self._project = regions, project or {}

    def region(self, name: str) -> tuple[list[str], dict[str, Room]]:
        return [f"{name}-a", f"{name}-b"], self._rooms(self._regions[name])

    def project_quotas(self) -> dict[str, Room]:
        return self._rooms(self._project)

    @staticmethod
    def _rooms(left: dict[str, float]) -> dict[str, Room]:
        return {metric: Room(limit=100, left=amount) for metric, amount in left.items()}


def zones(compute: Regions, location: str = "us-central1", **section: Any) -> list[str]:
    return room.zones(cast(Compute, compute), Section(**section), location, disk_gb=25)


def test_zones_are_those_of_the_clusters_region_unless_settings_name_some():
    there = Regions({"us-central1": {}, "europe-west4": {}})
    assert zones(there) == ["us-central1-a", "us-central1-b"]
    assert zones(there, "us-central1-f") == ["us-central1-a", "us-central1-b"], "the cluster's zone may be another"
    assert zones(there, zones=["europe-west4-c"]) == ["europe-west4-c"]


@pytest.mark.parametrize(
    ("machine_type", "left", "fits"),
    [
        ("n2-standard-8", {"N2_CPUS": 8, "SSD_TOTAL_GB": 35, "INSTANCES": 1}, True),
        ("n2-standard-8", {"N2_CPUS": 7}, False),
        ("n2-standard-8", {"CPUS": 0}, True),
        ("e2-standard-4", {"CPUS": 3}, False),
        ("e2-medium", {"CPUS": 2}, True),
        ("n2-custom-4-16384", {"N2_CPUS": 4}, True),
        ("n2-standard-8", {"SSD_TOTAL_GB": 34}, False),
        ("c4-standard-8", {"SSD_TOTAL_GB": 0}, True),
        ("c4-standard-8", {"HDB_TOTAL_GB": 34}, False),
        ("n2-standard-8", {"INSTANCES": 0}, False),
    ],
)
def test_a_region_has_to_have_room_for_the_machine_and_its_disks(machine_type: str, left: dict[str, float], fits: bool):
    there = Regions({"us-central1": left})
    if fits:
        assert zones(there, machine_type=machine_type)
        return
    (metric,) = left
    with pytest.raises(QuotaError, match=f"region us-central1 has {left[metric]} of 100 {metric} left; baking needs"):
        zones(there, machine_type=machine_type)


def test_a_region_without_room_is_passed_over_for_one_that_has_it():
    there = Regions({"us-central1": {"N2_CPUS": 0}, "europe-west4": {"N2_CPUS": 8}})
    assert zones(there, zones=["us-central1-a", "europe-west4-a"]) == ["europe-west4-a"]


@pytest.mark.parametrize("metric", ["CPUS_ALL_REGIONS", "IMAGES"])
def test_the_whole_projects_quotas_count_too(metric: str):
    with pytest.raises(QuotaError, match=f"project demo has 0 of 100 {metric} left"):
        zones(Regions({"us-central1": {}}, {metric: 0}))
