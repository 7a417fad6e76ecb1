"""The last runs of a deployment, by what Vertex AI knows of them and what they left in the bucket."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.oversight import runs
from serving import names
from serving.clients import storage
from serving.clients.storage import StoredObject
from tests.unit.deployment import SETTINGS, quick

ROOT = SETTINGS.pipeline_root


def outcome(name: str, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "status": "succeeded",
        "started_at": "2026-11-29T03:00:00+00:00",
        "seconds": 2.0,
        "message": f"{name} is done",
        "error": None,
        **more,
    }


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Addresses and documents; the later one is newer."""
    there: dict[str, Any] = {}

    def listed(prefix: str) -> list[StoredObject]:
        return [StoredObject(uri, 1, "", number) for number, uri in enumerate(there) if uri.startswith(prefix)]

    monkeypatch.setattr(storage, "read_json", there.get)
    monkeypatch.setattr(storage, "list_objects", listed)
    return there


def left(bucket: dict[str, Any], run: str, settings: Any = SETTINGS, *outcomes: dict[str, Any]) -> None:
    resolved = outcome("resolve_model", deployment=names.place(settings), generation="g1")
    for each in (resolved, *outcomes):
        bucket[f"{ROOT}/{run}/steps/{each['name']}.json"] = each


def test_without_vertex_the_bucket_says_which_runs_are_the_deployments(bucket):
    for number in range(7):
        left(bucket, f"run-{number}")
    left(bucket, "run-of-another", quick(namespace="other"))
    found = runs.latest(None, SETTINGS)
    assert [each["id"] for each in found] == [f"run-{number}" for number in (6, 5, 4, 3, 2)]
    assert found[0]["generation"] == "g1"
    assert [step["message"] for step in found[0]["steps"]] == ["resolve_model is done"]


def test_why_a_run_failed_is_told_in_the_steps_own_words(bucket):
    failed = outcome("deploy_server", status="failed", message="no such flag", error={"type": "ReleaseError"})
    left(bucket, "run-1", SETTINGS, failed)
    (run,) = runs.latest(None, SETTINGS)
    assert run["error"] == {"step": "deploy_server", "message": "no such flag"}


class Vertex:
    """One run, of which a step was tried twice and another left nothing."""

    def __init__(self, **job: Any):
        self.asked = {"name": "projects/1/locations/l/pipelineJobs/run-1", "state": "PIPELINE_STATE_FAILED", **job}

    def jobs(self, condition: str, most: int) -> list[dict[str, Any]]:
        assert condition == f'labels.{names.RUNS_AT}="{names.place_label(SETTINGS)}"'
        assert most == 5
        return [self.asked]

    def job(self, name: str) -> dict[str, Any]:
        attempts = {"containerDetail": {"failedMainJobs": ["one"]}}
        tasks = [
            {"taskId": "1", "parentTaskId": "0", "taskName": "resolve-model", "state": "SUCCEEDED"},
            {
                "taskId": "2",
                "parentTaskId": "0",
                "taskName": "deploy-server",
                "state": "FAILED",
                "executorDetail": attempts,
            },
            {"taskId": "3", "parentTaskId": "0", "taskName": "validate-server", "state": "NOT_TRIGGERED"},
        ]
        return {**self.asked, "jobDetail": {"taskDetails": tasks}}


def test_vertex_knows_attempts_and_what_left_nothing(bucket):
    left(bucket, "run-1")
    times = {"createTime": "2026-11-29T03:00:00Z", "endTime": "2026-11-29T03:01:00Z", "scheduleName": "s"}
    error = {"code": 9, "message": "The DAG failed"}
    vertex: Any = Vertex(**times, error=error)
    (run,) = runs.latest(vertex, SETTINGS)
    assert (run["id"], run["state"], run["seconds"], run["scheduled"]) == ("run-1", "FAILED", 60.0, True)
    assert run["error"] == {"step": None, "message": "The DAG failed"}
    steps = {step["name"]: (step["status"], step["attempts"]) for step in run["steps"]}
    assert steps == {"resolve_model": ("succeeded", 1), "deploy_server": ("failed", 2)}


def test_a_run_of_which_only_vertex_knows_is_told_too(bucket):
    vertex: Any = Vertex(state="PIPELINE_STATE_PENDING")
    (run,) = runs.latest(vertex, SETTINGS)
    assert (run["state"], run["status"], run["error"]) == ("PENDING", None, None)
