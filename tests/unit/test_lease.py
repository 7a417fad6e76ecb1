"""The Lease: one run at a time, and the loser is told who holds it."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving.deployment import lease
from serving.errors import AccessError, InconclusiveError, LeaseHeldError
from tests.unit import deployment
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import quick

SETTINGS = quick()
KEY = ("Lease", SETTINGS.namespace, SETTINGS.name)


class FrozenClock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FrozenClock:
    """What the Lease goes by; the pauses between renewals are real."""
    clock = FrozenClock()
    monkeypatch.setattr(lease.time, "time", clock.time)
    return clock


def said(_message: str) -> None:
    pass


def holder(cluster: MemoryCluster) -> str:
    return cluster.objects[KEY]["spec"]["holderIdentity"]


def test_the_first_run_takes_it():
    cluster = MemoryCluster()
    lease.take(cluster, SETTINGS, "run-1", said)
    assert holder(cluster) == "run-1"


def test_the_loser_is_told_who_holds_it():
    cluster = MemoryCluster()
    lease.take(cluster, SETTINGS, "run-1", said)
    with pytest.raises(LeaseHeldError, match="run-1") as error:
        lease.take(cluster, SETTINGS, "run-2", said)
    assert error.value.holder == "run-1"
    assert holder(cluster) == "run-1"


def test_a_step_of_the_same_run_takes_it_again():
    cluster = MemoryCluster()
    lease.take(cluster, SETTINGS, "run-1", said)
    lease.take(cluster, SETTINGS, "run-1", said)
    assert cluster.objects[KEY]["spec"]["leaseTransitions"] == 0


def test_it_runs_out_when_a_run_dies():
    cluster = MemoryCluster(deployment.lease("dead-run"))
    lease.take(cluster, SETTINGS, "run-2", said)
    assert holder(cluster) == "run-2"
    assert cluster.objects[KEY]["spec"]["leaseTransitions"] == 1


def test_who_waits_gets_it_when_it_is_given_back():
    cluster = MemoryCluster()
    lease.take(cluster, SETTINGS, "run-1", said)
    told: list[str] = []

    def give_back_when_somebody_waits() -> None:
        while not told:
            time.sleep(0.01)
        lease.give_back(cluster, SETTINGS, "run-1")

    helper = threading.Thread(target=give_back_when_somebody_waits)
    helper.start()
    lease.take(cluster, quick(lease={"wait": "60s"}), "run-2", told.append)
    helper.join()
    assert holder(cluster) == "run-2"
    assert "run-1 holds the Lease" in told[0]


def test_of_two_runs_that_find_it_free_at_once_one_wins():
    cluster = MemoryCluster(deployment.lease("dead-run"))

    def another_is_quicker(verb: str, kind: str, name: str) -> None:
        cluster.before_write = lambda *_: None
        lease.take(cluster, SETTINGS, "run-3", said)

    cluster.before_write = another_is_quicker
    with pytest.raises(LeaseHeldError, match="run-3"):
        lease.take(cluster, SETTINGS, "run-2", said)


class Renewed(MemoryCluster):
    """Says when the Lease has been renewed `times` more; the `failures` come first."""

    def __init__(self, times: int = 2, failures: Iterable[Exception] = ()) -> None:
        super().__init__()
        self.left, self.failures = times, iter(failures)
        self.often_enough = threading.Event()
        lease.take(self, SETTINGS, "run-1", said)

    def replace(self, body: dict) -> dict:
        replaced = super().replace(body)
        self.left -= 1
        if not self.left:
            self.often_enough.set()
        return replaced

    def impatient(self) -> MemoryCluster:
        """What the keeper asks, and nobody else."""
        impatient = copy.copy(self)
        impatient.get = self.failing_get  # type: ignore[method-assign]
        return impatient

    def failing_get(self, kind: str, name: str, namespace: str | None = None) -> dict | None:
        for failure in self.failures:
            raise failure
        return self.get(kind, name, namespace)


def test_a_long_step_keeps_it_alive(clock: FrozenClock):
    cluster = Renewed(times=3)
    with lease.held(cluster, quick(lease={"duration": "1s"}), "run-1"):
        assert cluster.often_enough.wait(timeout=60)


@pytest.mark.parametrize(
    "failure",
    [
        InconclusiveError("the API server of cluster gemma does not answer"),
        AccessError("cluster gemma does not take these credentials"),
        ValueError("Expecting value: line 1 column 1"),
        RuntimeError("a token cannot be refreshed"),
    ],
    ids=lambda failure: type(failure).__name__,
)
def test_a_renewal_that_fails_is_tried_again_while_the_lease_lasts(clock: FrozenClock, failure: Exception):
    cluster = Renewed(times=2, failures=[failure] * 3)
    with lease.held(cluster, quick(lease={"duration": "1s"}), "run-1"):
        cluster.create(deployment.deployment("g1"))
        assert cluster.often_enough.wait(timeout=60)
    assert next(cluster.failures, None) is None, "all of them were met"


def test_a_block_whose_lease_has_run_out_does_not_end_as_if_nothing_had_happened(clock: FrozenClock):
    cluster = Renewed(failures=itertools.repeat(ValueError("no JSON")))
    keeping = lease.held(cluster, quick(lease={"duration": "1s"}), "run-1")
    keeping.__enter__()
    clock.now += 2
    with pytest.raises(InconclusiveError, match="another may take it at any moment"):
        keeping.__exit__(None, None, None)


class Stolen(MemoryCluster):
    """Says when somebody has read that run-9 holds the Lease."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict | None:
        found = super().get(kind, name, namespace)
        if found and kind == "Lease" and lease.holder(found) == "run-9":
            self.seen.set()
        return found


def test_a_step_that_lost_it_fails_and_says_to_whom():
    settings = quick(lease={"duration": "1s"})
    cluster = Stolen()
    lease.take(cluster, settings, "run-1", said)
    keeping = lease.held(cluster, settings, "run-1")
    keeping.__enter__()
    cluster.objects[KEY]["spec"]["holderIdentity"] = "run-9"
    assert cluster.seen.wait(timeout=60)
    with pytest.raises(InconclusiveError, match="run-9 holds it"):
        keeping.__exit__(None, None, None)


def test_a_step_does_not_begin_without_it():
    cluster = MemoryCluster(deployment.lease("run-9"))
    with pytest.raises(InconclusiveError), lease.held(cluster, SETTINGS, "run-1"):
        pytest.fail("the block must not run")


def test_only_its_holder_gives_it_back():
    cluster = MemoryCluster(deployment.lease("run-9"))
    assert not lease.give_back(cluster, SETTINGS, "run-1")
    assert holder(cluster) == "run-9"
    assert lease.give_back(cluster, SETTINGS, "run-9")
    assert holder(cluster) == ""


# -- several steps of one run, and the end of the Lease ---------------------------------------------------------


class Crossing(MemoryCluster):
    """The first reads of two threads both end before either may write."""

    def __init__(self, *objects: dict) -> None:
        super().__init__(*objects)
        self.both_have_read = threading.Barrier(2)
        self.crossed = threading.local()

    def get(self, kind: str, name: str, namespace: str | None = None) -> dict | None:
        found = super().get(kind, name, namespace)
        if not getattr(self.crossed, "done", False):
            self.crossed.done = True
            self.both_have_read.wait(timeout=60)
        return found


def at_once(*calls: Callable[[], object]) -> list[object]:
    """What the calls return, each in a thread of its own; raises what one raises."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def test_two_steps_of_a_run_renew_at_once_and_both_hold_it():
    cluster = Crossing(deployment.lease("run-1"))
    renewals = at_once(*[lambda: lease.renew(cluster, SETTINGS, "run-1")] * 2)
    assert len(renewals) == 2
    assert [verb for verb, *_ in cluster.calls] == ["replace"] * 3, "one of them had to write again"
    assert holder(cluster) == "run-1"


def test_a_run_gives_it_back_although_a_step_of_its_own_renews_at_that_moment():
    cluster = MemoryCluster(deployment.lease("run-1"))

    def a_last_sign_of_life(verb: str, kind: str, name: str) -> None:
        cluster.before_write = lambda *_: None
        lease.renew(cluster, SETTINGS, "run-1")

    cluster.before_write = a_last_sign_of_life
    assert lease.give_back(cluster, SETTINGS, "run-1")
    assert holder(cluster) == ""


def test_of_a_renewal_and_a_run_that_takes_it_over_at_once_one_wins():
    cluster = MemoryCluster(deployment.lease("run-1"))

    def another_run_is_quicker(verb: str, kind: str, name: str) -> None:
        cluster.before_write = lambda *_: None
        lease.take(cluster, SETTINGS, "run-2", said)

    cluster.before_write = another_run_is_quicker
    with pytest.raises(InconclusiveError, match="run-2 holds it"):
        lease.renew(cluster, SETTINGS, "run-1")
    assert holder(cluster) == "run-2"


@pytest.mark.parametrize(
    ("duration", "trusted"), [("15m", 870), ("90s", 60), ("30s", 20)], ids=["less 30 s", "less a third", "short"]
)
def test_nothing_is_changed_shortly_before_it_runs_out(clock: FrozenClock, duration: str, trusted: int):
    settings = quick(lease={"duration": duration})
    cluster = MemoryCluster(deployment.lease("run-1"))
    with lease.held(cluster, settings, "run-1"):
        clock.now += trusted
        cluster.create(deployment.deployment("g1"))
        clock.now += 1
        for change in (
            lambda: cluster.create(deployment.deployment("g2")),
            lambda: cluster.apply(deployment.service("g2")),
            lambda: cluster.patch("Deployment", "vllm-g1", SETTINGS.namespace, {}),
            lambda: cluster.delete(cluster.objects["Deployment", SETTINGS.namespace, "vllm-g1"]),
        ):
            with pytest.raises(InconclusiveError, match=rf"{trusted + 1} s ago, of {duration}"):
                change()
        assert cluster.names("Deployment") == {"vllm-g1"}
        lease.renew(cluster, settings, "run-1")
        assert holder(cluster) == "run-1"
    cluster.create(deployment.deployment("g3"))
