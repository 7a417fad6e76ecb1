"""Promotion, rollback, discard and the manual gate: a test for each sentence of the contract."""

import pytest

from components.promote_generation import step
from serving import names
from serving.clients import kubernetes, storage
from serving.deployment import draining, entrance, lease, record
from serving.deployment import replicas as replicas_of
from serving.deployment.discarding import discard
from serving.deployment.record import Pin, Record, Rejection
from serving.errors import InconclusiveError, RequestError, ToldToEnd
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, STALLED, deployment, job, owned, quick, service

SETTINGS = quick()


def said(_message: str) -> None:
    pass


def serving(cluster: MemoryCluster) -> str:
    return record.serving_generation(cluster.get("Service", SETTINGS.name, SETTINGS.namespace))


def replicas(cluster: MemoryCluster, generation: str) -> int:
    found = cluster.get("Deployment", names.server(generation), SETTINGS.namespace)
    assert found
    return found["spec"]["replicas"]


def first_promotion(*others: dict) -> MemoryCluster:
    """A cluster in which g1 went live."""
    cluster = MemoryCluster(deployment("g1"), *owned("g1"), *others)
    release = RELEASE.model_copy(update={"generation": "g1", "live": ""})
    assert step.promote(cluster, SETTINGS, release, said)
    return cluster


def refresh() -> MemoryCluster:
    """g1 is live, g2 came up beside it and goes live."""
    cluster = first_promotion(deployment("g2"), *owned("g2"))
    assert step.promote(cluster, SETTINGS, RELEASE, said)
    return cluster


# -- promotion ------------------------------------------------------------------------------------------------


def test_the_first_promotion_creates_the_service():
    cluster = first_promotion()
    assert serving(cluster) == "g1"
    assert record.read(cluster, SETTINGS).live == "g1"


def test_a_promotion_moves_the_traffic_and_keeps_the_old_generation_at_zero_replicas():
    cluster = refresh()
    assert serving(cluster) == "g2"
    known = record.read(cluster, SETTINGS)
    assert (known.live, known.previous, known.kept) == ("g2", "g1", ["g1"])
    assert (replicas(cluster, "g2"), replicas(cluster, "g1")) == (1, 0)


def test_promoting_what_is_live_changes_nothing():
    cluster = refresh()
    cluster.calls.clear()
    assert not step.promote(cluster, SETTINGS, RELEASE.model_copy(update={"live": "g2"}), said)
    assert cluster.calls == []


def test_a_generation_takes_over_only_with_as_many_ready_pods_as_the_live_one_has():
    cluster = MemoryCluster(deployment("g1", replicas=3), deployment("g2", replicas=1), service("g1"))
    Record(live="g1").write(cluster, SETTINGS)
    with pytest.raises(InconclusiveError, match="fewer than 3 ready pods"):
        step.promote(cluster, SETTINGS, RELEASE, said)
    assert serving(cluster) == "g1"
    assert replicas(cluster, "g2") == 3

    cluster.set_status("Deployment", "vllm-g2", SETTINGS.namespace, readyReplicas=3)
    assert step.promote(cluster, SETTINGS, RELEASE, said)
    assert serving(cluster) == "g2"


@pytest.mark.parametrize(
    ("generation", "status", "ready", "rolled_out"),
    [
        (1, {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}, 1, True),
        (2, {"replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}, 0, False),
        (1, STALLED, 0, False),
        (1, {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 2}, 1, False),
        (1, {"replicas": 1, "updatedReplicas": 1}, 0, False),
        (1, {}, 0, False),
    ],
    ids=["whole", "not seen yet", "stalled", "the old one is going", "starting", "new"],
)
def test_ready_pods_of_an_older_template_do_not_count(generation: int, status: dict, ready: int, rolled_out: bool):
    body = deployment("g2")
    body["metadata"]["generation"] = generation
    body["status"] = {"observedGeneration": 1, **status}
    assert (replicas_of.ready(body), replicas_of.rolled_out(body)) == (ready, rolled_out)


def test_pods_of_an_older_template_are_pods_that_the_next_generation_has_to_match():
    live = deployment("g1", replicas=3)
    live["metadata"]["generation"] = 2
    cluster = MemoryCluster(live, deployment("g2", replicas=1), service("g1"))
    Record(live="g1").write(cluster, SETTINGS)
    with pytest.raises(InconclusiveError, match="fewer than 3 ready pods"):
        step.promote(cluster, SETTINGS, RELEASE, said)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"team": "llm"}},
        {"annotations": {"example.com/owner": "ada"}},
        {"patches": [{"kind": "Service", "metadata": {"name": "gemma"}, "spec": {"type": "NodePort"}}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_of_the_entry_change_in_place(changes: dict):
    cluster = refresh()
    settings, release = quick(**changes), RELEASE.model_copy(update={"live": "g2"})
    before = record.entry(cluster, SETTINGS)
    assert entrance.is_as_wanted(SETTINGS, {"g2": 100}, before)
    assert not entrance.is_as_wanted(settings, {"g2": 100}, before)
    assert step.promote(cluster, settings, release, said)
    assert entrance.is_as_wanted(settings, {"g2": 100}, record.entry(cluster, settings))
    assert serving(cluster) == "g2"
    assert record.read(cluster, settings).previous == "g1"
    assert not step.promote(cluster, settings, release, said)


def test_a_service_that_another_field_manager_owns_is_left_alone_and_its_owner_named():
    cluster = first_promotion(deployment("g2"))
    cluster.owners[("Service", SETTINGS.name)] = "argocd-controller"
    with pytest.raises(
        RequestError, match=r"argocd-controller.*ignoreDifferences: \[{kind: Service, .*\[/spec/selector\].*Flux"
    ):
        step.promote(cluster, SETTINGS, RELEASE, said)
    assert serving(cluster) == "g1"
    assert record.read(cluster, SETTINGS).live == "g1"
    assert replicas(cluster, "g1") == 1


def test_traffic_that_somebody_else_moved_meanwhile_is_left_where_it_is():
    cluster = first_promotion(deployment("g2"), deployment("g9"))
    cluster.apply(service("g9"))
    with pytest.raises(InconclusiveError, match="g9 went live while this run worked on g2"):
        step.promote(cluster, SETTINGS, RELEASE, said)
    assert serving(cluster) == "g9"


def test_an_entry_that_somebody_deleted_is_made_again():
    cluster = refresh()
    del cluster.objects[("Service", SETTINGS.namespace, SETTINGS.name)]
    assert step.promote(cluster, SETTINGS, RELEASE.model_copy(update={"live": "g2"}), said)
    assert serving(cluster) == "g2"


def test_a_service_that_changes_between_reading_and_writing_is_read_again():
    cluster = first_promotion(deployment("g2"))
    times = []

    def touch(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == ("apply", "Service") and not times:
            times.append(1)
            cluster.patch("Service", SETTINGS.name, SETTINGS.namespace, {"metadata": {"annotations": {"a": "b"}}})

    cluster.before_write = touch
    assert step.promote(cluster, SETTINGS, RELEASE, said)
    assert times
    assert serving(cluster) == "g2"


@pytest.mark.parametrize("moment", [("apply", "Service"), ("replace", "ConfigMap"), ("scale", "Deployment")])
def test_a_run_killed_at_any_moment_of_a_promotion_leaves_a_server_and_the_next_run_completes_it(moment):
    cluster = first_promotion(deployment("g2"), *owned("g2"))

    def kill(verb: str, kind: str, name: str) -> None:
        if (verb, kind) == moment:
            raise KeyboardInterrupt

    cluster.before_write = kill
    with pytest.raises(KeyboardInterrupt):
        step.promote(cluster, SETTINGS, RELEASE, said)
    assert replicas(cluster, serving(cluster)) == 1

    cluster.before_write = lambda *_: None
    live = record.read(cluster, SETTINGS).live
    step.promote(cluster, SETTINGS, RELEASE.model_copy(update={"live": live}), said)
    assert serving(cluster) == "g2"
    known = record.read(cluster, SETTINGS)
    assert (known.live, known.previous) == ("g2", "g1")


def test_a_promotion_that_is_told_to_end_while_it_drains_gives_the_old_accelerators_back(monkeypatch):
    def told_to_end(*_: object, **__: object) -> None:
        raise ToldToEnd

    monkeypatch.setattr(draining, "drain", told_to_end)
    cluster = first_promotion(deployment("g2"), *owned("g2"))
    with pytest.raises(ToldToEnd):
        step.promote(cluster, SETTINGS, RELEASE, said)
    assert serving(cluster) == "g2"
    assert (replicas(cluster, "g1"), replicas(cluster, "g2")) == (0, 1)


def test_a_promotion_that_is_told_to_end_when_the_entry_has_moved_gives_the_old_accelerators_back():
    def told_to_end(line: str) -> None:
        if "sends requests to g2" in line:
            raise ToldToEnd

    cluster = first_promotion(deployment("g2"), *owned("g2"))
    with pytest.raises(ToldToEnd):
        step.promote(cluster, SETTINGS, RELEASE, told_to_end)
    assert serving(cluster) == "g2"
    assert (replicas(cluster, "g1"), replicas(cluster, "g2")) == (0, 1)
    known = record.read(cluster, SETTINGS)
    assert (known.live, known.previous) == ("g2", "g1")


def test_with_manual_promotion_the_generation_waits_beside_the_live_one():
    cluster = first_promotion(deployment("g2"), *owned("g2"))
    step.wait_for_a_person(cluster, SETTINGS, RELEASE)
    assert serving(cluster) == "g1"
    assert record.read(cluster, SETTINGS).validated == "g2"

    step.promote_by_hand(cluster, SETTINGS, None, said)
    assert serving(cluster) == "g2"
    assert record.read(cluster, SETTINGS).validated == ""


@pytest.mark.parametrize("promotion", ["automatic", "manual"])
def test_what_the_validation_measured_goes_into_the_record(monkeypatch: pytest.MonkeyPatch, promotion: str):
    measured = {
        "load": "l",
        "tokens_per_second": 640.0,
        "p95_time_to_first_token_ms": 20.0,
        "p95_inter_token_latency_ms": 2.0,
    }
    written: dict[str, object] = {}
    left = {"gs://demo-bucket/pipelines/run-2/steps/validate_server.json": {"measured": measured}}
    cluster = first_promotion(deployment("g2"), *owned("g2"))
    monkeypatch.setattr(kubernetes, "connect", lambda settings: cluster)
    monkeypatch.setattr(storage, "read_json", left.get)
    monkeypatch.setattr(storage, "write_json", written.__setitem__)
    lease.take(cluster, SETTINGS, RELEASE.run_id, said)
    step.run(quick(promotion=promotion).as_struct(), RELEASE.as_struct())
    (outcome,) = written.values()
    assert outcome["status"] == ("succeeded" if promotion == "automatic" else "skipped")
    origin = record.read(cluster, SETTINGS).generations["g2"]
    assert (origin.measured, origin.run_id) == (record.Measured(**measured), "run-2")


# -- rollback -------------------------------------------------------------------------------------------------


def come_up_when_scaled(cluster: MemoryCluster) -> None:
    """A controller in one line: who is asked for replicas has them ready."""
    store = cluster._store

    def with_status(body: dict) -> dict:
        if body["kind"] == "Deployment":
            body["status"] = deployment("any", replicas=body["spec"]["replicas"])["status"]
        return store(body)

    cluster._store = with_status  # type: ignore[method-assign]


def test_rollback_scales_the_kept_generation_up_switches_and_pins():
    cluster = refresh()
    come_up_when_scaled(cluster)
    step.roll_back(cluster, SETTINGS, None, said)
    assert serving(cluster) == "g1"
    assert (replicas(cluster, "g1"), replicas(cluster, "g2")) == (1, 0)
    known = record.read(cluster, SETTINGS)
    assert known.pinned
    assert known.pinned.generation == "g1"
    assert (known.live, known.previous) == ("g1", "g2")


def test_a_promotion_by_hand_lifts_the_pin():
    cluster = refresh()
    come_up_when_scaled(cluster)
    step.roll_back(cluster, SETTINGS, None, said)
    step.promote_by_hand(cluster, SETTINGS, "g2", said)
    known = record.read(cluster, SETTINGS)
    assert (known.live, known.pinned) == ("g2", None)


def test_a_rollback_to_what_is_live_pins_it_and_says_so():
    cluster, lines = refresh(), []
    step.roll_back(cluster, SETTINGS, "g2", lines.append)
    assert lines == [
        "g2 was live already: no traffic moved",
        "g2 is pinned: no run replaces it by itself until `gemma-pipelines promote --to g2 -f FILE` (`--state DIR` "
        "instead of the file where `run` had it)",
    ]
    known = record.read(cluster, SETTINGS)
    assert known.pinned
    assert (known.live, known.pinned.generation, known.pinned.reason) == ("g2", "g2", "a person keeps it live")

    lines.clear()
    step.roll_back(cluster, SETTINGS, "g2", lines.append)
    assert lines == ["g2 was live already: no traffic moved"]
    assert record.read(cluster, SETTINGS).pinned == known.pinned


def test_a_promotion_says_that_it_lifted_a_pin():
    cluster, lines = refresh(), []
    step.roll_back(cluster, SETTINGS, "g2", said)
    step.promote_by_hand(cluster, SETTINGS, "g2", lines.append)
    assert lines == ["g2 was live already: no traffic moved", "the pin to g2 is lifted"]
    assert record.read(cluster, SETTINGS).pinned is None


def test_a_rollback_that_is_killed_once_the_traffic_has_moved_is_pinned_all_the_same():
    cluster = refresh()
    come_up_when_scaled(cluster)

    def kill(verb: str, kind: str, name: str) -> None:
        if kind == "ConfigMap" and serving(cluster) == "g1":
            raise KeyboardInterrupt

    cluster.before_write = kill
    with pytest.raises(KeyboardInterrupt):
        step.roll_back(cluster, SETTINGS, None, said)
    known = record.read(cluster, SETTINGS)
    assert known.pinned
    assert (known.live, known.pinned.generation) == ("g1", "g1")


@pytest.mark.parametrize("pinned", [None, Pin(generation="g2", at="t", reason="r")], ids=["free", "pinned"])
def test_a_rollback_that_moves_nothing_leaves_the_pin_as_it_was(pinned: Pin | None):
    cluster = refresh()
    come_up_when_scaled(cluster)
    cluster.owners[("Service", SETTINGS.name)] = "argocd-controller"
    known = record.read(cluster, SETTINGS)
    known.pinned = pinned
    known.write(cluster, SETTINGS)
    with pytest.raises(RequestError, match="argocd-controller"):
        step.roll_back(cluster, SETTINGS, None, said)
    assert record.read(cluster, SETTINGS).pinned == pinned
    assert serving(cluster) == "g2"


def test_rollback_without_a_previous_generation_is_a_wrong_request_and_writes_nothing():
    cluster = first_promotion()
    cluster.calls.clear()
    with pytest.raises(RequestError, match="no previous generation"):
        step.roll_back(cluster, SETTINGS, None, said)
    assert cluster.calls == []


def test_rollback_to_an_unknown_generation_names_those_that_there_are():
    with pytest.raises(RequestError, match=r"g5 is not in the cluster's record. There are: g1"):
        step.roll_back(refresh(), SETTINGS, "g5", said)


def test_rollback_gives_the_lease_back():
    cluster = refresh()
    come_up_when_scaled(cluster)
    step.roll_back(cluster, SETTINGS, None, said)
    assert cluster.get("Lease", SETTINGS.name, SETTINGS.namespace)["spec"]["holderIdentity"] == ""


# -- discard --------------------------------------------------------------------------------------------------


def test_discard_takes_the_generation_away_and_remembers_why():
    cluster = first_promotion(deployment("g2"), *owned("g2"), job("validate", RELEASE.run_id))
    discard(cluster, SETTINGS, RELEASE, ["the answer was empty"], said)
    assert cluster.names("Deployment") == {"vllm-g1"}
    assert serving(cluster) == "g1"
    rejection = record.read(cluster, SETTINGS).rejected["g2"]
    assert (rejection.reason, rejection.run_id) == ("the answer was empty", RELEASE.run_id)


def test_a_record_that_is_full_says_which_rejections_it_forgets():
    cluster, lines = first_promotion(deployment("g2")), []
    known = record.read(cluster, SETTINGS)
    known.rejected["g0"] = Rejection(reason="x" * 300_000, at="2026-01-01T00:00:00Z", run_id="run-0")
    known.write(cluster, SETTINGS)
    discard(cluster, SETTINGS, RELEASE, ["broken"], lines.append)
    assert "the record is full: it forgets the oldest rejections (g0), which may be tried again" in lines
    assert set(record.read(cluster, SETTINGS).rejected) == {"g2"}


def test_the_generation_that_serves_is_never_discarded():
    cluster = first_promotion()
    release = RELEASE.model_copy(update={"generation": "g1"})
    assert "stays" in discard(cluster, SETTINGS, release, ["slow today"], said)
    assert replicas(cluster, "g1") == 1
    assert record.read(cluster, SETTINGS).rejected == {}


def test_a_kept_generation_that_fails_is_no_longer_one_to_go_back_to():
    cluster = refresh()
    release = RELEASE.model_copy(update={"generation": "g1", "live": "g2"})
    discard(cluster, SETTINGS, release, ["broken"], said)
    known = record.read(cluster, SETTINGS)
    assert (known.previous, known.kept) == ("", [])
    assert cluster.names("Deployment") == {"vllm-g2"}
