"""Parts of the emulated Vertex AI that its contract tests do not reach."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.faults import Faults
from emulated_cloud.google.aiplatform import AiPlatform, resources
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import BadConfig, Config
from emulated_cloud.google.iam import Iam
from emulated_cloud.http import HttpError

ACCOUNT = "runner@demo.iam.gserviceaccount.com"
CONFIG: dict[str, Any] = {"project": {"id": "demo", "number": "1"}, "service_account": ACCOUNT, "token": "t"}
SPECIFICATION = {"schemaVersion": "2.1.0", "pipelineInfo": {"name": "a"}, "root": {"dag": {"tasks": {"a": {}}}}}


def config(folder: Path, **aiplatform: Any) -> Config:
    path = folder / "config.json"
    section = {"folder": str(folder / "aiplatform"), "locations": ["us-central1"], **aiplatform}
    path.write_text(json.dumps({**CONFIG, "aiplatform": section}))
    return Config.load(path)


def test_without_kfp_a_job_is_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = config(tmp_path)
    assert ours.aiplatform
    service = AiPlatform(ours, ours.aiplatform, Faults(), Iam(ours), "127.0.0.1:1")
    job = {
        "pipelineSpec": SPECIFICATION,
        "serviceAccount": ACCOUNT,
        "runtimeConfig": {"gcsOutputDirectory": "gs://bucket/root"},
    }
    path = ["projects", "demo", "locations", "us-central1", "pipelineJobs"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        with pytest.raises(HttpError, match="pip install kfp==") as refused:
            service.answer(Call("POST", "v1", path, "", {"pipelineJobId": "a"}, ours, job))
        assert refused.value.status == 501
        assert service.answer(Call("GET", "v1", path, "", {}, ours)) == {}
    finally:
        service.close()


def test_a_configuration_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="nope"):
        config(tmp_path, nope=1)


def runner(folder: Path, **request: Any) -> Any:
    from emulated_cloud.google.aiplatform.runner import Runner

    given = {"name": "projects/1/locations/l/pipelineJobs/j", "folder": str(folder), "scripted": {}, "fail_fast": False}
    return Runner({**given, **request}, os.open(os.devnull, os.O_WRONLY))


@pytest.mark.parametrize(("fail_fast", "may_start"), [(False, True), (True, False)])
def test_after_a_failure_a_policy_says_whether_other_tasks_begin(
    tmp_path: Path, fail_fast: bool, may_start: bool
) -> None:
    ours = runner(tmp_path, fail_fast=fail_fast)
    assert ours._may_start(("other",))
    ours._set(("first",), "FAILED", error={"code": 9, "message": "x"})
    assert ours._may_start(("other",)) is may_start
    ours._exits.add(("report",))
    assert ours._may_start(("report",))


def test_enums_are_numbers_where_a_client_wants_them() -> None:
    job = {
        "name": "projects/1/locations/l/pipelineJobs/j",
        "state": "PIPELINE_STATE_FAILED",
        "labels": {"state": "PIPELINE_STATE_FAILED"},
        "jobDetail": {
            "taskDetails": [{"state": "FAILED", "execution": {"state": "FAILED", "metadata": {"state": "x"}}}]
        },
    }
    assert resources.numbered({"pipelineJobs": [job]}) == {
        "pipelineJobs": [
            {
                **job,
                "state": 5,
                "jobDetail": {"taskDetails": [{"state": 7, "execution": {"state": 4, "metadata": {"state": "x"}}}]},
            }
        ]
    }
    schedule = {"name": "projects/1/locations/l/schedules/1", "state": "PAUSED"}
    assert resources.numbered(schedule)["state"] == 2
