"""Commands that look at a deployment as a whole: destroy."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from pipelines.cli.operate import deployment
from pipelines.cli.options import ScenarioArgument, Sets, SettingsFile, State
from pipelines.cli.output import Output


def destroy(
    out: Output,
    scenario: ScenarioArgument,
    file: SettingsFile = None,
    sets: Sets = None,
    state: State = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Take its weights out of the bucket too, unless another deployment's.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take away what the deployment's runs made, after a list of it. What an administrator made stays."""
    from serving.errors import RequestError
    from serving.scenarios import find as scenario_of

    name = scenario_of(scenario).name
    with deployment(out, file, sets, state) as settings:
        if settings.scenario != name:
            raise RequestError(f"these are settings for scenario {settings.scenario}, not {name}")
        from pipelines.oversight import destroy as work

        found = work.find(settings)
        lines = found.lines(settings, weights=weights)
        if not lines:
            out.result({"removed": [], "kept": found.weights}, "there is nothing of this deployment")
            return
        out.hint("\n".join(["this goes:", *(f"  {line}" for line in lines)]))
        if found.weights and not weights:
            out.hint("\n".join(["these weights stay (--weights takes them too):", *(f"  {w}" for w in found.weights)]))
        if not yes:
            _ask(len(lines))
        removed = work.destroy(settings, found, out.say, weights=weights)
    kept = [] if weights else found.weights
    out.result({"removed": removed, "kept": kept}, f"took {len(removed)} things away")
    out.hint(
        "reports stay in the bucket, and what an administrator applied in the cluster: `gemma-pipelines render "
        f"{name} -f FILE --access | kubectl delete -f -`"
    )


def _ask(number: int) -> None:
    """Raises RequestError without a yes."""
    from serving.errors import RequestError

    if not sys.stdin.isatty():
        raise RequestError("nothing was taken away: nobody is there to say yes. Look at the list, then say --yes")
    if not typer.confirm(f"take these {number} things away?", err=True):
        raise RequestError("nothing was taken away")
