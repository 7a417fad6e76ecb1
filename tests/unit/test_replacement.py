"""`rollout: replace`: one generation at a time, the old one back whatever happens, by a cluster with room for one."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from components.deploy_server import step as deploy_server
from components.ensure_access import step as ensure_access
from components.promote_generation import step as promote_generation
from components.resolve_model.decision import Situation, decide
from components.write_report import step as write_report
from pipelines.cli import submit
from pipelines.cli.output import Output
from pipelines.local import cloud
from serving import names
from serving.clients import kubernetes, storage
from serving.clients.kubernetes import ApiError
from serving.deployment import autoscaling, disk_images, lease, leftovers, record, replacement, replicas
from serving.deployment.discarding import discard
from serving.deployment.record import Down, Pin, Record
from serving.errors import InconclusiveError, RejectedBeforeError, RequestError
from serving.settings import Settings
from serving.step import opened
from serving.weights.release import Release
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment, job, owned, quick, service

SETTINGS = quick(rollout="replace")


class Killed(BaseException):
    """What a process that is killed does next: nothing."""


class OneAtATime(MemoryCluster):
    """Has room for the pods of one generation: whoever comes beside another's pods waits. Its Deployments are ready as
    soon as they have room, but for those in `broken`."""

    def __init__(self, *objects: dict[str, Any]):
        self.broken: set[str] = set()
        self.at_once: set[frozenset[str]] = set()
        """The sets of generations that had pods at one moment."""
        super().__init__(*objects)

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Deployment":
            generation, wanted = body["metadata"]["labels"][names.GENERATION], body["spec"].get("replicas", 1)
            self._set_pods(generation, wanted)
            has_room = self._generations() <= {generation} and generation not in self.broken
            ready = wanted if has_room else 0
            body["status"] = {"observedGeneration": 1, "replicas": wanted, "updatedReplicas": wanted}
            body["status"]["readyReplicas"] = ready
        return super()._store(body)

    def delete(self, body: dict[str, Any]) -> bool:
        gone = super().delete(body)
        if gone and body["kind"] == "Deployment":
            self._set_pods(body["metadata"]["labels"][names.GENERATION], 0)
        return gone

    def _set_pods(self, generation: str, wanted: int) -> None:
        before = self._generations()
        for key in [key for key in self.objects if key[0] == "Pod" and key[2].startswith(f"vllm-{generation}-")]:
            del self.objects[key]
        for number in range(wanted):
            name = f"vllm-{generation}-{number}"
            labels = {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: generation}
            self.objects["Pod", SETTINGS.namespace, name] = {
                "kind": "Pod",
                "metadata": {"name": name, "namespace": SETTINGS.namespace, "labels": labels, "uid": name},
                "spec": {},
            }
        self.at_once.add(frozenset(self._generations()))
        # Who waited for the room has it now.
        if before > self._generations():
            for other in self._generations():
                super()._store(self._with_room(other))

    def _with_room(self, generation: str) -> dict[str, Any]:
        body = self.objects["Deployment", SETTINGS.namespace, names.server(generation)]
        return {**body, "status": {**body["status"], "readyReplicas": body["spec"]["replicas"]}}

    def _generations(self) -> set[str]:
        return {body["metadata"]["labels"][names.GENERATION] for body in self._of("Pod")}

    def _of(self, kind: str) -> list[dict[str, Any]]:
        return [body for (its, _, _), body in self.objects.items() if its == kind]

    def replicas(self) -> dict[str, int]:
        return {
            body["metadata"]["labels"][names.GENERATION]: body["spec"]["replicas"] for body in self._of("Deployment")
        }


@pytest.fixture(autouse=True)
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    objects: dict[str, Any] = {}
    monkeypatch.setattr(storage, "read_json", objects.get)
    monkeypatch.setattr(storage, "write_json", objects.__setitem__)
    monkeypatch.setattr(disk_images, "sweep", lambda *_: None)
    return objects


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> OneAtATime:
    """g1 serves, with one pod."""
    made = OneAtATime(deployment("g1"), *owned("g1"), service("g1"))
    monkeypatch.setattr(kubernetes, "connect", lambda settings: made)
    Record(live="g1", since="2026-11-01T00:00:00Z").write(made, SETTINGS)
    made.calls.clear()
    made.at_once.clear()
    return made


def said(_message: str) -> None:
    pass


def serving(cluster: MemoryCluster) -> str:
    return record.serving_generation(record.entry(cluster, SETTINGS))


def begin(cluster: MemoryCluster, release: Release) -> None:
    """What ensure_access does before anything else."""
    lease.take(cluster, SETTINGS, release.run_id, said)
    with lease.held(cluster, SETTINGS, release.run_id):
        known = ensure_access.ensure_record(cluster, SETTINGS, said)
        ensure_access.bring_back(cluster, SETTINGS, known, release.run_id, said)
        leftovers.remove(cluster, SETTINGS, known, release.run_id, release.generation, said)


def deploy(release: Release = RELEASE, settings: Settings = SETTINGS) -> tuple[bool, list[str]]:
    return deploy_server.run(settings.as_struct(), release.as_struct(), True, [])


def refresh(cluster: MemoryCluster, run_id: str = RELEASE.run_id) -> None:
    """A run from the Lease to the promotion; in the end the exit task's part."""
    live = record.read(cluster, SETTINGS).live
    release = RELEASE.model_copy(update={"run_id": run_id, "live": live})
    try:
        begin(cluster, release)
        passed, _ = deploy(release)
        assert passed
        promote_generation.run(SETTINGS.as_struct(), release.as_struct())
    finally:
        write_report.clean_up(SETTINGS, run_id, said)


def is_whole(cluster: OneAtATime, live: str) -> None:
    """Whether that one serves, alone, and nothing is down on purpose."""
    known = record.read(cluster, SETTINGS)
    assert (serving(cluster), known.live, known.down) == (live, live, None)
    assert {generation for generation, wanted in cluster.replicas().items() if wanted} == {live}
    held = cluster.get("Lease", SETTINGS.name, SETTINGS.namespace)
    assert held
    assert lease.holder(held) == ""


# -- a refresh ------------------------------------------------------------------------------------------------


def test_the_live_generation_makes_room_before_another_comes_and_the_record_says_so_first(cluster):
    refresh(cluster)
    is_whole(cluster, "g2")
    assert frozenset({"g1", "g2"}) not in cluster.at_once
    of_both = [call for call in cluster.calls if call[1] in ("ConfigMap", "Deployment", "Service")]
    own = ("apply", "Service", "vllm-g2")
    assert [call for call in of_both if call != own][:4] == [
        ("replace", "ConfigMap", "gemma-generations"),
        ("scale", "Deployment", "vllm-g1"),
        ("apply", "Deployment", "vllm-g2"),
        ("scale", "Deployment", "vllm-g2"),
    ]
    known = record.read(cluster, SETTINGS)
    assert (known.previous, known.kept) == ("g1", ["g1"])
    assert known.downtime
    assert known.downtime.run_id == RELEASE.run_id
    assert f"The last time it was {known.downtime.seconds:.0f} s" in replacement.announcement(known, "g3")


def test_that_nothing_will_serve_is_said_before_anything_goes(cluster):
    lines: list[str] = []
    cluster.before_write = lambda verb, kind, name: lines.append(f"{verb} {name}")
    known = record.read(cluster, SETTINGS)
    replacement.make_room(cluster, SETTINGS, known, "g2", run_id="run-2", say=lines.append)
    assert lines[0].startswith("rollout: replace: g1 makes room for g2, and nothing serves until that one has passed")
    assert lines[0].endswith("How long that takes is not known: it is the first time")
    assert lines[1:] == ["replace gemma-generations", "scale vllm-g1"]


def test_a_generation_has_as_many_pods_as_the_one_that_made_room(cluster):
    cluster.patch("Deployment", "vllm-g1", SETTINGS.namespace, {"spec": {"replicas": 3}}, subresource="scale")
    refresh(cluster)
    assert cluster.replicas() == {"g1": 0, "g2": 3}


def test_what_fails_validation_goes_and_the_old_one_serves_again(cluster):
    begin(cluster, RELEASE)
    assert deploy() == (True, [])
    assert cluster.replicas() == {"g1": 0, "g2": 1}
    words = discard(cluster, SETTINGS, RELEASE, ["the answer has no text"], said)
    assert words == "g2 is rejected and will not be tried again without --retry; g1 serves again"
    write_report.clean_up(SETTINGS, RELEASE.run_id, said)
    is_whole(cluster, "g1")
    assert cluster.replicas() == {"g1": 1}
    assert set(record.read(cluster, SETTINGS).rejected) == {"g2"}
    assert frozenset({"g1", "g2"}) not in cluster.at_once


def test_a_verdict_of_no_has_the_old_one_come_back_before_the_next_step(cluster):
    begin(cluster, RELEASE)
    deploy()
    with opened("validate_server", SETTINGS.as_struct(), RELEASE.as_struct()) as step, step.cluster():
        step.outcome.failed(RuntimeError("the answer has no text"))
    assert cluster.replicas() == {"g1": 1, "g2": 0}
    assert frozenset({"g1", "g2"}) not in cluster.at_once
    discard(cluster, SETTINGS, RELEASE, ["the answer has no text"], said)
    assert record.read(cluster, SETTINGS).down is None


def test_a_stock_out_in_between_has_the_old_one_back_and_no_other_attempt_takes_it_down(cluster, bucket, monkeypatch):
    def no_capacity(*_: object) -> float:
        raise InconclusiveError("no capacity for vllm-g2")

    monkeypatch.setattr(deploy_server, "wait_until_ready", no_capacity)
    begin(cluster, RELEASE)
    for _ in range(2):  # The orchestrator's own attempts.
        with pytest.raises(SystemExit):
            deploy()
        assert cluster.replicas() == {"g1": 1, "g2": 0}
    (left,) = (outcome for uri, outcome in bucket.items() if uri.endswith("deploy_server.json"))
    assert (left["status"], left["error"]["final"]) == ("inconclusive", True)
    assert [call for call in cluster.calls if call == ("scale", "Deployment", "vllm-g1")] == [
        ("scale", "Deployment", "vllm-g1")
    ] * 2, "down once, up once"
    write_report.clean_up(SETTINGS, RELEASE.run_id, said)
    is_whole(cluster, "g1")


def test_a_server_that_the_cluster_refuses_takes_nothing_down(cluster, monkeypatch):
    def refused(body: dict[str, Any]) -> dict[str, Any]:
        raise ApiError("spec.template: Invalid value", 422, "Invalid", {})

    monkeypatch.setattr(cluster, "would_be", refused)
    begin(cluster, RELEASE)
    with pytest.raises(SystemExit):
        deploy()
    assert cluster.replicas() == {"g1": 1}
    assert record.read(cluster, SETTINGS).down is None


def test_whoever_else_has_pods_makes_room_too(cluster):
    """One that waited validated for a person, say, before the settings were others."""
    cluster.create(deployment("g7"))
    known = record.read(cluster, SETTINGS)
    replacement.make_room(cluster, SETTINGS, known, "g2", run_id="run-2", say=said)
    assert cluster.replicas() == {"g1": 0, "g7": 0}


def test_pods_that_are_going_are_waited_for_and_one_that_stays_is_named(cluster, monkeypatch):
    monkeypatch.setattr(replacement, "_NODE_SECONDS", 0.3)
    monkeypatch.setattr(cluster, "_set_pods", lambda generation, wanted: None)
    cluster.objects["Pod", SETTINGS.namespace, "vllm-g1-0"] = {
        "kind": "Pod",
        "metadata": {"name": "vllm-g1-0", "labels": {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: "g1"}},
        "spec": {},
    }
    known = record.read(cluster, SETTINGS)
    with pytest.raises(InconclusiveError, match="vllm-g1-0 did not end in time and may hold accelerators"):
        replacement.make_room(cluster, SETTINGS, known, "g2", run_id="run-2", say=said)


# -- nothing to replace ---------------------------------------------------------------------------------------


def test_a_first_run_has_nothing_to_take_down(monkeypatch):
    made = OneAtATime()
    monkeypatch.setattr(kubernetes, "connect", lambda settings: made)
    refresh(made)
    is_whole(made, "g2")
    assert record.read(made, SETTINGS).downtime is None


def test_what_changes_in_place_takes_nothing_else_down(cluster):
    refresh(cluster)
    cluster.calls.clear()
    changed = quick(rollout="replace", labels={"team": "llm"})
    lease.take(cluster, SETTINGS, "run-3", said)
    deploy(RELEASE.model_copy(update={"run_id": "run-3", "live": "g2"}), changed)
    assert [call[2] for call in cluster.calls if call[1] == "Deployment"] == ["vllm-g2"]
    assert record.read(cluster, SETTINGS).down is None


def test_beside_nothing_is_taken_down(cluster):
    begin(cluster, RELEASE)
    with suppress(SystemExit):  # This cluster has no room for both.
        deploy(settings=quick(serving={"capacity_timeout": "1s"}))
    assert cluster.replicas()["g1"] == 1
    assert frozenset({"g1", "g2"}) in cluster.at_once


def test_nobody_is_waited_for_while_nothing_serves():
    with pytest.raises(RequestError, match="rollout: replace and promotion: manual do not go together"):
        quick(rollout="replace", promotion="manual")


# -- with an autoscaler ---------------------------------------------------------------------------------------


def test_whoever_takes_over_has_as_many_pods_as_the_autoscaler_had_given_the_one_that_made_room(cluster):
    """Also when the step is tried again, and nobody serves any more."""
    scaled = quick(rollout="replace", features=["queue-hpa"])
    replicas.scale(cluster, scaled, "g1", 3)
    cluster.set_status("Deployment", "vllm-g1", SETTINGS.namespace, readyReplicas=3)
    assert autoscaling.least(cluster, scaled, "g1", "g2") == 3
    known = record.read(cluster, scaled)
    replacement.make_room(cluster, scaled, known, "g2", run_id="run-2", say=said)
    assert cluster.replicas() == {"g1": 0}
    assert autoscaling.least(cluster, scaled, "g1", "g2") == 3


def test_one_that_comes_back_serves_although_its_autoscaler_has_taken_pods_away_meanwhile(cluster):
    scaled = quick(rollout="replace", features=["queue-hpa"])
    replicas.scale(cluster, scaled, "g1", 3)
    known = record.read(cluster, scaled)
    replacement.make_room(cluster, scaled, known, "g2", run_id="run-2", say=said)
    scale = replicas.scale

    def and_one_less(cluster: OneAtATime, settings: Settings, generation: str, pods: int) -> None:
        scale(cluster, settings, generation, pods)
        scale(cluster, settings, generation, 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replicas, "scale", and_one_less)
        assert replacement.bring_back(cluster, scaled, known, run_id="run-2", say=said) == "g1"
    assert cluster.replicas() == {"g1": 1}


# -- told to end, and killed ----------------------------------------------------------------------------------


def at_write(number: int, act: Callable[[], None], cluster: MemoryCluster) -> list[tuple[str, str, str]]:
    """Has something happen at the write of this number, signs of life of the Lease left out. Returns those seen."""
    seen: list[tuple[str, str, str]] = []

    def count(verb: str, kind: str, name: str) -> None:
        if kind != "Lease":
            seen.append((verb, kind, name))
            if len(seen) == number:
                act()

    cluster.before_write = count
    return seen


def until_it_is_through(cluster_of: Callable[[], OneAtATime], act: Callable[[OneAtATime], Any]) -> int:
    """A run for each of its writes, ended there by `act`; then what the next run makes of it. Returns how many."""
    for number in itertools.count(1):
        cluster = cluster_of()
        dead: list[bool] = []

        def end(cluster: OneAtATime = cluster, dead: list[bool] = dead) -> None:
            dead.append(True)
            act(cluster)

        seen = at_write(number, end, cluster)
        with suppress(Killed, SystemExit):
            refresh(cluster, "run-2")
        cluster.before_write = lambda *_: None
        if not dead:
            assert serving(cluster) == "g2"
            return number
        where = f"write {number}: {seen[number - 1]}"
        known = record.read(cluster, SETTINGS)
        # Who is down is down by the record, and everything is as before or as it is to be.
        assert known.down or cluster.replicas()[known.live] == 1, where
        expire(cluster)
        refresh(cluster, "run-3")
        is_whole(cluster, "g2")
    raise AssertionError


def expire(cluster: OneAtATime) -> None:
    """The dead run's Lease runs out."""
    held = cluster.get("Lease", SETTINGS.name, SETTINGS.namespace)
    assert held
    held["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z"
    cluster.objects["Lease", SETTINGS.namespace, SETTINGS.name] = held


@pytest.fixture
def cluster_of(monkeypatch: pytest.MonkeyPatch, bucket: dict[str, Any]) -> Callable[[], OneAtATime]:
    def make() -> OneAtATime:
        made = OneAtATime(deployment("g1"), *owned("g1"), service("g1"))
        monkeypatch.setattr(kubernetes, "connect", lambda settings: made)
        Record(live="g1").write(made, SETTINGS)
        made.at_once.clear()
        bucket.clear()
        return made

    return make


def test_whoever_is_killed_at_any_write_the_next_run_completes_it(cluster_of, monkeypatch):
    def kill(cluster: OneAtATime) -> None:
        def dead(*_: str) -> None:
            raise Killed

        cluster.before_write = dead
        raise Killed

    # The exit task's process is dead too.
    clean_up = write_report.clean_up
    monkeypatch.setattr(
        write_report, "clean_up", lambda settings, run_id, say: run_id == "run-3" and clean_up(settings, run_id, say)
    )
    assert until_it_is_through(cluster_of, kill) > 12


def test_whoever_is_told_to_end_at_any_write_has_the_old_one_back_or_the_new_one_in_service(cluster_of):
    def tell(cluster: OneAtATime) -> None:
        cluster.before_write = lambda *_: None
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(SystemExit(143)))
    try:
        assert until_it_is_through(cluster_of, tell) > 12
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_step_that_is_told_to_end_waits_for_nobody(cluster, monkeypatch):
    begin(cluster, RELEASE)
    deploy()
    monkeypatch.setattr(replacement, "_left_of_others", lambda *_: pytest.fail("it is killed soon"))
    with (
        pytest.raises(SystemExit),
        opened("validate_server", SETTINGS.as_struct(), RELEASE.as_struct()) as step,
        step.cluster(),
    ):
        os.kill(os.getpid(), signal.SIGTERM)
    assert cluster.replicas() == {"g1": 1, "g2": 0}


# -- what a dead run took down --------------------------------------------------------------------------------


def taken_down(cluster: OneAtATime) -> None:
    """A run died while g2 was validated."""
    begin(cluster, RELEASE)
    deploy()
    expire(cluster)
    assert cluster.replicas() == {"g1": 0, "g2": 1}


def test_a_run_that_stops_at_once_has_its_exit_task_bring_the_old_one_back(cluster):
    taken_down(cluster)
    write_report.clean_up(SETTINGS, "run-9", said)
    is_whole(cluster, "g1")
    assert frozenset({"g1", "g2"}) not in cluster.at_once


def test_the_next_run_brings_the_old_one_back_before_anything_else(cluster, bucket, monkeypatch):
    """Before it takes away what the dead one left, too."""
    taken_down(cluster)
    cluster.create(job("validate-server-run-2", RELEASE.run_id))
    monkeypatch.setattr(ensure_access.features, "demand", lambda *_: None)
    monkeypatch.setattr(ensure_access, "bindings", lambda settings: [])
    monkeypatch.setattr(ensure_access.caches, "ensure", lambda *_: [])
    monkeypatch.setattr(ensure_access, "ensure_namespace", lambda *_: [])
    cluster.calls.clear()
    another = RELEASE.model_copy(update={"run_id": "run-3", "generation": "g3"})
    ensure_access.run(SETTINGS.as_struct(), another.as_struct())
    of_the_run = [call for call in cluster.calls if call[1] != "Lease"]
    assert of_the_run[:4] == [
        ("scale", "Deployment", "vllm-g2"),
        ("scale", "Deployment", "vllm-g1"),
        ("replace", "ConfigMap", "gemma-generations"),
        ("delete", "Job", "validate-server-run-2"),
    ]
    assert cluster.replicas() == {"g1": 1}
    (outcome,) = (found for uri, found in bucket.items() if uri.endswith("run-3/steps/ensure_access.json"))
    assert outcome["changed"][0] == "Deployment/vllm-g1"


def test_an_exit_task_leaves_the_live_one_to_the_run_that_holds_the_lease(cluster):
    begin(cluster, RELEASE)
    deploy()
    cluster.calls.clear()
    write_report.clean_up(SETTINGS, "run-9", said)
    assert cluster.calls == []


@pytest.mark.parametrize(
    ("outcomes", "looks"),
    [
        ([{"name": "resolve_model", "down": ""}], False),
        ([{"name": "resolve_model", "down": "g1"}], True),
        ([{"name": "resolve_model", "down": "", "canary": ""}], False),
        ([{"name": "resolve_model", "down": "", "canary": "g2"}], True),
        ([{"name": "resolve_model"}], True),
        ([], False),
    ],
    ids=[
        "nothing is down",
        "it is down",
        "no canary was left",
        "one was left",
        "it never came to look",
        "it never began",
    ],
)
def test_an_exit_task_looks_where_somebody_may_be_down(outcomes: list[dict[str, Any]], looks: bool):
    assert write_report.may_be_down(outcomes) == looks


def test_a_live_generation_that_is_down_is_not_unchanged():
    situation = Situation(serving="g1", entry_as_wanted=True, down="the run run-2 took it down at 3 for g2")
    decision = decide(SETTINGS, RELEASE.model_copy(update={"generation": "g1"}), Record(live="g1"), situation, "d")
    assert (decision.verdict, decision.reason) == ("deploy", "g1 is live, but the run run-2 took it down at 3 for g2")


def test_a_rejection_and_a_pin_still_stop_a_run():
    rejected = Record.model_validate({"live": "g1", "rejected": {"g2": {"reason": "r", "at": "t", "run_id": "x"}}})
    with pytest.raises(RejectedBeforeError):
        decide(SETTINGS, RELEASE, rejected, Situation(down="d"), "d")
    pinned = Record(live="g1", pinned=Pin(generation="g1", at="t", reason="r"))
    assert decide(SETTINGS, RELEASE, pinned, Situation(down="d"), "d").verdict == "pinned"


def test_a_live_generation_that_does_not_come_back_does_not_stop_the_run_that_may_serve(cluster):
    taken_down(cluster)
    cluster.broken.add("g1")
    lines: list[str] = []
    known = record.read(cluster, SETTINGS)
    lease.take(cluster, SETTINGS, "run-3", said)
    assert ensure_access.bring_back(cluster, SETTINGS, known, "run-3", lines.append) == []
    assert "does not come back: vllm-g1 has fewer than 1 ready pods" in lines[-1]
    refresh(cluster, "run-3")
    is_whole(cluster, "g2")
    assert record.read(cluster, SETTINGS).downtime is None, "a dead run's time tells nothing"


def test_a_record_whose_live_generation_is_another_by_now_forgets_who_was_down(cluster):
    known = record.read(cluster, SETTINGS)
    known.down = Down(generation="g1", candidate="g2", replicas=1, since=record.now(), run_id="run-2")
    known.write(cluster, SETTINGS)
    cluster.apply(service("g2"))
    assert record.read(cluster, SETTINGS).down is None


# -- by hand --------------------------------------------------------------------------------------------------


def test_rollback_takes_the_live_one_down_for_the_kept_one(cluster):
    refresh(cluster)
    cluster.at_once.clear()
    promote_generation.roll_back(cluster, SETTINGS, None, said)
    is_whole(cluster, "g1")
    assert cluster.replicas() == {"g1": 1, "g2": 0}
    assert frozenset({"g1", "g2"}) not in cluster.at_once


def test_a_rollback_that_does_not_come_up_has_the_live_one_back_and_no_pin(cluster):
    refresh(cluster)
    cluster.broken.add("g1")
    with pytest.raises(InconclusiveError, match="vllm-g1 has fewer than 1 ready pods"):
        promote_generation.roll_back(cluster, SETTINGS, None, said)
    is_whole(cluster, "g2")
    assert record.read(cluster, SETTINGS).pinned is None


def test_a_rollback_that_is_interrupted_has_the_live_one_come_back(cluster, monkeypatch):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    refresh(cluster)
    monkeypatch.setattr(promote_generation.traffic, "move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        promote_generation.roll_back(cluster, SETTINGS, None, said)
    assert cluster.replicas() == {"g1": 0, "g2": 1}
    assert record.read(cluster, SETTINGS).pinned is None


def test_rollback_brings_back_what_a_dead_run_took_down_and_pins_it(cluster):
    taken_down(cluster)
    promote_generation.roll_back(cluster, SETTINGS, None, said)
    is_whole(cluster, "g1")
    known = record.read(cluster, SETTINGS)
    assert known.pinned
    assert known.pinned.generation == "g1"


def test_promote_brings_it_back_without_a_pin(cluster):
    taken_down(cluster)
    promote_generation.promote_by_hand(cluster, SETTINGS, "g1", said)
    is_whole(cluster, "g1")
    assert record.read(cluster, SETTINGS).pinned is None


# -- said before ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("downtime", "words"),
    [
        (None, "How long that takes is not known: it is the first time"),
        ({"seconds": 214, "at": "2026-11-29T03:04:05Z", "run_id": "r"}, "The last time it was 214 s (until 2026-11-29"),
    ],
)
def test_submit_and_schedule_say_before_that_nothing_will_serve(cluster, capsys, downtime, words):
    known = record.read(cluster, SETTINGS)
    known.downtime = downtime and record.Downtime(**downtime)
    known.write(cluster, SETTINGS)
    submit.announce_downtime(Output(), SETTINGS)
    assert words in " ".join(capsys.readouterr().err.split())
    submit.announce_downtime(Output(), quick())
    assert capsys.readouterr().err == "", "beside, nothing goes down"


def test_submit_does_not_wait_for_a_cluster_that_this_machine_does_not_reach(capsys, monkeypatch):
    def away(_settings: Settings) -> None:
        raise InconclusiveError("the cluster does not answer")

    monkeypatch.setattr(kubernetes, "connect", away)
    submit.announce_downtime(Output(), SETTINGS)
    assert "which this machine does not reach" in " ".join(capsys.readouterr().err.split())


def test_the_first_release_takes_nothing_down(capsys, monkeypatch):
    monkeypatch.setattr(kubernetes, "connect", lambda settings: MemoryCluster())
    submit.announce_downtime(Output(), SETTINGS)
    assert capsys.readouterr().err == ""


# -- a cluster that comes back on this machine ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "there", "words"),
    [
        (Record(live="g1"), [deployment("g1", ready=0)], ""),
        (
            Record(live="g1"),
            [deployment("g1", replicas=0), deployment("g2")],
            "g1 is live, and has no pods to come back",
        ),
        (Record(live="g1"), [deployment("g2")], "g1 is live, and its Deployment is gone"),
        (Record(), [deployment("g2")], "no generation is live in this state"),
        (
            Record(live="g1", down=Down(generation="g1", candidate="g2", replicas=1, since="today", run_id="run-2")),
            [deployment("g1", replicas=0), deployment("g2")],
            "g1 is down: the run run-2 had it make room for g2, and ended",
        ),
    ],
)
def test_where_nothing_comes_back_by_itself_nobody_waits_for_it(known: Record, there: list[Any], words: str):
    cluster: Any = MemoryCluster(*there, *([service(known.live)] if known.live else []))
    known.write(cluster, SETTINGS)
    assert cloud.nothing_comes_back(cluster, SETTINGS) == words


def test_where_nobody_can_tell_what_comes_back_it_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    def unreadable(*_: object) -> None:
        raise RequestError("holds no record")

    monkeypatch.setattr(record, "read", unreadable)
    assert cloud.nothing_comes_back(MemoryCluster(), SETTINGS) == ""  # type: ignore[arg-type]
