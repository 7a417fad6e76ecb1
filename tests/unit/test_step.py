"""What every step opens with: parameters, outcome, and the cluster under the Lease."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import pkgutil
import re
import signal
from typing import Any

import pytest

from components import __path__ as PATH
from serving import log, names
from serving.clients import kubernetes, patience, storage
from serving.deployment import lease, record
from serving.errors import InconclusiveError, ToldToEnd
from serving.step import opened
from tests.unit import deployment
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, quick

SETTINGS = quick()
URI = f"{SETTINGS.pipeline_root}/{RELEASE.run_id}/steps/promote_generation.json"


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    objects: dict[str, Any] = {}
    monkeypatch.setattr(storage, "read_json", objects.get)
    monkeypatch.setattr(storage, "write_json", objects.__setitem__)
    return objects


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> MemoryCluster:
    """The cluster, whose Lease this run holds."""
    cluster = MemoryCluster()
    monkeypatch.setattr(kubernetes, "connect", lambda settings: cluster)
    lease.take(cluster, SETTINGS, RELEASE.run_id, print)  # type: ignore[arg-type]
    return cluster


def holder(cluster: MemoryCluster) -> str:
    held = cluster.get("Lease", SETTINGS.name, SETTINGS.namespace)
    assert held
    return lease.holder(held)


def promoted(cluster: MemoryCluster, work: Any = lambda: None) -> None:
    with (
        opened("promote_generation", SETTINGS.as_struct(), RELEASE.model_dump()) as step,
        step.cluster() as connected,
    ):
        assert connected is cluster
        assert holder(cluster) == RELEASE.run_id
        assert (step.settings, step.release) == (SETTINGS, RELEASE)
        work()


def told_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_the_lease_outlives_a_step_that_did_its_work(bucket, cluster):
    promoted(cluster)
    assert bucket[URI]["status"] == "succeeded"
    assert holder(cluster) == RELEASE.run_id


def test_a_step_that_is_told_to_end_gives_the_lease_back_and_another_attempt_takes_it_again(bucket, cluster):
    with pytest.raises(SystemExit):
        promoted(cluster, told_to_end)
    assert bucket[URI]["status"] == "inconclusive"
    assert holder(cluster) == ""
    promoted(cluster)
    assert bucket[URI]["status"] == "succeeded"


def replicas_of(cluster: MemoryCluster, generation: str) -> int:
    found = cluster.get("Deployment", names.server(generation), SETTINGS.namespace)
    assert found
    return int(found["spec"]["replicas"])


@pytest.mark.parametrize(("serving", "left"), [("g1", 0), ("g2", 1)], ids=["not live yet", "live"])
def test_a_step_that_is_told_to_end_gives_back_the_accelerators_that_nothing_serves_from(
    bucket, cluster, serving: str, left: int
):
    for body in (deployment.deployment("g1"), deployment.deployment("g2"), deployment.service(serving)):
        cluster.create(body)
    with pytest.raises(SystemExit):
        promoted(cluster, told_to_end)
    assert replicas_of(cluster, RELEASE.generation) == left
    assert replicas_of(cluster, "g1") == 1, "another's, or live"
    assert holder(cluster) == ""


def test_a_generation_that_waits_validated_for_a_person_keeps_its_accelerators(bucket, cluster):
    cluster.create(deployment.deployment("g2"))
    known = record.read(cluster, SETTINGS)
    known.remember(RELEASE)
    known.validated = "g2"
    known.write(cluster, SETTINGS)
    with pytest.raises(SystemExit):
        promoted(cluster, told_to_end)
    assert replicas_of(cluster, "g2") == 1


def test_a_step_that_is_told_to_end_and_cannot_give_back_says_so_and_ends(bucket, cluster, capsys):
    cluster.create(deployment.deployment("g2"))

    def away(verb: str, kind: str, name: str) -> None:
        raise InconclusiveError("the API server does not answer")

    def work() -> None:
        cluster.before_write = away
        told_to_end()

    with pytest.raises(SystemExit):
        promoted(cluster, work)
    said = capsys.readouterr().out
    assert "could not give back what the run holds (the API server does not answer)" in said
    assert bucket[URI]["error"]["type"] == "ToldToEnd"


@pytest.mark.parametrize(
    ("given", "seconds"), [({}, 600), ({"patience": "90s"}, 90), ({"patience": "soon"}, 600), ({"patience": 3}, 600)]
)
def test_a_step_waits_as_long_as_its_settings_say_also_for_its_own_outcome(
    cluster, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], seconds: float
):
    seen: list[float] = []
    monkeypatch.setattr(storage, "read_json", lambda uri: seen.append(patience.left()))
    monkeypatch.setattr(storage, "write_json", lambda uri, value: seen.append(patience.left()))
    with contextlib.suppress(SystemExit), opened("x", {**SETTINGS.as_struct(), **given}, RELEASE.model_dump()):
        pass
    assert seen == [seconds] * 2


def test_a_step_that_is_told_to_end_does_not_wait_for_anybody_any_more(bucket, cluster):
    left: list[float] = []

    def work() -> None:
        try:
            told_to_end()
        finally:
            left.append(patience.left())

    with pytest.raises(SystemExit):
        promoted(cluster, work)
    assert left[0] <= 10
    assert patience.left() == 600


def test_another_attempt_does_not_take_the_lease_from_a_run_that_has_it_by_now(bucket, cluster):
    with pytest.raises(SystemExit):
        promoted(cluster, told_to_end)
    lease.take(cluster, SETTINGS, "run-3", print)
    with pytest.raises(SystemExit):
        promoted(cluster)
    assert bucket[URI]["error"]["type"] == "LeaseHeldError"
    assert holder(cluster) == "run-3"


def test_a_lease_that_nobody_gave_back_and_is_gone_is_lost(bucket, cluster):
    lease.give_back(cluster, SETTINGS, RELEASE.run_id)
    with pytest.raises(SystemExit):
        promoted(cluster)
    assert "lost the Lease" in bucket[URI]["message"]


def test_being_told_to_end_while_waiting_for_the_lease_takes_it_from_nobody(bucket, cluster):
    def wait(*_: object) -> None:
        raise ToldToEnd

    another = RELEASE.model_copy(update={"run_id": "run-3"}).model_dump()

    def took() -> None:
        with (
            opened("ensure_access", SETTINGS.as_struct(), another) as step,
            step.holding_lease(cluster, take=True),  # type: ignore[arg-type]
        ):
            pytest.fail("went on")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "take", wait)
        with pytest.raises(SystemExit):
            took()
    assert holder(cluster) == RELEASE.run_id


@pytest.mark.parametrize("place", ["before the body", "before the cluster", "after the cluster"])
def test_wherever_a_step_is_told_to_end_it_gives_back_what_the_run_holds(bucket, cluster, place: str, monkeypatch):
    cluster.create(deployment.deployment("g2"))
    if place == "before the body":
        read = storage.read_json
        monkeypatch.setattr(storage, "read_json", lambda uri: (told_to_end(), read(uri))[1])

    def downloaded() -> None:
        with opened("download_weights", SETTINGS.as_struct(), RELEASE.model_dump()) as step:
            assert place != "before the body"
            if place == "after the cluster":
                with step.cluster():
                    pass
            told_to_end()

    with pytest.raises(SystemExit):
        downloaded()
    assert bucket[URI.replace("promote_generation", "download_weights")]["error"]["type"] == "ToldToEnd"
    assert holder(cluster) == ""
    assert replicas_of(cluster, "g2") == 0


ALL = {each.name: importlib.import_module(f"components.{each.name}.step").run for each in pkgutil.iter_modules(PATH)}
STEPS = {name: run for name, run in ALL.items() if "release" in inspect.signature(run).parameters}


@pytest.mark.parametrize("name", STEPS)
def test_every_step_that_works_on_a_release_gives_back_what_the_run_holds(bucket, cluster, name: str, monkeypatch):
    """All but the first and the last, which hold nothing. What else a step has begun, its own tests say."""
    cluster.create(deployment.deployment("g2"))
    tell = log.entry

    def told(message: str, **fields: Any) -> None:
        tell(message, **fields)
        if message == "started":
            told_to_end()

    monkeypatch.setattr(log, "entry", told)
    given = {"settings": SETTINGS.as_struct(), "release": RELEASE.model_dump(), "passed": True, "reasons": []}
    with pytest.raises(SystemExit):
        STEPS[name](**{key: given[key] for key in inspect.signature(STEPS[name]).parameters})
    assert bucket[URI.replace("promote_generation", name)]["error"]["type"] == "ToldToEnd"
    assert holder(cluster) == ""
    assert replicas_of(cluster, "g2") == 0


def test_what_was_handed_on_wrongly_leaves_an_outcome(bucket, cluster):
    wrong = {**SETTINGS.as_struct(), "serving": {"replicas": -1}}
    with pytest.raises(SystemExit), opened("promote_generation", wrong, RELEASE.model_dump()):
        pytest.fail("went on")
    assert bucket[URI]["error"]["type"] == "RequestError"
    assert "serving.replicas" in bucket[URI]["message"]


@pytest.mark.parametrize(
    "job",
    [
        "gemma-gcs-fuse-20261128",
        "a" * 63,
        "a" * 64,
        "a" * 127,
        "gemma-" + "-" * 60 + "x",
        "Nightly run (3)",
        "새벽",
        "-x-",
    ],
)
def test_a_run_is_named_by_what_is_a_legal_label_and_a_legal_name(job: str):
    run = names.run(job)
    legal = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
    assert legal.fullmatch(run)
    assert (run == job) == bool(legal.fullmatch(job))
    assert names.run(run) == run


def test_jobs_whose_names_begin_alike_are_different_runs():
    assert names.run("a" * 70 + "1") != names.run("a" * 70 + "2")
    assert names.run("Nightly run") != names.run("nightly-run")
