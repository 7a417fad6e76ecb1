"""The Lease: one run at a time, and the loser is told who holds it."""

import threading
import time

import pytest

from serving.deployment import lease
from serving.errors import InconclusiveError, LeaseHeldError
from tests.unit import deployment
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import quick

SETTINGS = quick()
KEY = ("Lease", SETTINGS.namespace, SETTINGS.name)


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
    lease.take(cluster, quick(lease={"wait": "5s"}), "run-2", told.append)
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


def test_a_long_step_keeps_it_alive():
    settings = quick(lease={"duration": "1s"})
    cluster = MemoryCluster()
    lease.take(cluster, settings, "run-1", said)
    with lease.held(cluster, settings, "run-1"):
        first = cluster.objects[KEY]["spec"]["renewTime"]
        deadline = time.monotonic() + 5
        while cluster.objects[KEY]["spec"]["renewTime"] == first and time.monotonic() < deadline:
            time.sleep(0.02)
        assert cluster.objects[KEY]["spec"]["renewTime"] > first


def test_a_step_that_lost_it_fails_and_says_to_whom():
    settings = quick(lease={"duration": "1s"})
    cluster = MemoryCluster()
    lease.take(cluster, settings, "run-1", said)
    keeping = lease.held(cluster, settings, "run-1")
    keeping.__enter__()
    cluster.objects[KEY]["spec"]["holderIdentity"] = "run-9"
    time.sleep(0.6)  # Longer than a third of the Lease's duration, when it is renewed.
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
