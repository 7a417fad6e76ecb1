"""A run that is cancelled in a step that holds something gives it back, by the step's own hand, and the next completes.

One deployment has the steps of all features that go together. The step stands still at a line of its log, and hears
SIGTERM; no exit task runs after it, as where an orchestrator leaves it out. The verify_* steps look and hold nothing of
their own here: that every step gives back Lease and accelerators is seen a step at a time in tests/unit/test_step.py.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub.models import write_gemma3, zero_weights

from tests.scenarios.emulated import Cloud, held, holds, up

NOTHING = {"lease": "", "jobs": [], "deployments": [], "baking": []}
BEFORE_PROMOTION: list[tuple[str, str, dict[str, Any]]] = [
    ("ensure-access", "gave roles/", {}),
    ("bake-disk-image", "machine .* started in", {}),
    # Of another generation: the run before may have filled the volume of this one while its disk was baked.
    ("hydrate-volume", "applied VolumeSnapshot/", {"engine": {"max_model_len": 4096}}),
    ("deploy-server", "applied Deployment/", {}),
    ("validate-server", "load: ", {"validation": {"requests_per_concurrency": 1000}}),
]
"""Task, line, and what the settings of this run have beside the others'. Each run finds what the one before left,
cancelled a step earlier."""


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    with up(folder, scenario="hyperdisk-ml", features=["secondary-boot-disk"]) as cloud:
        assert cloud.command("bootstrap")["ready"]
        yield cloud


@pytest.fixture(scope="module")
def request_of_a_run(cloud: Cloud) -> dict[str, Any]:
    found: dict[str, Any] = cloud.command("submit", "04", "--dry-run")["pipelineJob"]
    return found


def ran(cloud: Cloud, asked: dict[str, Any], job_id: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """A run that has ended."""
    asked = copy.deepcopy(asked)
    settings = asked["runtimeConfig"]["parameterValues"]["settings"]
    for section, own in changes.items():
        settings[section] |= own
    return cloud.ran(asked, job_id)


def cancelled(cloud: Cloud, asked: dict[str, Any], task: str, line: str, **changes: dict[str, Any]) -> None:
    """A run that is cancelled when this task prints this line."""
    outcome = {"task": task, "after": line, "cancel": True, "exit_after_cancel": False}
    cloud.script({"action": "outcome", "path": "/pipelineJobs$", "outcome": outcome})
    job = ran(cloud, asked, f"cancelled-in-{task}", **changes)
    assert cloud.consumed() == [2], f"{task} was cancelled, and no exit task ran"
    assert job["state"] == "PIPELINE_STATE_CANCELLED"
    cancelled_tasks = {each["taskName"] for each in job["jobDetail"]["taskDetails"] if each["state"] == "CANCELLED"}
    assert task in cancelled_tasks
    left = cloud.of_run(f"cancelled-in-{task}", f"steps/{task.replace('-', '_')}.json")
    assert (left["status"], left["error"]["type"]) == ("inconclusive", "ToldToEnd")


def comes_to_hold(cloud: Cloud, wanted: dict[str, Any]) -> None:
    assert wait_for(lambda: held(cloud) == wanted, 120), held(cloud)


def generation_of(cloud: Cloud, run_id: str) -> str:
    found: str = cloud.of_run(run_id, "steps/resolve_model.json")["generation"]
    return found


def generations_in(things: set[str]) -> set[str]:
    """The generations that things are of, by their names."""
    return {found for thing in things for found in re.findall(r"\bg[0-9a-f]{10}\b", thing)}


def volumes_in(things: set[str]) -> set[str]:
    """The disks of volumes, each in all its zones."""
    return {thing.split("/")[1] for thing in things if thing.startswith("disks/")}


def serves(generation: str) -> dict[str, Any]:
    """What is held while it serves and nobody is at work."""
    return {**NOTHING, "deployments": [f"vllm-{generation}"]}


@pytest.mark.timeout(3600)
def test_a_run_that_is_cancelled_holds_nothing_and_is_completed_by_the_next(
    cloud: Cloud, request_of_a_run: dict[str, Any], tiny_gemma3: Path
):
    for task, line, changes in BEFORE_PROMOTION:
        cancelled(cloud, request_of_a_run, task, line, **changes)
        comes_to_hold(cloud, NOTHING)

    # This one comes to promote. Now it serves, and is not touched by those that are cancelled beside it.
    cancelled(cloud, request_of_a_run, "collect-garbage", "started")
    first = generation_of(cloud, "cancelled-in-collect-garbage")
    comes_to_hold(cloud, serves(first))

    cloud.release(zero_weights, tiny_gemma3)
    cancelled(cloud, request_of_a_run, "discard-generation", "deleted ")
    comes_to_hold(cloud, serves(first))

    cloud.release(lambda folder: write_gemma3(folder, seed=7), tiny_gemma3)
    cancelled(cloud, request_of_a_run, "resolve-model", ", generation g")
    comes_to_hold(cloud, serves(first))
    cancelled(cloud, request_of_a_run, "download-weights", " files, ")
    comes_to_hold(cloud, serves(first))

    # Told to end when the entry has moved: the new one serves, and the old one rests.
    cancelled(cloud, request_of_a_run, "promote-generation", "gemma sends requests to")
    second = generation_of(cloud, "cancelled-in-promote-generation")
    assert second != first
    comes_to_hold(cloud, serves(second))

    assert ran(cloud, request_of_a_run, "completed")["state"] == "PIPELINE_STATE_SUCCEEDED"
    assert cloud.of_run("completed", "report.json")["status"] == "unchanged"
    comes_to_hold(cloud, serves(second))
    # Of the other generations that were begun nothing is left: neither an object nor a disk.
    assert wait_for(lambda: generations_in(holds(cloud)) == {first, second}, 120), holds(cloud)
    assert wait_for(lambda: len(volumes_in(holds(cloud))) == 2, 120), holds(cloud)
