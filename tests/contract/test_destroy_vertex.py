"""What `destroy` does on the emulated Vertex AI: no run begins any more, those that go on end, the schedule goes."""

from __future__ import annotations

import pytest

from pipelines.oversight import destroy as work
from pipelines.oversight import runs
from pipelines.vertex import follow, schedule
from serving.errors import InconclusiveError
from tests.contract.test_vertex_schedule import applied, nightly
from tests.contract.test_vertex_submit import begun, consumed, google, script, specification

__all__ = ["google", "nightly", "specification"]


def said(_message: str) -> None:
    pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_SHORTEST_PAUSE", 0.2)


def test_destroy_pauses_ends_what_goes_on_and_takes_the_schedule_and_another_s_stays(nightly, google):
    client, settings = nightly("torn", namespace="torn")
    other, beside = nightly("beside", namespace="torn")
    applied(client, settings)
    applied(other, beside)

    # A run that gets no machine: it is waited for, in vain, and all is as it was but for the pause.
    script(google, {"action": "outcome", "path": "/pipelineJobs$", "outcome": {"hold": True}})
    begun(client, settings, "held-1")
    found = work.find(settings, client)
    assert next(line.partition(" (")[0] for line in found.lines(settings, weights=False)) == "run held-1"
    with pytest.raises(InconclusiveError, match=r"held-1 still goes on .* with --cancel"):
        work.destroy(settings, found, said, weights=False, vertex=client, wait_seconds=0)
    assert schedule.find(client, settings)["state"] == "PAUSED"
    assert consumed(google) == [1]

    # Told to end, it takes its time.
    slow = {"action": "outcome", "path": "/held-1$", "outcome": {"seconds": 1}}
    script(google, {"action": "outcome", "path": "/pipelineJobs$", "outcome": {"hold": True}}, slow)
    words: list[str] = []
    gone = work.destroy(settings, work.find(settings, client), words.append, weights=False, vertex=client, cancel=True)
    assert "told run held-1 to end" in words
    assert [each.partition("/")[0] for each in gone] == ["schedule projects"]
    assert follow.state_of(client.job("held-1")) == "CANCELLED"
    assert consumed(google)[1] == 1
    assert work.find(settings, client).lines(settings, weights=False) == []
    assert work.destroy(settings, work.find(settings, client), said, weights=False, vertex=client) == []
    assert schedule.find(other, beside)["state"] == "ACTIVE"


def test_a_run_whose_cancelling_goes_on_is_not_told_again(nightly, google):
    client, settings = nightly("slow", namespace="torn")
    begun(client, settings.model_copy(update={"model": "google/waits"}), "slow-1")
    script(google, {"action": "outcome", "path": "/slow-1$", "outcome": {"hold": True}})
    client.cancel("slow-1")
    words: list[str] = []
    with pytest.raises(InconclusiveError, match="slow-1 still goes on"):
        runs.wait_until_ended(client, settings, words.append, cancel=True, seconds=0)
    assert words == ["waiting for run slow-1 (CANCELLING)"]
    script(google)
    assert runs.wait_until_ended(client, settings, said, cancel=True, seconds=600) in (["slow-1"], [])
    assert follow.state_of(client.job("slow-1")) == "CANCELLED"
