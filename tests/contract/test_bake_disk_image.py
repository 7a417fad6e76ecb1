"""Baking a disk image against an emulated Compute Engine: what comes of it, and that nothing else is left of it."""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.google.compute import boot

from components.bake_disk_image import bodies
from components.bake_disk_image.step import Pace
from serving import names
from serving.clients import patience, storage
from serving.clients.compute import QuotaError
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.settings import Settings
from tests.contract.bake_site import (
    DONE,
    IMAGES,
    IMPATIENT,
    MACHINES,
    PROJECT,
    TOKEN,
    WORKS,
    ZONES,
    Site,
    emulators,
    settings,
    site,
    site_of,
    started,
    there,
    until,
)
from tests.contract.registry_service import Registry

__all__ = ["emulators", "site", "there"]

STOCK_OUT = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED"}
NOT_OFFERED = {
    "code": "RESOURCE_NOT_FOUND",
    "message": f"The resource 'projects/{PROJECT}/zones/{ZONES[0]}/machineTypes/n2-standard-8' was not found",
}
NAME = re.compile("gp-[0-9a-f]{16}")


def image_there(site: Site) -> str:
    """The name of the one image; nothing else is there, and it is READY."""
    ((found, status),) = site.there().items()
    assert status == "READY"
    return found.removeprefix("images/")


def test_an_image_is_baked_once_and_nothing_else_is_left(site: Site):
    assert site.bake() is True
    name = image_there(site)
    assert NAME.fullmatch(name)
    made = site.image(name)
    assert (made["architecture"], made["diskSizeGb"], made["family"]) == ("X86_64", "10", "gemma-pipelines-gemma")
    assert made["storageLocations"] == ["us-central1"]
    assert made["labels"].items() >= names.compute_labels(settings(), f"run-1-{site.test}", name).items()

    before = site.writes()
    assert site.bake(run_id="run-2") is False
    assert site.writes() == before, "a second run has nothing to do"


def test_what_is_on_an_image_is_remembered_beside_the_weights(site: Site):
    site.bake()
    name = image_there(site)
    uri = f"gs://demo-bucket/disk-images/{name}.json"
    known = storage.read_json(uri)
    assert known["image"] == name
    assert known["digests"] == [f"docker.io/vllm/vllm-openai@{site.digest}"]
    assert [layer["chain_id"] for layer in known["layers"]] == known["chain_ids"]
    assert len(known["chain_ids"]) == 2

    storage.delete(uri)
    assert site.bake(run_id="run-2") is False
    assert storage.read_json(uri) == known, "what was lost is written again"


@pytest.mark.parametrize("short_of", [1, 2])
def test_zones_are_tried_in_order_while_they_are_out_of_machines(site: Site, short_of: int):
    site.script(
        *(site.outcome("POST", f"zones/{zone}/instances$", error=STOCK_OUT) for zone in ZONES[:short_of]),
        site.outcome("POST", f"zones/{ZONES[short_of]}/instances$"),
    )
    assert site.bake()
    assert site.consumed() == [1] * (short_of + 1)
    assert image_there(site)


def test_no_zone_with_a_machine_is_inconclusive(site: Site):
    site.script(*(site.outcome("POST", f"zones/{zone}/instances$", error=STOCK_OUT) for zone in ZONES))
    with pytest.raises(InconclusiveError, match=f"no zone has a n2-standard-8 to give now .{', '.join(ZONES)}."):
        site.bake()
    assert site.consumed() == [1, 1, 1]
    assert site.there() == {}


def test_a_run_that_is_tried_again_asks_anew(site: Site):
    site.script(*(site.outcome("POST", f"zones/{zone}/instances$", error=STOCK_OUT) for zone in ZONES))
    with pytest.raises(InconclusiveError):
        site.bake()
    site.script()
    assert site.bake(), "the zones have machines again, and the request is not the one that failed"
    assert image_there(site)


def test_a_zone_that_never_has_such_machines_is_passed_over(site: Site):
    site.script(site.outcome("POST", f"zones/{ZONES[0]}/instances$", error=NOT_OFFERED))
    assert site.bake()
    assert site.consumed() == [1]
    assert f"started in {ZONES[1]}" in "\n".join(site.said)


def test_a_machine_type_that_no_zone_has_is_a_wrong_request(site: Site):
    with pytest.raises(RequestError, match=f"there is no n2-standard-7 in {', '.join(ZONES)}: see `gcloud "):
        site.bake(settings(section={"machine_type": "n2-standard-7"}))
    assert [line for line in site.said if "Trying the next zone" in line] == site.said
    assert len(site.said) == len(ZONES)
    assert site.there() == {}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_network_that_is_not_there_is_a_wrong_request_that_names_the_setting(site: Site, at_once: bool):
    words = f"The resource 'projects/{PROJECT}/global/networks/default' was not found"
    reasons = [{"domain": "global", "reason": "notFound", "message": words}]
    body = json.dumps({"error": {"code": 404, "message": words, "errors": reasons}})
    refusal = {"action": "status", "status": 404, "method": "POST", "path": r"/instances\?", "body": body}
    later = site.outcome("POST", MACHINES, error={"code": "RESOURCE_NOT_FOUND", "message": words})
    site.script({**refusal, "headers": {"Content-Type": "application/json"}} if at_once else later)
    with pytest.raises(RequestError, match=rf"{words}\. .*secondary_boot_disk\.network"):
        site.bake()
    assert site.consumed() == [1]
    assert site.there() == {}


def test_the_settings_own_zones_are_the_only_ones(site: Site):
    site.script(site.outcome("POST", f"zones/{ZONES[2]}/instances$", error=STOCK_OUT))
    with pytest.raises(InconclusiveError, match=re.escape(f"({ZONES[2]})")):
        site.bake(settings(section={"zones": [ZONES[2]]}))
    assert site.consumed() == [1]


@pytest.mark.parametrize(
    ("quotas", "words"),
    [
        ({"N2_CPUS": 4}, "region us-central1 has 4 of 4 N2_CPUS left; baking needs 8"),
        ({"SSD_TOTAL_GB": 15}, "15 of 15 SSD_TOTAL_GB left; baking needs 20"),
        ({"CPUS_ALL_REGIONS": 0}, f"project {PROJECT} has 0 of 0 CPUS_ALL_REGIONS left"),
    ],
)
def test_a_quota_without_room_ends_it_before_anything_is_made(
    tmp_path: Path, there: Registry, monkeypatch: pytest.MonkeyPatch, quotas: dict[str, float], words: str
):
    emulators = started(tmp_path, quotas=quotas)
    site = site_of(emulators, there, monkeypatch)
    with pytest.raises(QuotaError, match=words) as raised:
        site.bake()
    assert raised.value.final
    assert site.writes() == []
    emulators.stop()


def test_a_quota_that_runs_out_meanwhile_ends_it_too(site: Site):
    error = {"code": "QUOTA_EXCEEDED", "message": "Quota 'N2_CPUS' exceeded.  Limit: 8.0 in region us-central1."}
    site.script(site.outcome("POST", MACHINES, error=error))
    before = len(site.writes())
    with pytest.raises(QuotaError, match="Quota 'N2_CPUS' exceeded"):
        site.bake()
    assert site.consumed() == [1]
    assert [each for each in site.writes()[before:] if each.endswith("/instances")] == [
        f"POST /compute/v1/projects/{PROJECT}/zones/{ZONES[0]}/instances"
    ], "another zone of the region would not help"
    assert site.there() == {}


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        pytest.param({"boots": False}, "has said nothing for", id="never starts"),
        pytest.param({"output": []}, "has said nothing for", id="is silent"),
        pytest.param({"output": WORKS[:2]}, "progress 40 layer 1", id="hangs"),
        pytest.param({"output": WORKS, "after": "progress 40", "then": "silent"}, "progress 40 layer 1", id="mute"),
        pytest.param(
            {"output": ["a line", "GP-BAKE failed the registry said 403"]}, "the registry said 403", id="fails"
        ),
        pytest.param({"output": ["GP-BAKE failed the disk is full: it holds 10 GB"]}, "disk_size_gb", id="full"),
    ],
)
def test_a_machine_that_does_not_do_it_is_inconclusive_and_goes(site: Site, machine: dict[str, Any], words: str):
    site.script(site.outcome("POST", MACHINES, machine=machine))
    with pytest.raises(InconclusiveError, match=words) as raised:
        site.bake(pace=IMPATIENT)
    assert "Its last lines:\n" in str(raised.value)
    assert site.consumed() == [1]
    assert site.there() == {}


def test_a_machine_that_is_never_made_goes_when_it_is(site: Site):
    site.script(site.outcome("POST", MACHINES, hold=True))
    with pytest.raises(InconclusiveError, match="is not done after"):
        site.bake(pace=IMPATIENT)
    assert site.consumed() == [1]
    site.script()
    assert site.there() == {}


def test_a_machine_that_is_gone_is_told_of(site: Site):
    site.script(site.outcome("POST", MACHINES, expires=2, machine={"output": WORKS[:2]}))
    with pytest.raises(InconclusiveError, match="is gone before it was done"):
        site.bake()
    assert site.consumed() == [1]
    assert site.there() == {}


def test_what_takes_longer_than_its_time_is_given_up(site: Site):
    site.script(site.outcome("POST", MACHINES, machine={"output": WORKS[:2]}))
    with pytest.raises(InconclusiveError, match=r"not done after secondary_boot_disk\.timeout"):
        site.bake(settings(section={"timeout": "5s"}))
    assert site.consumed() == [1]
    assert site.there() == {}


def test_an_image_that_cannot_be_made_is_inconclusive_and_goes(site: Site):
    error = {"code": "INTERNAL_ERROR", "message": "Internal error"}
    site.script(site.outcome("POST", IMAGES, error=error))
    with pytest.raises(InconclusiveError, match=r"image gp-.*Internal error"):
        site.bake()
    assert site.consumed() == [1]
    assert site.there() == {}
    site.script()
    assert site.bake(), "the same run, tried again"
    assert image_there(site)


def test_an_image_that_failed_before_is_made_again(site: Site):
    error = {"code": "INTERNAL_ERROR", "message": "Internal error"}
    site.script(site.outcome("POST", IMAGES, error=error), site.outcome("DELETE", "images/gp-", error=error))
    with pytest.raises(InconclusiveError):
        site.bake()
    assert site.consumed() == [1, 1]
    assert list(site.there().values()) == ["FAILED"]
    site.script()
    assert site.bake(run_id="run-2")
    assert image_there(site)


def test_an_image_that_is_being_made_is_waited_for(site: Site):
    site.script(site.outcome("POST", IMAGES, hold=True))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(site.bake)
        until(lambda: "PENDING" in site.there().values())
        second = pool.submit(site.baking()._settled)
        until(lambda: any("is PENDING: waiting for it" in line for line in site.said))
        site.script()
        assert first.result()
        assert second.result().status == "READY"
    assert image_there(site)


@pytest.mark.parametrize("path", ["/instances", "/stop", "/images", "/instances/gp-[0-9a-f]+"])
def test_an_answer_that_is_lost_is_the_same_operation_again(site: Site, path: str):
    site.script({"action": "unanswered", "method": "POST|DELETE", "path": rf"{path}\?"})
    assert site.bake()
    assert site.consumed() == [1]
    assert image_there(site)


@pytest.mark.parametrize(
    ("method", "path", "status", "reason"),
    [
        ("POST", "/images", 400, "resourceNotReady"),
        ("DELETE", "/instances/gp-[0-9a-f]+", 400, "resourceNotReady"),
        ("POST", "/instances", 403, "rateLimitExceeded"),
    ],
)
def test_what_is_busy_is_waited_for(site: Site, method: str, path: str, status: int, reason: str):
    error = {"message": "not now", "domain": "global", "reason": reason}
    body = json.dumps({"error": {"code": status, "message": error["message"], "errors": [error]}})
    busy = {"action": "status", "status": status, "body": body, "headers": {"Content-Type": "application/json"}}
    site.script({**busy, "method": method, "path": rf"{path}\?"})
    assert site.bake()
    assert site.consumed() == [1]
    assert image_there(site)


def test_who_is_away_is_waited_for(site: Site):
    site.script(*({"action": "status", "status": 503, "path": "/compute/v1/", "times": 1} for _ in range(4)))
    assert site.bake()
    assert site.consumed() == [1] * 4


def test_who_may_not_is_told_the_role(site: Site):
    body = '{"error": {"code": 403, "message": "Required \'compute.instances.create\' permission", "errors": []}}'
    refusal = {"action": "status", "status": 403, "method": "POST", "path": r"/instances\?", "body": body}
    site.script({**refusal, "headers": {"Content-Type": "application/json"}})
    with pytest.raises(AccessError, match=r"compute\.instances\.create.*roles/compute\.instanceAdmin\.v1"):
        site.bake()
    assert site.consumed() == [1]
    assert site.there() == {}


def test_what_dead_runs_left_goes_and_what_is_others_stays(site: Site):
    others = settings(namespace="other")
    for config, run_id in ((settings(), "run-0"), (others, "run-0")):
        leave(site, config, run_id)
    left = site.there()
    assert len(left) == 6, "two machines with two disks each"
    assert site.bake()
    there = site.there()
    theirs = site.release(others, "run-0").disk_image
    assert {name for name in there if theirs in name} == {name for name in left if theirs in name}
    assert len(there) == 4


def leave(site: Site, config: Any, run_id: str, output: list[str] = WORKS[:2]) -> None:
    """A machine that a run left."""
    site.script(site.outcome("POST", MACHINES, machine={"output": output}))
    baking = site.baking(config, run_id)
    baking._started(baking._plan(baking._images()))


def test_a_machine_of_the_same_run_is_gone_on_with(site: Site):
    leave(site, settings(), "run-1", WORKS)
    site.script(site.outcome("POST", MACHINES))
    assert site.bake()
    assert any("going on with it" in line for line in site.said)
    assert site.consumed() == [0], "no other is made"
    assert image_there(site)


PRIVATE = {"image": "us-docker.pkg.dev/vllm/vllm-openai:v0.33.0"}
"""Artifact Registry's name for the repository that there is."""


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (settings(section={"boot_image_family": "debian-9"}), "boot_image_family"),
        (settings(section={"boot_image_family": "debian-13-arm64"}), "is for ARM64"),
        (settings(section={"machine_type": "n2-standard-3"}), "n2-standard-3"),
        (settings(engine=PRIVATE), "secondary_boot_disk.service_account"),
    ],
    ids=["no family", "another architecture", "no machine type", "private"],
)
def test_what_cannot_be_is_said_at_once(site: Site, config: Settings, words: str):
    site.registry.token = TOKEN
    with pytest.raises(RequestError, match=words):
        site.bake(config)
    assert site.there() == {}


def test_a_tag_that_moved_since_is_not_baked(site: Site):
    config = settings(section={"further_images": ["vllm/vllm-openai:other"]})
    site.registry.put_image("other", b"third")
    with pytest.raises(InconclusiveError, match="vllm/vllm-openai:other is another image than when this run began"):
        site.bake(config)
    assert site.there() == {}


def test_an_api_that_stays_away_is_inconclusive(site: Site):
    site.script({"action": "status", "status": 503, "path": "/compute/v1/", "times": 1000})
    with patience.lasting(0.1), pytest.raises(InconclusiveError, match="Run again later"):
        site.bake()


def test_the_last_word_counts(site: Site):
    site.script(site.outcome("POST", MACHINES, machine={"output": [DONE, "GP-BAKE failed too late"]}))
    assert site.bake()


def layer(**files: str) -> bytes:
    """A layer with files in its root."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return content.getvalue()


@pytest.mark.skipif(not boot.is_possible(), reason="needs root and loop devices")
def test_the_script_itself_bakes_what_the_registry_has(
    tmp_path: Path, there: Registry, monkeypatch: pytest.MonkeyPatch
):
    script = bodies.script()
    emulators = started(tmp_path, run_scripts=True)
    site = site_of(emulators, there, monkeypatch)
    monkeypatch.setattr(bodies, "script", lambda: script)
    site.digest = there.put_image("v0.33.0", layer(greeting="hello"), layer(answer="42"))["digest"]
    assert site.bake(pace=Pace(look=0.2))
    name = image_there(site)
    known = storage.read_json(f"gs://demo-bucket/disk-images/{name}.json")
    raw = tmp_path / "compute" / "global" / "images" / f"{name}.raw"

    def read(path: str) -> str:
        return subprocess.run(["debugfs", "-R", f"cat {path}", raw], capture_output=True, check=True, text=True).stdout

    lines = [line.split() for line in read("/snapshots.metadata").splitlines()]
    assert [line[0] for line in lines] == known["chain_ids"]
    assert [read(f"/{lines[0][1]}/greeting"), read(f"/{lines[1][1]}/answer")] == ["hello", "42"]
    assert f"docker.io/vllm/vllm-openai@{site.digest}" in read("/images.metadata")
    emulators.stop()
