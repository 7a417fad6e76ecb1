"""The emulated Vertex AI through Google's SDK, `aiplatform.PipelineJob` and `PipelineJobSchedule`, where that works.

It looks at the bucket, which is emulated as well, and asks Resource Manager over gRPC, which is answered here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_cloud import process

from tests.contract import vertex_pipelines as pipelines
from tests.contract.vertex_service import ACCOUNT, CONFORMANCE, NUMBERED, TOKEN, compiled, vertex

__all__ = ["vertex"]

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An emulated storage with the bucket of the runs."""
    tokens = tmp_path / "tokens.json"
    tokens.write_text(json.dumps({TOKEN: ACCOUNT}))
    arguments = ("--root", str(tmp_path / "buckets"), "--tokens", str(tokens), "--bucket", "demo-bucket")
    started = process.start("emulated_cloud.storage", *arguments, log=tmp_path / "storage.log")
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", started.url)
    yield
    started.stop()


@pytest.fixture
def sdk(vertex, bucket, monkeypatch: pytest.MonkeyPatch) -> Any:
    from google.cloud import aiplatform
    from google.cloud.aiplatform import pipeline_jobs
    from google.cloud.aiplatform.utils import resource_manager_utils
    from google.oauth2.credentials import Credentials

    monkeypatch.setattr(resource_manager_utils, "get_project_number", lambda *_, **__: "123456789012")
    monkeypatch.setattr(pipeline_jobs, "_JOB_WAIT_TIME", 0.2)
    monkeypatch.setattr(pipeline_jobs, "_LOG_WAIT_TIME", 0.2)
    aiplatform.init(
        project="demo",
        location="us-central1",
        credentials=Credentials(TOKEN),
        api_endpoint=vertex.process.url,
        api_transport="rest",
    )
    return aiplatform


def job_of(sdk: Any, folder: Path, pipeline: Any = pipelines.says, **options: Any) -> Any:
    path = folder / "says.yaml"
    path.write_text(yaml.safe_dump(compiled(pipeline, folder)))
    job = sdk.PipelineJob(
        display_name="through the SDK",
        template_path=str(path),
        pipeline_root="gs://demo-bucket/pipelines",
        enable_caching=False,
        labels={"team": "gemma"},
        failure_policy="fast",
        **options,
    )
    CONFORMANCE.watch(job.api_client._transport._session)
    return job


def test_a_job(sdk, vertex, tmp_path):
    job = job_of(sdk, tmp_path, job_id="through-the-sdk", parameter_values={"words": "hello"})
    job.submit(service_account=ACCOUNT)
    assert job.resource_name == f"{NUMBERED}/pipelineJobs/through-the-sdk"
    job.wait()
    assert job.state.name == "PIPELINE_STATE_SUCCEEDED"
    assert [task.state.name for task in job.task_details] == ["SUCCEEDED", "SUCCEEDED"]
    (found,) = sdk.PipelineJob.list(filter='labels.team="gemma"')
    assert found.resource_name == job.resource_name
    job.delete()
    assert sdk.PipelineJob.list() == []


def test_a_job_that_fails_and_one_that_is_cancelled(sdk, vertex, tmp_path):
    vertex.outcome(error={"code": 9, "message": "The DAG failed because some tasks failed."})
    job = job_of(sdk, tmp_path)
    job.submit(service_account=ACCOUNT)
    with pytest.raises(RuntimeError, match="The DAG failed because some tasks failed"):
        job.wait()
    vertex.outcome(hold=True)
    job = job_of(sdk, tmp_path, job_id="to-be-cancelled")
    job.submit(service_account=ACCOUNT)
    job.cancel()
    job.wait()
    assert job.state.name == "PIPELINE_STATE_CANCELLED"


def test_a_schedule(sdk, vertex, tmp_path):
    vertex.set_clock("2027-01-10T12:00:00Z")
    job = job_of(sdk, tmp_path, parameter_values={"words": "every night"})
    schedule = job.create_schedule("TZ=Asia/Seoul 0 3 * * *", "nightly", service_account=ACCOUNT)
    CONFORMANCE.watch(schedule.api_client._transport._session)
    assert schedule.state.name == "ACTIVE"
    assert schedule._gca_resource.next_run_time.isoformat() == "2027-01-10T18:00:00+00:00"
    schedule.update(cron="TZ=Asia/Seoul 0 4 * * *", max_run_count=1)
    assert schedule.cron == "TZ=Asia/Seoul 0 4 * * *"
    schedule.pause()
    assert schedule.state.name == "PAUSED"
    schedule.resume(catch_up=False)
    vertex.outcome(error={"code": 13, "message": "never mind"})
    vertex.set_clock("2027-01-10T19:00:00Z")
    (run,) = schedule.list_jobs()
    assert vertex.wait_for(run.resource_name)["runtimeConfig"]["parameterValues"] == {"words": "every night"}
    (found,) = sdk.PipelineJobSchedule.list(filter='display_name="nightly"')
    assert found.state.name == "COMPLETED"
    schedule.delete()
    assert sdk.PipelineJobSchedule.list() == []
