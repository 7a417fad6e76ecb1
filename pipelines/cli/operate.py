"""Commands for a deployment that is there: promote, rollback, report."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import Sets, SettingsFile, State, values_of
from pipelines.cli.output import Output

if TYPE_CHECKING:
    from serving.settings import Settings

Generation = Annotated[
    str | None, typer.Option("--to", metavar="GENERATION", help="Which one; default: the one that is meant.")
]


def promote(
    out: Output, file: SettingsFile = None, to: Generation = None, sets: Sets = None, state: State = None
) -> None:
    """Put the validated generation into service, or a kept one with --to. Lifts a pin."""
    from components.promote_generation.step import promote_by_hand

    _by_hand(out, promote_by_hand, file, to, sets, state)


def rollback(
    out: Output, file: SettingsFile = None, to: Generation = None, sets: Sets = None, state: State = None
) -> None:
    """Go back to the previous generation, and pin it so that no schedule undoes that."""
    from components.promote_generation.step import roll_back

    _by_hand(out, roll_back, file, to, sets, state)


def report(
    out: Output,
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id, or `last`.")],
    file: SettingsFile = None,
    sets: Sets = None,
    state: State = None,
    open_it: Annotated[bool, typer.Option("--open", help="Show it in a browser.")] = False,
) -> None:
    """Print the path of a run's report: of a run on this machine, or with -f of one in the cloud."""
    from pipelines.local import reports_folder

    folder = reports_folder(state)
    path = _fetched(run, file, sets, folder) if file and not state else _kept(run, folder)
    out.result({"report": str(path)}, str(path))
    if open_it:
        import webbrowser

        webbrowser.open(path.as_uri())


def _by_hand(
    out: Output, action: Any, file: Path | None, to: str | None, sets: list[str] | None, state: Path | None
) -> None:
    """Does it in the settings' cluster, or with --state in the one of a run on this machine."""
    with deployment(out, file, sets, state) as settings:
        from serving.clients import kubernetes

        record = action(kubernetes.connect(settings), settings, to, out.say)
    pinned = " (pinned)" if record.pinned else ""
    out.result(
        {"live": record.live, "previous": record.previous, "pinned": record.pinned},
        f"live {record.live}{pinned}, previous {record.previous or 'none'}",
    )


@contextmanager
def deployment(out: Output, file: Path | None, sets: list[str] | None, state: Path | None) -> Iterator[Settings]:
    """The settings of the deployment that is meant, with the environment that reaches it."""
    from serving.errors import RequestError
    from serving.settings import Settings, override, validated

    if state is None:
        if file is None:
            raise RequestError(
                "which deployment? Name its settings with -f FILE, or a local run's folder with --state DIR"
            )
        yield validated(Settings, values_of(file, sets, {}), file)
        return
    if file:
        raise RequestError("--state knows its settings: leave -f out")
    with of_state(out, state) as settings:
        # What changes one of them, such as an error's advice to wait longer for the Lease, is for this command alone.
        yield validated(Settings, override(settings.as_struct(), sets)) if sets else settings


@contextmanager
def of_state(out: Output, state: Path) -> Iterator[Settings]:
    """The settings of a run on this machine, whose cloud this process reaches while the block runs."""
    from pipelines import local

    with local.deployment(state, out.say) as (settings, environment):
        os.environ.clear()  # A variable of the real cloud's must not lead this process there.
        os.environ.update(environment)
        yield settings


def _kept(run: str, folder: Path) -> Path:
    from serving.errors import RequestError

    found = sorted(folder.glob("*.html"), key=lambda path: path.stat().st_mtime)
    if run == "last" and found:
        return found[-1]
    path = folder / f"{run}.html"
    if not path.exists():
        there = f"The last one is {found[-1].stem}" if found else "There is none"
        raise RequestError(f"no report of a run {run!r} in {folder}. {there}. For a run in the cloud, give -f FILE")
    return path


def _fetched(run: str, file: Path, sets: list[str] | None, folder: Path) -> Path:
    from serving.clients import storage
    from serving.errors import RequestError
    from serving.settings import Settings, validated

    settings = validated(Settings, values_of(file, sets, {}), file)
    uri = f"{settings.pipeline_root}/{run}/report.html"
    text = storage.read_text(uri)
    if text is None:
        raise RequestError(f"{uri} does not exist. See `gcloud storage ls {settings.pipeline_root}/`")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run}.html"
    path.write_text(text, encoding="utf-8")
    return path
