"""Commands that read and write files and touch no cloud: list, init, compile, render."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import RequiredSettingsFile, ScenarioArgument, Sets, SettingsFile, settings_of


def list_scenarios() -> None:
    """The serving scenarios."""
    from serving.scenarios import SCENARIOS

    for scenario in SCENARIOS:
        print(f"{scenario.number}  {scenario.name:20} {scenario.title}")


def init(
    scenario: ScenarioArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where to write it; default: stdout.")
    ] = None,
) -> None:
    """Write a commented settings file."""
    from serving.errors import RequestError
    from serving.scenarios import find
    from serving.settings import commented_example

    text = commented_example(find(scenario).name)
    if output is None:
        print(text, end="")
        return
    try:
        with open(output, "x") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"{output} exists. Name another file with -o, or delete it") from error
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror}") from error
    print(
        f"wrote {output}. Next: fill in project and bucket, then `gemma-pipelines run {scenario} -f {output}`",
        file=sys.stderr,
    )


def compile(
    scenarios: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Numbers or names.")] = None,
    all_scenarios: Annotated[bool, typer.Option("--all", help="Every scenario.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to write them.")] = Path("."),
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="The component image, in the registry that you pushed it to.")
    ] = None,
    file: SettingsFile = None,
) -> None:
    """Compile scenarios to the YAML that Vertex AI Pipelines runs."""
    from serving.errors import RequestError
    from serving.scenarios import SCENARIOS, find

    if bool(scenarios) == all_scenarios:
        raise RequestError("name scenarios, or say --all. See `gemma-pipelines list`")
    chosen = SCENARIOS if all_scenarios else [find(scenario) for scenario in scenarios or []]
    if file and len(chosen) > 1:
        raise RequestError(f"{file} is for one scenario: name that one alone")
    image = image or (settings_of(chosen[0].name, file, None, {}).images.components if file else None)
    from pipelines.compile import compile_scenario

    for scenario in chosen:
        try:
            print(compile_scenario(scenario, output, image))
        except OSError as error:
            raise RequestError(f"cannot write below {output}: {error.strerror}") from error
    if image is None:
        from serving.image import DEFAULT

        print(
            f"the steps' image is {DEFAULT}, which no registry has; push yours and compile with --image",
            file=sys.stderr,
        )


def render(
    scenario: ScenarioArgument,
    file: RequiredSettingsFile,
    sets: Sets = None,
    access: Annotated[
        bool,
        typer.Option("--access", help="Print what an administrator applies once: namespace, the pipeline's roles."),
    ] = False,
) -> None:
    """Print the manifests that a run would apply, for `kubectl diff -f -`. Asks the hub, but no cluster."""
    settings = settings_of(scenario, file, sets, {})
    from serving.rendering.render import admin, as_yaml, rendered_for

    if access:
        print(as_yaml(admin(settings)), end="")
        return
    from components.resolve_model.step import release_of

    print(rendered_for(settings, release_of(settings, run_id="render")), end="")
