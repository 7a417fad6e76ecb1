"""Disk images that nothing starts from go, whoever's else stay, and what dead runs left of baking goes too."""

from __future__ import annotations

from typing import Any

import pytest

from serving import names
from serving.clients import storage
from serving.deployment import disk_images
from serving.deployment.discarding import take_disk_image_away
from serving.deployment.record import Known, Record
from serving.errors import InconclusiveError
from tests.contract.bake_site import MACHINES, WORKS, Site, emulators, settings, site, there
from tests.unit.cluster import MemoryCluster

__all__ = ["emulators", "site", "there"]

KEY = "projects/p/locations/us/keyRings/r/cryptoKeys/k"
"""With it the deployment's image is another."""
OTHERS = settings(namespace="other")


def known(disk_image: str) -> Known:
    return Known(model="m", commit="c", weights_key="k", weights_uri="gs://demo-bucket/w", disk_image=disk_image)


def record(*in_use: str) -> Record:
    """A record of generations that start from these images, the first of them live."""
    generations = {f"g{number}": known(image) for number, image in enumerate(in_use)}
    live, *kept = [*generations, ""]
    return Record(live=live, kept=[name for name in kept if name], generations=generations)


@pytest.fixture
def baked(site: Site) -> tuple[str, str, str]:
    """Three images: two of the deployment, and another's."""
    made = []
    for config in (settings(), settings(section={"kms_key": KEY}), OTHERS):
        site.bake(config)
        made.append(site.release(config, "").disk_image)
    return tuple(made)


def images(site: Site) -> set[str]:
    return {name.removeprefix("images/") for name in site.there()}


def remembered() -> set[str]:
    prefix = names.disk_image_records(settings())
    return {uri.removeprefix(prefix).removesuffix(".json") for uri in storage.list_uris(prefix)}


def collect(site: Site, generations: Record) -> list[str]:
    return disk_images.collect(settings(), generations, "run-9", site.said.append)


def test_images_of_no_generation_go_and_the_others_stay(site: Site, baked: tuple[str, str, str]):
    mine, old, theirs = baked
    assert collect(site, record(mine)) == [old]
    assert images(site) == remembered() == {mine, theirs}
    assert f"deleted disk image {old}" in site.said
    before = site.writes()
    assert collect(site, record(mine)) == []
    assert site.writes() == before


def test_what_a_kept_generation_starts_from_stays(site: Site, baked: tuple[str, str, str]):
    mine, old, _ = baked
    assert collect(site, record(mine, old)) == []
    assert images(site) == set(baked)


def test_nothing_is_collected_while_nobody_knows_what_a_generation_starts_from(site: Site, baked: Any):
    assert collect(site, Record(live="g1")) == []
    assert images(site) == remembered() == set(baked)


def test_a_deployment_that_never_baked_asks_nobody(site: Site):
    site.script({"action": "status", "status": 403, "path": "/compute/v1/"})
    assert collect(site, record()) == []
    disk_images.sweep(settings(), "run-9", site.said.append)
    assert site.consumed() == [0]


def test_what_a_dead_run_left_goes_with_a_collection_and_with_the_report(site: Site, baked: tuple[str, str, str]):
    mine, old, _ = baked
    for clean in (
        lambda: collect(site, record(mine, old)),
        lambda: disk_images.sweep(settings(), "run-9", site.said.append),
    ):
        site.script(site.outcome("POST", MACHINES, machine={"output": WORKS[:2]}))
        baking = site.baking(run_id=f"run-{len(site.said)}")
        baking._started(baking._plan(baking._images()))
        assert images(site) > set(baked)
        clean()
        assert images(site) == set(baked)


def test_what_cannot_be_taken_away_is_named_with_the_command(site: Site):
    site.script(site.outcome("POST", MACHINES, machine={"output": WORKS[:2]}))
    baking = site.baking()
    disk_images.remember(settings(), baking._name, baking._images())
    baking._started(baking._plan(baking._images()))
    site.script(site.outcome("DELETE", "instances/gp-", error={"code": "INTERNAL_ERROR", "message": "Internal error"}))
    command = f"gcloud compute instances delete {baking._name} --zone us-central1-a --project demo-project"
    with pytest.raises(InconclusiveError, match=command):
        disk_images.sweep(settings(), "run-9", site.said.append)
    assert site.consumed() == [1]
    site.script()
    disk_images.sweep(settings(), "run-9", site.said.append)
    assert site.there() == {}, "asked for again, it is no repetition of what failed"


def test_a_rejected_releases_image_goes_unless_another_generation_starts_from_it(site: Site, baked: Any):
    mine, _, theirs = baked
    cluster = MemoryCluster()
    record(mine).write(cluster, settings())
    release = site.release(settings(), "run-9")
    take_disk_image_away(cluster, settings(), release, site.said.append)
    assert images(site) == {mine, theirs}


def test_discarding_goes_on_without_compute_engine(site: Site, baked: Any):
    mine, _, _ = baked
    cluster = MemoryCluster()
    record(mine).write(cluster, settings())
    site.script({"action": "status", "status": 403, "path": "/compute/v1/", "times": 1})
    take_disk_image_away(cluster, settings(), site.release(settings(), "run-9"), site.said.append)
    assert site.consumed() == [1]
    assert "could not take its disk image away" in site.said[-1]
    assert images(site) == set(baked)
