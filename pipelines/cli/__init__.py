"""The gemma-pipelines command: one module a group of commands; heavy imports happen inside them.

A command is a plain function whose first parameter is its Output (output.py). Exit codes: 0 done, 1 the run or its
validation failed, 2 the request was wrong (nothing on stdout then), 130 interrupted.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipelines.cli import bootstrap, emulators, files, fits, operate, oversee, run, schedule, submit, weights
from pipelines.cli.output import Output, complain, let_go, settle


def _group(name: str, about: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=about,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group("gemma-pipelines", "Take a Gemma release on Hugging Face to a validated, serving vLLM on GKE.")

_MODE = {
    "as_json": Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")],
    "quiet": Annotated[bool, typer.Option("-q", "--quiet", help="Say nothing on stderr but what went wrong.")],
}


def _add(command: Callable[..., None], name: str | None = None, to: typer.Typer = app) -> None:
    """Adds a command, with the options that make its Output: so they are the same in every one."""
    signature = inspect.signature(command, eval_str=True)
    _, *own = signature.parameters.values()
    mode = [
        inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for option, kind in _MODE.items()
    ]

    @functools.wraps(command)
    def with_output(*, as_json: bool, quiet: bool, **options: Any) -> None:
        command(Output(as_json=as_json, quiet=quiet), **options)

    with_output.__signature__ = signature.replace(parameters=[*own, *mode])  # type: ignore[attr-defined]
    to.command(name)(with_output)


def _version(wanted: bool) -> None:
    if wanted:
        from serving.image import VERSION

        Output().result({}, f"gemma-pipelines {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_add(files.list_scenarios, "list")
_add(files.init)
_add(run.run)
_add(files.compile)
_add(files.render)
_add(submit.submit)
_add(submit.cancel)
_schedule = _group("schedule", "A refresh again and again on Vertex AI Pipelines, as the settings' `schedule` says.")
for _command in (schedule.apply, schedule.show, schedule.pause, schedule.resume, schedule.delete):
    _add(_command, to=_schedule)
app.add_typer(_schedule)
_add(bootstrap.bootstrap)
_add(operate.promote)
_add(operate.rollback)
_add(operate.report)
_add(oversee.plan)
_add(oversee.status)
_add(oversee.destroy)
_add(fits.fits)
_add(weights.verify_weights, "verify-weights")
_emulators = _group("emulators", "The emulated cloud on this machine.")
_add(emulators.up, to=_emulators)
app.add_typer(_emulators)


def main() -> None:
    """Runs the command; maps errors to messages and exit codes, once."""
    from serving import log
    from serving.errors import PipelineError, RequestError

    log.silence_libraries()
    settle()
    try:
        app()
    except PipelineError as error:
        complain(f"error: {error}")
        let_go()
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except OSError as error:  # What this machine refuses: a full disk, a folder that may not be written.
        place = f"{error.filename}: " if error.filename else ""
        complain(f"error: {place}{error.strerror or error}. Make room or give access, then run again")
        let_go()
        sys.exit(1)
    except SystemExit as ended:
        if ended.code == 130:  # Typer has made it of a KeyboardInterrupt, without a word.
            complain("interrupted")
        raise
