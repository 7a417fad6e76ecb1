"""What a run came to, from the outcomes that its steps left: the same for the report, `run --json` and `status`."""

from __future__ import annotations

from typing import Any, Protocol

from serving.clients import storage

DECISIONS_WITHOUT_CHANGE = ("unchanged", "pinned", "validated")
"""What resolve_model may decide so that the run stops, all being well."""


class Asked(Protocol):
    """What was asked for, as far as a report says it: settings, or what can be told of wrong ones."""

    @property
    def scenario(self) -> str: ...
    @property
    def model(self) -> str: ...


def read_outcomes(folder: str) -> list[dict[str, Any]]:
    """The outcomes of a run's steps, in the order in which they began (serving/outcome.py). `folder` is the run's."""
    found = [storage.read_json(uri) for uri in storage.list_uris(f"{folder}/steps/")]
    return sorted((outcome for outcome in found if outcome), key=lambda outcome: outcome["started_at"])


def summarize(
    asked: Asked, run_id: str, outcomes: list[dict[str, Any]], *, state: str, seconds: float, over: bool = False
) -> dict[str, Any]:
    """One object about the whole run: the keys of `run --json` but `endpoint` and `report`, which only a place knows.

    The outcomes say what became of it: Vertex, open-source KFP and kfp.local mean different things by their words, so
    the orchestrator's `state` is for a reader alone. `model`, `revision` and `generation` are those of the release that
    the run was about; but under a pin, or before a person's promotion, of the one that it left in service. `seconds` is
    wall time; `over`: the report has been written too.
    """
    by_name = {outcome["name"]: outcome for outcome in outcomes}
    resolved = by_name.get("resolve_model", {})
    bad = next((outcome for outcome in outcomes if outcome["status"] in ("failed", "inconclusive")), None)
    error = None
    if bad:
        error = {"step": bad["name"], "type": bad["error"]["type"], "message": bad["error"]["message"]}
    elif not _came_to_its_end(by_name, over):
        after = f", after {outcomes[-1]['name']}" if outcomes else ""
        words = f"a step ended without leaving an outcome{after} (the run is {state}); see the log"
        error = {"step": None, "type": "StepDied", "message": words}
    # Where a person's word left another release in service, that one is reported.
    serves = resolved.get("serves") or resolved
    status = "succeeded"
    if error:
        status = "failed"
    elif resolved.get("decision") in DECISIONS_WITHOUT_CHANGE:
        status = "unchanged"
    return {
        "scenario": asked.scenario,
        "status": status,
        "run_id": run_id,
        "model": serves.get("model") or asked.model,
        "revision": serves.get("commit"),
        "generation": serves.get("generation"),
        "weights": resolved.get("weights_uri"),
        "bytes_transferred": by_name.get("download_weights", {}).get("bytes_transferred", 0),
        "seconds": round(seconds, 3),
        "steps": [{key: outcome[key] for key in ("name", "status", "seconds")} for outcome in outcomes],
        "error": error,
    }


def _came_to_its_end(by_name: dict[str, dict[str, Any]], over: bool) -> bool:
    """Whether the steps went on to the last one, or there was nothing to do."""
    stopped = by_name.get("resolve_model", {}).get("decision") in DECISIONS_WITHOUT_CHANGE
    return (stopped or "collect_garbage" in by_name) and ("write_report" in by_name or not over)
