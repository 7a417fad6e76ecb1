"""The pipelines on the emulated Vertex AI, as against the cloud: `emulators up`, `submit`, a schedule's nights, a
click in the console, and what `status` says of it all."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub import models
from emulated_cloud.hub.models import write_gemma3

from pipelines.oversight import runs, status
from pipelines.vertex import schedule
from serving import names
from serving.clients import kubernetes, storage
from serving.deployment import record
from serving.settings import Settings, validated
from tests.scenarios.command import Run
from tests.scenarios.emulated import SETTINGS, Cloud, up


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    with up(folder) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def first(cloud: Cloud) -> dict[str, Any]:
    """The report of the deployment's first night."""
    assert cloud.command("bootstrap")["ready"]
    assert cloud.command("schedule", "apply")["drift"] == []
    return cloud.night()


def test_a_click_in_the_console_with_what_has_no_default_is_the_same_refresh(cloud: Cloud, first: dict[str, Any]):
    """The file that `compile` wrote and the parameters that a person types: nothing else of ours."""
    image = cloud.command("bootstrap")["image"]
    compiled = Run("03", "--image", image, "-o", "compiled", folder=cloud.folder, command=("compile",))
    compiled.finish_with_text()
    specification = yaml.safe_load((cloud.folder / "compiled" / "gcs-fuse.yaml").read_text())
    known = specification["root"]["inputDefinitions"]["parameters"]
    assert [name for name, each in known.items() if not each.get("isOptional")] == ["bucket", "project"]
    # The model is gated, so that a person names the token's secret, too.
    typed: dict[str, Any] = {
        **{name: SETTINGS[name] for name in ("project", "bucket")},
        "settings": {"hub": SETTINGS["hub"]},
    }
    typed["settings"] |= known["settings"]["defaultValue"]
    job = {
        "displayName": "clicked",
        "pipelineSpec": specification,
        "serviceAccount": f"gemma-pipelines@{SETTINGS['project']}.iam.gserviceaccount.com",
        "runtimeConfig": {"gcsOutputDirectory": "gs://demo-bucket/clicked", "parameterValues": typed},
    }
    ended = cloud.ran(job, "clicked-1")
    assert ended["state"] == "PIPELINE_STATE_SUCCEEDED", ended
    report = cloud.of_run("clicked-1", "report.json")
    assert (report["status"], report["generation"]) == ("unchanged", first["generation"])
    assert report["bytes_transferred"] == 0


def test_a_schedule_s_nights_promote_change_nothing_reject_and_promote(
    cloud: Cloud, first: dict[str, Any], tiny_gemma3: Path
):
    assert (first["status"], first["error"]) == ("succeeded", None)

    unchanged = cloud.night()
    assert (unchanged["status"], unchanged["generation"]) == ("unchanged", first["generation"])
    assert unchanged["bytes_transferred"] == 0

    cloud.release(models.zero_weights, tiny_gemma3)
    rejected = cloud.night()
    assert (rejected["status"], rejected["error"]["step"]) == ("failed", "validate_server")

    told = cloud.command("status")
    assert told["live"]["generation"] == first["generation"]
    assert told["runs"][0]["scheduled"]
    assert told["runs"][0]["error"]["step"] == "validate_server"

    again = cloud.command("submit", "03", "--wait", code=1)
    assert (again["state"], again["run"]["error"]["type"]) == ("FAILED", "RejectedBeforeError")

    cloud.release(lambda folder: write_gemma3(folder, seed=7), tiny_gemma3)
    second = cloud.night()
    assert second["status"] == "succeeded"
    assert second["generation"] not in (first["generation"], rejected["generation"])


# -- what is not as it should be ----------------------------------------------------------------------------------


@pytest.fixture
def told(cloud: Cloud, first: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[tuple[str, str]]]:
    """What `status` says has drifted, for the settings with changes: (what, why)."""
    import google.auth.compute_engine._metadata as metadata

    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(metadata, "_GCE_METADATA_HOST", cloud.environment["GCE_METADATA_HOST"])

    def look(**changes: Any) -> list[tuple[str, str]]:
        settings = settings_for(**changes)
        found = status.status(settings, datetime.datetime.now(datetime.UTC), on_vertex=True)
        return [(each["what"], each["why"]) for each in found["drift"]]

    return look


def settings_for(**changes: Any) -> Settings:
    return validated(Settings, {**SETTINGS, **changes})


def test_all_is_told_in_one_screen_when_nothing_has_drifted(cloud: Cloud, told: Callable[..., Any]):
    assert told() == []
    run = Run("-f", "gemma.yaml", folder=cloud.folder, command=("status",), variables=cloud.environment)
    words = run.finish_with_text().splitlines()
    assert len(words) <= 24
    assert words[0].startswith("serves    g")
    assert words[-1] == "drift     none"


def test_settings_that_became_others_have_drifted(told: Callable[..., Any]):
    assert told(schedule={**SETTINGS["schedule"], "cron": "30 4 * * *"}) == [
        ("schedule cron", "TZ=Asia/Seoul 0 3 * * * there, TZ=Asia/Seoul 30 4 * * * wanted"),
    ]
    assert told(schedule={}) == [("schedule", "the settings have none")]
    of_another = dict(told(engine={"max_model_len": 2048}))
    assert of_another.keys() == {"schedule engine.max_model_len", "settings"}
    assert "they ask for g" in of_another["settings"]
    in_place = dict(told(labels={"team": "blue"}))
    assert in_place["schedule labels.team"] == "nothing there, blue wanted"
    assert any(what.startswith("Deployment/") and "team: nothing -> blue" in why for what, why in in_place.items())


def test_what_somebody_changed_in_the_cluster_has_drifted(cloud: Cloud, told: Callable[..., Any]):
    cluster = kubernetes.connect(settings_for())
    live = record.read(cluster, settings_for()).live
    name = names.server(live)

    service = cluster.get("Service", name, "gemma")
    assert service
    cluster.patch("Service", name, "gemma", {"metadata": {"labels": {names.DEPLOYMENT: "somebody-elses"}}})
    ((what, why),) = told()
    assert (what, f"{names.DEPLOYMENT}: somebody-elses -> gemma" in why) == (f"Service/{name}", True)
    cluster.patch("Service", name, "gemma", {"metadata": {"labels": {names.DEPLOYMENT: "gemma"}}})

    budget = cluster.get("PodDisruptionBudget", name, "gemma")
    assert budget
    cluster.delete(budget)
    assert told() == [(f"PodDisruptionBudget/{name}", "it is gone")]
    kept = ("name", "namespace", "labels", "annotations")
    metadata = {key: value for key, value in budget["metadata"].items() if key in kept}
    cluster.apply({key: budget[key] for key in ("apiVersion", "kind", "spec")} | {"metadata": metadata})

    cluster.patch("Deployment", name, "gemma", {"spec": {"replicas": 0}}, subresource="scale")
    assert (f"Deployment/{name}", "0 replicas, the settings say 1") in told()
    cluster.patch("Deployment", name, "gemma", {"spec": {"replicas": 1}}, subresource="scale")
    assert wait_for(lambda: told() == [], 120), told()

    left = {"name": f"validate-server-{live}-dead", "namespace": "gemma"}
    labels = {names.DEPLOYMENT: "gemma", names.RUN: "dead-1"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "python:3.11", "command": ["python"]}]}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {**left, "labels": labels}}
    made = cluster.create({**job, "spec": {"suspend": True, "template": {"spec": pod}}})
    assert told() == [(f"Job/{left['name']}", "a dead run left it")]
    cluster.delete(made)

    lease = cluster.get("Lease", "gemma", "gemma")
    assert lease
    held = {"holderIdentity": "dead-1", "leaseDurationSeconds": 10, "renewTime": "2026-01-01T00:00:00.000000Z"}
    taken = cluster.replace({**lease, "spec": {**lease["spec"], **held}})
    assert told() == [("Lease", "the dead run dead-1 holds it; the next run takes it over")]
    cluster.replace({**taken, "spec": lease["spec"]})
    assert told() == []


def test_weights_and_the_hub_s_revision_have_drifted(cloud: Cloud, told: Callable[..., Any], tiny_gemma3: Path):
    known = record.read(kubernetes.connect(settings_for()), settings_for())
    uri = known.generations[known.live].weights_uri
    cloud.release(lambda folder: (folder / "README.md").write_text("Other words."), cloud.newest or tiny_gemma3)
    ((what, why),) = told()
    assert (what, "no run is needed" in why) == ("revision", True)
    storage.delete(f"{uri}/config.json")
    assert [what for what, _ in told()] == ["revision", "weights"]
    cloud.release(lambda folder: write_gemma3(folder, seed=11), tiny_gemma3)
    (what, why), *_ = told()
    assert (what, "with other weights than the live" in why) == ("revision", True)


def test_two_schedules_of_one_name_are_told_with_the_way_out(cloud: Cloud, told: Callable[..., Any]):
    """The last test: which of them is to stay nobody can say."""
    settings = settings_for()
    vertex = runs.reached(settings)
    there = schedule.existing(vertex, settings)
    given = ("displayName", "cron", "maxConcurrentRunCount", "maxConcurrentActiveRunCount", "createPipelineJobRequest")
    vertex.create_schedule({key: there[key] for key in given})
    (why,) = (why for what, why in told() if what == "schedule")
    assert "there are 2 schedules" in why
    assert "curl -X DELETE" in why
