"""Rapid Cache of several deployments in one bucket: made, shared, handed on and disabled, whatever ends a run."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from typing import Any

import pytest

from components.deploy_server import warming
from serving import names
from serving.clients import rapid_cache, storage
from serving.deployment import caches
from serving.deployment.job import Work
from serving.errors import InconclusiveError, RequestError
from serving.outcome import Outcome
from serving.settings import Settings
from tests.contract.test_hydrate_jobs import CONTENT, SHARD, SIZES, put, read
from tests.contract.transfer_site import Site, _site, site
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, quick

__all__ = ["_site", "site"]

ZONE, OTHER_ZONE = "us-central1-a", "us-central1-b"
INSERT = {"action": "outcome", "method": "POST", "path": "/anywhereCaches$"}


class Bucket:
    """A bucket of the test's own, and deployments with weights in it."""

    def __init__(self) -> None:
        self.name = storage.client().create_bucket(f"caches-{uuid.uuid4().hex[:12]}", location="us-central1").name
        self.lines: list[str] = []

    def settings(self, name: str = "one", *zones: str, rapid_cache: bool = True, timeout: str = "20s") -> Settings:
        section = {
            "profile": "manual",
            "rapid_cache": rapid_cache,
            "rapid_cache_zones": list(zones or [ZONE]),
            "rapid_cache_timeout": timeout,
        }
        return quick(bucket=self.name, name=name, gcs_fuse=section)

    def ensure(self, settings: Settings) -> list[str]:
        return caches.ensure(settings, self.lines.append)

    def running(self, settings: Settings) -> dict[str, Any]:
        """Makes what the settings want, and waits for it."""
        self.ensure(settings)
        return caches.wait_until_running(settings, self.lines.append)

    def leave(self, name: str = "one") -> list[str]:
        """What a run does whose settings want no cache any more."""
        return caches.leave(self.settings(name, rapid_cache=False), self.lines.append)

    def somebody_makes(self, zone: str = ZONE) -> None:
        rapid_cache.create(self.name, zone, 86400)
        caches.wait_until_running(self.settings("somebody", zone), self.lines.append)

    @property
    def states(self) -> dict[str, str]:
        return {zone: cache.state for zone, cache in rapid_cache.caches(self.name).items()}

    def record(self, zone: str = ZONE) -> dict[str, Any]:
        return storage.read_json(names.cache_record(self.settings(), zone)) or {}


@pytest.fixture
def bucket(site: Site) -> Bucket:
    return Bucket()


def place(settings: Settings) -> str:
    return names.place(settings)


# -- making -------------------------------------------------------------------------------------------------


def test_caches_are_made_once_in_every_zone(bucket: Bucket):
    settings = bucket.settings("one", ZONE, OTHER_ZONE)
    assert bucket.ensure(settings) == [f"Rapid Cache in {ZONE}", f"Rapid Cache in {OTHER_ZONE}"]
    found = caches.wait_until_running(settings, bucket.lines.append)
    assert bucket.states == {ZONE: "RUNNING", OTHER_ZONE: "RUNNING"}
    assert found[ZONE].ttl == "86400s"
    assert bucket.ensure(settings) == []
    known = bucket.record()
    assert (known["made_by"], known["needed_by"]) == (place(settings), [place(settings)])
    assert known["created"] == found[ZONE].created


def test_without_the_setting_nothing_is_asked_or_written(site: Site, bucket: Bucket):
    before = len(site.requests("storage"))
    settings = bucket.settings(rapid_cache=False)
    assert bucket.ensure(settings) == []
    assert len(site.requests("storage")) == before
    assert caches.amiss(settings, RELEASE) == ""
    assert bucket.leave() == []
    assert not [entry for entry in site.requests("storage")[before:] if entry["method"] != "GET"]
    assert not [entry for entry in site.requests("storage")[before:] if "anywhereCaches" in entry["path"]]


def test_a_deployments_cache_gets_its_time_to_live(bucket: Bucket):
    settings = bucket.settings()
    bucket.running(settings)
    longer = quick(
        bucket=bucket.name, name="one", gcs_fuse={**settings.section("gcs-fuse").model_dump(), "rapid_cache_ttl": "48h"}
    )
    assert bucket.ensure(longer) == [f"Rapid Cache in {ZONE}"]
    assert "keeps what nobody reads for 172800 s" in bucket.lines[-1]
    other = quick(bucket=bucket.name, name="two", gcs_fuse=settings.section("gcs-fuse").model_dump())
    assert bucket.ensure(other) == []  # It is another's to say.


def test_why_a_cache_was_not_made_and_the_next_run_makes_it(site: Site, bucket: Bucket):
    settings = bucket.settings()
    site.script("storage", {**INSERT, "outcome": {"error": {"code": 8, "message": "no capacity there"}}})
    with pytest.raises(InconclusiveError, match=rf"no Rapid Cache .* in {ZONE}: no capacity there.*rapid_cache_zones"):
        bucket.running(settings)
    assert site.consumed("storage") == [1]
    site.script("storage")
    assert bucket.running(settings)[ZONE].state == "RUNNING"


def test_a_cache_that_does_not_come_in_time_is_inconclusive(site: Site, bucket: Bucket):
    site.script("storage", {**INSERT, "outcome": {"hold": True}})
    with pytest.raises(InconclusiveError, match=rf"does not work yet .* {ZONE} \(CREATING\)\. It goes on being made"):
        bucket.running(bucket.settings(timeout="0.3s"))
    assert site.consumed("storage") == [1]
    site.script("storage")
    assert bucket.running(bucket.settings())[ZONE].state == "RUNNING"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("after_the_call", [False, True], ids=["before it is asked for", "before that is written down"])
def test_a_run_that_was_killed_is_gone_on_with(bucket: Bucket, monkeypatch: pytest.MonkeyPatch, after_the_call: bool):
    create = rapid_cache.create

    def killed(*arguments: Any) -> str:
        if after_the_call:
            create(*arguments)
        raise Killed

    monkeypatch.setattr(rapid_cache, "create", killed)
    with pytest.raises(Killed):
        bucket.ensure(bucket.settings())
    monkeypatch.setattr(rapid_cache, "create", create)
    bucket.running(bucket.settings())
    assert bucket.record()["made_by"] == place(bucket.settings())
    assert bucket.leave() == [ZONE]
    assert bucket.states == {ZONE: "DISABLED"}


def test_who_is_second_in_a_race_did_not_make_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    bucket.somebody_makes()
    with monkeypatch.context() as racing:
        racing.setattr(rapid_cache, "caches", lambda bucket: {})
        assert bucket.ensure(bucket.settings()) == []
    assert bucket.record()["made_by"] == ""


# -- needing and leaving ------------------------------------------------------------------------------------


def test_who_made_a_cache_disables_it_when_nobody_needs_it(bucket: Bucket):
    bucket.running(bucket.settings())
    assert bucket.leave() == [ZONE]
    assert bucket.states == {ZONE: "DISABLED"}
    assert bucket.leave() == []
    assert caches.amiss(bucket.settings(rapid_cache=False), RELEASE) == ""


@pytest.mark.parametrize("who", ["one", "two"])
def test_a_cache_that_was_left_is_woken_within_the_hour(bucket: Bucket, who: str):
    bucket.running(bucket.settings("one"))
    bucket.leave("one")
    assert bucket.ensure(bucket.settings(who)) == [f"Rapid Cache in {ZONE}"]
    assert bucket.states == {ZONE: "RUNNING"}
    assert bucket.record()["made_by"] == place(bucket.settings(who))
    assert bucket.leave(who) == [ZONE]


def test_a_run_that_was_killed_while_it_left_is_gone_on_with(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    bucket.running(bucket.settings())

    def killed(*arguments: Any) -> None:
        raise Killed

    with monkeypatch.context() as killing:
        killing.setattr(rapid_cache, "disable", killed)
        with pytest.raises(Killed):
            bucket.leave()
    gone = bucket.settings(rapid_cache=False)
    assert caches.amiss(gone, RELEASE) == f"it needs no Rapid Cache in {ZONE} any more"
    assert bucket.leave() == [ZONE]


def test_a_cache_that_others_need_is_handed_on(bucket: Bucket):
    one, two = bucket.settings("one"), bucket.settings("two")
    bucket.running(one)
    assert bucket.ensure(two) == []
    assert bucket.leave("one") == []
    assert f"stays: {place(two)} has it" in bucket.lines[-1]
    assert bucket.states == {ZONE: "RUNNING"}
    assert bucket.leave("two") == [ZONE]
    assert bucket.states == {ZONE: "DISABLED"}


def test_who_only_needs_a_cache_leaves_it_as_it_is(bucket: Bucket):
    bucket.running(bucket.settings("one"))
    bucket.ensure(bucket.settings("two"))
    assert bucket.leave("two") == []
    assert bucket.states == {ZONE: "RUNNING"}
    assert bucket.record()["needed_by"] == [place(bucket.settings("one"))]


def test_somebody_elses_cache_is_used_and_never_disabled(bucket: Bucket):
    bucket.somebody_makes()
    assert bucket.ensure(bucket.settings()) == []
    assert bucket.record()["made_by"] == ""
    assert bucket.leave() == []
    assert bucket.states == {ZONE: "RUNNING"}
    assert bucket.record() == {}


def test_a_cache_that_somebody_made_in_place_of_ours_is_theirs(bucket: Bucket):
    settings = bucket.settings()
    bucket.running(settings)
    storage.write_json(names.cache_record(settings, ZONE), {**bucket.record(), "created": "2026-01-01T00:00:00.000Z"})
    assert caches.amiss(settings, RELEASE) == f"its weights were not read into the Rapid Cache in {ZONE}"
    assert bucket.leave() == []
    assert bucket.states == {ZONE: "RUNNING"}
    storage.write_json(names.cache_record(settings, ZONE), {"made_by": place(settings), "created": "2026"})
    bucket.ensure(settings)
    assert bucket.record()["made_by"] == ""


def test_a_sleeping_cache_of_ours_is_woken_and_somebody_elses_is_not(bucket: Bucket):
    settings = bucket.settings()
    cache = bucket.running(settings)[ZONE]
    rapid_cache.disable(bucket.name, cache)
    assert caches.amiss(settings, RELEASE) == f"its Rapid Cache in {ZONE} is DISABLED"
    with pytest.raises(InconclusiveError, match="somebody left it DISABLED"):
        caches.wait_until_running(settings, bucket.lines.append)
    assert bucket.ensure(settings) == [f"Rapid Cache in {ZONE}"]
    assert bucket.states == {ZONE: "RUNNING"}
    bucket.somebody_makes(OTHER_ZONE)
    rapid_cache.disable(bucket.name, rapid_cache.caches(bucket.name)[OTHER_ZONE])
    command = f"anywhere-caches resume {bucket.name}/{OTHER_ZONE}"
    with pytest.raises(RequestError, match=f"DISABLED, and somebody else's: .*{command}"):
        bucket.ensure(bucket.settings("one", OTHER_ZONE))


def test_who_comes_in_the_moment_of_leaving_finds_it_working(bucket: Bucket, monkeypatch: pytest.MonkeyPatch):
    one, two = bucket.settings("one"), bucket.settings("two")
    bucket.running(one)
    disable = rapid_cache.disable

    def disable_late(*arguments: Any) -> None:
        bucket.ensure(two)
        disable(*arguments)

    monkeypatch.setattr(rapid_cache, "disable", disable_late)
    assert bucket.leave("one") == []
    assert bucket.states == {ZONE: "RUNNING"}
    known = bucket.record()
    assert (known["made_by"], known["needed_by"]) == (place(two), [place(two)])


# -- what resolve_model asks --------------------------------------------------------------------------------


def test_in_what_caches_are_amiss(bucket: Bucket):
    settings = bucket.settings()
    assert caches.amiss(settings, RELEASE) == f"its Rapid Cache in {ZONE} is missing"
    cache = bucket.running(settings)[ZONE]
    assert caches.amiss(settings, RELEASE) == f"its weights were not read into the Rapid Cache in {ZONE}"
    caches.is_warm(settings, RELEASE, ZONE, cache)
    assert caches.amiss(settings, RELEASE) == ""
    newer = RELEASE.model_copy(update={"weights_key": "f" * 16})
    assert caches.amiss(settings, newer) == f"its weights were not read into the Rapid Cache in {ZONE}"
    gone = bucket.settings(rapid_cache=False)
    assert caches.amiss(gone, RELEASE) == f"it needs no Rapid Cache in {ZONE} any more"
    moved = bucket.settings("one", OTHER_ZONE)
    bucket.running(moved)
    caches.is_warm(moved, RELEASE, OTHER_ZONE, rapid_cache.caches(bucket.name)[OTHER_ZONE])
    assert caches.amiss(moved, RELEASE) == f"it needs no Rapid Cache in {ZONE} any more"
    assert caches.leave(moved, bucket.lines.append) == [ZONE]
    assert caches.amiss(moved, RELEASE) == ""


# -- reading into it ----------------------------------------------------------------------------------------


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Jobs are asked for; `ends` are their ends, by zone."""
    asked: dict[str, Any] = {"ends": {}}

    def run_jobs(cluster: Any, settings: Any, works: list[Work], **options: Any) -> list[Any]:
        asked["works"] = {work.part: work for work in works}
        return [asked["ends"].get(work.part, {"files": 1, "bytes": 2, "seconds": 3.0}) for work in works]

    monkeypatch.setattr(warming, "run_jobs", run_jobs)
    monkeypatch.setattr(warming.engine, "component_image", lambda settings: "image")
    return asked


def outcome(bucket: Bucket) -> Outcome:
    return Outcome("deploy_server", f"gs://{bucket.name}/pipelines", "run-2")


def test_weights_are_read_in_every_zone_before_the_server_is_deployed(bucket: Bucket, jobs: dict[str, Any]):
    settings = bucket.settings("one", ZONE, OTHER_ZONE)
    bucket.ensure(settings)
    cluster, told = MemoryCluster(), outcome(bucket)
    warming.warm(cluster, settings, RELEASE, told)
    assert set(jobs["works"]) == {ZONE, OTHER_ZONE}
    work = jobs["works"][ZONE]
    assert work.pod == {
        "serviceAccountName": settings.serving.service_account,
        "nodeSelector": {"topology.kubernetes.io/zone": ZONE},
    }
    assert json.loads(work.args[-1])["weights_uri"] == RELEASE.weights_uri
    assert cluster.get("ServiceAccount", settings.serving.service_account, settings.namespace)
    assert set(told.details["rapid_cache"]) == {ZONE, OTHER_ZONE}
    assert caches.amiss(settings, RELEASE) == ""


def test_a_zone_without_a_machine_is_inconclusive_and_the_others_are_remembered(bucket: Bucket, jobs: dict[str, Any]):
    settings = bucket.settings("one", ZONE, OTHER_ZONE)
    bucket.ensure(settings)
    jobs["ends"][OTHER_ZONE] = InconclusiveError("it got no pod to run in")
    with pytest.raises(InconclusiveError, match=rf"read into the Rapid Cache in {OTHER_ZONE}: it got no pod"):
        warming.warm(MemoryCluster(), settings, RELEASE, outcome(bucket))
    assert bucket.record(ZONE)["warm"] == [RELEASE.weights_key]
    assert bucket.record(OTHER_ZONE)["warm"] == []


def test_a_cache_that_takes_in_second_reads_is_read_into_twice(bucket: Bucket, jobs: dict[str, Any]):
    bucket.somebody_makes()
    path = f"/b/{bucket.name}/anywhereCaches/{ZONE}"
    body = {"admissionPolicy": "admit-on-second-miss"}
    storage.client()._connection.api_request("PATCH", path, data=body)
    settings = bucket.settings()
    bucket.running(settings)
    assert rapid_cache.caches(bucket.name)[ZONE].admission == "admit-on-second-miss"
    warming.warm(MemoryCluster(), settings, RELEASE, outcome(bucket))
    assert json.loads(jobs["works"][ZONE].args[-1])["times"] == 2


def test_without_the_setting_nothing_is_read(bucket: Bucket, jobs: dict[str, Any]):
    warming.warm(MemoryCluster(), bucket.settings(rapid_cache=False), RELEASE, outcome(bucket))
    assert "works" not in jobs


# -- the Job ------------------------------------------------------------------------------------------------


def run(site: Site, weights_uri: str, **plan: Any) -> tuple[int, str, str]:
    text = json.dumps({"weights_uri": weights_uri, "patience_seconds": 10, **plan})
    command = [sys.executable, "-m", "components.deploy_server", "read", text]
    ended = subprocess.run(command, capture_output=True, text=True, env=site.environment, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize("times", [1, 2])
def test_the_job_reads_every_byte(site: Site, bucket: Bucket, times: int):
    weights_uri = put(f"gs://{bucket.name}/models/test/m/0123456789abcdef", CONTENT)
    before = len(read(site))
    code, out, err = run(site, weights_uri, times=times)
    assert (code, err) == (0, "")
    found = json.loads(out.splitlines()[-1])
    assert (found["files"], found["bytes"]) == (len(SIZES), sum(SIZES.values()))
    assert len(read(site)) - before == times * len(SIZES)


def test_the_job_tells_of_other_bytes_and_of_a_closed_bucket(site: Site, bucket: Bucket):
    weights_uri = put(f"gs://{bucket.name}/models/test/m/0123456789abcdef", CONTENT)
    site.script("storage", {"action": "corrupt", "method": "GET", "path": SHARD})
    code, _, err = run(site, weights_uri)
    assert site.consumed("storage") == [1]
    assert (code, f"{weights_uri}/{SHARD} reads otherwise: sha256 " in err) == (1, True)
    site.script("storage", {"action": "status", "status": 403, "method": "GET", "path": "_MANIFEST"})
    code, _, err = run(site, weights_uri, patience_seconds=0)
    assert site.consumed("storage") == [1]
    assert (code, "Its service account needs roles/storage.objectViewer" in err) == (1, True)
