"""Commands that look at a deployment as a whole: plan, status, destroy."""

from __future__ import annotations

import datetime
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.operate import deployment
from pipelines.cli.options import RequiredSettingsFile, ScenarioArgument, Sets, SettingsFile, State, settings_of
from pipelines.cli.output import Output, columns, complain

if TYPE_CHECKING:
    from pathlib import Path

    from serving.clients.vertex import Vertex
    from serving.settings import Settings


def plan(out: Output, scenario: ScenarioArgument, file: RequiredSettingsFile, sets: Sets = None) -> None:
    """Show what a run would change and what it needs, before anything is spent. Exit code 1 when something is
    missing."""
    from serving.clients import patience
    from serving.settings import in_seconds

    settings = settings_of(scenario, file, sets, {})
    with patience.lasting(in_seconds(settings.patience)):
        from pipelines.oversight import plan as work

        with out.progress("looking at project, bucket, cluster, hub and Vertex AI"):
            found = work.plan(settings, datetime.datetime.now(datetime.UTC))
    out.result(found, _plan_words(found))
    if not found["ready"]:
        raise typer.Exit(1)


def status(out: Output, file: SettingsFile = None, sets: Sets = None, state: State = None) -> None:
    """Show what serves, since when, of which commit, what the last runs came to and why, and what is not as it should
    be."""
    from serving.clients import patience
    from serving.settings import in_seconds

    with deployment(out, file, sets, state) as settings, patience.lasting(in_seconds(settings.patience)):
        from pipelines.oversight import status as work

        now = datetime.datetime.now(datetime.UTC)
        with out.progress("looking at Vertex AI, cluster, bucket and hub"):
            found = work.status(settings, now, on_vertex=not state)
    for each in found["unseen"]:
        if each not in found["drift"]:
            out.hint(_drift_words(each))
    out.result(found, _status_words(found, now))


def destroy(
    out: Output,
    scenario: ScenarioArgument,
    file: SettingsFile = None,
    sets: Sets = None,
    state: State = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="Take its weights out of the bucket too, unless another deployment's.")
    ] = False,
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Tell runs that go on to end, instead of waiting for them.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Take away what the deployment's runs made, after a list of it. What an administrator made stays."""
    from serving.clients import patience
    from serving.errors import RequestError
    from serving.scenarios import find as scenario_of
    from serving.settings import in_seconds

    name = scenario_of(scenario).name
    with deployment(out, file, sets, state) as settings, patience.lasting(in_seconds(settings.patience)):
        if settings.scenario != name:
            raise RequestError(f"these are settings for scenario {settings.scenario}, not {name}")
        from pipelines.oversight import destroy as work

        vertex = _vertex(out, settings, state)
        found = work.find(settings, vertex)
        lines = found.lines(settings, weights=weights)
        if not lines:
            out.result(
                {"removed": [], "kept": [*found.weights, *found.shared_weights]}, "there is nothing of this deployment"
            )
            return
        tell = out.hint if yes else complain  # Nobody says yes to what was not shown, however quiet.
        tell("\n".join(["this goes:", *(f"  {line}" for line in lines)]))
        if found.weights and not weights:
            tell("\n".join(["these weights stay (--weights takes them too):", *(f"  {w}" for w in found.weights)]))
        if found.shared_weights:
            stay = "these weights stay, another deployment uses them:"
            tell("\n".join([stay, *(f"  {w}" for w in found.shared_weights)]))
        if not yes:
            _ask(len(lines))
        removed = work.destroy(settings, found, out.say, weights=weights, vertex=vertex, cancel=cancel)
        kept = [*([] if weights else work.kept_weights(settings)), *found.shared_weights]
    things = "1 thing" if len(removed) == 1 else f"{len(removed)} things"
    out.result({"removed": removed, "kept": kept}, f"took {things} away")
    out.hint(
        "reports stay in the bucket, and what an administrator applied in the cluster: `gemma-pipelines render "
        f"{name} -f FILE --access | kubectl delete -f -`"
    )


def _vertex(out: Output, settings: Settings, state: Path | None) -> Vertex | None:
    """Vertex AI as the deployment uses it; a run on this machine has none. Where it is switched off that is said."""
    if state:
        return None
    from pipelines.oversight import runs, status

    vertex = runs.vertex_of(settings)
    if vertex is None:
        out.hint(_drift_words(status.switched_off(settings)))
    return vertex


def _plan_words(found: dict[str, Any]) -> str:
    """One screen for a person: what is as it should be is named, what changes is told, what is missing is last."""
    there = [each["what"] for each in found["changes"] if each["change"] == "exists" and not each["details"]]
    lines = [f"as it should be: {', '.join(there)}"] if there else []
    rows = []
    for each in found["changes"]:
        if each["what"] not in there:
            first, *more = each["details"] or [""]
            rows += [(each["change"], f"{each['what']}{f': {first}' if first else ''}"), *(("", line) for line in more)]
    lines += [columns(rows)] if rows else []
    for each in found["missing"]:
        lines += ["", f"missing: {each['what']}", f"  {each['why']}"]
        lines += [f"  mend it: {each['command']}"] if each["command"] else []
    lines += ["", "ready" if found["ready"] else f"not ready: {len(found['missing'])} missing"]
    return "\n".join(lines).lstrip("\n")


def _status_words(found: dict[str, Any], now: datetime.datetime) -> str:
    """One screen for a person."""
    from pipelines.oversight.runs import ago

    rows: list[tuple[str, str]] = []

    def add(name: str, lines: list[str]) -> None:
        rows.extend(("" if number else name, line) for number, line in enumerate(lines))

    live = found["live"]
    if live:
        pods = live["pods"]
        add(
            "serves",
            [
                f"{live['generation']} since {live['since'] or '?'} ({ago(live['since'], now)}) at {live['endpoint']}",
                f"{live['model']} at {(live['commit'] or '?')[:12]}, weights {live['weights_key']}",
                *([f"volume {live['volume']}"] if live["volume"] else []),
                *([f"disk image {live['disk_image']}"] if live["disk_image"] else []),
                f"{pods['ready']} of {pods['wanted']} pods are ready",
                *([_down_words(live["down"], now)] if live["down"] else []),
                *([_validated(live["validated"], now)] if live["validated"] else []),
                *live["unreachable"],
                *([f"pinned: {live['pinned']}"] if live["pinned"] else []),
            ],
        )
    else:
        add("serves", ["nothing"])
    add("canary", [_canary_words(found["canary"], now)] if found["canary"] else [])
    add("kept", [_kept_words(each) for each in found["kept"]])
    add("schedule", _schedule_words(found["schedule"]))
    add("runs", [_run_words(each, now) for each in found["runs"]] or ["none"])
    if found["runs"]:
        add("last run", [_step_words(each) for each in found["runs"][0]["steps"]])
    add("drift", [_drift_words(each) for each in found["drift"]] or ["none"])
    return columns(rows)


def _validated(said: dict[str, Any], now: datetime.datetime) -> str:
    from pipelines.oversight.runs import ago

    verdict = "passed" if said["passed"] else "did not pass"
    return f"validation {verdict} {ago(said['at'], now)} in {said['run']}: {said['message'].splitlines()[0]}"


def _down_words(said: dict[str, Any], now: datetime.datetime) -> str:
    from pipelines.oversight.runs import ago

    return f"DOWN since {said['since']} ({ago(said['since'], now)}): it made room for {said['candidate']}"


def _canary_words(said: dict[str, Any], now: datetime.datetime) -> str:
    from pipelines.oversight.runs import ago

    asked = f", told to {said['asked']}" if said["asked"] else ""
    run = said["run"] if said["alive"] else f"{said['run']}, which has ENDED"
    return (
        f"{said['percent']} % to {said['candidate']}, step {said['step']} of {len(said['steps'])} since "
        f"{said['since']} ({ago(said['since'], now)}), by {run}{asked}"
    )


def _kept_words(each: dict[str, Any]) -> str:
    waits = " waits for `gemma-pipelines promote`" if each["waits"] else ""
    return f"{each['generation']} at {(each['commit'] or '?')[:12]}, {each['pods']['ready']} pods{waits}"


def _schedule_words(said: dict[str, Any] | None) -> list[str]:
    if said is None:
        return ["none"]
    first = f", next {said['next'][0]}" if said["next"] else ""
    failed = [f"the last start failed: {said['last_error']}"] if said["last_error"] else []
    return [f"{said['state'].lower()}, {said['cron']} in {said['timezone']}{first}", *failed]


def _run_words(run: dict[str, Any], now: datetime.datetime) -> str:
    from pipelines.oversight.runs import ago

    became = run["status"] or (run["state"] or "?").lower()
    took = f" in {run['seconds']:.0f} s" if run["seconds"] else ""
    why = f": {run['error']['step'] or 'the run'}: {run['error']['message'].splitlines()[0]}" if run["error"] else ""
    return f"{ago(run['started'], now)}  {run['id']}  {became}{took}{why}"


def _step_words(step: dict[str, Any]) -> str:
    again = f", attempt {step['attempts']}" if (step["attempts"] or 1) > 1 else ""
    lines = (step["message"] or "").splitlines()
    return f"{step['name']}: {step['status']}{again}{f': {lines[0]}' if lines else ''}"


def _drift_words(each: dict[str, str]) -> str:
    return f"{each['what']}: {each['why']}" + (f". `{each['command']}`" if each["command"] else "")


def _ask(number: int) -> None:
    """Raises RequestError without a yes."""
    from serving.errors import RequestError

    if not sys.stdin.isatty():
        raise RequestError("nothing was taken away: nobody is there to say yes. Look at the list, then say --yes")
    if not typer.confirm(f"take these {number} things away?", err=True):
        raise RequestError("nothing was taken away")
