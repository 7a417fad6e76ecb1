"""A run on Vertex AI as it goes on, and what it came to.

Vertex AI knows which tasks run, and of a failure next to nothing; what steps have to say is in the outcomes that they
leave in the bucket (serving/outcome.py). Nothing here changes anything: who stops following leaves the run.
"""

from __future__ import annotations

import datetime
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from serving import names
from serving.clients import logging, storage
from serving.clients.vertex import ENDED, Vertex
from serving.errors import PipelineError
from serving.settings import Settings

Entry = dict[str, Any]
"""What is shown of a step, like a log entry of its own (serving/log.py)."""

_SHORTEST_PAUSE, _LONGEST_PAUSE, _GROWTH = 2.0, 10.0, 1.3
"""Seconds between two looks: nobody tells of changes. After one the next may be near. (Cloud Logging takes 60 reads a
minute of a project: https://cloud.google.com/logging/quotas.)"""
_OF_MACHINES = '(resource.type="ml_job" OR resource.type="cloudml_job")'
"""In Cloud Logging: what tasks print."""
_GROUP = re.compile(r"(exit-handler|condition|condition-branches|for-loop)-\d+")
_OF_STATES = {
    "PENDING": "waiting for its machine",
    "RUNNING": "running",
    "CANCEL_PENDING": "being told to end",
    "CANCELLING": "being told to end",
}
_WITHOUT_OUTCOME = {
    "SUCCEEDED": ("succeeded", "it left no outcome in the bucket"),
    "SKIPPED": ("skipped", "Vertex AI took it from its cache"),
    "CANCELLED": ("inconclusive", "it was cancelled"),
    "FAILED": ("failed", "it failed without leaving an outcome in the bucket"),
}


def follow(
    vertex: Vertex, name: str, settings: Settings, show: Callable[[Entry], None], phase: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the run when it has ended. Until then `show` is given what is new of its steps, with what those that run
    say meanwhile, and `phase` what it does before the first one."""
    steps, lines = Steps(settings, name), Lines(vertex.project, phase)
    pause, said = _SHORTEST_PAUSE, ""
    while True:
        job = vertex.job(name)
        news = list(steps.news(job))
        for entry in (*news, *lines.news(job)):
            show(entry)
        if job.get("state") in ENDED:
            return job
        if (state := state_of(job)) != said:
            said = state
            phase(f"{name.rpartition('/')[2]} is {state}")
        pause = _SHORTEST_PAUSE if news else min(pause * _GROWTH, _LONGEST_PAUSE)
        time.sleep(pause)


class Steps:
    """What has been told of a run's steps."""

    def __init__(self, settings: Settings, name: str):
        self.folder = folder_of(settings, name)
        self._told: dict[str, tuple[str, int]] = {}
        self._is_readable = True

    def news(self, job: dict[str, Any]) -> Iterator[Entry]:
        """An entry for each step that is in another state than before, or that is tried again."""
        for task in tasks_of(job):
            state, attempts = task.get("state", ""), attempts_of(task)
            step = step_of(task)
            if state == "NOT_TRIGGERED" or self._told.get(step) == (state, attempts):
                continue
            self._told[step] = (state, attempts)
            about = {"step": step, "run_id": self.folder.rpartition("/")[2], "seconds": _seconds_of(task)}
            if state not in _WITHOUT_OUTCOME:
                words = _OF_STATES.get(state, state.lower()) + (f", attempt {attempts}" if attempts > 1 else "")
                yield {**about, "message": words}
                continue
            status, words = _WITHOUT_OUTCOME[state]
            outcome = self._outcome(step) or {"status": status, "message": words, "seconds": about["seconds"]}
            yield {**about, **{key: outcome[key] for key in ("status", "message", "seconds")}}

    def _outcome(self, step: str) -> dict[str, Any] | None:
        """What a step has left; None when nothing is there, or this person may not read it, which the end tells."""
        if not self._is_readable:
            return None
        try:
            found: dict[str, Any] | None = storage.read_json(f"{self.folder}/steps/{step}.json")
        except PipelineError:
            self._is_readable = False
            return None
        return found


class Lines:
    """What steps say while they run: Cloud Logging has it, to whoever may read it."""

    def __init__(self, project: str, tell: Callable[[str], None]):
        self._project, self._tell = project, tell
        self._heard: dict[str, str] = {}
        """The time of the last line of each machine."""
        self._is_readable = True

    def news(self, job: dict[str, Any]) -> Iterator[Entry]:
        """The newest line of each step that runs and has said anything since it was last asked."""
        running = {_machine(task): task for task in tasks_of(job) if task.get("state") == "RUNNING" and _machine(task)}
        newest: dict[str, dict[str, Any]] = {}
        for line in self._since(running) if running and self._is_readable else ():
            machine = line["resource"]["labels"].get("job_id", "")
            if machine in running and line["timestamp"] > self._heard.get(machine, "") and _is_word(line):
                newest.setdefault(machine, line)
        for machine, line in newest.items():
            task, self._heard[machine] = running[machine], line["timestamp"]
            yield {"step": step_of(task), "seconds": _seconds_of(task), "message": line["jsonPayload"]["message"]}

    def _since(self, running: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        """The lines of these machines, the newest first."""
        whose = " OR ".join(f'resource.labels.job_id="{machine}"' for machine in running)
        begins = min(self._heard.get(machine) or task.get("createTime", "") for machine, task in running.items())
        try:
            return logging.entries(self._project, f'{_OF_MACHINES} ({whose}) timestamp>="{begins}"')
        except PipelineError as error:
            self._is_readable = False
            self._tell(f"what steps say meanwhile is not shown: {error}")
            return []


def _is_word(line: dict[str, Any]) -> bool:
    """Whether a line is a step's own, and not its last one, which its outcome has."""
    said = line.get("jsonPayload", {})
    return "step" in said and "status" not in said and bool(said.get("message"))


def result(job: dict[str, Any], settings: Settings) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a run that has ended came to: the object that `run --json` prints of one, and its steps' outcomes. Where
    no step has a word for why, the error is Vertex AI's.

    Raises PipelineError when the outcomes cannot be read.
    """
    from components.write_report import summary

    folder = folder_of(settings, job["name"])
    outcomes = summary.read_outcomes(folder)
    seconds = _seconds_between(job.get("createTime"), job.get("endTime"))
    run_id, state = folder.rpartition("/")[2], state_of(job)
    found = summary.summarize(settings, run_id, outcomes, state=state, seconds=seconds, over=True)
    if found["error"] and found["error"]["step"] is None:
        found["error"] |= _without_a_word(job, state)
    if state == "CANCELLED" and not found["error"]:
        found |= {"status": "failed", "error": {"step": None, **_without_a_word(job, state)}}
    report = f"{folder}/report.html" if any(each["name"] == "write_report" for each in outcomes) else None
    # The entry is inside the cluster: from here it has no address.
    return {**found, "endpoint": None, "report": report}, outcomes


def _without_a_word(job: dict[str, Any], state: str) -> dict[str, Any]:
    """The error of a run of which no step says why it ended."""
    if state == "CANCELLED":
        return {"type": "Cancelled", "message": "the run was cancelled"}
    if task := failed_task(job, None):
        return {"step": step_of(task), "message": f"it ended without leaving an outcome: {_said_of(task)}"}
    return {"message": job["error"]["message"]} if job.get("error", {}).get("message") else {}


def told(vertex: Vertex, job: dict[str, Any], error: dict[str, Any]) -> str:
    """A failure for a person: in the component's own words, then what Vertex AI says of the task, then the command that
    shows the task's log."""
    lines = [f"{error['step'] or 'the run'}: {error['message']}"]
    if task := failed_task(job, error["step"]):
        said = _said_of(task)
        if said and said not in error["message"]:
            lines.append(f"  Vertex AI says of {task['taskName']}: {said}")
        if command := log_command(vertex, task):
            lines.append(f"  its log: {command}")
    elif (words := job.get("error", {}).get("message", "")) and words not in error["message"]:
        lines.append(f"  Vertex AI says: {words}")
    return "\n".join([*lines, f"  the run: {vertex.console(job['name'])}"])


def failed_task(job: dict[str, Any], step: str | None) -> dict[str, Any] | None:
    """The task that failed: the step's, where that one did, else the first that did."""
    failed = [task for task in tasks_of(job) if task.get("state") == "FAILED"]
    failed.sort(key=lambda task: task.get("endTime", ""))
    return next((task for task in failed if step_of(task) == step), failed[0] if failed else None)


def log_command(vertex: Vertex, task: dict[str, Any]) -> str:
    """What shows what a task printed, as a person types it; empty for a task that had no machine."""
    machine = _machine(task)
    if not machine:
        return ""
    condition = (
        f'{_OF_MACHINES} resource.labels.job_id="{machine}" '
        # Without a time gcloud looks at the last day alone.
        f'timestamp>="{task.get("createTime", "1970-01-01T00:00:00Z")}"'
    )
    return (
        f"gcloud logging read '{condition}' --project={vertex.project} --order=asc "
        "--format='value(timestamp,jsonPayload.message)'"
    )


def tasks_of(job: dict[str, Any]) -> list[dict[str, Any]]:
    """The details of a run's steps, without those of the run itself and of groups."""
    details = job.get("jobDetail", {}).get("taskDetails", [])
    return [task for task in details if task.get("parentTaskId") and not _GROUP.fullmatch(task.get("taskName", ""))]


def step_of(task: dict[str, Any]) -> str:
    """The name of a task's step: `download_weights` for download-weights."""
    name: str = task["taskName"]
    return name.replace("-", "_")


def _machine(task: dict[str, Any]) -> str:
    """The CustomJob that a task runs as, by its number; empty for a task that has none (yet)."""
    job: str = task.get("executorDetail", {}).get("containerDetail", {}).get("mainJob", "")
    return job.rpartition("/")[2]


def attempts_of(task: dict[str, Any]) -> int:
    """How often a task was tried."""
    return len(task.get("executorDetail", {}).get("containerDetail", {}).get("failedMainJobs", [])) + 1


def folder_of(settings: Settings, name: str) -> str:
    """The folder in the bucket that a run has, by its id or its whole name."""
    return f"{settings.pipeline_root}/{names.run(name.rpartition('/')[2])}"


def state_of(resource: dict[str, Any]) -> str:
    """The state of a run in one word: RUNNING."""
    state: str = resource.get("state", "PIPELINE_STATE_UNSPECIFIED")
    return state.removeprefix("PIPELINE_STATE_")


def _said_of(task: dict[str, Any]) -> str:
    words: str = task.get("error", {}).get("message", "")
    # The address that follows is a page of the log, which the command shows too.
    return words.partition(" To find out more about why")[0]


def _seconds_of(task: dict[str, Any]) -> float:
    return _seconds_between(task.get("startTime") or task.get("createTime"), task.get("endTime"))


def _seconds_between(start: str | None, end: str | None) -> float:
    """From one time to another, or to now."""
    if not start:
        return 0.0
    until = datetime.datetime.fromisoformat(end) if end else datetime.datetime.now(datetime.UTC)
    return round(max(0.0, (until - datetime.datetime.fromisoformat(start)).total_seconds()), 3)
