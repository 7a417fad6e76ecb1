"""Options that mean the same in every command, and how they become settings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from serving.settings import Settings

ScenarioArgument = Annotated[str, typer.Argument(metavar="SCENARIO", help="Number or name, as `list` shows them.")]
SettingsFile = Annotated[
    Path | None, typer.Option("-f", "--file", metavar="FILE", help="Settings of the deployment (see init).")
]
RequiredSettingsFile = Annotated[
    Path, typer.Option("-f", "--file", metavar="FILE", help="Settings of the deployment (see init).")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, as in engine.max_model_len=4096. Repeatable."),
]
State = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="Keeps what outlives a run: buckets, cluster. Again: a refresh."),
]
Programs = Annotated[
    list[str] | None,
    typer.Option(
        "--program",
        metavar="IMAGE=FILE",
        help="What stands here for an image of your own (validation.jobs): a program. Repeatable.",
    ),
]


def values_of(file: Path | None, sets: list[str] | None, defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings' values from a file, or `defaults` without one, with `--set` applied. Raises RequestError."""
    from serving import settings

    values = settings.read_values(file) if file else defaults
    return settings.override(values, sets or [])


def settings_of(scenario: str, file: Path | None, sets: list[str] | None, defaults: dict[str, Any]) -> Settings:
    """Validated settings for a scenario. Raises RequestError, also when the file is for another scenario."""
    from serving import settings

    return settings.validated(settings.Settings, for_scenario(scenario, values_of(file, sets, defaults)), file)


def for_scenario(scenario: str, values: dict[str, Any]) -> dict[str, Any]:
    """Values with the scenario's name in them. Raises RequestError when they name another."""
    from serving.errors import RequestError
    from serving.scenarios import find

    name = find(scenario).name
    there = values.get("scenario", name)
    if find(str(there)).name != name:
        raise RequestError(
            f"these are settings for scenario {there}, not {name}. Write {name} into them, or run {there}"
        )
    return {**values, "scenario": name}
