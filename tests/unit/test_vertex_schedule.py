"""What differs between a schedule and the settings, and when its next runs are."""

from __future__ import annotations

import copy
import datetime
from typing import Any

import pytest

from pipelines.vertex import follow, schedule
from serving.errors import RequestError
from serving.settings import Settings, validated

NOW = datetime.datetime(2026, 11, 29, 12, tzinfo=datetime.UTC)
COMPILED = {"scenario": "gcs-fuse", "features": ["gcs-fuse"], "image": "i@sha256:1", "version": "0.1.0"}


def settings_for(**of_the_schedule: str) -> Settings:
    base = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
    return validated(Settings, {**base, "schedule": {"cron": "0 3 * * *", "timezone": "Asia/Seoul", **of_the_schedule}})


def job_of(**parameters: Any) -> dict[str, Any]:
    """A run as far as comparing goes."""
    step = {"inputs": {"parameters": {"compiled": {"runtimeValue": {"constant": dict(COMPILED)}}}}}
    return {
        "displayName": "a run",
        "labels": {"gemma-spec": "1", "gemma-pipelines": "gcs-fuse"},
        "serviceAccount": "a@p.iam.gserviceaccount.com",
        "runtimeConfig": {"parameterValues": {"model": "m", "settings": {"retry": False, "n": 3}, **parameters}},
        "pipelineSpec": {
            "components": {"comp-1": {"dag": {"tasks": {"resolve-model": step}}}},
            "deploymentSpec": {"executors": {"a": {"container": {"image": COMPILED["image"]}}}},
            "caching": {},
        },
    }


def wanted(**parameters: Any) -> dict[str, Any]:
    return schedule.wanted(settings_for(), job_of(**parameters), "projects/p/locations/l", NOW)


def as_the_service_has_it(asked: dict[str, Any]) -> dict[str, Any]:
    """Numbers are doubles, what is not set is not there, and there is more than was sent."""

    def stored(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: stored(each) for key, each in value.items()}
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    found = stored(copy.deepcopy(asked))
    del found["allowQueueing"]
    found["createPipelineJobRequest"]["parent"] = "projects/123/locations/l"
    found["createPipelineJobRequest"]["pipelineJob"] |= {"preflightValidations": True}
    found["createPipelineJobRequest"]["pipelineJob"]["labels"]["vertex-ai-pipelines-run-billing-id"] = "7"
    del found["createPipelineJobRequest"]["pipelineJob"]["pipelineSpec"]["caching"]
    return {
        **found,
        "name": "projects/123/locations/l/schedules/1",
        "state": "ACTIVE",
        "startTime": "2026-01-01T00:00:00Z",
    }


def test_what_the_service_has_made_of_a_schedule_is_no_difference():
    there = as_the_service_has_it(wanted())
    assert schedule.changes(wanted(), there) == {}
    assert schedule.drift(wanted(), there) == []


def test_differences_go_by_the_names_of_settings():
    there = as_the_service_has_it(wanted())
    there["cron"] = "0 4 * * *"
    asked = wanted(model="other", settings={"retry": True, "n": 3})
    assert list(schedule.changes(asked, there)) == ["cron", "createPipelineJobRequest"]
    assert schedule.drift(asked, there) == [
        {"field": "cron", "there": "0 4 * * *", "wanted": "TZ=Asia/Seoul 0 3 * * *"},
        {"field": "model", "there": "m", "wanted": "other"},
        {"field": "retry", "there": False, "wanted": True},
    ]


def test_another_image_is_one_difference_and_other_steps_are_another():
    there, asked = as_the_service_has_it(wanted()), wanted()
    specification = asked["createPipelineJobRequest"]["pipelineJob"]["pipelineSpec"]
    task = specification["components"]["comp-1"]["dag"]["tasks"]["resolve-model"]
    task["inputs"]["parameters"]["compiled"]["runtimeValue"]["constant"]["image"] = "i@sha256:2"
    specification["deploymentSpec"]["executors"]["a"]["container"]["image"] = "i@sha256:2"
    image = {"field": "pipeline.image", "there": "i@sha256:1", "wanted": "i@sha256:2"}
    assert schedule.drift(asked, there) == [image]
    specification["deploymentSpec"]["executors"]["b"] = {"container": {"image": "i@sha256:2"}}
    first, second = schedule.drift(asked, there)
    assert first == image
    assert second["field"] == "pipeline.steps"


def test_a_label_and_a_network_that_went_are_differences():
    there, asked = as_the_service_has_it(wanted()), wanted()
    there["createPipelineJobRequest"]["pipelineJob"] |= {"network": "projects/1/global/networks/n"}
    there["createPipelineJobRequest"]["pipelineJob"]["labels"]["team"] = "a"
    assert [each["field"] for each in schedule.drift(asked, there)] == ["labels.team", "network"]


def test_a_start_that_has_passed_is_left_out_and_an_end_that_has_is_refused():
    job = job_of()
    past = schedule.wanted(settings_for(start="2026-01-01T00:00:00Z"), job, "p", NOW)
    assert "startTime" not in past
    to_come = schedule.wanted(settings_for(start="2027-01-01T00:00:00+09:00"), job, "p", NOW)
    assert to_come["startTime"] == "2026-12-31T15:00:00Z"
    with pytest.raises(RequestError, match="has passed"):
        schedule.wanted(settings_for(end="2026-01-01T00:00:00Z"), job, "p", NOW)


def test_next_runs_are_in_the_schedule_s_zone():
    there = {"state": "ACTIVE", "cron": "TZ=Asia/Seoul 0 3 * * *"}
    assert [each.isoformat() for each in schedule.next_runs(there, NOW)] == [
        "2026-11-30T03:00:00+09:00",
        "2026-12-01T03:00:00+09:00",
        "2026-12-02T03:00:00+09:00",
    ]


def test_the_service_s_word_for_the_next_run_comes_first():
    there = {"state": "ACTIVE", "cron": "0 3 * * *", "nextRunTime": "2026-12-05T03:00:00Z"}
    assert [each.day for each in schedule.next_runs(there, NOW)] == [5, 6, 7]


def test_an_end_and_a_pause_have_no_runs_behind_them():
    there = {"state": "ACTIVE", "cron": "0 3 * * *", "endTime": "2026-12-01T00:00:00Z"}
    assert [each.day for each in schedule.next_runs(there, NOW)] == [30]
    assert schedule.next_runs({**there, "state": "PAUSED"}, NOW) == []


def test_clocks_that_go_forward_skip_no_day():
    there = {"state": "ACTIVE", "cron": "TZ=Europe/Berlin 30 1 * * *"}
    before = datetime.datetime(2027, 3, 27, 12, tzinfo=datetime.UTC)
    offsets = [each.utcoffset() for each in schedule.next_runs(there, before)]
    assert [offset.total_seconds() / 3600 for offset in offsets if offset] == [1, 2, 2]


@pytest.mark.parametrize("prefix", ["TZ", "CRON_TZ"])
def test_a_cron_s_zone_is_read(prefix: str):
    assert schedule.zone_and_cron(f"{prefix}=Asia/Seoul 0 3 * * *") == ("Asia/Seoul", "0 3 * * *")
    assert schedule.zone_and_cron("0 3 * * *") == ("UTC", "0 3 * * *")


def test_why_the_last_run_did_not_begin_is_told():
    last = {"scheduledRunTime": "2026-11-29T18:00:00Z", "runResponse": "You do not have permission"}
    assert schedule.start_error({"lastScheduledRunResponse": last}).endswith("You do not have permission")
    assert schedule.start_error({"lastScheduledRunResponse": {**last, "runResponse": "OK"}}) == ""
    assert schedule.start_error({}) == ""


# -- a run that is followed -----------------------------------------------------------------------------------------


def task(name: str, state: str, **fields: Any) -> dict[str, Any]:
    return {"taskName": name, "parentTaskId": "1", "state": state, **fields}


def test_groups_and_the_run_itself_are_no_steps():
    details = [
        {"taskName": "gemma-gcs-fuse-1", "state": "RUNNING"},
        task("exit-handler-1", "RUNNING"),
        task("condition-branches-3", "RUNNING"),
        task("condition-4", "RUNNING"),
        task("download-weights", "RUNNING"),
    ]
    found = follow.tasks_of({"jobDetail": {"taskDetails": details}})
    assert [follow.step_of(each) for each in found] == ["download_weights"]


def test_a_step_is_told_of_when_it_changes_and_when_it_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    outcome = {"status": "skipped", "message": "there already", "seconds": 2.5}
    monkeypatch.setattr(
        follow.storage, "read_json", lambda uri: outcome if uri.endswith("/download_weights.json") else 0
    )
    steps = follow.Steps(settings_for(), "projects/1/locations/l/pipelineJobs/run-1")

    def news(*tasks: dict[str, Any]) -> list[tuple[str, Any, str]]:
        entries = steps.news({"jobDetail": {"taskDetails": list(tasks)}})
        return [(each["step"], each.get("status"), each["message"]) for each in entries]

    first = task("download-weights", "PENDING")
    assert news(first) == [("download_weights", None, "waiting for its machine")]
    assert news(first) == []
    again = {"executorDetail": {"containerDetail": {"mainJob": "j/2", "failedMainJobs": ["j/1"]}}}
    assert news(task("download-weights", "RUNNING", **again)) == [("download_weights", None, "running, attempt 2")]
    assert news(task("download-weights", "SUCCEEDED", **again)) == [("download_weights", "skipped", "there already")]
    assert news(task("deploy-server", "NOT_TRIGGERED")) == []
    assert news(task("write-report", "FAILED"))[0][:2] == ("write_report", "failed")
