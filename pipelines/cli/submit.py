"""`submit`: a refresh on Vertex AI Pipelines, followed to its end or not."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import RequiredSettingsFile, ScenarioArgument, Sets, settings_of
from pipelines.cli.output import Output, columns

if TYPE_CHECKING:
    from serving.clients.vertex import Vertex
    from serving.settings import Settings

ComponentsImage = Annotated[
    str | None,
    typer.Option(
        "--image", metavar="REF", help="The component image; default: the settings', or the one that bootstrap built."
    ),
]


def submit(
    out: Output,
    scenario: ScenarioArgument,
    file: RequiredSettingsFile,
    sets: Sets = None,
    image: ComponentsImage = None,
    validated_by: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="RUN",
            help="Serve exactly what that run validated: its id, or the folder of another deployment's, "
            "gs://BUCKET/pipelines/RUN.",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the run to its end, whose exit code is the run's.")] = (
        False
    ),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the request instead of sending it, when all is there for it.")
    ] = False,
) -> None:
    """Run a refresh on Vertex AI Pipelines."""
    from pipelines.vertex import follow, request
    from pipelines.vertex.preflight import checked_job
    from serving.clients import patience
    from serving.clients.vertex import Vertex
    from serving.settings import in_seconds

    settings = settings_of(scenario, file, sets, {})
    with patience.lasting(in_seconds(settings.patience)):
        if validated_by:
            from pipelines.validated import as_in_run

            settings = as_in_run(settings, validated_by)
        vertex = Vertex(settings.project, settings.vertex_location)
        with out.progress("looking at bucket and component image"):
            job = checked_job(settings, image)
        announce_downtime(out, settings)
        job_id = request.job_id(job, datetime.datetime.now(datetime.UTC))
        if dry_run:
            import yaml

            asked = {"parent": vertex.parent, "pipelineJobId": job_id, "pipelineJob": job}
            out.result(asked, yaml.safe_dump(asked, sort_keys=False, allow_unicode=True))
            return
        try:
            out.say(f"submitting {job_id} to Vertex AI Pipelines in {vertex.location}")
            begun = vertex.create_job(job, job_id)
            told = {
                "id": job_id,
                "name": begun["name"],
                "state": follow.state_of(begun),
                "console": vertex.console(job_id),
                "run": None,
            }
            if not wait:
                out.result(told, columns([("run", job_id), ("console", told["console"])]))
                out.hint(f"to end it: {cancel_command(vertex, job_id)}")
                return
            _wait(out, vertex, settings, told)
        except KeyboardInterrupt:
            out.hint(f"run {job_id} goes on: {vertex.console(job_id)}\nto end it: {cancel_command(vertex, job_id)}")
            raise


def cancel_command(vertex: Vertex, job_id: str) -> str:
    """What ends a run, as a person types it."""
    return vertex.command("POST", f"{vertex.parent}/pipelineJobs/{job_id}:cancel")


def announce_downtime(out: Output, settings: Settings) -> None:
    """With `rollout: replace`: that a run which finds something new has nothing serve for a while, and how long that
    was the last time, where this machine may read the record."""
    if settings.rollout != "replace":
        return
    from serving.clients import kubernetes, patience
    from serving.deployment import record, replacement
    from serving.errors import PipelineError

    try:
        with patience.lasting(0):
            known = record.read(kubernetes.connect(settings), settings)
    except PipelineError:
        last = "How long that was the last time, the record in the cluster says, which this machine does not reach"
    else:
        if not known.live:
            return
        last = replacement.last_time(known)
    out.hint(
        "rollout: replace: a run that finds a new release takes the live generation down, and nothing serves until the "
        f"new one has passed or the old one is back. {last}"
    )


def _wait(out: Output, vertex: Vertex, settings: Settings, told: dict[str, Any]) -> None:
    """Shows the run's steps until it has ended. Raises PipelineError when it, or its validation, failed."""
    from pipelines.cli.run import KEYS, words_of
    from pipelines.cli.view import View
    from pipelines.vertex import follow
    from serving.errors import PipelineError
    from serving.scenarios import find

    out.say(told["console"])
    view = View(out, find(settings.scenario))
    with view.up(f"{told['id']} is {told['state']}"):
        job = follow.follow(vertex, told["name"], settings, view.show, view.wait)
        run, outcomes = follow.result(job, settings)
        ended = {**told, "state": follow.state_of(job), "run": {key: run[key] for key in KEYS}}
        rows = [("report", run["report"] or "none"), ("console", told["console"])]
        out.result(ended, words_of(run, outcomes, rows))
    if run["error"]:
        raise PipelineError(follow.told(vertex, job, run["error"]))
