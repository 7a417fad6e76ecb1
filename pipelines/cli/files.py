"""Commands that read and write files and touch no cloud: list, init, compile, render."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import RequiredSettingsFile, ScenarioArgument, Sets, SettingsFile, settings_of
from pipelines.cli.output import Output, columns


def list_scenarios(out: Output) -> None:
    """The serving scenarios, and the features that they are put together from."""
    from serving.scenarios import COLUMNS, SCENARIOS

    rows = [(scenario.number, scenario.name, scenario.title) for scenario in SCENARIOS]
    features = [(column, ", ".join(words)) for column, words in COLUMNS.items() if words]
    out.result(
        {"scenarios": [asdict(scenario) for scenario in SCENARIOS], "features": COLUMNS},
        f"{columns(sorted(rows))}\n\nfeatures, one a column:\n{columns(features, indent='  ')}",
    )


def init(
    out: Output,
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
        out.result({"file": None, "text": text}, text)
        return
    try:
        with open(output, "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise RequestError(f"{output} exists. Name another file with -o, or delete it") from error
    except OSError as error:
        raise RequestError(f"cannot write {output}: {error.strerror}") from error
    out.result({"file": str(output), "text": text}, "")
    out.hint(f"wrote {output}. Next: fill in project and bucket, then `gemma-pipelines run {scenario} -f {output}`")


def compile(
    out: Output,
    scenarios: Annotated[list[str] | None, typer.Argument(metavar="[SCENARIO]...", help="Numbers or names.")] = None,
    all_scenarios: Annotated[bool, typer.Option("--all", help="Every scenario.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where to write them.")] = Path("."),
    image: Annotated[
        str | None, typer.Option(metavar="REF", help="The component image, in the registry that you pushed it to.")
    ] = None,
    file: SettingsFile = None,
    steps: Annotated[
        bool, typer.Option("--components", help="Every step as a component, for pipelines of your own making.")
    ] = False,
) -> None:
    """Compile scenarios to the YAML that Vertex AI Pipelines runs."""
    from serving.errors import RequestError
    from serving.scenarios import SCENARIOS, find

    if [bool(scenarios), all_scenarios, steps].count(True) != 1:
        raise RequestError("say one of these: scenarios, --all, or --components. See `gemma-pipelines list`")
    if steps and file:
        raise RequestError(f"{file} is for one scenario, and components are the same for all: leave it out")
    chosen = SCENARIOS if all_scenarios else [find(scenario) for scenario in scenarios or []]
    if file and len(chosen) > 1:
        raise RequestError(f"{file} is for one scenario: name that one alone")
    settings = settings_of(chosen[0].name, file, None, {}) if file else None
    if image is None and settings:
        image = settings.images.components
    changes = settings.features if settings else []
    from pipelines.compile import compile_components, compile_scenario

    try:
        if steps:
            paths = [str(path) for path in compile_components(output, image)]
        else:
            paths = [str(compile_scenario(scenario, output, image, changes)) for scenario in chosen]
    except OSError as error:
        raise RequestError(f"cannot write below {output}: {error.strerror}") from error
    out.result({"files": paths}, "\n".join(paths))
    if image is None:
        from serving.image import DEFAULT

        out.hint(f"the steps' image is {DEFAULT}, which no registry has; push yours and compile with --image")


def render(
    out: Output,
    scenario: ScenarioArgument,
    file: RequiredSettingsFile,
    sets: Sets = None,
    access: Annotated[
        bool,
        typer.Option("--access", help="Print what an administrator applies once: namespace, the pipeline's roles."),
    ] = False,
    existing_namespace: Annotated[
        bool,
        typer.Option(
            "--existing-namespace", help="Leave the namespace out: it is there, and its labels stay its owner's."
        ),
    ] = False,
) -> None:
    """Print the manifests that a run would apply, for `kubectl diff -f -`. Asks the hub, but no cluster."""
    settings = settings_of(scenario, file, sets, {})
    import yaml

    from serving.rendering.render import admin, as_yaml, rendered_for

    if access:
        left_out = ("Namespace",) if existing_namespace else ()
        text = as_yaml([item for item in admin(settings) if item["kind"] not in left_out])
    else:
        from components.resolve_model.step import release_of

        text = rendered_for(settings, release_of(settings, run_id="render"))
    out.result({"manifests": list(yaml.safe_load_all(text))}, text)
