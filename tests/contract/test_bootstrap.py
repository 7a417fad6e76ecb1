"""`bootstrap` against an emulated project: from nothing, again, with less than it needs, and interrupted anywhere."""

from __future__ import annotations

import base64
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from serving.clients import iam, registry, storage
from serving.errors import AccessError, PipelineError
from serving.image import VERSION
from serving.installation import context
from serving.installation.bootstrap import Report
from tests.contract.google_process import until
from tests.contract.project_site import BUCKET, IMAGE, PROJECT, REPOSITORY, Project, project, settings

__all__ = ["project"]

PIPELINE = f"gemma-pipelines@{PROJECT}.iam.gserviceaccount.com"
BUILDER = f"gemma-pipelines-build@{PROJECT}.iam.gserviceaccount.com"
BUILDS = "/builds$"


def left(report: Report) -> dict[str, str]:
    """What could not be made, with the command for it."""
    return {each.what: each.command for each in report.done if each.state == "left"}


def refused(method: str, path: str, permission: str) -> dict[str, Any]:
    """A fault: nobody may do this."""
    info = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "IAM_PERMISSION_DENIED",
        "domain": "iam.googleapis.com",
        "metadata": {"permission": permission},
    }
    words = f"Permission '{permission}' denied on resource (or it may not exist)."
    return status(method, path, 403, "PERMISSION_DENIED", words, [info]) | {"times": 99}


def status(method: str, path: str, code: int, name: str, words: str, details: Any = ()) -> dict[str, Any]:
    error = {"code": code, "status": name, "message": words, "details": list(details)}
    return {
        "action": "status",
        "method": method,
        "path": path,
        "status": code,
        "headers": {"Content-Type": "application/json"},
        "body": json.dumps({"error": error}),
    }


def test_an_empty_project_has_all_that_it_needs_and_a_second_time_changes_nothing(project: Project):
    report = project.bootstrap(token="hf_secret")
    assert left(report) == {}
    assert {each.state for each in report.done if not each.what.startswith("bucket")} == {"made"}
    assert report.image.startswith(f"{IMAGE}@sha256:")

    # As it is looked up when a pipeline is submitted.
    found = registry.resolve(f"{IMAGE}:{VERSION}")
    assert f"{IMAGE}@{found.digest}" == report.image
    assert storage.has_bucket_binding(BUCKET, "roles/storage.objectUser", f"serviceAccount:{PIPELINE}")
    on_the_project = {
        each["role"] for each in project.ask("POST", f"v3/projects/{PROJECT}:getIamPolicy", {})["bindings"]
    }
    assert on_the_project == {
        "roles/aiplatform.user",
        "roles/logging.logWriter",
        f"projects/{PROJECT}/roles/gemmaPipelinesConnect",
    }
    secret = project.ask("GET", f"v1/projects/{PROJECT}/secrets/hf-token/versions/latest:access")
    assert base64.b64decode(secret["payload"]["data"]) == b"hf_secret"
    assert not [line for line in project.said if "hf_secret" in line]
    assert project.objects() == []  # The source has gone with the build.

    before = project.kept()
    again = project.bootstrap(token="hf_secret")
    assert {each.state for each in again.done} == {"there"}
    assert again.image == report.image
    assert project.kept() == before


def test_each_permission_that_is_missing_leaves_what_needs_it_and_nothing_else(project: Project):
    """All of them at first, then one less each time."""
    steps = [
        (refused("POST", "services:batchEnable", "serviceusage.services.enable"), "10 APIs", "gcloud services enable"),
        (
            refused("POST", r"/repositories\?", "artifactregistry.repositories.create"),
            f"repository {REPOSITORY}",
            f"gcloud artifacts repositories create gemma-pipelines --project={PROJECT} --location=us-central1",
        ),
        (
            refused("POST", "/serviceAccounts$", "iam.serviceAccounts.create"),
            f"service account {PIPELINE}",
            f"gcloud iam service-accounts create gemma-pipelines --project={PROJECT}",
        ),
        (
            refused("POST", "/roles$", "iam.roles.create"),
            f"role projects/{PROJECT}/roles/gemmaPipelinesConnect",
            f"gcloud iam roles create gemmaPipelinesConnect --project={PROJECT}",
        ),
        (
            refused("POST", r"/secrets\?", "secretmanager.secrets.create"),
            f"secret projects/{PROJECT}/secrets/hf-token",
            f"gcloud secrets create hf-token --project={PROJECT}",
        ),
        (
            refused("POST", f"projects/{PROJECT}:setIamPolicy", "resourcemanager.projects.setIamPolicy"),
            f"roles/aiplatform.user on {PROJECT} for {PIPELINE}",
            f"gcloud projects add-iam-policy-binding {PROJECT} --member=serviceAccount:{PIPELINE}",
        ),
        (
            refused("POST", "secrets/hf-token:setIamPolicy", "secretmanager.secrets.setIamPolicy"),
            f"roles/secretmanager.secretAccessor on projects/{PROJECT}/secrets/hf-token for {PIPELINE}",
            f"gcloud secrets add-iam-policy-binding hf-token --project={PROJECT}",
        ),
        (
            refused("POST", "gemma-pipelines:setIamPolicy", "artifactregistry.repositories.setIamPolicy"),
            f"roles/artifactregistry.writer on {REPOSITORY} for {BUILDER}",
            f"gcloud artifacts repositories add-iam-policy-binding gemma-pipelines --project={PROJECT}",
        ),
        (
            refused("POST", ":addVersion", "secretmanager.versions.add"),
            f"value of projects/{PROJECT}/secrets/hf-token",
            f"gcloud secrets versions add hf-token --project={PROJECT}",
        ),
        (refused("POST", BUILDS, "cloudbuild.builds.create"), f"image {IMAGE}:{VERSION}", "gemma-pipelines bootstrap"),
    ]
    for number in range(1, len(steps) + 1):
        faults = [fault for fault, _, _ in steps[number:]]
        project.script(*faults)
        report = project.bootstrap(token="hf_secret")
        missing = left(report)
        for _, what, _ in steps[1:number]:
            assert what not in missing
        for fault, what, command in steps[number : number + 1]:
            assert command in missing[what], what
            (why,) = [each.why for each in report.done if each.what == what]
            assert ".." not in why
            assert json.loads(fault["body"])["error"]["details"][0]["metadata"]["permission"] in why
            assert project.consumed()[0], what
    assert left(project.bootstrap()) == {}


@pytest.mark.parametrize("project", [{"services": []}], indirect=True)
def test_an_api_that_is_off_is_named_with_the_command(project: Project):
    report = project.bootstrap()
    assert not report.is_ready
    assert "gcloud services enable serviceusage.googleapis.com" in report.done[0].why
    assert project.objects() == []


@pytest.mark.parametrize("project", [{"denied_permissions": ["serviceusage.services.enable"]}], indirect=True)
def test_who_may_not_switch_apis_on_gets_one_command_for_all(project: Project):
    report = project.bootstrap()
    assert "aiplatform.googleapis.com" in left(report)["10 APIs"]
    assert "serviceusage.services.enable" in report.done[0].why


def test_a_bucket_that_is_not_there_is_made_by_its_owner(project: Project):
    report = project.bootstrap(settings(bucket="another-bucket"))
    assert left(report)["bucket gs://another-bucket"].startswith("gcloud storage buckets create gs://another-bucket")
    assert left(report)[f"image {IMAGE}:{VERSION}"]
    assert project.builds() == []


def test_what_was_made_a_moment_ago_may_take_a_while_to_be_known(project: Project):
    off = {
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": "SERVICE_DISABLED",
        "domain": "googleapis.com",
        "metadata": {"service": "artifactregistry.googleapis.com", "consumer": f"projects/{PROJECT}"},
    }
    project.script(
        status("GET", f"{REPOSITORY}$", 403, "PERMISSION_DENIED", "API has not been used", [off]),
        status("POST", ":setIamPolicy", 400, "INVALID_ARGUMENT", f"Service account {PIPELINE} does not exist."),
        status("POST", ":setIamPolicy", 409, "ABORTED", "There were concurrent policy changes."),
        {
            "action": "outcome",
            "path": BUILDS,
            "outcome": {"status": "FAILURE", "type": "FETCH_SOURCE_FAILED", "detail": "no storage.objects.get access"},
        },
    )
    assert left(project.bootstrap(token="hf_secret")) == {}
    assert project.consumed() == [1, 1, 1, 1]
    assert [build["status"] for build in project.builds()] == ["SUCCESS", "FAILURE"]


def test_a_secret_without_a_value_is_left_with_the_command(project: Project):
    report = project.bootstrap()
    (what,) = left(report)
    assert what == f"value of projects/{PROJECT}/secrets/hf-token"
    assert "--data-file=-" in left(report)[what]
    assert report.image, "no build needs the token"
    assert not report.is_ready


def test_another_token_becomes_the_newest_version(project: Project):
    config = settings()
    iam_path = f"v1/projects/{PROJECT}/secrets/hf-token/versions"
    project.script(refused("POST", BUILDS, "cloudbuild.builds.create"))
    for token, versions in (("one", 1), ("one", 1), ("two", 2)):
        project.bootstrap(config, token=token)
        assert project.ask("GET", iam_path)["totalSize"] == versions


@pytest.mark.parametrize("project", [{"denied_permissions": ["iam.serviceAccounts.actAs"]}], indirect=True)
def test_who_may_not_act_as_the_builder_is_told_so(project: Project):
    report = project.bootstrap(token="hf_secret")
    (why,) = [each.why for each in report.done if each.state == "left"]
    assert "act as service account" in why
    assert "roles/iam.serviceAccountUser" in why
    assert project.builds() == []


# -- the build ----------------------------------------------------------------------------------------------


def test_a_build_that_fails_is_told_with_the_last_lines_of_its_log(project: Project):
    said = [f"line {number}" for number in range(30)] + ["ERROR: no matching distribution found for kfp==2.17.0"]
    project.script({"action": "outcome", "path": BUILDS, "outcome": {"status": "FAILURE", "log": said}})
    with pytest.raises(PipelineError) as failed:
        project.bootstrap(token="hf_secret")
    words = str(failed.value)
    assert "no matching distribution found for kfp==2.17.0" in words
    assert "line 29" in words
    assert "line 1\n" not in words
    assert "console.cloud.google.com/cloud-build" in words
    assert project.consumed() == [1]
    assert project.objects() == []
    assert project.bootstrap().image  # The next one is another.


@pytest.mark.parametrize(
    "project", [{"cloudbuild": {"command": ["sh", "-c", "echo tests have failed; exit 3"]}}], indirect=True
)
def test_what_the_build_runs_decides(project: Project):
    with pytest.raises(PipelineError, match=r"non-zero status: 3(.|\n)*tests have failed"):
        project.bootstrap(token="hf_secret")


def test_a_lost_answer_begins_no_second_build(project: Project):
    project.script({"action": "unanswered", "method": "POST", "path": BUILDS})
    assert project.bootstrap(token="hf_secret").image
    assert project.consumed() == [1]
    assert len(project.builds()) == 1


def test_who_is_killed_meanwhile_finds_the_build_again(project: Project):
    project.script({"action": "outcome", "path": BUILDS, "outcome": {"hold": True}})
    killed = multiprocessing.get_context("fork").Process(target=project.bootstrap, kwargs={"token": "hf_secret"})
    killed.start()
    until(lambda: project.consumed() == [1])
    killed.kill()
    killed.join()
    (source,) = project.objects()
    assert source == f"builds/{context.digest()}.tgz"

    said = project.said.append

    def say(line: str) -> None:
        said(line)
        if line.startswith("waiting for"):
            project.script()

    project.say = say
    report = project.bootstrap()
    assert report.image
    assert len(project.builds()) == 1
    assert project.objects() == []


def test_ctrl_c_leaves_no_build_and_no_source(project: Project):
    def say(line: str) -> None:
        if line.startswith("building"):
            raise KeyboardInterrupt

    project.script({"action": "outcome", "path": BUILDS, "outcome": {"hold": True}})
    project.say = say
    with pytest.raises(KeyboardInterrupt):
        project.bootstrap(token="hf_secret")
    assert [build["status"] for build in project.builds()] == ["CANCELLED"]
    assert project.objects() == []


def test_an_image_of_another_source_stays_unless_it_is_to_be_replaced(
    project: Project, monkeypatch: pytest.MonkeyPatch
):
    first = project.bootstrap(token="hf_secret").image
    plain = context.files

    def changed() -> Any:
        yield from plain()
        yield "serving/more.py", Path(__file__)

    monkeypatch.setattr(context, "files", changed)
    assert project.bootstrap().image == first
    assert "--rebuild" in project.said[-1]
    second = project.bootstrap(rebuild=True).image
    assert second not in ("", first)
    assert registry.resolve(f"{IMAGE}:{VERSION}").digest == second.partition("@")[2]


# -- what the clients say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("project", [{"services": None, "denied_permissions": ["iam.roles.create"]}], indirect=True)
def test_what_the_caller_may_not_do_is_found_out_without_trying(project: Project):
    asked = ["iam.roles.create", "resourcemanager.projects.get"]
    assert iam.missing_permissions(iam.of_project(PROJECT), asked) == ["iam.roles.create"]
    assert iam.missing_permissions(iam.of_project("somebody-elses"), asked) == asked
    with pytest.raises(AccessError, match=r"a role with resourcemanager\.projects\.getIamPolicy"):
        iam.has_binding(iam.of_project("somebody-elses"), "roles/viewer", "user:a@example.com")


@pytest.mark.parametrize("project", [{"services": None}], indirect=True)
def test_a_role_that_was_changed_or_deleted_is_as_it_should_be_again(project: Project):
    def ensure(*permissions: str, only: bool = True) -> bool:
        return iam.ensure_role(PROJECT, "ours", "Ours", permissions, only=only)

    assert [ensure("storage.buckets.get"), ensure("storage.buckets.get")] == [True, False]
    assert ensure("storage.buckets.get", "storage.buckets.list")
    assert iam.role_permissions(PROJECT, "ours") == ["storage.buckets.get", "storage.buckets.list"]
    assert not ensure("storage.buckets.get", only=False)
    assert ensure("storage.buckets.update", only=False)
    assert iam.role_permissions(PROJECT, "ours") == [f"storage.buckets.{verb}" for verb in ("get", "list", "update")]
    project.ask("DELETE", f"v1/projects/{PROJECT}/roles/ours")
    assert iam.role_permissions(PROJECT, "ours") is None
    assert ensure("storage.buckets.get")
    assert iam.role_permissions(PROJECT, "ours") == ["storage.buckets.get"]
