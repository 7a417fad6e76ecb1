"""`run`: a whole pipeline on this machine."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.cli.options import Programs, ScenarioArgument, Sets, SettingsFile, State, for_scenario, values_of
from pipelines.cli.output import Output, columns

KEYS = (
    *("scenario", "status", "run_id", "model", "revision", "generation", "endpoint", "weights"),
    *("bytes_transferred", "seconds", "report", "steps", "error"),
)
"""What `--json` tells of a run, in this order."""


def run(
    out: Output,
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
            "scheduling, snapshots), gcsfuse (mount options, what a pod reads), gateway (Istio's controller, GAIE's "
            "endpoint picker), vllm (flags, loading, answers).",
        ),
    ] = None,
    programs: Programs = None,
    state: State = None,
    retry: Annotated[bool, typer.Option("--retry", help="Try a rejected release again, or go against a pin.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Serve on after the result, until Ctrl-C.")] = False,
) -> None:
    """Run a scenario on this machine, against emulators: hub, bucket, cluster and server are started and ended."""
    from pipelines import child, local
    from pipelines.cli.view import View
    from serving.errors import PipelineError, RequestError
    from serving.scenarios import find

    # Ended by SIGTERM as by Ctrl-C: nothing may be left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    chosen = find(scenario)
    values = for_scenario(scenario, values_of(file, sets, local.DEFAULTS))
    settings = local.settings_for({**values, "retry": True} if retry else values, file)
    if weights:
        if not weights.is_dir():
            raise RequestError(f"--weights {weights} is not a folder")
        if not any(path.is_file() for path in weights.rglob("*")):
            raise RequestError(f"--weights {weights} has no files: name the folder of a release, with config.json")
    parts = local.real_parts(real, state)
    stand_ins = local.programs(settings, programs)
    view = View(out, chosen)
    with (
        view.up("starting hub, bucket, cluster"),
        local.site(settings, state, weights, parts, out.say, stand_ins) as site,
    ):
        found = child.execute(
            chosen, settings, site.folder, site.cloud.environment, view.show, site.loss, site.cloud.bucket_folder
        )
        report = local.keep_report(found, settings, state, parts, out.say)
        error = found["summary"]["error"]
        serves_on = keep and not error
        result = {
            **found["summary"],
            # An address where nobody answers any more is none.
            "endpoint": site.endpoint if serves_on else None,
            "report": str(report) if report else None,
        }
        wrong = _request_was_wrong(error)
        if not wrong:
            rows = [
                ("endpoint", result["endpoint"] or ("none" if error else "none: use --keep")),
                ("report", result["report"] or "none"),
                ("emulated", local.emulated(settings, parts)),
            ]
            out.result({key: result[key] for key in KEYS}, words_of(result, found["outcomes"], rows))
        if serves_on:
            out.hint(f"serving at {site.endpoint}; kubectl --kubeconfig {site.cloud.kubeconfig}; Ctrl-C ends it")
            local.serve_on(site.loss)
    if error:
        words = f"{error['step'] or 'the run'}: {error['message']}"
        raise RequestError(error["message"]) if wrong else PipelineError(words)


def _request_was_wrong(error: dict[str, Any] | None) -> bool:
    """Whether the run ended before it did anything because no such thing can be done: exit code 2."""
    return error is not None and error["step"] == "resolve_model" and error["type"] in ("RequestError", "AccessError")


def words_of(result: dict[str, Any], outcomes: list[dict[str, Any]], more: list[tuple[str, str]]) -> str:
    """What a person wants to know of a run, with `more` rows of where it was."""
    from components.write_report.page import readable_bytes

    lines = ["", f"{result['status']} in {result['seconds']:.1f} s"]
    said = next((o for o in outcomes if o["name"] == "resolve_model"), {}).get("message")
    if result["status"] == "unchanged" and said:
        lines.append(f"  {said}")
    answer = next((outcome.get("answer") for outcome in outcomes if outcome["name"] == "validate_server"), None)
    if answer and result["status"] == "succeeded":
        lines += ["", f"  asked    {answer['prompt']}", f"  answered {answer['text']}", ""]
    rows = [
        ("model", f"{result['model']} at {(result['revision'] or 'unknown')[:12]}"),
        ("generation", result["generation"] or "none"),
        ("moved", readable_bytes(result["bytes_transferred"])),
        ("weights", result["weights"] or "none"),
        *more,
    ]
    return "\n".join([*lines, columns(rows, indent="  ")])
