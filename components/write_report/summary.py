"""What a run came to, from the outcomes that its steps left: the same for the report, `run --json` and `status`."""

from __future__ import annotations

from typing import Any

from serving.clients import storage
from serving.settings import Settings

DECISIONS_WITHOUT_CHANGE = ("unchanged", "pinned", "validated")
"""What resolve_model may decide so that the run stops, all being well."""


def read_outcomes(settings: Settings, run_id: str) -> list[dict[str, Any]]:
    """The outcomes of a run's steps, in the order in which they began (serving/outcome.py)."""
    found = [storage.read_json(uri) for uri in storage.list_uris(f"{settings.pipeline_root}/{run_id}/steps/")]
    return sorted((outcome for outcome in found if outcome), key=lambda outcome: outcome["started_at"])


def summarize(
    settings: Settings, run_id: str, outcomes: list[dict[str, Any]], *, succeeded: bool, seconds: float
) -> dict[str, Any]:
    """One object about the whole run: the keys of `run --json` but `endpoint` and `report`, which only a place knows.

    `succeeded` is what the orchestrator says, which knows of a step that died without a word. `seconds` is wall time.
    """
    by_name = {outcome["name"]: outcome for outcome in outcomes}
    resolved = by_name.get("resolve_model", {})
    bad = next((outcome for outcome in outcomes if outcome["status"] in ("failed", "inconclusive")), None)
    error = None
    if bad:
        error = {"step": bad["name"], "type": bad["error"]["type"], "message": bad["error"]["message"]}
    elif not succeeded:
        last = outcomes[-1]["name"] if outcomes else None
        error = {
            "step": None,
            "type": "StepDied",
            "message": "a step ended without leaving an outcome"
            + (f", after {last}" if last else "")
            + "; see the log",
        }
    status = "succeeded"
    if error:
        status = "failed"
    elif resolved.get("decision") in DECISIONS_WITHOUT_CHANGE:
        status = "unchanged"
    return {
        "scenario": settings.scenario,
        "status": status,
        "run_id": run_id,
        "model": settings.model,
        "revision": resolved.get("commit"),
        "generation": resolved.get("generation"),
        "bytes_transferred": by_name.get("download_weights", {}).get("bytes_transferred", 0),
        "seconds": round(seconds, 3),
        "steps": [{key: outcome[key] for key in ("name", "status", "seconds")} for outcome in outcomes],
        "error": error,
    }
