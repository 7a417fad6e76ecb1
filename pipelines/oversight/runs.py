"""A deployment's runs, by what Vertex AI knows of them and what they left in the bucket: either may be missing."""

from __future__ import annotations

import datetime
import time
from typing import Any

from components.write_report import summary
from pipelines.vertex import follow
from serving import names
from serving.clients import storage
from serving.clients.google import ApiOffError
from serving.clients.vertex import ENDED, Body, Vertex
from serving.errors import InconclusiveError, PipelineError
from serving.log import Say
from serving.settings import Settings, moment

SHOWN = 5
_LOOKED_AT = 50
"""Runs of which some may go on: one schedule, people, CI."""
_SHORTEST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0
"""Seconds between two looks at runs that end: nobody tells of it."""
_SAY_EVERY_SECONDS = 60


def vertex_of(settings: Settings) -> Vertex | None:
    """Vertex AI as the deployment uses it; None where the project has it switched off, so that nothing is seen."""
    try:
        return reached(settings)
    except ApiOffError:
        return None


def reached(settings: Settings) -> Vertex:
    """Vertex AI as the deployment uses it, which has answered. Raises ApiOffError, AccessError, RequestError."""
    vertex = Vertex(settings.project, settings.vertex_location)
    vertex.jobs(_of(settings), most=1)
    return vertex


def active(vertex: Vertex, settings: Settings) -> list[Body]:
    """The runs that have not ended, the newest first."""
    return [job for job in vertex.jobs(_of(settings), most=_LOOKED_AT) if job.get("state") not in ENDED]


def called(job: Body) -> str:
    """A run that goes on, in words."""
    return f"run {_id(job)} ({follow.state_of(job)})"


def wait_until_ended(vertex: Vertex, settings: Settings, say: Say, *, cancel: bool, seconds: float) -> list[str]:
    """Returns the runs that went on, by their ids, when they have ended: by themselves, or told to. Raises
    InconclusiveError when one goes on for longer than so many seconds."""
    going, pause, deadline = active(vertex, settings), _SHORTEST_PAUSE, time.monotonic() + seconds
    found = [_id(job) for job in going]
    for job in going:
        if cancel and follow.state_of(job) != "CANCELLING":
            vertex.cancel(job["name"])
            say(f"told run {_id(job)} to end")
        else:
            say(f"waiting for {called(job)}{'' if cancel else '; --cancel tells it to end'}")
    said_at = time.monotonic()
    while going:
        if time.monotonic() - said_at > _SAY_EVERY_SECONDS:
            said_at = time.monotonic()
            say(f"waiting for {', '.join(map(called, going))}")
        if time.monotonic() > deadline:
            console = vertex.console(_id(going[0]))
            raise InconclusiveError(
                f"{', '.join(map(_id, going))} still goes on after {seconds:.0f} s: see {console}. Run again later, or "
                "with --cancel"
            )
        time.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
        going = active(vertex, settings)
    return found


# -- what became of them --------------------------------------------------------------------------------------


def latest(vertex: Vertex | None, settings: Settings) -> list[dict[str, Any]]:
    """The last runs, the newest first: `{"id", "state", "started", "seconds", "scheduled", "status", "generation",
    "error", "steps"}`. `state` is Vertex AI's word, null for a run that it does not know; the rest is of what the run
    left. The newest one alone has its steps' messages."""
    if vertex is None:
        found = [_of_bucket(settings, run_id) for run_id in _in_bucket(settings)]
    else:
        found = [_of_vertex(settings, job) for job in vertex.jobs(_of(settings), most=SHOWN)]
        if found:
            found[0]["steps"] = _steps(vertex, settings, found[0])
    return found


def _of_vertex(settings: Settings, job: Body) -> dict[str, Any]:
    began, ended = job.get("createTime"), job.get("endTime")
    left = _of_bucket(settings, names.run(_id(job)))
    error = left["error"] or ({"step": None, **job["error"]} if job.get("error") else None)
    return {
        **left,
        "id": _id(job),
        "state": follow.state_of(job),
        "started": began or left["started"],
        "seconds": (moment(ended) - moment(began)).total_seconds() if began and ended else left["seconds"],
        "scheduled": bool(job.get("scheduleName")),
        "error": {key: error.get(key) for key in ("step", "message")} if error else None,
    }


def _of_bucket(settings: Settings, run_id: str) -> dict[str, Any]:
    """What a run left. One that has written no report yet is told by its outcomes."""
    folder = f"{settings.pipeline_root}/{run_id}"
    report = storage.read_json(f"{folder}/report.json") or {}
    outcomes = report.get("outcomes") or summary.read_outcomes(folder)
    error = report.get("error") or next(
        ({"step": each["name"], "message": each["message"]} for each in outcomes if each.get("error")), None
    )
    resolved = next((each for each in outcomes if each["name"] == "resolve_model"), {})
    return {
        "id": run_id,
        "state": None,
        "started": outcomes[0]["started_at"] if outcomes else None,
        "seconds": report.get("seconds"),
        "scheduled": False,
        "status": report.get("status"),
        "generation": report.get("generation") or resolved.get("generation"),
        "error": {key: error.get(key) for key in ("step", "message")} if error else None,
        "steps": [
            {"attempts": None, **{key: each[key] for key in ("name", "status", "seconds", "message")}}
            for each in outcomes
        ],
    }


def _steps(vertex: Vertex, settings: Settings, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a run: what each left, and what Vertex AI knows of those that left nothing, or not yet."""
    job = vertex.job(run["id"])
    left = {step["name"]: step for step in run["steps"]}
    attempts = {follow.step_of(task): follow.attempts_of(task) for task in follow.tasks_of(job)}
    told = {entry["step"]: entry for entry in follow.Steps(settings, run["id"]).news(job)}
    for name, entry in told.items():
        if name not in left:
            status = entry.get("status", "running")
            left[name] = {"name": name, "status": status, "seconds": entry["seconds"], "message": entry["message"]}
    return [{**step, "attempts": attempts.get(name, 1)} for name, step in left.items()]


def _in_bucket(settings: Settings) -> list[str]:
    """The last runs of the deployment that left anything in the bucket."""
    suffix = "/steps/resolve_model.json"
    stored = [each for each in storage.list_objects(f"{settings.pipeline_root}/") if each.uri.endswith(suffix)]
    found = []
    # An object's generation counts the microseconds of the moment in which it was written.
    for each in sorted(stored, key=lambda each: each.generation, reverse=True):
        if (storage.read_json(each.uri) or {}).get("deployment") == names.place(settings):
            found.append(each.uri.removesuffix(suffix).rpartition("/")[2])
        if len(found) == SHOWN:
            break
    return found


def validation_of(settings: Settings, run_id: str) -> dict[str, Any] | None:
    """What a run's validation said: `{"passed", "at", "run", "message"}`."""
    try:
        outcome = storage.read_json(f"{settings.pipeline_root}/{run_id}/steps/validate_server.json")
    except PipelineError:
        return None
    if not outcome:
        return None
    return {
        "passed": outcome["status"] in ("succeeded", "skipped"),
        "at": outcome["started_at"],
        "run": run_id,
        "message": outcome["message"],
    }


def ago(text: str | None, now: datetime.datetime) -> str:
    """How long ago something was, for a person."""
    if not text:
        return "?"
    seconds = (now - moment(text)).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


def _of(settings: Settings) -> str:
    return f'labels.{names.RUNS_AT}="{names.place_label(settings)}"'


def _id(job: Body) -> str:
    return str(job["name"]).rpartition("/")[2]
