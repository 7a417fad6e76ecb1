"""`submit`, and what follows a run, against the emulated Vertex AI: a run that leaves outcomes and does no more."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from pipelines.cli.output import Output
from pipelines.cli.submit import cancel, submit
from pipelines.vertex import follow, preflight, request
from serving.clients import logging, storage, vertex
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError
from serving.settings import Settings, validated
from tests.contract.discovery import Conformance
from tests.contract.vertex_fake_run import fake_run
from tests.contract.vertex_service import compiled, until
from tests.unit.test_validated import CHECKED, PROMOTED, RESOLVED

CONFORMANCE = Conformance("aiplatform", "v1")
DEPLOYMENT = {
    "scenario": "gcs-fuse",
    "project": "demo-project",
    "bucket": "demo-bucket",
    "patience": "60s",
    "pipeline_service_account": "pipeline@demo-project.iam.gserviceaccount.com",
}


@pytest.fixture(scope="module")
def specification(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return compiled(fake_run, tmp_path_factory.mktemp("fake-run"))


@pytest.fixture
def google(emulated_cloud, cloud_environment, specification, monkeypatch):
    """The emulated Google APIs; every run that is submitted is the fake one."""
    monkeypatch.setattr(preflight, "specification", lambda *_: specification)
    monkeypatch.setattr(follow, "_SHORTEST_PAUSE", 0.5)
    monkeypatch.setattr(follow, "_LONGEST_PAUSE", 1.0)
    yield emulated_cloud.url("google")
    script(emulated_cloud.url("google"))


def script(url: str, *faults: dict[str, Any]) -> None:
    requests.post(f"{url}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()


def consumed(url: str) -> list[int]:
    return [fault["consumed"] for fault in requests.get(f"{url}/_emulator/faults", timeout=60).json()]


def settings_for(**changes: Any) -> Settings:
    return validated(Settings, {**DEPLOYMENT, **changes})


def site(**changes: Any) -> tuple[vertex.Vertex, Settings]:
    """The client, each exchange of which is held against the discovery document."""
    settings = settings_for(**changes)
    client = vertex.Vertex(settings.project, settings.vertex_location)
    CONFORMANCE.watch(client._jobs.transport._session)
    CONFORMANCE.watch(client._schedules.transport._session)
    return client, settings


def file_of(folder: Path, **changes: Any) -> Path:
    path = folder / "gemma.yaml"
    path.write_text(yaml.safe_dump({**DEPLOYMENT, **changes}))
    return path


def begun(client: vertex.Vertex, settings: Settings, job_id: str) -> str:
    return client.create_job(preflight.checked_job(settings), job_id)["name"]


def ran(client: vertex.Vertex, settings: Settings, job_id: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A run that has ended, and what was shown of its steps."""
    shown: list[dict[str, Any]] = []
    name = begun(client, settings, job_id)
    return follow.follow(client, name, settings, shown.append, lambda _: None), shown


def test_submit_waits_and_tells_what_run_tells(google, tmp_path, capsys):
    submit(Output(as_json=True), "03", file_of(tmp_path), wait=True)
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert list(told) == ["id", "name", "state", "console", "run"]
    assert told["name"] == f"projects/123456789012/locations/us-central1/pipelineJobs/{told['id']}"
    assert told["console"].endswith(f"/locations/us-central1/pipelines/runs/{told['id']}?project=demo-project")
    assert told["state"] == "SUCCEEDED"
    run = told["run"]
    assert (run["status"], run["generation"], run["error"]) == ("succeeded", "g1", None)
    assert run["run_id"] == told["id"]
    assert [step["name"] for step in run["steps"]] == [
        *("resolve_model", "validate_server", "collect_garbage", "write_report"),
    ]
    assert run["report"] == f"gs://demo-bucket/pipelines/{told['id']}/report.html"
    assert "resolve_model: succeeded in " in err
    assert "g1 is new" in err


def test_without_waiting_the_run_is_begun_and_no_more(google, tmp_path, capsys):
    submit(Output(as_json=True), "03", file_of(tmp_path))
    told = json.loads(capsys.readouterr().out)
    assert told["run"] is None
    assert told["state"] in ("QUEUED", "PENDING", "RUNNING")


def test_what_another_run_validated_is_what_is_asked_for(google, tmp_path, capsys):
    staging = "gs://demo-bucket/pipelines/staging-7"
    for outcome in (RESOLVED, CHECKED, PROMOTED):
        recorded = {**outcome, "started_at": "2026-11-29T03:00:00+00:00", "seconds": 1.0, "error": None}
        storage.write_json(f"{staging}/steps/{outcome['name']}.json", recorded)
    submit(Output(as_json=True), "03", file_of(tmp_path), validated_by=staging, dry_run=True)
    parameters = json.loads(capsys.readouterr().out)["pipelineJob"]["runtimeConfig"]["parameterValues"]
    assert parameters["revision"] == RESOLVED["commit"]
    assert parameters["settings"]["weights_key"] == RESOLVED["weights_key"]
    assert parameters["settings"]["engine"]["image"] == RESOLVED["engine_image"]
    with pytest.raises(RequestError, match="is not the folder of a run"):
        submit(Output(as_json=True), "03", file_of(tmp_path), validated_by="staging-8", dry_run=True)


def test_a_dry_run_prints_the_request_and_sends_nothing(google, tmp_path, capsys):
    client, _ = site()
    before = len(client.jobs(most=1000))
    submit(Output(as_json=True), "03", file_of(tmp_path), dry_run=True)
    asked = json.loads(capsys.readouterr().out)
    assert asked["parent"] == "projects/demo-project/locations/us-central1"
    assert asked["pipelineJob"]["labels"]["gemma-pipelines"] == "gcs-fuse"
    assert len(client.jobs(most=1000)) == before


def test_a_failure_is_told_in_the_step_s_words_then_the_task_s_then_by_the_log(google, emulated_cloud):
    client, settings = site(model="google/bad")
    job, shown = ran(client, settings, "bad-1")
    run, _ = follow.result(job, settings)
    assert (run["status"], run["error"]["step"], run["error"]["type"]) == ("failed", "validate_server", "ReleaseError")
    words, of_the_task, log, console = follow.told(client, job, run["error"]).split("\n")
    assert words == "validate_server: g1 answered nothing but padding"
    assert (
        "Vertex AI says of validate-server: The replica workerpool0-0 exited with a non-zero status of 1."
        in of_the_task
    )
    assert console.endswith(client.console("bad-1"))
    condition = log.partition("gcloud logging read '")[2].partition("'")[0]
    printed = [entry["jsonPayload"].get("message") for entry in logging.entries("demo-project", condition)]
    assert "g1 answered nothing but padding" in printed
    last = {entry["step"]: entry for entry in shown if "status" in entry}
    assert last["validate_server"]["status"] == "failed"
    assert last["validate_server"]["message"] == "g1 answered nothing but padding"
    assert "collect_garbage" not in last


def test_what_a_step_says_while_it_runs_is_shown(google):
    client, settings = site(model="google/tells")
    name = begun(client, settings, "tells-1")
    shown: list[dict[str, Any]] = []

    def show(entry: dict[str, Any]) -> None:
        shown.append(entry)
        if entry["message"] == "half of it is done":
            client.cancel(name)

    follow.follow(client, name, settings, show, lambda _: None)
    (said,) = [entry for entry in shown if entry["message"] == "half of it is done"]
    assert said["step"] == "validate_server"
    assert "status" not in said


def test_who_may_not_read_the_log_is_told_once_and_sees_the_rest(google):
    script(google, {"action": "status", "status": 403, "path": "v2/entries", "body": "{}", "times": 99})
    client, settings = site()
    name, phases, shown = begun(client, settings, "unread-1"), list[str](), list[dict[str, Any]]()
    follow.follow(client, name, settings, shown.append, phases.append)
    assert len([words for words in phases if "what steps say meanwhile is not shown" in words]) == 1
    assert consumed(google) == [1]
    assert {entry["step"] for entry in shown} >= {"resolve_model", "validate_server", "write_report"}


def test_of_a_step_that_died_vertex_s_words_are_all_there_is(google):
    client, settings = site(model="google/dies")
    job, _ = ran(client, settings, "dies-1")
    run, _ = follow.result(job, settings)
    assert run["status"] == "failed"
    assert run["error"]["step"] == "validate_server"
    assert (
        "ended without leaving an outcome: The replica workerpool0-0 exited with a non-zero status of 3"
        in (run["error"]["message"])
    )


def test_an_answer_that_was_lost_is_not_a_second_run(google):
    script(google, {"action": "unanswered", "method": "POST", "path": "pipelineJobs"})
    client, settings = site()
    assert begun(client, settings, "lost-1").endswith("/lost-1")
    assert consumed(google) == [1]
    assert client.job("lost-1")["labels"]["gemma-deployment"] == "gemma"


@pytest.mark.parametrize("status", [429, 502, 503])
def test_a_service_that_is_away_or_busy_is_asked_again(google, status):
    script(
        google, {"action": "status", "status": status, "path": "pipelineJobs", "times": 2, "body": "<html>no</html>"}
    )
    client, settings = site()
    assert begun(client, settings, f"busy-{status}")
    assert consumed(google) == [2]


def test_somebody_else_s_run_under_the_id_is_not_ours(google):
    client, settings = site()
    begun(client, settings, "taken-1")
    other = settings_for(name="other")
    with pytest.raises(RequestError, match="already exists"):
        begun(client, other, "taken-1")


def test_ctrl_c_leaves_the_run_and_says_how_to_end_it(google, tmp_path, capsys, monkeypatch):
    """When quiet, too: nothing else has said which run it is."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(follow.time, "sleep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            submit(Output(as_json=True, quiet=True), "03", file_of(tmp_path, model="google/waits"), wait=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert " goes on: https://" in err
    command = next(line for line in err.splitlines() if line.startswith("to end it: "))
    *tool, job_id, option, file = shlex.split(command.removeprefix("to end it: "))
    assert (tool, option, file) == (["gemma-pipelines", "cancel"], "-f", str(tmp_path / "gemma.yaml"))
    client, _ = site()
    assert follow.state_of(client.job(job_id)) in ("QUEUED", "PENDING", "RUNNING")
    cancel(Output(as_json=True), job_id, tmp_path / "gemma.yaml")
    assert json.loads(capsys.readouterr().out)["id"] == job_id
    until(lambda: follow.state_of(client.job(job_id)) == "CANCELLED")
    cancel(Output(), job_id, tmp_path / "gemma.yaml")
    assert "had ended before: it is CANCELLED" in capsys.readouterr().out


def test_ctrl_c_before_the_answer_promises_no_run(google, tmp_path, capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(vertex.Vertex, "create_job", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(Output(), "03", file_of(tmp_path))
    err = capsys.readouterr().err
    assert " may have begun: https://" in err
    assert "to end it: gemma-pipelines cancel " in err


def test_a_run_that_was_cancelled_has_failed(google):
    client, settings = site(model="google/waits")
    name = begun(client, settings, "cancelled-1")
    until(lambda: any(each["state"] == "RUNNING" for each in follow.tasks_of(client.job(name))))
    client.cancel(name)
    job = follow.follow(client, name, settings, lambda _: None, lambda _: None)
    run, _ = follow.result(job, settings)
    assert follow.state_of(job) == "CANCELLED"
    assert run["status"] == "failed"
    assert "the run was cancelled" in run["error"]["message"]


def test_an_account_that_is_not_ours_to_give_is_told_with_the_role(google):
    client, settings = site()
    job = preflight.checked_job(settings)
    job["serviceAccount"] = "1-compute@developer.gserviceaccount.com"
    with pytest.raises(AccessError, match=r"roles/iam.serviceAccountUser.*add-iam-policy-binding"):
        client.create_job(job, "account-1")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            {
                "code": 403,
                "status": "PERMISSION_DENIED",
                "message": "Vertex AI API has not been used in project 1",
                "details": [
                    {
                        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                        "reason": "SERVICE_DISABLED",
                        "domain": "googleapis.com",
                        "metadata": {"service": "aiplatform.googleapis.com", "consumer": "projects/1"},
                    }
                ],
            },
            "gcloud services enable aiplatform.googleapis.com --project=1",
        ),
        (
            {"code": 403, "status": "PERMISSION_DENIED", "message": "Permission 'aiplatform.x' denied"},
            "gcloud projects add-iam-policy-binding demo-project --member=user:YOU --role=roles/aiplatform.user",
        ),
    ],
    ids=["api-off", "no-role"],
)
def test_a_refusal_names_the_command_that_mends_it(google, answer, words):
    headers = {"Content-Type": "application/json"}
    refused = {"action": "status", "status": 403, "headers": headers, "body": json.dumps({"error": answer})}
    script(google, {**refused, "path": "pipelineJobs"})
    client, settings = site()
    with pytest.raises(AccessError) as caught:
        begun(client, settings, "refused-1")
    assert words in str(caught.value)
    assert consumed(google) == [1]


def test_a_region_without_vertex_is_told(google):
    client, settings = site(vertex={"location": "mars-north1"})
    mend = r"Set `vertex\.location` .* `gcloud compute regions list --project=demo-project`"
    with pytest.raises(RequestError, match=f"mars-north1 refused it: .*{mend}"):
        client.create_job(request.pipeline_job(settings, preflight.specification()), "mars-1")


def test_a_bucket_that_is_not_there_is_not_made(google):
    with pytest.raises(RequestError, match="gcloud storage buckets create gs://nobody-has-this"):
        preflight.checked_job(settings_for(bucket="nobody-has-this"))
    with pytest.raises(RequestError, match="does not exist"):
        preflight.check_buckets(settings_for(bucket="nobody-has-this"))


def test_the_image_has_its_digest(google):
    job = preflight.digest_of(settings_for())
    assert job.startswith("us-central1-docker.pkg.dev/demo-project/gemma-pipelines/python-components@sha256:")
    given = "example.com/ours@sha256:" + "1" * 64
    assert preflight.digest_of(settings_for(), given) == given


def test_who_stays_away_is_given_up_with_the_run_s_address(google):
    from serving.clients import patience

    script(google, {"action": "status", "status": 503, "path": "pipelineJobs", "times": 1000})
    client, settings = site()
    with patience.lasting(1), pytest.raises(InconclusiveError, match="It may have begun all the same") as caught:
        begun(client, settings, "away-1")
    assert client.console("away-1") in str(caught.value)
    assert isinstance(caught.value, PipelineError)
    assert consumed(google)[0] > 1
