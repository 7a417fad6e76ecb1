"""`submit`: a refresh on Vertex AI Pipelines, followed to its end or not."""

from __future__ import annotations

import datetime
import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import RequiredSettingsFile, ScenarioArgument, Sets, settings_of
from pipelines.cli.output import Output, columns, complain

if TYPE_CHECKING:
    from pathlib import Path

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
    retry: Annotated[bool, typer.Option("--retry", help="Try a rejected release again, or go against a pin.")] = False,
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

    settings = settings_of(scenario, file, [*(sets or []), *(["retry=true"] if retry else [])], {})
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
        begun = None
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
                out.hint(f"to end it: {_cancel_command(job_id, file)}")
                return
            _wait(out, vertex, settings, told)
        except KeyboardInterrupt:
            # When quiet, too: nothing else has said which run it is.
            goes_on = "goes on" if begun else "may have begun"
            complain(f"run {job_id} {goes_on}: {vertex.console(job_id)}\nto end it: {_cancel_command(job_id, file)}")
            raise


def cancel(
    out: Output,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, as `submit` and `status` show it.")],
    file: RequiredSettingsFile,
    sets: Sets = None,
) -> None:
    """Tell a run on Vertex AI Pipelines to end. What it holds it gives back; what serves goes on."""
    from pipelines.cli.options import values_of
    from pipelines.vertex import follow
    from serving.clients import patience
    from serving.clients.vertex import ENDED, Vertex
    from serving.settings import Settings, in_seconds, validated

    settings = validated(Settings, values_of(file, sets, {}), file)
    with patience.lasting(in_seconds(settings.patience)):
        vertex = Vertex(settings.project, settings.vertex_location)
        there = vertex.job(run)
        has_ended = there["state"] in ENDED
        if not has_ended:
            vertex.cancel(run)
            there = vertex.job(run)
    state = follow.state_of(there)
    words = f"{run} had ended before: it is {state}" if has_ended else f"told {run} to end: it is {state}"
    out.result({"id": run, "state": state, "console": vertex.console(run)}, words)


def _cancel_command(job_id: str, file: Path) -> str:
    """What ends a run, as a person types it."""
    return f"gemma-pipelines cancel {job_id} -f {shlex.quote(str(file))}"


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
