"""What a staging run validated, and the settings that serve exactly that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from kfp.dsl.executor import Executor

from components.download_weights import component, step
from components.resolve_model.step import Found, check_weights
from components.write_report import summary
from pipelines import validated
from serving.errors import RequestError
from serving.settings import Settings
from tests.unit.deployment import RELEASE, SETTINGS, quick

STAGING = "gs://staging-bucket/pipelines/run-7"
IMAGE, DIGEST = "vllm/vllm-openai:v0.33.0", "sha256:" + "d" * 64
KEY = "0123456789abcdef"
RESOLVED = {
    "name": "resolve_model",
    "status": "succeeded",
    "message": "",
    "decision": "deploy",
    "reason": "the first",
    "model": SETTINGS.model,
    "source": "",
    "commit": "c" * 40,
    "commits": {},
    "weights_key": KEY,
    "engine_image": IMAGE,
}
CHECKED = {"name": "validate_server", "status": "succeeded", "message": "", "measured": {"load": "l"}}
PROMOTED = {"name": "promote_generation", "status": "succeeded", "message": "g2 serves"}


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[dict[str, Any]]]:
    """The outcomes that runs left, by their folders."""
    folders = {STAGING: [RESOLVED, CHECKED, PROMOTED]}
    monkeypatch.setattr(summary, "read_outcomes", lambda folder: folders.get(folder, []))
    return folders


def test_commit_key_and_image_are_those_of_the_run(left: Any) -> None:
    left[STAGING][0] = {**RESOLVED, "image_digest": DIGEST}
    found = validated.as_in_run(SETTINGS, STAGING)
    assert (found.revision, found.weights_key) == ("c" * 40, KEY)
    assert found.engine.image == f"{IMAGE}@{DIGEST}"
    untouched = {"revision": "main", "weights_key": "", "engine": SETTINGS.engine}
    assert found.model_copy(update=untouched) == SETTINGS


def test_an_image_that_was_pulled_by_its_tag_is_named_by_it(left: Any) -> None:
    assert validated.as_in_run(SETTINGS, STAGING).engine.image == IMAGE


def test_a_runs_id_alone_is_of_this_deployments_root(left: Any) -> None:
    left[f"{SETTINGS.pipeline_root}/run-8"] = [{**RESOLVED, "commit": "d" * 40}, CHECKED, PROMOTED]
    assert validated.as_in_run(SETTINGS, "run-8").revision == "d" * 40


def test_adapters_and_an_assistant_are_pinned_too(left: Any) -> None:
    left[STAGING][0] = {**RESOLVED, "commits": {"korean": "a" * 40, "assistant": "b" * 40}}
    adapters = {"korean": {"model": "acme/korean", "revision": "main"}}
    assistant = {"model": "acme/assistant", "num_speculative_tokens": 4}
    settings = Settings.model_validate({**SETTINGS.model_dump(), "adapters": adapters, "assistant": assistant})
    found = validated.as_in_run(settings, STAGING)
    assert found.assistant
    assert (found.adapters["korean"].revision, found.assistant.revision) == ("a" * 40, "b" * 40)


def test_what_came_from_a_folder_has_no_commit_and_is_held_to_its_key(left: Any) -> None:
    left[STAGING][0] = {**RESOLVED, "source": "gs://staging-bucket/tuned"}
    found = validated.as_in_run(quick(source="gs://prod-bucket/tuned"), STAGING)
    assert (found.revision, found.weights_key) == ("main", KEY)


def test_a_run_may_wait_for_a_person(left: Any) -> None:
    left[STAGING][2] = {**PROMOTED, "status": "skipped"}
    assert validated.read(STAGING).weights_key == KEY


@pytest.mark.parametrize(
    ("outcomes", "words"),
    [
        ([], "is not the folder of a run: it has no steps/resolve_model.json"),
        ([RESOLVED], "has not come to its end yet, or was cancelled"),
        ([{**RESOLVED, "decision": "unchanged"}], r"validated nothing \(unchanged: the first\)"),
        (
            [RESOLVED, {**CHECKED, "status": "failed", "message": "too slow"}],
            "did not pass: validate_server is failed: too slow",
        ),
        ([RESOLVED, CHECKED, {**PROMOTED, "status": "inconclusive"}], "promote_generation is inconclusive"),
        ([RESOLVED, {**CHECKED, "measured": None}, PROMOTED], "put nothing under load"),
        (
            [{key: value for key, value in RESOLVED.items() if key != "engine_image"}, CHECKED, PROMOTED],
            "does not say its engine_image: a version before left it",
        ),
    ],
)
def test_a_run_that_validated_nothing_is_refused(left: Any, outcomes: Any, words: str) -> None:
    left[STAGING] = outcomes
    with pytest.raises(RequestError, match=words):
        validated.as_in_run(SETTINGS, STAGING)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            quick(model="google/gemma-3-1b-it"),
            "its model is 'google/gemma-3-4b-it', and the settings' 'google/gemma-3-1b",
        ),
        (quick(adapters={"korean": {"model": "acme/korean"}}), r"its adapters is \[\], and the settings' \['korean'\]"),
        (quick(source="gs://b-bucket/tuned"), "its source is False"),
        (quick(revision="e" * 40), "leave it out"),
        (quick(engine={"image": "vllm/vllm-openai:v0.32.0"}), "engine.image is vllm/vllm-openai:v0.32.0, and "),
        (quick(weights_key="f" * 16), "weights_key is ffffffffffffffff"),
    ],
)
def test_settings_that_ask_for_something_else_are_refused(left: Any, settings: Settings, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        validated.as_in_run(settings, STAGING)


def test_other_weights_than_the_settings_take_stop_the_run() -> None:
    found = Found("c" * 40, "f" * 16, "Gemma3ForConditionalGeneration")
    with pytest.raises(RequestError, match=f"has the weights {'f' * 16}, and the settings take {KEY} alone"):
        check_weights(quick(weights_key=KEY), found)
    check_weights(quick(weights_key="f" * 16), found)
    check_weights(SETTINGS, found)


# -- lineage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passed", [True, False])
def test_the_artifact_says_where_the_weights_are_and_of_which_commit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, passed: bool
) -> None:
    """As kfp's executor hands it to the orchestrator."""
    monkeypatch.setattr(step, "run", lambda settings, release: (passed, [], 3))
    release = RELEASE.model_copy(update={"commits": {"korean": "a" * 40}})
    nowhere, output = str(tmp_path / "task" / "weights"), tmp_path / "output.json"
    model = {"name": "weights", "type": {"schemaTitle": "system.Model"}, "uri": nowhere, "metadata": {}}
    given = {
        "inputs": {"parameterValues": {"settings": SETTINGS.as_struct(), "release": release.as_struct()}},
        "outputs": {"artifacts": {"weights": {"artifacts": [model]}}, "outputFile": str(output)},
    }
    Executor(given, component.download_weights.python_func).execute()
    said = json.loads(output.read_text())
    assert said["parameterValues"] == {"passed": passed, "reasons": [], "bytes_transferred": 3}
    (artifact,) = said["artifacts"]["weights"]["artifacts"]
    if not passed:
        assert (artifact["uri"], artifact["metadata"]) == (nowhere, {}), "there are no such weights"
        return
    assert artifact["uri"] == RELEASE.weights_uri
    assert artifact["metadata"] == {
        "model": RELEASE.model,
        "commit": RELEASE.commit,
        "commit_korean": "a" * 40,
        "weights_key": RELEASE.weights_key,
        "run": RELEASE.run_id,
    }
