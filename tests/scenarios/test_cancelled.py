"""A run that is cancelled in any of its steps gives back what it holds, by the step's own hand, and the next completes.

One deployment has the steps of all features. The step stands still at a line of its log, and hears SIGTERM; no exit
task runs after it, as where an orchestrator leaves it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for

from tests.scenarios.emulated import Cloud, held

NOTHING = {"lease": "", "jobs": [], "deployments": [], "baking": []}
BEFORE_PROMOTION = [
    ("resolve-model", "started"),
    ("ensure-access", "gave roles/"),
    ("bake-disk-image", "machine .* started in"),
    ("download-weights", "started"),
    ("hydrate-volume", "applied VolumeSnapshot/"),
    ("deploy-server", "applied Deployment/"),
    ("validate-server", "load: "),
    ("verify-image-cache", "started"),
    ("verify-placement", "started"),
    ("promote-generation", "started"),
]
"""Task and line. Each run finds what the one before left when it was cancelled a step earlier."""
LONG_LOAD = ("--set", "validation.requests_per_concurrency=1000")


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    cloud = Cloud(folder, scenario="hyperdisk-ml", features=["secondary-boot-disk"], keep_previous=0)
    assert cloud.command("bootstrap")["ready"]
    yield cloud
    assert cloud.run.stop() == 0


def cancelled(cloud: Cloud, task: str, line: str, *more: str) -> None:
    """A run that is cancelled when this task prints this line."""
    outcome = {"task": task, "after": line, "cancel": True, "exit_after_cancel": False}
    cloud.script({"action": "outcome", "path": "/pipelineJobs$", "outcome": outcome})
    told = cloud.command("submit", "04", "--wait", *more, code=1)
    assert cloud.consumed() == [2], f"{task} was cancelled, and no exit task ran"
    assert told["state"] == "CANCELLED"
    step = task.replace("-", "_")
    outcomes = {each["name"]: each["status"] for each in told["run"]["steps"]}
    assert outcomes[step] == "inconclusive"
    assert "told to end (SIGTERM)" in cloud.of_run(told["id"], f"steps/{step}.json")["message"]


def comes_to_hold(cloud: Cloud, wanted: dict[str, Any]) -> None:
    assert wait_for(lambda: held(cloud) == wanted, 120), held(cloud)


@pytest.mark.timeout(3600)
def test_a_run_cancelled_in_any_step_holds_nothing_and_is_completed_by_the_next(cloud: Cloud):
    for task, line in BEFORE_PROMOTION:
        cancelled(cloud, task, line, *(LONG_LOAD if line == "load: " else ()))
        comes_to_hold(cloud, NOTHING)

    first = cloud.command("submit", "04", "--wait")["run"]
    assert first["status"] == "succeeded"
    serving = {**NOTHING, "deployments": [f"vllm-{first['generation']}"]}
    comes_to_hold(cloud, serving)

    # What comes after a verdict, each of another generation. What serves is not touched.
    longer, longest = (("--set", f"engine.max_model_len={length}") for length in (1024, 2048))
    bad = (*longest, "--set", "validation.thresholds.min_tokens_per_second=1000000000")
    cancelled(cloud, "discard-generation", "started", *bad)
    comes_to_hold(cloud, serving)
    rejected = cloud.command("submit", "04", "--wait", *bad, code=1)["run"]
    assert rejected["error"]["step"] == "validate_server"
    comes_to_hold(cloud, serving)

    cancelled(cloud, "collect-garbage", "started", *longer)
    second = cloud.command("submit", "04", "--wait", *longer)["run"]
    assert second["generation"] not in (first["generation"], rejected["generation"])
    comes_to_hold(cloud, {**NOTHING, "deployments": [f"vllm-{second['generation']}"]})
    assert cloud.command("submit", "04", "--wait", *longer)["run"]["status"] == "unchanged"
