"""What teams add to a refresh, whole and on the emulated Vertex AI: runs that meet, gates of their own, thresholds
relative to what serves, staging before production, lineage, old runs that go, a pipeline of their own.

(kfp reads a pipeline's annotations: they cannot be texts here.)
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_cloud.hub.models import write_gemma3
from kfp import compiler, components, dsl

from tests.scenarios.command import Run
from tests.scenarios.emulated import Cloud, held, up

GATE = "us-docker.pkg.dev/team/gates/context:3"
PROGRAM = f"""#!{sys.executable}
import json, os, sys, urllib.request
models = json.load(urllib.request.urlopen(os.environ["GEMMA_PIPELINES_URL"] + "/v1/models"))["data"]
(length,) = [each["max_model_len"] for each in models if each["id"] == os.environ["GEMMA_PIPELINES_MODEL"]]
print("asking", os.environ["GEMMA_PIPELINES_GENERATION"])
reasons = [f"a context of {{length}} tokens"] if length > int(sys.argv[1]) else []
print(json.dumps({{"passed": not reasons, "reasons": reasons}}))
"""
"""A gate that lets no server through whose context is longer than its argument."""


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    program = folder / "gate"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    validation = {
        "concurrencies": [1],
        "requests_per_concurrency": 2,
        "jobs": [{"image": GATE, "args": ["4096"]}],
        "thresholds": {"min_tokens_per_second_ratio": 0.001},
    }
    deployment = {"engine": {"max_model_len": 4096}, "keep_previous": 0, "lease": {"wait": "30m"}}
    own = {"namespace": "staging", "validation": validation, **deployment}
    with up(folder, "--program", f"{GATE}={program}", **own) as cloud:
        cloud.settings("production.yaml", namespace="production", engine={"max_model_len": 4096})
        assert cloud.command("bootstrap")["ready"]
        yield cloud


def submitted(cloud: Cloud, *more: str, code: int = 0, file: str = "gemma.yaml") -> dict[str, Any]:
    return as_one(cloud.command("submit", "03", "--wait", *more, code=code, file=file))


def as_one(told: dict[str, Any]) -> dict[str, Any]:
    """A run's report, with the run's own id."""
    return {**told["run"], "id": told["id"]}


def folders(cloud: Cloud) -> set[str]:
    return {path.parent.parent.name for path in (cloud.state / "buckets").rglob("steps/resolve_model.json")}


@pytest.mark.timeout(3600)
def test_a_team_s_life(cloud: Cloud, tiny_gemma3: Path):
    # Two at once, a person's and CI's: one waits for the other's Lease, and the gate lets one through.
    longer = cloud.begin("submit", "03", "--wait", "--set", "engine.max_model_len=6144")
    first = submitted(cloud)
    rejected = as_one(longer.finish(1))
    assert {waited(cloud, run["id"]) for run in (first, rejected)} == {True, False}, "they met"
    assert rejected["error"]["message"] == f"gate 1 ({GATE}): a context of 6144 tokens"
    assert first["status"] == "succeeded"
    (gate,) = cloud.of_run(first["id"], "steps/validate_server.json")["gates"]
    assert (gate["image"], gate["passed"], gate["reasons"]) == (GATE, True, [])
    serving = [f"vllm-{first['generation']}"]
    assert held(cloud, "staging") == {"lease": "", "jobs": [], "deployments": serving, "baking": []}
    details = {task["taskName"]: task for task in cloud.ended(first["id"])["jobDetail"]["taskDetails"]}
    (model,) = details["download-weights"]["outputs"]["weights"]["artifacts"]
    assert (model["uri"], model["schemaTitle"]) == (first["weights"], "system.Model")
    assert model["metadata"]["commit"] == first["revision"]

    # The hub moves on. What is slower than what serves stays out.
    cloud.release(lambda folder: write_gemma3(folder, seed=7), tiny_gemma3)
    slow = submitted(cloud, "--set", "validation.thresholds.min_tokens_per_second_ratio=1000", code=1)
    assert slow["error"]["step"] == "validate_server"
    assert f"{first['generation']}, which is live, brought" in slow["error"]["message"]
    assert not cloud.of_run(slow["id"], "steps/validate_server.json")["gates"], "no gate after a no"
    assert held(cloud, "staging")["deployments"] == serving

    # Production serves what staging validated, whatever the hub has become.
    served = submitted(cloud, "--from", f"gs://demo-bucket/pipelines/{first['id']}", file="production.yaml")
    assert (served["status"], served["weights"], served["revision"]) == (
        "succeeded",
        first["weights"],
        first["revision"],
    )
    images = [cloud.of_run(run, "steps/resolve_model.json")["engine_image"] for run in (first["id"], served["id"])]
    assert images[0].partition("@")[0] == images[1].partition("@")[0]

    # A release that passes; older runs go, those of production and what the record names stay.
    passed = submitted(cloud, "--retry", "--set", "keep_runs=1")
    assert passed["status"] == "succeeded"
    assert folders(cloud) == {passed["id"], rejected["id"], served["id"]}

    # What an alert looks for, as docs/vertex.md has it.
    place = "demo-project/us-central1/gemma/staging/gemma"
    ended = f'jsonPayload.event="run-ended" jsonPayload.deployment="{place}"'
    bad = cloud.logged(f'{ended} jsonPayload.became="rejected"')
    assert {entry["run_id"] for entry in bad} == {rejected["id"], slow["id"]}
    good = cloud.logged(f'{ended} jsonPayload.became="succeeded"')
    assert {entry["run_id"] for entry in good} == {first["id"], passed["id"]}

    own_pipeline(cloud, first)


def waited(cloud: Cloud, run_id: str) -> bool:
    """Whether a run waited for the Lease, by its log."""
    said = cloud.logged(f'resource.type="ml_job" jsonPayload.run_id="{run_id}"')
    return any("waiting for the Lease" in entry["message"] for entry in said)


def own_pipeline(cloud: Cloud, before: dict[str, Any]) -> None:
    """A pipeline of somebody's own, made of the steps, as docs/operations.md says."""
    image = cloud.command("submit", "03", "--dry-run")["pipelineJob"]["pipelineSpec"]["deploymentSpec"]["executors"]
    image = next(iter(image.values()))["container"]["image"]
    made = Run("--components", "-o", "steps", "--image", image, folder=cloud.folder, command=("compile",))
    made.finish_with_text()
    steps = {path.stem: components.load_component_from_file(str(path)) for path in (cloud.folder / "steps").iterdir()}
    compiled = {"scenario": "gcs-fuse", "features": ["gcs-fuse", "gpu", "service"], "image": image, "version": "0.1.0"}

    @dsl.pipeline(name="ours")
    def ours(project: str, bucket: str, settings: dict):
        asked = {
            "project": project,
            "bucket": bucket,
            "settings": settings,
            "job": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
            "location": "us-central1",
            "cluster": "gemma",
            "namespace": "ours",
            "model": "google/gemma-3-4b-it",
            "revision": before["revision"],
        }

        def step(name: str, **inputs: Any) -> Any:
            return steps[name](**inputs).set_caching_options(False)

        with dsl.ExitHandler(step("write_report", **asked)):
            resolved = step("resolve_model", **asked, compiled=compiled)
            found = {"settings": resolved.outputs["merged"], "release": resolved.outputs["release"]}
            access = step("ensure_access", **found)
            judged = step("download_weights", **found).after(access)
            for name in ("deploy_server", "validate_server"):
                verdict = {"passed": judged.outputs["passed"], "reasons": judged.outputs["reasons"]}
                judged = step(name, **found, **verdict)
            promoted = step("promote_generation", **found).after(judged)
            step("collect_garbage", **found).after(promoted)

    path = cloud.folder / "ours.yaml"
    compiler.Compiler().compile(ours, str(path))
    settings = {
        "scenario": "gcs-fuse",
        "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
        "validation": {"concurrencies": [1], "requests_per_concurrency": 2},
    }
    body = {
        "displayName": "ours",
        "pipelineSpec": yaml.safe_load(path.read_text()),
        "serviceAccount": "gemma-pipelines@demo-project.iam.gserviceaccount.com",
        "runtimeConfig": {
            "gcsOutputDirectory": "gs://demo-bucket/pipelines",
            "parameterValues": {"project": "demo-project", "bucket": "demo-bucket", "settings": settings},
        },
    }
    cloud.vertex("POST", "pipelineJobs?pipelineJobId=ours-1", body)
    ended = cloud.ended("ours-1")
    assert ended["state"] == "PIPELINE_STATE_SUCCEEDED", ended
    report = cloud.of_run("ours-1", "report.json")
    assert (report["status"], report["weights"]) == ("succeeded", before["weights"])
    serving = [f"vllm-{report['generation']}"]
    assert held(cloud, "ours") == {"lease": "", "jobs": [], "deployments": serving, "baking": []}
