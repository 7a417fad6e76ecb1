"""`bootstrap`: what a project needs once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import RequiredSettingsFile, Sets, values_of
from pipelines.cli.output import Output

if TYPE_CHECKING:
    from serving.installation.bootstrap import Report


def bootstrap(
    out: Output,
    file: RequiredSettingsFile,
    sets: Sets = None,
    print_it: Annotated[
        bool, typer.Option("--print", help="Print the gcloud commands that do it, and do nothing.")
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="The value for hub.token_secret; - reads it from stdin."),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="Build the component image although one of this version is there."),
    ] = False,
    context: Annotated[
        Path | None,
        typer.Option("--context", metavar="FILE", help="Write the component image's build context, and do nothing."),
    ] = None,
) -> None:
    """Make what a project needs once: APIs, repository, component image, accounts, roles. Twice is once."""
    from serving.clients import patience
    from serving.errors import RequestError
    from serving.settings import Settings, in_seconds, validated

    settings = validated(Settings, values_of(file, sets, {}), file)
    if print_it and context:
        raise RequestError("--print or --context: one at a time")
    if context:
        from serving.installation.context import packed

        context.write_bytes(packed())
        return out.result({"context": str(context)}, str(context))
    from serving.installation import bootstrap as installation

    if print_it:
        commands = installation.commands(settings, str(file))
        return out.result({"commands": commands}, "\n".join(commands))
    token = _token(token_file) if token_file else ""
    if token and not settings.hub.token_secret:
        raise RequestError("--token-file is the value for hub.token_secret, which the settings do not name")
    with patience.lasting(in_seconds(settings.patience)):
        report = installation.bootstrap(settings, out.say, token=token, rebuild=rebuild)
    out.result(_shown(report), _words(report, str(file)))
    if not report.is_ready:
        raise typer.Exit(1)
    return None


def _token(file: Path) -> str:
    """The token in a file, or on stdin for `-`; never an argument, which everybody on the machine can read."""
    from serving.errors import RequestError

    try:
        token = (sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file} cannot be read: {error}") from error
    if not token or len(token.split()) > 1:
        raise RequestError(f"{'stdin' if str(file) == '-' else file} holds no token: one word is needed")
    return token


def _shown(report: Report) -> dict[str, object]:
    return {
        "ready": report.is_ready,
        "image": report.image or None,
        "items": [vars(each) for each in report.done],
    }


def _words(report: Report, file: str) -> str:
    """What there is now, and for what is left the reason, once, and the command."""
    lines, told = [], ""
    for each in report.done:
        lines.append(f"{each.state:5}  {each.what}")
        if each.state == "left":
            if each.why != told:
                lines.append(f"       {each.why}")
            told = each.why
            lines.append(f"       $ {each.command.replace('-f FILE', f'-f {file}')}")
    if report.image:
        lines += ["", f"component image: {report.image}"]
    if all(each.state == "there" for each in report.done):
        lines += ["", "all of it was there: nothing was changed"]
    return "\n".join(lines)
