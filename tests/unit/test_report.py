"""The report: what a run came to, read from what its steps left."""

from __future__ import annotations

import json
from typing import Any

import pytest

from components.write_report import page, step
from components.write_report.summary import summarize
from serving import names
from serving.settings import Settings, validated
from tests.unit.deployment import SETTINGS


def outcome(name: str, status: str = "succeeded", started: int = 0, **details: Any) -> dict[str, Any]:
    error = details.pop("error", None)
    return {
        "name": name,
        "status": status,
        "started_at": f"2026-11-24T00:00:{started:02d}+00:00",
        "seconds": 2.0,
        "message": f"{name} says",
        "error": error,
        **details,
    }


RESOLVED = outcome("resolve_model", commit="c" * 40, generation="g2", decision="deploy")
BROKEN = {"type": "ReleaseError", "message": "a shard is cut short", "final": True}


COLLECTED = outcome("collect_garbage", started=9)


def summed(*outcomes: dict[str, Any], state: str = "SUCCEEDED", over: bool = False) -> dict[str, Any]:
    return summarize(SETTINGS, "run-1", list(outcomes), state=state, seconds=3.14159, over=over)


def test_a_run_in_which_every_step_did_well_succeeded():
    report = summed(RESOLVED, outcome("download_weights", bytes_transferred=42), COLLECTED)
    assert (report["status"], report["error"], report["bytes_transferred"]) == ("succeeded", None, 42)
    assert (report["revision"], report["generation"], report["seconds"]) == ("c" * 40, "g2", 3.142)


@pytest.mark.parametrize("decision", ["unchanged", "pinned", "validated"])
def test_a_run_that_had_nothing_to_do_is_unchanged(decision):
    assert summed({**RESOLVED, "status": "skipped", "decision": decision})["status"] == "unchanged"


@pytest.mark.parametrize("decision", ["pinned", "validated"])
def test_a_run_that_left_another_release_in_service_reports_that_one(decision):
    serves = {"generation": "g1", "model": "google/gemma-3-1b-it", "commit": "b" * 40}
    report = summed({**RESOLVED, "status": "skipped", "decision": decision, "serves": serves})
    assert (report["generation"], report["model"], report["revision"]) == ("g1", "google/gemma-3-1b-it", "b" * 40)
    unknown = dict.fromkeys(serves)
    report = summed({**RESOLVED, "status": "skipped", "decision": decision, "serves": unknown})
    assert (report["generation"], report["model"], report["revision"]) == (None, SETTINGS.model, None)


@pytest.mark.parametrize("status", ["failed", "inconclusive"])
def test_the_first_step_that_went_wrong_is_the_error(status):
    report = summed(
        RESOLVED,
        outcome("download_weights", status, error=BROKEN),
        outcome("deploy_server", "failed", error={**BROKEN, "message": "later"}),
    )
    assert report["status"] == "failed"
    assert report["error"] == {"step": "download_weights", "type": "ReleaseError", "message": "a shard is cut short"}


def test_a_step_that_died_without_a_word_fails_the_run():
    report = summed(RESOLVED, state="FAILED")
    assert report["status"] == "failed"
    assert report["error"]["type"] == "StepDied"
    assert "after resolve_model (the run is FAILED)" in report["error"]["message"]
    assert summed(state="CANCELLED")["error"]["type"] == "StepDied"


@pytest.mark.parametrize("state", ["SUCCEEDED", "COMPLETE", "RUNNING", "FAILED"])
def test_the_outcomes_are_believed_and_not_the_orchestrator_s_word(state):
    """Open-source KFP calls a good run COMPLETE, and RUNNING when a condition was false."""
    assert summed(RESOLVED, COLLECTED, state=state)["status"] == "succeeded"
    assert summed({**RESOLVED, "decision": "unchanged"}, state=state)["status"] == "unchanged"
    assert summed(RESOLVED, outcome("validate_server"), state=state)["error"]["type"] == "StepDied"


def test_a_run_that_is_over_has_written_its_report():
    assert summed(RESOLVED, COLLECTED, over=True)["error"]["type"] == "StepDied"
    assert summed(RESOLVED, COLLECTED, outcome("write_report", started=10), over=True)["status"] == "succeeded"


@pytest.mark.parametrize(
    ("outcomes", "became"),
    [
        ([RESOLVED, COLLECTED], "succeeded"),
        ([{**RESOLVED, "decision": "unchanged"}], "unchanged"),
        ([RESOLVED, outcome("promote_generation", "skipped", decision="validated"), COLLECTED], "waiting"),
        ([{**RESOLVED, "decision": "validated"}], "waiting"),
        ([RESOLVED, outcome("validate_server", "failed", error=BROKEN)], "rejected"),
        ([outcome("resolve_model", "failed", error={**BROKEN, "type": "RejectedBeforeError"})], "rejected"),
        ([outcome("resolve_model", "failed", error={**BROKEN, "type": "AccessError"})], "failed"),
        ([RESOLVED], "failed"),
    ],
)
def test_one_entry_of_the_log_tells_alerts_what_the_run_came_to(outcomes, became, capsys):
    step.tell(SETTINGS, "run-1", summed(*outcomes), outcomes)
    (entry,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert (entry["event"], entry["became"], entry["run_id"]) == ("run-ended", became, "run-1")
    assert entry["deployment"] == names.place(SETTINGS)
    assert entry["severity"] == ("ERROR" if became in ("rejected", "failed") else "INFO")


def test_wall_time_is_from_the_first_start_to_the_last_end():
    assert step.wall_seconds([outcome("a", started=1), outcome("b", started=7)]) == 8.0
    assert step.wall_seconds([]) == 0.0


def test_a_run_that_only_resolved_has_written_nothing_that_needs_cleaning():
    assert not step.began_to_write([RESOLVED])
    assert step.began_to_write([RESOLVED, outcome("ensure_access")])


def test_the_page_keeps_the_end_of_an_engines_log_whose_pod_is_gone():
    outcomes = [RESOLVED, outcome("deploy_server", "failed", error=BROKEN, log=["Loading <weights>", "KeyError: 'x'"])]
    html = page.render(SETTINGS, summed(*outcomes), outcomes)
    assert "<pre>Loading &lt;weights&gt;\nKeyError: &#39;x&#39;</pre>" in html


def test_the_page_shows_what_validation_warned_of():
    warned = outcome("validate_server", answer=None, figures={"load": []}, warnings=["another <answer>"])
    assert "another &lt;answer&gt;" in page.render(SETTINGS, summed(RESOLVED, warned), [RESOLVED, warned])


def test_the_page_shows_steps_error_answer_and_load_and_escapes_what_a_model_says():
    load = {
        "concurrency": 16,
        "requests": 32,
        "errors": 0,
        "tokens_per_second": 1234.5,
        "ttft_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
        "itl_ms": {"p50": 0.1, "p95": 0.2, "p99": 0.3},
    }
    validated = outcome(
        "validate_server",
        "failed",
        error=BROKEN,
        answer={"prompt": "Hello?", "text": "<script>alert(1)</script>"},
        figures={"load": [load]},
    )
    outcomes = [RESOLVED, validated]
    html = page.render(SETTINGS, summed(*outcomes), outcomes)
    assert "run-1, 2026-11-24 00:00 UTC" in html
    for text in ("resolve_model says", "a shard is cut short", "Hello?", "1.0 / 2.0 / 3.0", "0.10 / 0.20 / 0.30"):
        assert text in html
    assert "<script>" not in html


def test_the_page_names_each_accelerator_that_pods_may_be_on():
    either = validated(Settings, {"scenario": "07", "project": "demo-project", "bucket": "demo-bucket"})
    shown = [page.render(each, summed(RESOLVED), [RESOLVED]) for each in (SETTINGS, either)]
    assert "<dd>1 × nvidia-l4</dd>" in shown[0]
    assert "<dd>1 × nvidia-l4, or 1 × tpu-v6e-slice</dd>" in shown[1]


def test_the_page_has_every_answer():
    chat = [{"prompt": "Hello?", "text": "Yes."}, {"prompt": "안녕?", "text": "네."}]
    answer = {"prompt": "Hello?", "text": "Yes."}
    outcomes = [RESOLVED, outcome("validate_server", answer=answer, figures={"chat": chat})]
    html = page.render(SETTINGS, summed(*outcomes), outcomes)
    assert [html.count(text) for text in ("Hello?", "Yes.", "안녕?", "네.")] == [1, 1, 1, 1]
    outcomes = [RESOLVED, outcome("validate_server", answer=answer, figures=None)]
    assert "Yes." in page.render(SETTINGS, summed(*outcomes), outcomes)


def test_the_report_names_the_weights_by_the_address_that_verify_weights_wants():
    weights = "gs://demo-bucket/models/google/gemma-3-4b-it/0123"
    outcomes = [{**RESOLVED, "weights_uri": weights}]
    assert summed(*outcomes)["weights"] == weights
    assert f"<code>{weights}</code>" in page.render(SETTINGS, summed(*outcomes), outcomes)
    assert summed(RESOLVED)["weights"] is None


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (4_464_849, "4.5 MB"), (23_500_000_000, "23.5 GB")],
)
def test_bytes_are_written_for_a_reader(count, text):
    assert page.readable_bytes(count) == text
