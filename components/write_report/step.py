"""The exit task: runs whatever happened, unless the run was killed (the next run then does its cleaning)."""

from __future__ import annotations

import datetime
import time
from typing import Any, NamedTuple

from components.write_report import page, summary
from serving import log, names
from serving.clients import kubernetes, storage
from serving.deployment import adapters, canary, disk_images, lease, leftovers, record, replacement
from serving.errors import PipelineError, RejectedBeforeError, ReleaseError, RequestError
from serving.log import Say
from serving.settings import Settings, from_parameters
from serving.step import opened_with_parameters

_REJECTED = (ReleaseError.__name__, RejectedBeforeError.__name__)


def run(rest: dict[str, Any], job: str, state: str, **explicit: str) -> str:
    """Cleans up after the run, gives the Lease back, and writes `report.json` and `report.html` beside the steps.

    It cannot read what other tasks returned (an exit task sees pipeline parameters alone), so it reads the outcomes
    that they left. `state` is the orchestrator's word for the run. Returns the report's page.
    """
    with opened_with_parameters("write_report", rest, job, explicit) as outcome:
        run_id, folder = outcome.run_id, outcome.folder
        outcomes = summary.read_outcomes(folder)
        settings = _settings(rest, explicit)
        if settings and (began_to_write(outcomes) or may_be_down(outcomes)):
            try:
                clean_up(settings, run_id, outcome.say)
            except PipelineError as error:
                # The report matters most when the cluster is away; the next run cleans up.
                outcome.say(f"could not clean up ({error}); the next run will")
        asked = settings or Wrong(str(rest.get("scenario")), str(explicit.get("model")))
        report = summary.summarize(asked, run_id, outcomes, state=state, seconds=wall_seconds(outcomes))
        storage.write_json(f"{folder}/report.json", {**report, "outcomes": outcomes})
        html = page.render(settings, report, outcomes)
        storage.write_text(f"{folder}/report.html", html, content_type="text/html; charset=utf-8")
        tell(asked, run_id, report, outcomes)
        outcome.succeeded(f"the report is {folder}/report.html")
    return html


def tell(asked: Settings | Wrong, run_id: str, report: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
    """One entry of the log on what the run came to, whose fields alerts look for (docs/vertex.md). `became`: succeeded,
    unchanged, waiting (for a person's promotion), rejected, or failed."""
    error, became = report["error"] or {}, report["status"]
    if error.get("type") in _REJECTED:
        became = "rejected"
    elif not error and any(outcome.get("decision") == "validated" for outcome in outcomes):
        became = "waiting"
    log.entry(
        f"this run: {became}{', ' + error['message'] if error else ''}",
        step="write_report",
        run_id=run_id,
        severity="ERROR" if error else "INFO",
        event="run-ended",
        deployment=names.place(asked) if isinstance(asked, Settings) else None,
        became=became,
    )


class Wrong(NamedTuple):
    """What wrong parameters ask for."""

    scenario: str
    model: str


def _settings(rest: dict[str, Any], explicit: dict[str, str]) -> Settings | None:
    """None for wrong parameters: resolve_model has said what is wrong with them, and nothing was begun."""
    try:
        return from_parameters(rest, **explicit)
    except RequestError:
        return None


def began_to_write(outcomes: list[dict[str, Any]]) -> bool:
    """Whether any step after resolve_model began: only then is there anything of this run's in the cluster."""
    return any(outcome["name"] != "resolve_model" for outcome in outcomes)


def may_be_down(outcomes: list[dict[str, Any]]) -> bool:
    """Whether resolve_model found that a dead run had taken the live generation down, or had left a canary, or never
    came to look."""
    found = [outcome for outcome in outcomes if outcome["name"] == "resolve_model"]
    return any(outcome.get("down") != "" or outcome.get("canary", "") != "" for outcome in found)


def clean_up(settings: Settings, run_id: str, say: Say) -> None:
    """Gives the requests of a canary back and has a generation that made room serve again, then removes what this run
    left by its label. Where the run does not hold the Lease (any more), that is the holder's to do, and when nobody
    does, all but the last is this run's."""
    cluster = kubernetes.connect(settings)
    known = record.read(cluster, settings)
    found = cluster.get("Lease", settings.name, settings.namespace)
    if (known.down or canary.going_on(cluster, settings)) and found and lease.free_at(found) <= time.time():
        lease.take(cluster, settings, run_id, say)
    elif found is None or lease.holder(found) != run_id:
        return
    try:
        with lease.held(cluster, settings, run_id):
            try:
                canary.put_back(cluster, settings, run_id=run_id, say=say)
            except PipelineError as error:
                say(f"the canary stays as it is ({error}); the next run, or `rollback`, ends it")
            try:
                replacement.bring_back(cluster, settings, known, run_id=run_id, say=say)
            except PipelineError as error:
                say(f"{known.live} does not come back yet ({error}); the next run, or `rollback`, goes on with it")
            adapters.take_back(cluster, settings, known, say)
            leftovers.remove_run(cluster, settings, known, run_id, say)
        disk_images.sweep(settings, run_id, say)
    finally:
        lease.give_back(cluster, settings, run_id)


def wall_seconds(outcomes: list[dict[str, Any]]) -> float:
    """From the first step's start to the last one's end."""
    if not outcomes:
        return 0.0
    starts = [datetime.datetime.fromisoformat(outcome["started_at"]).timestamp() for outcome in outcomes]
    ends = [start + outcome["seconds"] for start, outcome in zip(starts, outcomes, strict=True)]
    return max(ends) - min(starts)
