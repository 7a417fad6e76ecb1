"""hydrate_volume against a cluster and a bucket: volumes by both methods, and what goes wrong with them there.

Every fault is scripted in GKE's parts (emulated_cloud/kubernetes/gke/disk_faults.py), which count what was met.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import Cloud, wait_for

from components.ensure_access import step as ensure_access
from components.hydrate_volume import step
from serving import names
from serving.clients import kubernetes
from serving.clients.kubernetes import Cluster
from serving.deployment import leftovers
from serving.errors import InconclusiveError
from serving.outcome import Outcome
from serving.rendering import generation, render
from serving.settings import Settings, override, validated
from serving.weights.release import Release
from tests.contract.test_hydrate_jobs import CONTENT, put

ZONES = ["us-central1-a", "us-central1-b"]
SHORT = "hyperdisk_ml.timeout=40s"
"""For what never comes: long enough for everything before it."""


class Site:
    """A deployment in a namespace of its own, whose weights are in the bucket."""

    def __init__(self, cloud: Cloud):
        self.cloud = cloud
        self.namespace = f"t{uuid.uuid4().hex[:8]}"
        self.key = uuid.uuid4().hex[:16]
        put(f"gs://demo-bucket/models/google/gemma-3-4b-it/{self.key}", CONTENT)
        settings = self.settings()
        self.cluster: Cluster = kubernetes.connect(settings)
        ensure_access.ensure_namespace(self.cluster, render.namespace(settings), settings)
        ensure_access.ensure_bindings(settings, ensure_access.bindings(settings), print)
        for item in render.admin(self.settings("hyperdisk_ml.method=populator")):
            if item["kind"] == "ComputeClass":
                self.cluster.apply(item)

    def settings(self, *assignments: str) -> Settings:
        values: dict[str, Any] = {
            "scenario": "hyperdisk-ml",
            "project": "demo-project",
            "bucket": "demo-bucket",
            "endpoint": "ip",
            "namespace": self.namespace,
            "images": {"components": "example.com/python:1"},
            "hyperdisk_ml": {"zones": ZONES},
            "serving": {"capacity_timeout": "1m"},
        }
        return validated(Settings, override(values, list(assignments)))

    def release(self, settings: Settings) -> Release:
        nameless = Release(
            run_id=f"{self.namespace}-run",
            model=settings.model,
            commit="c" * 40,
            weights_key=self.key,
            weights_uri=f"gs://demo-bucket/models/google/gemma-3-4b-it/{self.key}",
            generation="",
            weights_bytes=sum(map(len, CONTENT.values())),
            zones=ZONES,
        )
        return nameless.model_copy(update={"generation": generation.name(settings, nameless)})

    def hydrate(self, *assignments: str) -> tuple[list[str], Outcome]:
        settings = self.settings(*assignments)
        outcome = Outcome("hydrate_volume", f"{self.namespace}-run")
        return step.hydrate(self.cluster, settings, self.release(settings), outcome), outcome

    def asked(self, since: int) -> list[dict[str, Any]]:
        """The step's own requests since a position in the log: controllers are at work beside it."""
        entries = self.cloud.requests("apiserver")[since:]
        return [entry for entry in entries if entry["user"] == self.cloud.service_account]

    def disks(self) -> list[Path]:
        """The disks that there are: folders with a folder for each zone."""
        return list((self.cloud.folder / "disks").glob("pvc-*"))

    def kinds(self) -> dict[str, int]:
        """What there is of the deployment's generations."""
        found = leftovers._owned(self.cluster, self.settings())
        return {kind: sum(item["kind"] == kind for item in found) for kind in {item["kind"] for item in found}}

    @contextmanager
    def failing(self, **faults: Any) -> Iterator[dict[str, dict[str, int]]]:
        """Has disks fail while the block runs. Afterwards what is given says how often each fault was met."""
        config = self.cloud.folder / "tmp" / "gke.json"
        met, consumed = dict[str, dict[str, int]](), config.with_name("gke.json.consumed")
        consumed.unlink(missing_ok=True)
        before = config.read_text()
        config.write_text(json.dumps({**json.loads(before), "disk_faults": faults}))
        try:
            yield met
        finally:
            config.write_text(before)
            if consumed.exists():
                met.update(json.loads(consumed.read_text()))


@pytest.fixture
def site(emulated_cloud: Cloud, cloud_environment: dict[str, str]) -> Iterator[Site]:
    made = Site(emulated_cloud)
    yield made
    settings = made.settings()
    for item in leftovers._owned(made.cluster, settings):
        generation_name = item["metadata"]["labels"][names.GENERATION]
        leftovers.remove_generation(made.cluster, settings, generation_name, print)
    assert wait_for(lambda: made.disks() == [], 120)


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("_MANIFEST.json", ".disk.json")
    }


WHOLE = {path: hashlib.sha256(data).hexdigest() for path, data in CONTENT.items()}
VOLUME = {"PersistentVolumeClaim": 1, "StorageClass": 1}


@pytest.mark.parametrize(
    ("method", "left"),
    [("snapshot", VOLUME), ("populator", {**VOLUME, "GCPDataSource": 1})],
    ids=["snapshot", "populator"],
)
def test_every_zone_has_every_byte_and_the_second_time_nothing_is_written(
    site: Site, method: str, left: dict[str, int]
):
    wrong, outcome = site.hydrate(f"hyperdisk_ml.method={method}")
    assert (wrong, outcome.status) == ([], "succeeded")
    assert sorted(outcome.details["read"]) == ZONES
    (disk,) = site.disks()
    for zone in ZONES:
        assert WHOLE.items() <= digests(disk / zone).items()
    assert wait_for(lambda: site.kinds() == left, 120), site.kinds()
    assert site.cluster.list("Job", site.namespace) == []
    assert wait_for(lambda: not site.cluster.list("Pod", site.namespace), 120)

    before = len(site.cloud.requests("apiserver"))
    assert site.hydrate(f"hyperdisk_ml.method={method}")[1].status == "skipped"
    assert {entry["method"] for entry in site.asked(before)} == {"GET"}


def test_a_zone_that_the_populator_cannot_fill_is_named_and_filled_when_it_can(site: Site):
    with (
        site.failing(populate={ZONES[1]: "no machines of c3 are left"}) as met,
        pytest.raises(InconclusiveError) as caught,
    ):
        site.hydrate("hyperdisk_ml.method=populator", SHORT, "serving.capacity_timeout=1s")
    assert met["populate"][ZONES[1]] >= 1
    # The populator tries again and again: at the end it may be at it, or have failed once more.
    assert f"waits for the transfer to {ZONES[1]} (" in str(caught.value)
    assert f"in zone {ZONES[1]} failed: no machines of c3 are left" in str(caught.value)
    assert f"{ZONES[0]} (" not in str(caught.value)
    assert site.hydrate("hyperdisk_ml.method=populator")[0] == []


def test_a_volume_that_is_given_up_goes_with_its_source(site: Site):
    with site.failing(populate={ZONES[0]: "no machines"}) as met:
        with pytest.raises(InconclusiveError):
            site.hydrate("hyperdisk_ml.method=populator", SHORT, "serving.capacity_timeout=1s")
        assert len(site.disks()) == 1
        settings = site.settings("hyperdisk_ml.method=populator")
        gone = leftovers.remove_generation(site.cluster, settings, site.release(settings).generation, print)
    assert met["populate"]
    assert [what.partition("/")[0] for what in gone] == ["PersistentVolumeClaim", "GCPDataSource", "StorageClass"]
    assert wait_for(lambda: site.kinds() == {}, 120), site.kinds()
    assert wait_for(lambda: site.disks() == [], 120)


def test_a_snapshot_that_is_not_ready_is_waited_for_and_its_disk_not_copied_again(site: Site):
    with (
        site.failing(never_ready=True) as met,
        pytest.raises(InconclusiveError, match=r"VolumeSnapshot/vllm-g\w+ is not ready"),
    ):
        site.hydrate(SHORT)
    assert met["never_ready"]
    before = len(site.cloud.requests("apiserver"))
    assert site.hydrate()[0] == []
    asked = [entry["path"] for entry in site.asked(before)]
    assert asked
    assert not any("hydrate-volume-copy" in path for path in asked)


def test_a_zone_without_disks_is_told_in_the_drivers_words(site: Site):
    with site.failing(exhausted=[ZONES[1]]) as met, pytest.raises(InconclusiveError) as caught:
        site.hydrate(SHORT)
    assert met["exhausted"][ZONES[1]] >= 1
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in str(caught.value)
    assert ZONES[1] in str(caught.value)
    assert site.hydrate()[0] == []


def test_where_no_zone_has_a_disk_to_copy_onto_the_next_attempt_may_choose_another(site: Site):
    with site.failing(exhausted=ZONES) as met, pytest.raises(InconclusiveError) as caught:
        site.hydrate()
    assert sum(met["exhausted"].values()) >= 1
    assert "got no node" in str(caught.value)
    assert "-staging got no disk: failed to provision volume" in str(caught.value)
    assert "ZONE_RESOURCE_POOL_EXHAUSTED" in str(caught.value)
    assert site.cluster.list("PersistentVolumeClaim", site.namespace) == [], "none is tied to a zone"
    assert site.hydrate()[0] == []


def test_bytes_that_changed_on_the_way_to_one_disk_are_a_verdict(site: Site):
    with site.failing(corrupt=[ZONES[0]]) as met:
        wrong, _ = site.hydrate()
    assert met == {"corrupt": {ZONES[0]: 1}}
    (reason,) = wrong
    assert reason.startswith(f"{ZONES[0]}: ")
    assert "reads otherwise" in reason


def test_a_zone_without_machines_is_no_verdict(site: Site):
    settings = "hyperdisk_ml.compute_class=one-that-nobody-has"
    with pytest.raises(InconclusiveError, match="got no node: its pod still waits for a node"):
        site.hydrate(settings, "serving.capacity_timeout=15s")
    assert site.cluster.list("Job", site.namespace) == []
