"""Vertex AI's schedules, with a clock that the tests move, held against the discovery document."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest
import requests
from google.api_core import exceptions
from google.protobuf import json_format

from tests.contract import vertex_pipelines as pipelines
from tests.contract.vertex_service import (
    NUMBERED,
    PARENT,
    compiled,
    job_of,
    new_vertex,
    until,
    vertex,
)

__all__ = ["new_vertex", "vertex"]

NOTHING = {"error": {"code": 13, "message": "never mind"}}
"""What becomes of runs that a test does not want to wait for."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled(pipelines.says, tmp_path_factory.mktemp("spec"))


@pytest.fixture
def nightly(vertex, spec):
    """Makes a schedule at 03:00 in Seoul, from 2027-01-10 at noon in UTC on; it goes with the test."""
    made = []

    def make(**fields: Any) -> str:
        vertex.set_clock("2027-01-10T12:00:00Z")
        made.append(create(vertex, spec, **fields))
        return made[-1]

    yield make
    vertex.script()
    for name in made:
        for job in runs_of(vertex, name):
            vertex.wait_for(job)
        vertex.schedules.delete_schedule(name=name).result(timeout=60)


def schedule_of(spec: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {
        "display_name": "nightly",
        "cron": "TZ=Asia/Seoul 0 3 * * *",
        "max_concurrent_run_count": 1,
        "max_concurrent_active_run_count": 1,
        "create_pipeline_job_request": {"parent": PARENT, "pipeline_job": job_of(spec, words="scheduled")},
        **fields,
    }


def create(vertex, spec: dict[str, Any], **fields: Any) -> str:
    return vertex.schedules.create_schedule(parent=PARENT, schedule=schedule_of(spec, **fields)).name


def get(vertex, name: str) -> dict[str, Any]:
    found = vertex.schedules.get_schedule(name=name)
    return json_format.MessageToDict(type(found).pb(found))


def runs_of(vertex, schedule: str) -> list[str]:
    """The names of a schedule's runs, oldest first."""
    asked = {"parent": PARENT, "filter": f"schedule_name={schedule}", "order_by": "create_time"}
    return [job.name for job in vertex.jobs.list_pipeline_jobs(asked)]


def runs_that_end(vertex, times: int, **outcome: Any) -> None:
    """What becomes of the next runs."""
    outcome = outcome or NOTHING
    vertex.script({"action": "outcome", "path": "pipelineJobs$", "outcome": outcome, "times": times})


def tick(vertex, schedule: str, time: str) -> None:
    """Moves the clock there; every run has ended when this returns, so that the next tick finds none."""
    vertex.set_clock(time)
    for job in runs_of(vertex, schedule):
        vertex.wait_for(job)


# -- ticks ----------------------------------------------------------------------------------------------------------


def test_a_tick_runs_the_template_at_its_time_in_its_zone(vertex, nightly):
    name = nightly()
    assert name.startswith(f"{NUMBERED}/schedules/")
    schedule = get(vertex, name)
    assert (schedule["state"], schedule["nextRunTime"]) == ("ACTIVE", "2027-01-10T18:00:00Z")
    assert schedule["createTime"] == schedule["startTime"]
    vertex.set_clock("2027-01-10T17:59:59Z")
    assert runs_of(vertex, name) == []
    tick(vertex, name, "2027-01-10T18:00:01Z")
    (run,) = runs_of(vertex, name)
    job = vertex.get(run)
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED"
    assert job["scheduleName"] == name
    assert job["labels"]["team"] == "gemma"
    assert job["createTime"].startswith("2027-01-10T18:00:00.")
    assert run.rpartition("/")[2].startswith("says-20270110180000-")
    schedule = get(vertex, name)
    assert schedule["startedRunCount"] == "1"
    assert schedule["lastScheduledRunResponse"] == {"scheduledRunTime": "2027-01-10T18:00:00Z", "runResponse": "OK"}
    assert schedule["nextRunTime"] == "2027-01-11T18:00:00Z"


def test_ticks_are_dropped_while_a_run_is_active(vertex, nightly):
    name = nightly()
    runs_that_end(vertex, 1, hold=True)
    vertex.set_clock("2027-01-13T19:00:00Z")
    assert len(runs_of(vertex, name)) == 1, "of three ticks"
    assert get(vertex, name)["nextRunTime"] == "2027-01-14T18:00:00Z"
    vertex.script()
    vertex.wait_for(*runs_of(vertex, name))
    runs_that_end(vertex, 1)
    tick(vertex, name, "2027-01-14T18:00:00Z")
    assert len(runs_of(vertex, name)) == 2
    assert get(vertex, name)["startedRunCount"] == "2"


def test_ticks_wait_while_a_run_is_active_where_the_schedule_says_so(vertex, nightly):
    name = nightly(allow_queueing=True)
    runs_that_end(vertex, 1, hold=True)
    vertex.set_clock("2027-01-12T19:00:00Z")
    assert len(runs_of(vertex, name)) == 1
    runs_that_end(vertex, 2)
    until(lambda: len(runs_of(vertex, name)) == 3)
    assert vertex.consumed() == [2]
    schedule = get(vertex, name)
    assert schedule["startedRunCount"] == "3"
    assert schedule["lastScheduledRunResponse"]["scheduledRunTime"] == "2027-01-12T18:00:00Z"


def test_without_a_limit_runs_are_active_side_by_side(vertex, nightly):
    name = nightly(max_concurrent_active_run_count=None)
    runs_that_end(vertex, 3)
    vertex.set_clock("2027-01-12T19:00:00Z")
    assert len(runs_of(vertex, name)) == 3


@pytest.mark.parametrize(
    ("fields", "runs"), [({"max_run_count": 2}, 2), ({"end_time": "2027-01-12T18:00:00Z"}, 2)], ids=["count", "end"]
)
def test_a_schedule_is_completed_by_count_or_end(vertex, nightly, fields, runs):
    name = nightly(**fields)
    runs_that_end(vertex, 9)
    for day in range(10, 16):
        tick(vertex, name, f"2027-01-{day}T18:30:00Z")
    schedule = get(vertex, name)
    assert (schedule["state"], len(runs_of(vertex, name))) == ("COMPLETED", runs)
    assert "nextRunTime" not in schedule
    with pytest.raises(exceptions.BadRequest, match="COMPLETED"):
        vertex.schedules.pause_schedule(name=name)
    with pytest.raises(exceptions.BadRequest, match="COMPLETED"):
        vertex.schedules.update_schedule(schedule={"name": name, "cron": "0 4 * * *"}, update_mask={"paths": ["cron"]})


def test_a_start_in_the_past_is_caught_up_with(vertex, nightly):
    runs_that_end(vertex, 3)
    name = nightly(start_time="2027-01-07T19:00:00Z", max_concurrent_active_run_count=3)
    assert len(runs_of(vertex, name)) == 2
    assert get(vertex, name)["nextRunTime"] == "2027-01-10T18:00:00Z"


def test_a_start_in_the_future_is_waited_for(vertex, nightly):
    name = nightly(start_time="2027-02-01T00:00:00Z")
    vertex.set_clock("2027-01-20T00:00:00Z")
    assert runs_of(vertex, name) == []
    assert get(vertex, name)["nextRunTime"] == "2027-02-01T18:00:00Z"


def test_a_request_that_is_refused_is_told_and_the_schedule_goes_on(vertex, nightly):
    name = nightly()
    refused = "You do not have permission to act as service_account: runner@demo.iam.gserviceaccount.com."
    runs_that_end(vertex, 1, refused={"code": 3, "message": refused})
    vertex.set_clock("2027-01-10T18:00:00Z")
    assert vertex.consumed() == [1]
    schedule = get(vertex, name)
    assert runs_of(vertex, name) == []
    assert schedule["lastScheduledRunResponse"]["runResponse"] == refused
    assert (schedule["state"], schedule["nextRunTime"]) == ("ACTIVE", "2027-01-11T18:00:00Z")
    assert schedule.get("startedRunCount", "0") == "0"


def test_a_run_that_fails_changes_nothing_of_its_schedule(vertex, nightly):
    name = nightly()
    runs_that_end(vertex, 1)
    tick(vertex, name, "2027-01-10T18:00:00Z")
    schedule = get(vertex, name)
    assert vertex.get(runs_of(vertex, name)[0])["state"] == "PIPELINE_STATE_FAILED"
    assert schedule["lastScheduledRunResponse"]["runResponse"] == "OK"
    assert schedule["state"] == "ACTIVE"


@pytest.mark.parametrize(
    ("since", "until_", "ticks"),
    [
        # Clocks go forward from 02:00 to 03:00: 02:30 is skipped that night.
        ("2027-03-13T12:00:00Z", "2027-03-16T12:00:00Z", ["2027-03-15T06:30:00Z", "2027-03-16T06:30:00Z"]),
        # They go back from 02:00 to 01:00: 02:30 comes once.
        ("2027-11-06T12:00:00Z", "2027-11-08T12:00:00Z", ["2027-11-07T07:30:00Z", "2027-11-08T07:30:00Z"]),
    ],
    ids=["forward", "back"],
)
def test_ticks_follow_the_clocks_of_their_zone(vertex, nightly, since, until_, ticks):
    vertex.script()
    name = nightly(cron="TZ=America/New_York 30 2 * * *", max_concurrent_active_run_count=9)
    vertex.schedules.pause_schedule(name=name)
    vertex.set_clock(since)
    vertex.schedules.resume_schedule(name=name)
    runs_that_end(vertex, 9)
    vertex.set_clock(until_)
    created = [vertex.get(run)["createTime"] for run in runs_of(vertex, name)]
    assert [time[:19] + "Z" for time in created] == ticks


# -- verbs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("catch_up", "runs"), [(False, 0), (True, 2)])
def test_a_pause_is_caught_up_with_where_it_is_asked(vertex, nightly, catch_up, runs):
    name = nightly(max_concurrent_active_run_count=5)
    vertex.schedules.pause_schedule(name=name)
    schedule = get(vertex, name)
    assert (schedule["state"], "nextRunTime" in schedule) == ("PAUSED", False)
    with pytest.raises(exceptions.BadRequest, match="PAUSED"):
        vertex.schedules.pause_schedule(name=name)
    runs_that_end(vertex, 5)
    vertex.set_clock("2027-01-12T12:00:00Z")
    assert runs_of(vertex, name) == []
    vertex.schedules.resume_schedule(name=name, catch_up=catch_up)
    assert len(runs_of(vertex, name)) == runs
    schedule = get(vertex, name)
    assert (schedule["state"], schedule["nextRunTime"]) == ("ACTIVE", "2027-01-12T18:00:00Z")
    assert schedule.get("catchUp", False) is catch_up
    with pytest.raises(exceptions.BadRequest, match="ACTIVE"):
        vertex.schedules.resume_schedule(name=name)


def test_a_schedule_is_changed_in_place(vertex, nightly, spec):
    name = nightly(allow_queueing=True)
    runs_that_end(vertex, 1, hold=True)
    vertex.set_clock("2027-01-12T12:00:00Z")  # Two ticks: one runs, one waits.
    request = {"parent": PARENT, "pipeline_job": job_of(spec, words="changed")}
    changed = vertex.schedules.update_schedule(
        schedule={
            "name": name,
            "cron": "TZ=Asia/Seoul 0 5 * * *",
            "display_name": "not in the mask",
            "create_pipeline_job_request": request,
        },
        update_mask={"paths": ["cron", "create_pipeline_job_request"]},
    )
    assert changed.display_name == "nightly"
    assert changed.allow_queueing
    assert changed.next_run_time.isoformat() == "2027-01-12T20:00:00+00:00"
    runs_that_end(vertex, 1)
    tick(vertex, name, "2027-01-12T19:00:00Z")
    assert len(runs_of(vertex, name)) == 1, "what waited is dropped, and the former time is none"
    tick(vertex, name, "2027-01-12T20:00:00Z")
    first, second = runs_of(vertex, name)
    assert vertex.get(first)["runtimeConfig"]["parameterValues"] == {"words": "scheduled"}
    assert vertex.get(second)["runtimeConfig"]["parameterValues"] == {"words": "changed"}


def test_what_waits_may_be_switched_off(vertex, nightly):
    name = nightly(allow_queueing=True)
    changed = vertex.schedules.update_schedule(
        schedule={"name": name, "allow_queueing": False}, update_mask={"paths": ["allow_queueing"]}
    )
    assert not changed.allow_queueing


def test_masks_are_taken_in_either_form_and_say_only_what_can_be(vertex, nightly):
    name = nightly().replace(NUMBERED, PARENT)
    for mask in ("maxRunCount", "max_run_count"):
        answer = vertex.rest("PATCH", f"{name}?updateMask={mask}", {"maxRunCount": "7"})
        assert answer.json()["maxRunCount"] == "7"
    assert vertex.rest("PATCH", f"{name}?updateMask=state,cron", {"state": "PAUSED", "cron": "0 1 * * *"}).ok
    assert get(vertex, name)["state"] == "ACTIVE", "which is the service's to say"
    for mask, body, words in (
        ("", {"cron": "0 1 * * *"}, "update_mask"),
        ("cronTab", {}, "Unknown field: cronTab"),
        ("cron", {}, "A field that is set cannot be unset"),
        ("cron", {"cron": "0 25 * * *"}, "Invalid cron expression"),
    ):
        answer = vertex.rest("PATCH", f"{name}?updateMask={mask}", body)
        assert answer.status_code == 400
        assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"display_name": ""}, "schedule.display_name; Message: Required"),
        ({"cron": ""}, "schedule.cron; Message: Required"),
        ({"max_concurrent_run_count": 0}, "schedule.max_concurrent_run_count; Message: Required"),
        ({"create_pipeline_job_request": None}, "schedule.create_pipeline_job_request; Message: Required"),
        ({"cron": "0 3 * *"}, "it has 4 fields, not 5"),
        ({"cron": "0 0 3 * * *"}, "it has 6 fields, not 5"),
        ({"cron": "61 3 * * *"}, "'61' is not within 0 to 59"),
        ({"cron": "0 3 30 2 *"}, "there is no such day"),
        ({"cron": "TZ=Mars/Base 0 3 * * *"}, "there is no time zone Mars/Base"),
        ({"cron": "TZ=../../etc/passwd 0 3 * * *"}, "there is no time zone"),
    ],
    ids=lambda value: str(next(iter(value.values()))) if isinstance(value, dict) else "",
)
def test_a_schedule_that_cannot_be_is_refused(vertex, spec, change, words):
    with pytest.raises(exceptions.BadRequest, match=words):
        create(vertex, spec, **change)


def test_a_template_that_cannot_be_is_refused(vertex, spec):
    def refused(words: str, **changes: Any) -> None:
        request = {"parent": PARENT, "pipeline_job": job_of(spec, words="x"), **changes}
        with pytest.raises(exceptions.BadRequest, match=words):
            create(vertex, spec, create_pipeline_job_request=request)

    refused("The scheduler API doesn't support this parameter", pipeline_job_id="mine")
    refused("Not this schedule's location", parent="projects/demo/locations/elsewhere")
    refused("not required by pipeline: nope", pipeline_job=job_of(spec, nope=1))
    refused("act as service_account", pipeline_job=job_of(spec) | {"service_account": ""})


def test_schedules_are_found_by_name_which_is_nobodys_alone(vertex, nightly):
    names = {nightly(), nightly(), nightly(display_name="nightly, but another")}

    def found(text: str) -> set[str]:
        return {schedule.name for schedule in vertex.schedules.list_schedules({"parent": PARENT, "filter": text})}

    assert len(found('display_name="nightly"')) == 2
    assert found('display_name:"nightly*"') == names
    assert found('state="ACTIVE" AND create_pipeline_job_request:*') == names
    assert found('NOT display_name="nightly"') < names
    (first, *_) = vertex.schedules.list_schedules({"parent": PARENT})
    assert first.create_pipeline_job_request.pipeline_job.labels == {"team": "gemma"}


def test_a_schedule_and_its_runs_outlive_the_emulator_and_the_runs_the_schedule(new_vertex, spec):
    vertex = new_vertex()
    vertex.set_clock("2020-01-10T12:00:00Z")
    name = create(vertex, spec)
    runs_that_end(vertex, 1)
    tick(vertex, name, "2020-01-10T18:00:00Z")
    vertex.stop()
    vertex.start()
    schedule = get(vertex, name)
    assert schedule["startedRunCount"] == "1"
    now = requests.get(f"{vertex.process.url}/_emulator/clock", timeout=60).json()["time"]
    tick_ = datetime.fromisoformat(schedule["nextRunTime"]) - datetime.fromisoformat(now)
    assert timedelta(0) < tick_ <= timedelta(days=1), "the clock is this machine's again, and the next tick ahead"
    runs = runs_of(vertex, name)
    vertex.schedules.delete_schedule(name=name).result(timeout=60)
    with pytest.raises(exceptions.NotFound):
        vertex.schedules.get_schedule(name=name)
    assert runs_of(vertex, name) == runs
    assert len(runs) == 1


def test_an_answer_may_be_lost_after_the_schedule_was_made(vertex, nightly):
    vertex.script({"action": "unanswered", "method": "POST", "path": "/schedules"})
    with pytest.raises(requests.ConnectionError):
        nightly(display_name="lost")
    assert vertex.consumed() == [1]
    (lost,) = vertex.schedules.list_schedules({"parent": PARENT, "filter": 'display_name="lost"'})
    vertex.schedules.delete_schedule(name=lost.name)
