"""`schedule apply|show|pause|resume|delete`: the deployment's one schedule on Vertex AI Pipelines."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cli.options import RequiredSettingsFile, Sets, values_of
from pipelines.cli.output import Output, columns
from pipelines.cli.submit import ComponentsImage, announce_downtime

if TYPE_CHECKING:
    from serving.clients.vertex import Body, Vertex
    from serving.settings import Settings


def apply(out: Output, file: RequiredSettingsFile, sets: Sets = None, image: ComponentsImage = None) -> None:
    """Make the schedule what the settings say: a new one, or the one that is there, changed in place."""
    from pipelines.vertex import schedule
    from pipelines.vertex.preflight import checked_job

    with _site(file, sets) as (settings, vertex):
        now = datetime.datetime.now(datetime.UTC)
        with out.progress("looking at bucket, component image and schedule"):
            asked = schedule.wanted(settings, checked_job(settings, image), vertex.parent, now)
            found, done = schedule.apply(vertex, settings, asked)
        announce_downtime(out, settings)
    _tell(out, found, schedule.drift(asked, found), f"{done}: ")
    if settings.schedule.start and "startTime" not in asked:
        out.hint(f"schedule.start {settings.schedule.start} has passed and was left out")
    if found["state"] == schedule.PAUSED:
        out.hint("it is paused, and stays so until `gemma-pipelines schedule resume -f FILE`")


def show(out: Output, file: RequiredSettingsFile, sets: Sets = None, image: ComponentsImage = None) -> None:
    """Show the schedule: when its next runs are, and where it differs from the settings of today."""
    from pipelines.vertex import schedule

    with _site(file, sets) as (settings, vertex):
        found = schedule.find(vertex, settings)
        differs = _drift(out, settings, vertex, found, image) if found else []
    _tell(out, found, differs)


def pause(out: Output, file: RequiredSettingsFile, sets: Sets = None) -> None:
    """Let no run begin any more. One that runs goes on."""
    from pipelines.vertex import schedule

    with _site(file, sets) as (settings, vertex):
        found = schedule.existing(vertex, settings)
        if found["state"] == schedule.ACTIVE:
            vertex.pause_schedule(found["name"])
            found = schedule.existing(vertex, settings)
    _tell(out, found, [])


def resume(out: Output, file: RequiredSettingsFile, sets: Sets = None) -> None:
    """Let runs begin again, without those of the pause."""
    from pipelines.vertex import schedule

    with _site(file, sets) as (settings, vertex):
        found = schedule.existing(vertex, settings)
        if found["state"] == schedule.PAUSED:
            vertex.resume_schedule(found["name"])
            found = schedule.existing(vertex, settings)
    _tell(out, found, [])


def delete(out: Output, file: RequiredSettingsFile, sets: Sets = None) -> None:
    """Take the schedule away. Its runs stay, and one that runs goes on."""
    from pipelines.vertex import schedule

    with _site(file, sets) as (settings, vertex):
        found = schedule.find(vertex, settings)
        if found:
            vertex.delete_schedule(found["name"])
    name = found["name"] if found else None
    out.result({"deleted": name}, f"deleted {name}" if name else "there is no schedule")


@contextmanager
def _site(file: Path, sets: list[str] | None) -> Iterator[tuple[Settings, Vertex]]:
    """The settings' deployment, and the Vertex AI that its runs are sent to, waited for as the settings say."""
    from serving.clients import patience
    from serving.clients.vertex import Vertex
    from serving.settings import Settings, in_seconds, validated

    settings = validated(Settings, values_of(file, sets, {}), file)
    with patience.lasting(in_seconds(settings.patience)):
        yield settings, Vertex(settings.project, settings.vertex_location)


def _drift(out: Output, settings: Settings, vertex: Vertex, found: Body, image: str | None) -> list[dict[str, Any]]:
    """What applying the settings would change of a schedule."""
    from pipelines.vertex import preflight, schedule
    from serving.errors import PipelineError

    if not settings.schedule.cron:
        return [{"field": "schedule", "there": found["cron"], "wanted": None}]
    try:
        components = preflight.digest_of(settings, image)
    except PipelineError as error:
        out.say(f"compared with the image that the schedule has: {error}")
        components = schedule.image_of(found)
    job = preflight.job_with(settings, components)
    now = datetime.datetime.now(datetime.UTC)
    return schedule.drift(schedule.wanted(settings, job, vertex.parent, now), found)


def _tell(out: Output, found: Body | None, differs: list[dict[str, Any]], done: str = "") -> None:
    from pipelines.vertex import schedule

    now = datetime.datetime.now(datetime.UTC)
    shown = schedule.as_shown(found, now, differs)
    if found is None:
        out.result(shown, "no schedule")
        out.hint("make one: `gemma-pipelines schedule apply -f FILE`")
        return
    rows = [("schedule", f"{done}{found['name']}"), ("state", found["state"].lower())]
    rows.append(("cron", f"{shown['cron']} in {shown['timezone']}"))
    for number, run in enumerate(schedule.next_runs(found, now)):
        in_utc = run.astimezone(datetime.UTC)
        rows.append(("" if number else "next", f"{run:%a %Y-%m-%d %H:%M %Z} = {in_utc:%a %Y-%m-%d %H:%M} UTC"))
    if said := schedule.start_error(found):
        rows.append(("last start", said))
    for number, each in enumerate(differs):
        rows.append(("" if number else "drift", f"{each['field']}: {each['there']} there, {each['wanted']} wanted"))
    out.result(shown, columns(rows))
    if differs:
        out.hint("`gemma-pipelines schedule apply -f FILE` makes it what the settings say")
