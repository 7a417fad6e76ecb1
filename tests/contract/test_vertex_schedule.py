"""`schedule` against the emulated Vertex AI: one schedule a deployment, found, compared, changed in place."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest
import requests

from pipelines.cli import schedule as commands
from pipelines.cli.output import Output
from pipelines.vertex import preflight, schedule
from serving.clients.vertex import Vertex
from serving.errors import RequestError
from serving.settings import Settings
from tests.contract.test_vertex_submit import (
    consumed,
    file_of,
    google,
    script,
    settings_for,
    site,
    specification,
)
from tests.contract.vertex_service import until

__all__ = ["google", "specification"]

NIGHTLY = {"cron": "0 3 * * *", "timezone": "Asia/Seoul"}


def asked(client: Vertex, settings: Settings) -> dict[str, Any]:
    now = datetime.datetime.now(datetime.UTC)
    return schedule.wanted(settings, preflight.checked_job(settings), client.parent, now)


def applied(client: Vertex, settings: Settings) -> tuple[dict[str, Any], str]:
    return schedule.apply(client, settings, asked(client, settings))


@pytest.fixture
def nightly(google):
    """A deployment of a test's own, whose schedules go afterwards."""
    made: list[tuple[Vertex, Settings]] = []

    def make(name: str, **changes: Any) -> tuple[Vertex, Settings]:
        client, settings = site(**{"schedule": NIGHTLY, "name": name, **changes})
        made.append((client, settings))
        return client, settings

    yield make
    script(google)
    for client, settings in made:
        for each in client.schedules(schedule.names.schedule(settings)):
            client.delete_schedule(each["name"])


def patches(emulated_cloud) -> int:
    return sum(each["method"] == "PATCH" for each in emulated_cloud.requests("google"))


def test_applied_twice_is_one_schedule_that_nobody_has_touched(nightly, emulated_cloud):
    client, settings = nightly("twice")
    first, done = applied(client, settings)
    assert (done, first["state"], first["cron"]) == ("created", "ACTIVE", "TZ=Asia/Seoul 0 3 * * *")
    assert (first["maxConcurrentRunCount"], first["maxConcurrentActiveRunCount"]) == ("1", "1")
    assert not first.get("allowQueueing")
    before = patches(emulated_cloud)
    second, done = applied(client, settings)
    assert (done, second["name"]) == ("unchanged", first["name"])
    assert patches(emulated_cloud) == before


def test_what_differs_is_shown_and_changed_in_place(nightly):
    client, settings = nightly("changed")
    first, _ = applied(client, settings)
    _, other = nightly("changed", schedule={**NIGHTLY, "cron": "30 4 * * *"}, revision="v2", serving={"replicas": 2})
    there = schedule.find(client, other)
    assert there
    assert schedule.drift(asked(client, other), there) == [
        {"field": "cron", "there": "TZ=Asia/Seoul 0 3 * * *", "wanted": "TZ=Asia/Seoul 30 4 * * *"},
        {"field": "revision", "there": "main", "wanted": "v2"},
        {"field": "serving.replicas", "there": 1, "wanted": 2},
    ]
    changed, done = applied(client, other)
    assert (done, changed["name"]) == ("changed", first["name"])
    assert changed["createTime"] == first["createTime"]
    assert schedule.drift(asked(client, other), changed) == []


def test_another_scenario_is_no_second_schedule(nightly):
    client, settings = nightly("preset")
    first, _ = applied(client, settings)
    _, other = nightly("preset", scenario="hyperdisk-ml")
    changed, done = applied(client, other)
    assert (done, changed["name"]) == ("changed", first["name"])


def test_an_answer_that_was_lost_is_not_a_second_schedule(nightly, google):
    client, settings = nightly("lost")
    wanted = asked(client, settings)
    script(google, {"action": "unanswered", "method": "POST", "path": "schedules"})
    _, done = schedule.apply(client, settings, wanted)
    assert done == "created"
    assert consumed(google) == [1]
    assert len(client.schedules(schedule.names.schedule(settings))) == 1


def test_two_of_one_name_are_refused_with_the_way_out(nightly):
    client, settings = nightly("two")
    wanted = asked(client, settings)
    both = [client.create_schedule(wanted)["name"] for _ in range(2)]
    assert len(set(both)) == 2
    with pytest.raises(RequestError, match="there are 2 schedules") as caught:
        applied(client, settings)
    for name in both:
        assert "curl -X DELETE" in str(caught.value)
        assert name in str(caught.value)


def test_two_deployments_do_not_see_each_other(nightly):
    client, ours = nightly("ours")
    _, theirs = nightly("theirs")
    applied(client, ours)
    assert schedule.find(client, theirs) is None
    # Nor does who has the name and not the labels.
    there = schedule.find(client, ours)
    assert there
    assert not schedule.is_ours(there, theirs)


def test_a_life_by_the_commands(nightly, tmp_path, capsys):
    nightly("life")
    file = file_of(tmp_path, name="life", schedule=NIGHTLY)

    def told(command: Any) -> dict[str, Any]:
        command(Output(as_json=True), file)
        return json.loads(capsys.readouterr().out)

    assert told(commands.show) == {
        "state": None,
        "cron": None,
        "timezone": None,
        "next": [],
        "drift": [],
        "name": None,
    }
    made = told(commands.apply)
    assert (made["state"], made["cron"], made["timezone"]) == ("ACTIVE", "0 3 * * *", "Asia/Seoul")
    assert [time[11:] for time in made["next"]] == ["03:00:00+09:00"] * 3
    assert told(commands.show) == made
    assert (told(commands.pause)["state"], told(commands.pause)["next"]) == ("PAUSED", [])
    assert told(commands.apply)["state"] == "PAUSED"
    assert told(commands.resume)["state"] == "ACTIVE"
    assert told(commands.delete) == {"deleted": made["name"]}
    assert told(commands.delete) == {"deleted": None}
    with pytest.raises(RequestError, match="has no schedule"):
        commands.pause(Output(), file)


def test_a_tick_runs_what_submit_would_run(nightly, google):
    client, settings = nightly("ticks")
    made, _ = applied(client, settings)
    now = requests.get(f"{google}/_emulator/clock", timeout=60).json()["time"]
    try:
        requests.post(f"{google}/_emulator/clock", json={"time": made["nextRunTime"]}, timeout=60).raise_for_status()
        condition = f'labels.gemma-place="{schedule.labels(settings)["gemma-place"]}"'
        (run,) = until(lambda: client.jobs(condition))
        assert run["scheduleName"] == made["name"]
        asked_for = preflight.checked_job(settings)
        assert {key: run["labels"][key] for key in asked_for["labels"]} == asked_for["labels"]
        assert schedule._comparable("pipelineJob", run) == schedule._comparable("pipelineJob", asked_for)
        until(lambda: client.job(run["name"])["state"] == "PIPELINE_STATE_SUCCEEDED")
        there = schedule.find(client, settings)
        assert there
        assert schedule.start_error(there) == ""
    finally:
        requests.post(f"{google}/_emulator/clock", json={"time": now}, timeout=60).raise_for_status()


def test_without_a_cron_there_is_nothing_to_apply(google):
    client, settings = site()
    with pytest.raises(RequestError, match="the settings have no schedule"):
        asked(client, settings)


def test_an_end_cannot_be_taken_back(nightly):
    client, settings = nightly("ends", schedule={**NIGHTLY, "end": "2099-01-01T00:00:00Z"})
    applied(client, settings)
    _, endless = nightly("ends")
    with pytest.raises(RequestError, match="lets nobody take back"):
        applied(client, endless)


def test_settings_for_a_test_name_no_schedule():
    assert settings_for().schedule.cron == ""
