"""`run`: a whole pipeline on this machine."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.options import ScenarioArgument, Sets, SettingsFile, State, for_scenario, values_of


def run(
    scenario: ScenarioArgument,
    file: SettingsFile = None,
    sets: Sets = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Serve this folder on the hub instead of a tiny Gemma.")
    ] = None,
    real: Annotated[
        str | None,
        typer.Option(
            metavar="PART,…",
            help="Real parts instead of emulated ones, built by `make real`: control-plane (admission, roles, "
            "scheduling), gcsfuse (mount options, what a pod reads), vllm (flags, loading, answers).",
        ),
    ] = None,
    state: State = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try a rejected release again, or go against a pin.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Serve on after the result, until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="End with one JSON object on stdout.")] = False,
) -> None:
    """Run a scenario on this machine, against emulators: hub, bucket, cluster and server are started and ended."""
    from pipelines import child, local
    from pipelines.cli.view import View
    from serving.errors import RequestError
    from serving.scenarios import find

    # Ended by SIGTERM as by Ctrl-C: nothing may be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = find(scenario)
    values = for_scenario(scenario, values_of(file, sets, local.DEFAULTS))
    settings = local.settings_for({**values, "retry": True} if retry else values, file)
    if weights and not weights.is_dir():
        raise RequestError(f"--weights {weights} is not a folder")
    parts = local.real_parts(real, state)
    with (
        View(chosen) as view,
        local.state_folder(state, chosen, parts, view.say) as folder,
        view.phase("starting hub, bucket, cluster"),
        local.cloud(settings, folder, weights, parts, view.say) as cloud,
    ):
        local.remember(folder, settings)

        def loss() -> str:
            return local.loss(cloud, folder)

        found = child.execute(chosen, settings, folder, cloud.environment, view.show, loss, cloud.bucket_folder)
        report = local.keep_report(found, local.reports_folder(state))
        endpoint = folder / "endpoint"
        result = {
            **found["summary"],
            "endpoint": endpoint.read_text().strip() if endpoint.exists() else None,
            "report": str(report) if report else None,
        }
        view.finish()
        if not _request_was_wrong(result):
            _print_result(result, found["outcomes"], as_json)
        if keep and result["status"] != "failed":
            view.say(f"serving at {result['endpoint']}; kubectl --kubeconfig {cloud.kubeconfig}; Ctrl-C ends it")
            local.serve_on(loss)
    if _request_was_wrong(result):
        raise RequestError(result["error"]["message"])
    if result["status"] == "failed":
        if as_json:
            print(f"error: {result['error']['step']}: {result['error']['message']}", file=sys.stderr)
        raise typer.Exit(1)


def _request_was_wrong(result: dict[str, Any]) -> bool:
    """Whether the run ended before it did anything because no such thing can be done: exit code 2."""
    error = result["error"]
    return bool(error) and error["step"] == "resolve_model" and error["type"] in ("RequestError", "AccessError")


def _print_result(result: dict[str, Any], outcomes: list[dict[str, Any]], as_json: bool) -> None:
    """The result on stdout: one JSON object, or what a person wants to know."""
    if as_json:
        ordered = (
            "scenario status run_id model revision generation endpoint bytes_transferred seconds report steps error"
        )
        print(json.dumps({key: result[key] for key in ordered.split()}, ensure_ascii=False), flush=True)
        return
    from components.write_report.page import readable_bytes

    print(f"\n{result['status']} in {result['seconds']:.1f} s")
    if result["error"]:
        print(f"\n{result['error']['step'] or 'the run'}: {result['error']['message']}\n")
    said = next((o for o in outcomes if o["name"] == "resolve_model"), {}).get("message")
    if result["status"] == "unchanged" and said:
        print(f"  {said}")
    answer = next((outcome.get("answer") for outcome in outcomes if outcome["name"] == "validate_server"), None)
    if answer and result["status"] == "succeeded":
        print(f"\n  asked    {answer['prompt']}\n  answered {answer['text']}\n")
    rows = [
        ("model", f"{result['model']} at {(result['revision'] or 'unknown')[:12]}"),
        ("generation", result["generation"] or "none"),
        ("moved", readable_bytes(result["bytes_transferred"])),
        ("endpoint", result["endpoint"] or "none"),
        ("report", result["report"] or "none"),
    ]
    for name, value in rows:
        print(f"  {name:10} {value}")
    sys.stdout.flush()
