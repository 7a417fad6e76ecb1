"""Parameters that a person edits in the console, and edits wrongly: an outcome and a report all the same."""

from __future__ import annotations

from typing import Any

import pytest

from components.resolve_model import step as resolve_model
from components.write_report import step as write_report
from serving.clients import storage

EXPLICIT = {
    "project": "demo-project",
    "location": "us-central1",
    "cluster": "gemma",
    "namespace": "gemma",
    "bucket": "demo-bucket",
    "model": "google/gemma-3-4b-it",
    "revision": "main",
}
REST = {"scenario": "gcs-fuse"}
FOLDER = "gs://demo-bucket/pipelines/run-1"
COMPILED: dict[str, Any] = {"scenario": "gcs-fuse", "features": ["gcs-fuse"], "image": "i", "version": "1"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    objects: dict[str, Any] = {}
    monkeypatch.setattr(storage, "read_json", objects.get)
    monkeypatch.setattr(storage, "write_json", objects.__setitem__)
    monkeypatch.setattr(storage, "write_text", lambda uri, text, content_type: objects.__setitem__(uri, text))
    monkeypatch.setattr(storage, "list_uris", lambda prefix: [uri for uri in objects if uri.startswith(prefix)])
    return objects


@pytest.mark.parametrize(
    ("rest", "explicit", "words"),
    [
        (REST, {"model": "gemma"}, "model"),
        (REST, {"namespace": "My Namespace"}, "namespace"),
        (REST, {"location": ""}, "location"),
        ({**REST, "servng": {}}, {}, "servng"),
        ({**REST, "serving": {"replicas": "two"}}, {}, "serving.replicas"),
        ({**REST, "serving": None}, {}, "serving"),
        ({**REST, "patience": "soon"}, {}, "patience"),
        ({**REST, "patience": ["1m"]}, {}, "patience"),
        ({**REST, "pipeline_root": "s3://elsewhere"}, {}, "pipeline_root"),
        ({**REST, "pipeline_root": 5}, {}, "pipeline_root"),
        ({"scenario": "no-such"}, {}, "no-such"),
        ({}, {}, "scenario"),
    ],
)
def test_wrong_parameters_leave_an_outcome_and_a_report_that_say_what_is_wrong(
    bucket: dict[str, Any], rest: dict[str, Any], explicit: dict[str, str], words: str
):
    given = {**EXPLICIT, **explicit}
    with pytest.raises(SystemExit):
        resolve_model.run(rest, "run-1", COMPILED, **given)
    outcome = bucket[f"{FOLDER}/steps/resolve_model.json"]
    assert (outcome["status"], outcome["error"]["type"], outcome["error"]["final"]) == ("failed", "RequestError", True)
    assert words in outcome["message"]

    html = write_report.run(rest, "run-1", "FAILED", **given)
    report = bucket[f"{FOLDER}/report.json"]
    assert (report["status"], report["error"]["step"]) == ("failed", "resolve_model")
    assert words in report["error"]["message"]
    assert report["model"] == given["model"]
    assert bucket[f"{FOLDER}/report.html"] == html
    assert words in html
    assert bucket[f"{FOLDER}/steps/write_report.json"]["status"] == "succeeded"


@pytest.mark.parametrize("name", ["", "-x-"])
def test_a_bucket_that_is_none_ends_in_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    for step in (resolve_model.run, write_report.run):
        with pytest.raises(SystemExit) as ended:
            step(REST, "run-1", COMPILED, **{**EXPLICIT, "bucket": name})  # type: ignore[operator]
        assert ended.value.code == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert all(f"gs://{name}" in line for line in lines)
