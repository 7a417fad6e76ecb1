"""A scenario as a user lives with it: a first run, and every kind of refresh, on one state folder, in this order.

Which of them run for which scenario, conftest.py says.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from emulated_cloud.hub import models

from serving.scenarios import Scenario
from tests.scenarios.command import MODEL, Site, Traffic, processes_below, requests

WRITES = {"POST", "PUT", "PATCH", "DELETE"}
DISK = "secondary-boot-disk"
PIPELINE = "gemma-pipelines@demo-project.iam.gserviceaccount.com"


@pytest.fixture(scope="module")
def history(site: Site) -> list[str]:
    """Generations in the order in which they went live."""
    return []


@pytest.fixture(scope="module")
def revisions(site: Site) -> list[str]:
    """The commits of the hub's main that runs met."""
    return []


def steps_of(scenario: Scenario) -> list[str]:
    """The chain of steps of a run that brings something into service. Baking is beside it."""
    on_volume, on_either = "hyperdisk-ml" in scenario.features, "gpu-or-tpu" in scenario.features
    return [
        "resolve_model",
        "ensure_access",
        *(["ensure_cluster"] if on_either else []),
        "download_weights",
        *(["hydrate_volume"] if on_volume else []),
        "deploy_server",
        "validate_server",
        *(["verify_image_cache"] if DISK in scenario.features else []),
        *(["verify_placement"] if on_volume or on_either else []),
        *(["verify_autoscaling"] if "queue-hpa" in scenario.features else []),
        "promote_generation",
        "collect_garbage",
        "write_report",
    ]


def written_by_the_pipeline(state: Path) -> list[str]:
    """Every write request that the pipeline's identity, or any other client of it, made."""
    found = [
        f"{emulator}: {request['method']} {request.get('object') or request['path']}"
        for emulator in ("storage", "hub", "google")
        for request in requests(state, emulator)
        if request["method"] in WRITES
    ]
    return found + [
        f"apiserver: {request['method']} {request['path']}"
        for request in requests(state, "apiserver")
        if request["method"] in WRITES and request["user"] == PIPELINE
    ]


def test_the_first_run_brings_a_release_into_service(site, weights, history, revisions):
    result = site.refresh(weights)
    assert result["status"] == "succeeded"
    began = [step["name"] for step in result["steps"]]
    assert [name for name in began if name != "bake_disk_image"] == steps_of(site.scenario)
    if DISK in site.scenario.features:
        # Nothing says which of the two that run beside each other begins first.
        assert began.index("ensure_access") < began.index("bake_disk_image") < began.index("deploy_server")
    assert {step["status"] for step in result["steps"]} <= {"succeeded", "skipped"}
    assert result["bytes_transferred"] > 4_000_000
    assert result["endpoint"] is None
    assert len(result["revision"]) == 40
    page = Path(result["report"]).read_text(encoding="utf-8")
    assert "<h2>Answers</h2>" in page
    assert "emulated: hub, bucket" in page
    assert site.by_hand("verify-weights", result["weights"]).endswith("as the manifest says\n")
    assert processes_below(site.state) == []
    history.append(result["generation"])
    revisions.append(result["revision"])


def test_the_second_run_changes_nothing_and_writes_nothing_but_its_report(site, weights, history):
    run = site.run(weights, "--keep")
    result = run.result()
    written = written_by_the_pipeline(site.state)
    run.stop()
    assert result["status"] == "unchanged"
    assert result["generation"] == history[-1]
    assert result["bytes_transferred"] == 0
    assert {step["name"]: step["status"] for step in result["steps"]} == {
        "resolve_model": "skipped",
        "write_report": "succeeded",
    }
    assert written
    report = f"storage: POST pipelines/{result['run_id']}/"
    assert all(line.startswith(report) for line in written), written


@pytest.mark.of_weights("gcs-fuse")
def test_a_commit_that_touches_only_the_readme_rolls_nothing(site, weights, history, revisions):
    models.readme_only_change(weights)
    result = site.refresh(weights)
    assert result["status"] == "unchanged"
    assert result["revision"] not in revisions
    assert result["generation"] == history[-1]


@pytest.mark.of_weights
def test_other_flags_make_a_new_generation_of_the_same_bytes(site, weights, history):
    result = site.refresh(weights, "--set", "engine.max_model_len=4096")
    assert result["status"] == "succeeded"
    assert result["generation"] != history[-1]
    assert result["bytes_transferred"] == 0
    history.append(result["generation"])


def test_other_weights_go_live_while_the_old_ones_answer_every_request(site, weights, history):
    shutil.rmtree(weights)
    models.write_gemma3(weights, seed=1)
    run = site.run(weights, "--keep")
    with Traffic(site.endpoint, MODEL) as traffic:
        result = run.result()
    run.stop()
    assert result["status"] == "succeeded"
    assert traffic.errors == []
    assert len({text for _, text in traffic.answers}) == 2, "the old and the new generation answered"
    assert len(traffic.answers) > 20
    history.append(result["generation"])


@pytest.mark.of_weights
def test_a_rollback_goes_back_to_the_generation_before(site, history):
    assert f"live {history[-2]} (pinned)" in site.by_hand("rollback")


@pytest.mark.of_weights("gcs-fuse")
def test_the_next_run_does_not_undo_a_rollback(site, weights, history):
    run = site.run(weights, "--keep")
    result = run.result()
    # The rollback started a cloud for itself; this finds one that is up.
    assert json.loads(site.by_hand("status", "--json"))["live"]["generation"] == history[-2]
    run.stop()
    assert result["status"] == "unchanged"
    assert result["generation"] == history[-2], "what serves, not what was not deployed"


@pytest.mark.of_weights
def test_somebody_promotes_the_newest_again(site, history):
    assert f"live {history[-1]}, previous {history[-2]}" in site.by_hand("promote", "--to", history[-1])


@pytest.mark.of_weights("gcs-fuse")
def test_the_next_run_finds_the_promoted_one_live(site, weights, history):
    result = site.refresh(weights)
    assert (result["status"], result["generation"]) == ("unchanged", history[-1])


def test_a_bad_release_never_goes_live_and_the_old_one_answers_every_request(site, tiny_gemma3, history):
    """The one that is found out last: it is downloaded, deployed and asked. test_broken_releases.py has the others."""
    bad = Path(shutil.copytree(tiny_gemma3, site.folder / "bad"))
    models.zero_weights(bad)
    run = site.run(bad)
    with Traffic(site.endpoint, MODEL) as traffic:
        run.wait_for("discard_generation: started")
    result = run.finish(code=1)
    assert (result["status"], result["error"]["step"]) == ("failed", "validate_server")
    assert "the answer has no text" in result["error"]["message"]
    assert traffic.errors == []
    assert len({text for _, text in traffic.answers}) == 1
    assert result["generation"] not in history
    chain, ended = steps_of(site.scenario), {step["name"]: step["status"] for step in result["steps"]}
    ended.pop("bake_disk_image", None)
    judge, end = chain.index("validate_server"), chain.index("promote_generation")
    assert list(ended) == [*chain[:end], "discard_generation", "write_report"]
    assert {ended[name] for name in chain[:judge]} <= {"succeeded", "skipped"}
    assert [ended[name] for name in chain[judge:end]] == ["failed", *["skipped"] * (end - judge - 1)]
    assert (ended["discard_generation"], ended["write_report"]) == ("succeeded", "succeeded")


@pytest.mark.of_weights("streamed")
def test_a_release_that_the_engine_refuses_never_goes_live(site, tiny_gemma3, history):
    """While it streams: what it refuses in a folder is in test_broken_releases.py."""
    refused = Path(shutil.copytree(tiny_gemma3, site.folder / "refused"))
    models.mismatch_config(refused)
    result = site.refresh(refused, code=1)
    assert (result["status"], result["error"]["step"]) == ("failed", "deploy_server")
    assert "size of tensor" in result["error"]["message"]
    assert result["generation"] not in history


@pytest.mark.of_weights("gcs-fuse")
def test_the_weights_in_the_bucket_are_what_their_manifest_says(site):
    model = "gs://demo-bucket/models/google/gemma-3-4b-it"
    assert site.by_hand("verify-weights", model, code=2) == ""
    objects = site.state / "buckets" / "demo-bucket" / "objects"
    key = next(objects.glob(f"{model.removeprefix('gs://demo-bucket/')}/*/_MANIFEST.json")).parent.name
    said = site.by_hand("verify-weights", f"{model}/{key}", "--read")
    assert said.endswith("as the manifest says, every byte read\n")
