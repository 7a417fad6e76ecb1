"""Vertex AI's pipelineJobs, through Google's GAPIC clients over REST, held against the discovery document."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.api_core import exceptions

from tests.contract import vertex_pipelines as pipelines
from tests.contract.vertex_service import (
    ACCOUNT,
    NUMBERED,
    PARENT,
    TERMINAL,
    compiled,
    custom_job,
    is_alive,
    job_of,
    new_vertex,
    states_of,
    tasks_of,
    until,
    vertex,
)

__all__ = ["new_vertex", "vertex"]

BILLING = "vertex-ai-pipelines-run-billing-id"
BRANCH = "exit-handler-1.condition-branches-2"


@pytest.fixture(scope="module")
def specs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Every tiny pipeline by its name."""
    folder = tmp_path_factory.mktemp("specs")
    found = (
        *(pipelines.two_ways, pipelines.retried, pipelines.always_fails, pipelines.waits, pipelines.waits_deaf),
        *(pipelines.says, pipelines.loops),
    )
    return {pipeline.name: compiled(pipeline, folder) for pipeline in found}


@pytest.fixture(scope="module")
def passed(vertex, specs) -> dict:
    """A run in which all went well."""
    name = vertex.submit(specs["two-ways"], "two-ways-1", word="gemma", options={"steps": 3})
    assert name == f"{NUMBERED}/pipelineJobs/two-ways-1"
    return vertex.wait_for(name)


# -- what a run does ------------------------------------------------------------------------------------------------


def test_a_run_does_what_was_posted(vertex, passed):
    assert passed["state"] == "PIPELINE_STATE_SUCCEEDED"
    assert "error" not in passed
    assert passed["createTime"] <= passed["startTime"] <= passed["endTime"] <= passed["updateTime"]
    assert passed["labels"]["team"] == "gemma"
    assert passed["labels"][BILLING].isdecimal()
    assert states_of(passed) == {
        "exit-handler-1": "SUCCEEDED",
        "exit-handler-1.work": "SUCCEEDED",
        BRANCH: "SUCCEEDED",
        f"{BRANCH}.condition-3": "SUCCEEDED",
        f"{BRANCH}.condition-3.save": "SUCCEEDED",
        f"{BRANCH}.condition-3.say": "SUCCEEDED",
        f"{BRANCH}.condition-4": "NOT_TRIGGERED",
        "report": "SUCCEEDED",
    }


def test_tasks_tell_of_their_parents_attempts_values_and_artifacts(passed):
    tasks = tasks_of(passed)
    root = passed["jobDetail"]["taskDetails"][0]
    assert tasks["exit-handler-1"]["parentTaskId"] == root["taskId"]
    work = tasks["exit-handler-1.work"]
    assert work["parentTaskId"] == tasks["exit-handler-1"]["taskId"]
    assert [status["state"] for status in work["pipelineTaskStatus"]] == ["PENDING", "RUNNING", "SUCCEEDED"]
    assert set(work["executorDetail"]["containerDetail"]) == {"mainJob"}
    assert work["execution"]["schemaTitle"] == "system.ContainerExecution"
    assert tasks["exit-handler-1"]["execution"]["schemaTitle"] == "system.DagExecution"
    assert work["execution"]["metadata"] == {
        "input:word": "gemma",
        "input:number": 3.0,
        "input:options": {"steps": 3.0},
        "output:passed": True,
        "output:said": "gemma 3",
    }
    (model,) = tasks[f"{BRANCH}.condition-3.save"]["outputs"]["weights"]["artifacts"]
    assert (model["uri"], model["schemaTitle"], model["metadata"]) == (
        "gs://demo-bucket/models/a",
        "system.Model",
        {"commit": "c0ffee"},
    )
    assert "execution" not in tasks[f"{BRANCH}.condition-4"]


def test_what_tasks_print_is_in_the_log_of_their_custom_job(vertex, passed):
    tasks = tasks_of(passed)
    assert "gemma 3" in vertex.lines(custom_job(tasks[f"{BRANCH}.condition-3.say"]))
    (entry,) = [
        entry
        for entry in vertex.entries(f'resource.labels.job_id="{custom_job(tasks["exit-handler-1.work"])}"')
        if "options" in entry["jsonPayload"]
    ]
    assert entry["jsonPayload"] == {"message": "working on gemma", "options": {"steps": 3}}
    assert entry["severity"] == "WARNING"
    assert entry["resource"]["type"] == "ml_job"


def test_a_task_is_told_of_its_job_and_how_the_others_ended(vertex, passed):
    payloads = vertex.entries(f'resource.labels.job_id="{custom_job(tasks_of(passed)["report"])}"')
    (told,) = [entry["jsonPayload"] for entry in payloads if "root" in entry["jsonPayload"]]
    assert told["job"] == "two-ways-1"
    assert told["number"] == passed["labels"][BILLING]
    assert told["root"] == "gs://demo-bucket/pipelines"
    assert json.loads(told["message"]) == {
        "state": "SUCCEEDED",
        "error_code": None,
        "error_message": None,
        "pipeline_task_name": "exit-handler-1",
    }


def test_the_states_of_a_job_are_events_in_the_log(vertex, passed):
    def events(log: str) -> list[dict]:
        found = vertex.entries(
            f'log_id("aiplatform.googleapis.com/{log}") AND resource.labels.pipeline_job_id="two-ways-1"'
        )
        assert {entry["logName"] for entry in found} == {f"projects/demo/logs/aiplatform.googleapis.com%2F{log}"}
        return found

    states = [entry["jsonPayload"]["state"].removeprefix("PIPELINE_STATE_") for entry in events("pipeline_job_events")]
    assert states == ["QUEUED", "PENDING", "RUNNING", "SUCCEEDED"]
    first = events("pipeline_job_events")[0]
    assert first["resource"]["type"] == "aiplatform.googleapis.com/PipelineJob"
    assert first["labels"] == {
        "pipeline_name": "two-ways",
        "service_account": ACCOUNT,
        BILLING: passed["labels"][BILLING],
    }
    of_a_task = [entry for entry in events("pipeline_job_task_events") if entry["jsonPayload"]["taskName"] == "work"]
    assert [entry["jsonPayload"]["state"] for entry in of_a_task] == ["PENDING", "RUNNING", "SUCCEEDED"]


def test_a_failure_is_told_in_general_words_and_the_cause_is_in_the_log(vertex, specs):
    job = vertex.ran(specs["two-ways"], word="gemma", number=1)
    assert job["state"] == "PIPELINE_STATE_FAILED"
    number = job["labels"][BILLING]
    assert job["error"] == {
        "code": 9,
        "message": "The DAG failed because some tasks failed. The failed tasks are: [exit-handler-1].; "
        f"Job (project_id = demo, job_id = {number}) is failed due to the above error.",
    }
    tasks = tasks_of(job)
    failed = tasks[f"{BRANCH}.condition-4.fail"]
    assert failed["state"] == "FAILED"
    assert failed["error"]["message"].startswith(
        "The replica workerpool0-0 exited with a non-zero status of 1. Termination reason: Error. "
    )
    assert custom_job(failed) in failed["error"]["message"]
    assert "gemma 1" in vertex.lines(custom_job(failed))
    assert tasks[f"{BRANCH}.condition-4.say-2"]["state"] == "NOT_TRIGGERED"
    assert tasks[f"{BRANCH}.condition-4"]["error"]["message"].endswith("The failed tasks are: [fail].")
    assert tasks["report"]["state"] == "SUCCEEDED"
    assert tasks["report"]["execution"]["metadata"]["input:status"] == {
        "state": "FAILED",
        "error": tasks["exit-handler-1"]["error"] | {"code": 9.0},
        "pipelineJobResourceName": job["name"],
        "pipelineTaskName": "exit-handler-1",
    }


def test_attempts_that_failed_are_told(vertex, specs):
    (Path(vertex.folder) / "attempts").unlink(missing_ok=True)
    job = vertex.ran(specs["retried"])
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED"
    executed = tasks_of(job)["fail-once"]["executorDetail"]["containerDetail"]
    assert len(executed["failedMainJobs"]) == 1
    assert "not yet" in vertex.lines(executed["failedMainJobs"][0].rpartition("/")[2])
    assert "not yet" not in vertex.lines(executed["mainJob"].rpartition("/")[2])

    job = vertex.ran(specs["always-fails"])
    assert job["state"] == "PIPELINE_STATE_FAILED"
    assert len(tasks_of(job)["fail"]["executorDetail"]["containerDetail"]["failedMainJobs"]) == 2


def test_a_loop_has_a_task_for_every_turn(vertex, specs):
    job = vertex.ran(specs["loops"], words=["a", "b", "c"])
    assert job["state"] == "PIPELINE_STATE_SUCCEEDED"
    said = [task for name, task in tasks_of(job).items() if name.endswith(".say")]
    assert sorted(task["execution"]["metadata"]["output:Output"] for task in said) == ["a", "b", "c"]


# -- cancelling -----------------------------------------------------------------------------------------------------


def waiting(vertex, spec, name: str, **parameters) -> str:
    """A run whose task waits; its name."""
    job = vertex.submit(spec, **parameters)
    until(lambda: (task := tasks_of_now(vertex, job).get(name)) and "mainJob" in str(task))
    until(lambda: "waiting" in vertex.lines(custom_job(tasks_of_now(vertex, job)[name])))
    return job


def tasks_of_now(vertex, job: str) -> dict:
    found = vertex.get(job)
    return tasks_of(found) if "jobDetail" in found else {}


def test_a_job_that_is_cancelled_tells_its_task_and_runs_its_exit_task(vertex, specs):
    name = waiting(vertex, specs["waits"], "exit-handler-1.wait-to-be-told")
    vertex.jobs.cancel_pipeline_job(name=name)
    job = vertex.wait_for(name)
    assert job["state"] == "PIPELINE_STATE_CANCELLED"
    assert job["error"]["code"] == 1
    assert (vertex.folder / "told").read_text() == "SIGTERM"
    assert states_of(job) == {
        "exit-handler-1": "CANCELLED",
        "exit-handler-1.wait-to-be-told": "CANCELLED",
        "exit-handler-1.say": "NOT_TRIGGERED",
        "report": "SUCCEEDED",
    }
    waited = tasks_of(job)["exit-handler-1.wait-to-be-told"]
    states = [status["state"] for status in waited["pipelineTaskStatus"]]
    assert states == ["PENDING", "RUNNING", "CANCELLING", "CANCELLED"]
    assert "failedMainJobs" not in waited["executorDetail"]["containerDetail"], "it was tried again"
    assert tasks_of(job)["report"]["execution"]["metadata"]["input:status"]["state"] == "CANCELLED"
    with pytest.raises(exceptions.BadRequest):
        vertex.jobs.cancel_pipeline_job(name=name)


def test_a_task_that_does_not_listen_is_killed_after_a_grace(new_vertex, specs):
    vertex = new_vertex(grace_seconds=0.5)
    name = waiting(vertex, specs["waits-deaf"], "wait-deaf")
    vertex.jobs.cancel_pipeline_job(name=name)
    job = vertex.wait_for(name)
    assert (job["state"], states_of(job)) == ("PIPELINE_STATE_CANCELLED", {"wait-deaf": "CANCELLED"})


def test_a_cancel_may_take_its_time_and_leave_exit_tasks_out(vertex, specs):
    vertex.outcome(exit_after_cancel=False)
    name = waiting(vertex, specs["waits"], "exit-handler-1.wait-to-be-told")
    vertex.outcome(f"{name.rpartition('/')[2]}$", hold=True)
    (vertex.folder / "told").unlink(missing_ok=True)
    vertex.jobs.cancel_pipeline_job(name=name)
    assert vertex.get(name)["state"] == "PIPELINE_STATE_CANCELLING"
    until(lambda: vertex.consumed() == [1])
    assert states_of(vertex.get(name))["exit-handler-1.wait-to-be-told"] == "RUNNING"
    assert not (vertex.folder / "told").exists()
    vertex.jobs.cancel_pipeline_job(name=name)  # Asked again, nothing else happens.
    vertex.script()
    job = vertex.wait_for(name)
    assert job["state"] == "PIPELINE_STATE_CANCELLED"
    assert states_of(job)["report"] == "NOT_TRIGGERED"


def test_several_are_cancelled_and_deleted_at_once(vertex, specs):
    vertex.script({"action": "outcome", "path": "pipelineJobs$", "outcome": {"hold": True}, "times": 2})
    names = [vertex.submit(specs["says"], f"several-{number}") for number in range(2)]
    for other in (["projects/demo/locations/elsewhere/pipelineJobs/a"], [f"{PARENT}/pipelineJobs/a"] * 33, []):
        with pytest.raises(exceptions.BadRequest):
            vertex.jobs.batch_cancel_pipeline_jobs(parent=PARENT, names=other)
    done = vertex.jobs.batch_cancel_pipeline_jobs(parent=PARENT, names=names).result(timeout=60)
    assert {job.state.name for job in done.pipeline_jobs} == {"PIPELINE_STATE_CANCELLED"}
    done = vertex.jobs.batch_delete_pipeline_jobs(parent=PARENT, names=names).result(timeout=60)
    assert [job.name for job in done.pipeline_jobs] == names
    with pytest.raises(exceptions.NotFound):
        vertex.get(names[0])


# -- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_job_may_stay_pending_and_be_cancelled_so(vertex, specs):
    vertex.outcome(hold=True)
    name = vertex.submit(specs["says"])
    until(lambda: vertex.consumed() == [1])
    assert vertex.get(name)["state"] == "PIPELINE_STATE_PENDING"
    vertex.jobs.cancel_pipeline_job(name=name)
    job = vertex.wait_for(name)
    assert job["state"] == "PIPELINE_STATE_CANCELLED"
    assert "jobDetail" not in job


def test_a_job_may_fail_before_any_task(vertex, specs):
    vertex.outcome(error={"code": 13, "message": "Internal error encountered."})
    job = vertex.ran(specs["says"])
    assert (job["state"], job["error"]["code"]) == ("PIPELINE_STATE_FAILED", 13)
    assert vertex.consumed() == [1]


def test_a_task_may_die_without_a_word(vertex, specs):
    vertex.outcome(task="wait-to-be-told", after="waiting", attempts=3)
    job = vertex.ran(specs["waits"])
    assert job["state"] == "PIPELINE_STATE_FAILED"
    died = tasks_of(job)["exit-handler-1.wait-to-be-told"]
    assert "a non-zero status of 137" in died["error"]["message"]
    assert len(died["executorDetail"]["containerDetail"]["failedMainJobs"]) == 2
    assert [line for line in vertex.lines(custom_job(died)) if not line.startswith("[KFP")][-1] == "waiting"
    assert vertex.consumed() == [1]


def test_a_job_may_be_cancelled_at_a_line_of_a_task(vertex, specs):
    vertex.outcome(task="wait-to-be-told", after="waiting", cancel=True, exit_after_cancel=False)
    (vertex.folder / "told").unlink(missing_ok=True)
    job = vertex.ran(specs["waits"])
    assert job["state"] == "PIPELINE_STATE_CANCELLED"
    assert (vertex.folder / "told").read_text() == "SIGTERM"
    states = states_of(job)
    assert (states["exit-handler-1.wait-to-be-told"], states["report"]) == ("CANCELLED", "NOT_TRIGGERED")
    assert vertex.consumed() == [2], "it was cancelled, and the exit task left out"


@pytest.mark.parametrize(("status", "error"), [(429, exceptions.TooManyRequests), (503, exceptions.ServiceUnavailable)])
def test_the_service_may_be_busy(vertex, specs, status, error):
    vertex.script({"action": "status", "status": status, "method": "POST", "path": "/pipelineJobs"})
    with pytest.raises(error):
        vertex.submit(specs["says"], f"busy-{status}")
    assert vertex.consumed() == [1]
    with pytest.raises(exceptions.NotFound):
        vertex.get(f"{PARENT}/pipelineJobs/busy-{status}")


def test_an_answer_may_be_lost_after_the_job_was_made(vertex, specs):
    import requests

    vertex.script({"action": "unanswered", "method": "POST", "path": "/pipelineJobs"})
    with pytest.raises(requests.ConnectionError):
        vertex.submit(specs["says"], "lost")
    assert vertex.consumed() == [1]
    with pytest.raises(exceptions.Conflict):
        vertex.submit(specs["says"], "lost")
    assert vertex.wait_for(f"{PARENT}/pipelineJobs/lost")["state"] == "PIPELINE_STATE_SUCCEEDED"


def processes_of(folder: Path) -> set[int]:
    """What runs with this folder in its environment, but for the emulator."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"FOLDER={folder}\0".encode() in (path / "environ").read_bytes():
                found.add(int(path.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_an_emulator_that_ends_takes_its_runs_with_it_and_knows_so_later(new_vertex, specs, end):
    vertex = new_vertex()
    vertex.outcome(error={"code": 13, "message": "of its own"})
    ended = vertex.ran(specs["says"])
    name = waiting(vertex, specs["waits"], "exit-handler-1.wait-to-be-told")
    running = processes_of(vertex.folder)
    assert running
    getattr(vertex, end)()
    until(lambda: not any(is_alive(pid) for pid in running & processes_of(vertex.folder)))
    vertex.start()
    job = vertex.get(name)
    assert job["state"] == "PIPELINE_STATE_FAILED"
    assert job["error"]["code"] == 13
    assert states_of(job)["exit-handler-1.wait-to-be-told"] == "FAILED"
    assert vertex.get(ended["name"]) == ended


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pipeline_spec": None}, "pipeline_job.pipeline_spec; Message: Required field is not set"),
        ({"runtime_config": {}}, "pipeline_job.runtime_config.gcs_output_directory; Message: Required"),
        ({"runtime_config": {"gcs_output_directory": "s3://b/x"}}, "Invalid Cloud Storage path: 's3://b/x'"),
        ({"labels": {"Team": "x"}}, "Invalid label key: 'Team'"),
        ({"labels": {"team": "a b"}}, "Invalid label value: 'a b'"),
        ({"labels": {f"l{n}": "" for n in range(65)}}, "no more than 64 labels"),
        ({"display_name": "x" * 129}, "at most 128 characters"),
        (
            {"service_account": "nobody@demo.iam.gserviceaccount.com"},
            "permission to act as service_account: nobody@demo.iam.gserviceaccount.com. (or the resource may not",
        ),
        ({"service_account": ""}, "permission to act as service_account: 123456789012-compute@developer"),
        ({"service_account": "kept-back@demo.iam.gserviceaccount.com"}, "act as service_account: kept-back@"),
        (
            {"encryption_spec": {"kms_key_name": "projects/demo/locations/eu/keyRings/r/cryptoKeys/k"}},
            "Not a key of us-central1",
        ),
        (
            {"psc_interface_config": {"network_attachment": "projects/demo/regions/eu/networkAttachments/n"}},
            "Not an attachment of us-central1",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_job_that_cannot_be_is_refused(vertex, specs, change, words):
    job = {**job_of(specs["says"]), **change}
    with pytest.raises(exceptions.BadRequest, match=words.replace("(", r"\(").replace("[", r"\[")):
        vertex.jobs.create_pipeline_job(parent=PARENT, pipeline_job=job, pipeline_job_id="cannot-be")


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "parameter word is not optional, yet has neither default value nor user provided value"),
        ({"word": "a", "nope": 1}, r"parameter\(s\) provided are not required by pipeline: nope"),
        ({"word": 3}, "parameter word is a STRING"),
        ({"word": "a", "number": 1.5}, "parameter number is a NUMBER_INTEGER"),
        ({"word": "a", "number": True}, "parameter number is a NUMBER_INTEGER"),
    ],
)
def test_parameters_are_those_of_the_pipeline(vertex, specs, parameters, words):
    with pytest.raises(exceptions.BadRequest, match=words):
        vertex.submit(specs["two-ways"], **parameters)


@pytest.mark.parametrize("job_id", ["Refresh", "1st", "a_b", "x" * 128])
def test_an_id_is_as_the_service_wants_it(vertex, specs, job_id):
    with pytest.raises(exceptions.BadRequest, match="Invalid id"):
        vertex.submit(specs["says"], job_id)


def test_unknown_fields_query_parameters_places_and_callers_are_refused(vertex, specs):
    answer = vertex.rest("POST", f"{PARENT}/pipelineJobs", {"displayname": "x"})
    assert answer.status_code == 400
    assert 'Unknown name "displayname"' in answer.json()["error"]["message"]
    assert vertex.rest("GET", f"{PARENT}/pipelineJobs?order=x").status_code == 400
    assert vertex.rest("GET", "projects/demo/locations/mars/pipelineJobs").status_code == 400
    denied = vertex.rest("GET", "projects/other/locations/us-central1/pipelineJobs")
    assert denied.status_code == 403
    assert denied.json()["error"]["details"][0]["metadata"]["permission"] == "aiplatform.pipelineJobs.list"
    assert vertex.rest("GET", f"{PARENT}/pipelineJobs/none").json()["error"]["status"] == "NOT_FOUND"
    assert vertex.rest("PUT", f"{PARENT}/pipelineJobs/none").status_code in (404, 501)


def test_names_of_fields_and_enums_are_taken_in_either_form(vertex, specs):
    body = {
        "pipeline_spec": specs["says"],
        "serviceAccount": ACCOUNT,
        "runtime_config": {"gcsOutputDirectory": "gs://demo-bucket/x", "failurePolicy": 2},
    }
    vertex.outcome(error={"code": 13, "message": "never mind"})
    made = vertex.rest("POST", f"{PARENT}/pipelineJobs?pipelineJobId=by-hand", body).json()
    assert made["runtimeConfig"]["failurePolicy"] == "PIPELINE_FAILURE_POLICY_FAIL_FAST"
    assert made["state"] == "PIPELINE_STATE_QUEUED"
    numbered = vertex.rest("GET", f"{PARENT}/pipelineJobs/by-hand?$alt=json;enum-encoding=int").json()
    assert numbered["runtimeConfig"]["failurePolicy"] == 2
    assert vertex.wait_for(f"{PARENT}/pipelineJobs/by-hand")["state"] == "PIPELINE_STATE_FAILED"


def test_the_service_keeps_numbers_as_doubles(vertex, specs):
    body = {"pipelineSpec": specs["two-ways"], "serviceAccount": ACCOUNT}
    body["runtimeConfig"] = {
        "gcsOutputDirectory": "gs://demo-bucket/x",
        "parameterValues": {"word": "a", "number": 2.0, "options": {"a": 1.5, "b": None}},
    }
    vertex.outcome(error={"code": 13, "message": "never mind"})
    made = vertex.rest("POST", f"{PARENT}/pipelineJobs?pipelineJobId=numbers", body)
    assert '"number": 2,' in made.text
    assert '"options": {"a": 1.5, "b": null}' in made.text


# -- lists ----------------------------------------------------------------------------------------------------------


def test_jobs_are_found_by_filters_in_order_and_in_pages(new_vertex, specs):
    vertex = new_vertex()
    for number in range(3):
        vertex.outcome(error={"code": 13, "message": "x"})
        asked = {"parent": PARENT, "pipeline_job": job_of(specs["says"]), "pipeline_job_id": f"job-{number}"}
        asked["pipeline_job"]["labels"] = {"number": str(number), "odd": str(number % 2)}
        asked["pipeline_job"]["display_name"] = f"refresh {number}"
        vertex.wait_for(vertex.jobs.create_pipeline_job(asked).name)

    def found(**asked) -> list[str]:
        return [job.name.rpartition("/")[2] for job in vertex.jobs.list_pipeline_jobs({"parent": PARENT, **asked})]

    assert found() == ["job-2", "job-1", "job-0"]
    assert found(order_by="create_time") == ["job-0", "job-1", "job-2"]
    assert found(page_size=1) == ["job-2", "job-1", "job-0"]
    assert found(filter='labels.odd="0"') == ["job-2", "job-0"]
    assert found(filter='labels.number="1" OR display_name="refresh 2"') == ["job-2", "job-1"]
    assert found(filter='display_name:"*fresh 0*"') == ["job-0"]
    assert found(filter='pipeline_name="says" AND NOT pipeline_job_user_id="job-1"') == ["job-2", "job-0"]
    assert found(filter='state="PIPELINE_STATE_SUCCEEDED"') == []
    created = vertex.get(f"{PARENT}/pipelineJobs/job-1")["createTime"]
    assert found(filter=f'create_time>"{created}"') == ["job-2"]
    (first, *_) = vertex.jobs.list_pipeline_jobs({"parent": PARENT, "read_mask": "name,state"})
    assert first.name
    assert not first.display_name
    (first, *_) = vertex.jobs.list_pipeline_jobs({"parent": PARENT})
    assert not first.job_detail
    assert first.pipeline_spec
    for bad in ({"filter": 'display_name "x"'}, {"order_by": "state"}):
        with pytest.raises(exceptions.BadRequest):
            found(**bad)


def test_a_job_that_has_ended_can_be_deleted(vertex, specs):
    vertex.outcome(hold=True)
    name = vertex.submit(specs["says"])
    until(lambda: vertex.consumed() == [1])
    with pytest.raises(exceptions.BadRequest):
        vertex.jobs.delete_pipeline_job(name=name)
    vertex.script()
    assert vertex.wait_for(name)["state"] in TERMINAL
    deleted = vertex.jobs.delete_pipeline_job(name=name)
    deleted.result(timeout=60)
    assert vertex.rest("GET", deleted.operation.name).json()["done"] is True
    with pytest.raises(exceptions.NotFound):
        vertex.jobs.delete_pipeline_job(name=name)
