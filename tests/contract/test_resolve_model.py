"""resolve_model against a hub, a bucket and a cluster: what it finds, what it refuses, and that it only reads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from emulated_cloud.cloud import Cloud
from emulated_cloud.hub.models import write_gemma4

from components.resolve_model import step
from components.resolve_model.step import in_bucket, look_up
from serving import names
from serving.clients import google, kubernetes, storage
from serving.clients.digest import ServedFile
from serving.clients.hub import Hub
from serving.deployment import record
from serving.deployment.record import Known, Pin, Record
from serving.errors import AccessError, ReleaseError, RequestError
from serving.rendering import engine, render
from serving.settings import from_parameters
from serving.weights import weighing
from serving.weights.release import Release
from tests.contract.transfer_site import GATED, QUICK, Site, _site, folder, model, site
from tests.unit import checkpoints

__all__ = ["_site", "folder", "model", "site"]

PARAMETERS = {
    "project": "demo-project",
    "location": "us-central1",
    "cluster": "gemma",
    "namespace": "gemma",
    "bucket": "demo-bucket",
    "model": "google/gemma-3-4b-it",
    "revision": "main",
}
REST = {
    "scenario": "gcs-fuse",
    "endpoint": "ip",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
}
IMAGE = "europe-docker.pkg.dev/p/r/python-components:0.1.0"
COMPILED = {
    "scenario": "gcs-fuse",
    "features": ["gcs-fuse", "gpu", "service"],
    "image": IMAGE,
    "version": "0.1.0",
}
WRITES = {"POST", "PUT", "PATCH", "DELETE"}


def test_a_revision_is_its_commit_its_weights_and_its_architecture(site: Site, model: str, folder: Path):
    commit = site.commit(model, folder)
    settings = site.settings(model)
    found = look_up(settings)
    assert (found.commit, found.architecture) == (commit, "Gemma3ForCausalLM")
    assert found.weights_key == site.release(settings).weights_key


def test_a_commit_whose_weights_are_complete_is_known_without_the_hub(
    site: Site, model: str, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    commit = site.commit(model, folder)
    settings = site.settings(model)
    release = site.release(settings)
    site.bring(settings, release, QUICK)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    pinned = site.settings(model, revision=commit)
    found = look_up(pinned)
    assert (found.commit, found.weights_key, found.architecture) == (commit, release.weights_key, "Gemma3ForCausalLM")
    assert in_bucket(site.settings(model, revision="0" * 40)) is None
    storage.delete(f"{release.weights_uri}/tokenizer.json")
    assert in_bucket(pinned) is None


def test_a_fine_tune_is_sized_before_a_byte_moves(site: Site, model: str, tmp_path: Path):
    write_gemma4(tmp_path / "tuned", 0)
    commit = site.commit(model, tmp_path / "tuned")
    settings = site.settings(model)
    found = look_up(settings)
    assert found.model == dataclasses.replace(weighing.in_folder(tmp_path / "tuned"), name=model)
    assert weighing.on_hub(Hub(None), model) == found.model
    release = step.name_release(settings, "run-1", found, live="")
    assert (release.sizing.starts, release.sizing.max_model_len) == (True, 131072)
    assert "null" not in json.dumps(release.as_struct())
    assert Release.model_validate(release.as_struct()) == release
    flags = engine.engine_flags(settings, release)
    assert flags[flags.index("--max-model-len") + 1] == "131072"
    # A retry, or the next run of a pinned commit, comes to the same by what lies in the bucket.
    site.bring(settings, release, QUICK)
    again = in_bucket(site.settings(model, revision=commit))
    assert again == found


def test_adapters_and_an_assistant_count_in_what_was_found(site: Site, model: str, tmp_path: Path):
    write_gemma4(tmp_path / "tuned", 0)
    site.commit(model, tmp_path / "tuned")
    settings = site.settings(model, adapters={"korean": {"model": "acme/korean"}})
    plain = look_up(site.settings(model))
    heavy = dataclasses.replace(plain, assistant_bytes=1 << 30)
    wide = dataclasses.replace(plain, max_lora_rank=512)
    left, drafted, adapted = (step.size(settings, found).kv_gib or 0 for found in (plain, heavy, wide))
    assert drafted == pytest.approx(left - 1, abs=0.02)
    assert adapted < left


def test_weights_that_do_not_say_what_they_are_are_for_the_download_to_judge(site: Site, model: str, folder: Path):
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes((1 << 40).to_bytes(8, "little"))
    site.commit(model, folder)
    found = look_up(site.settings(model))
    assert found.model is None
    assert f"{shard.name} is cut short, or no safetensors file" in found.warnings[0]
    assert step.size(site.settings(model), found).starts is None


def test_a_fine_tune_that_is_too_large_for_its_card_is_refused_with_what_starts(
    site: Site, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """31B in all but name, of which only the header of its one shard is there to be read."""
    write_gemma4(tmp_path / "tuned", 0)
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(checkpoints.config("google/gemma-4-31B-it")))
    site.commit(model, tmp_path / "tuned")
    read, (head, size) = Hub.tree, checkpoints.header("google/gemma-4-31B-it")

    def tree(self: Hub, name: str, commit: str) -> list[ServedFile]:
        others = [file for file in read(self, name, commit) if "safetensors" not in file.path]
        return [*others, ServedFile("model.safetensors", size, sha256="0" * 64)]

    monkeypatch.setattr(Hub, "tree", tree)
    monkeypatch.setattr(weighing, "head_of", lambda source: lambda file, length: head[:length] if size else b"")
    with pytest.raises(RequestError) as caught:
        step.size(site.settings(model), look_up(site.settings(model)))
    assert f"{model} on 1 × nvidia-l4 cannot start: its weights take 58.8 GiB a card" in str(caught.value)
    assert "1 × nvidia-a100-80gb" in str(caught.value)
    on_an_h100 = site.settings(model, accelerator={"type": "nvidia-h100-80gb"}, engine={"max_model_len": 32768})
    release = step.name_release(on_an_h100, "run-1", look_up(on_an_h100), live="")
    flags = engine.engine_flags(on_an_h100, release)
    assert flags[flags.index("--max-num-batched-tokens") + 1] == "2496"


def test_a_config_that_does_not_say_what_it_is_made_of_is_for_the_engine_to_judge(site: Site, model: str, folder: Path):
    (folder / "config.json").write_text('{"architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": "many"}')
    site.commit(model, folder)
    found = look_up(site.settings(model))
    assert found.model is None
    assert "num_hidden_layers is 'many'" in found.warnings[0]
    assert step.size(site.settings(model), found).max_model_len is None


@pytest.mark.parametrize(
    ("config", "words"),
    [("{}", "names no architecture"), ("[]", "is not a JSON object"), ("{", "is not JSON")],
)
def test_a_config_that_says_nothing_is_refused(site: Site, model: str, folder: Path, config: str, words: str):
    (folder / "config.json").write_text(config)
    site.commit(model, folder)
    with pytest.raises((RequestError, ReleaseError), match=words):
        look_up(site.settings(model))


def test_a_repository_of_pickles_is_refused(site: Site, model: str, folder: Path):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    site.commit(model, folder)
    with pytest.raises(RequestError, match=r"no safetensors: only pickles \(pytorch_model.bin\)"):
        look_up(site.settings(model))


def test_a_gate_is_met_here_and_not_after_an_hour_of_preparation(site: Site, folder: Path):
    site.commit(GATED, folder)
    with pytest.raises(AccessError, match="is gated"):
        look_up(site.settings(GATED))


# -- the whole step, in a whole cloud -----------------------------------------------------------------------


def outcome(run_id: str) -> dict:
    return storage.read_json(f"gs://demo-bucket/pipelines/{run_id}/steps/resolve_model.json")


def test_the_step_says_what_there_is_to_do_and_writes_its_outcome_alone(emulated_cloud: Cloud, cloud_environment):
    before = {name: len(emulated_cloud.requests(name)) for name in ("storage", "apiserver", "hub")}
    proceed, merged, release = step.run(REST, "resolve-1", COMPILED, **PARAMETERS)
    assert proceed is True
    assert merged["scenario"] == "gcs-fuse"
    assert merged["model"] == PARAMETERS["model"]
    assert merged["images"]["components"] == IMAGE, (
        "what the pipeline was compiled with, whatever its settings leave out"
    )
    assert release["live"] == ""
    assert release["generation"].startswith("g")
    written = outcome("resolve-1")
    assert written["status"] == "succeeded"
    assert written["decision"] == "deploy"
    assert "is the first generation" in written["reason"]
    assert written["commit"] == release["commit"]
    asked = {name: emulated_cloud.requests(name)[before[name] :] for name in before}
    ours = {
        name: [e for e in asked[name] if "controller" not in e["user"] and e["user"] != "system:gke"] for name in asked
    }
    assert not [entry for name in ("apiserver", "hub") for entry in ours[name] if entry["method"] in WRITES]
    writes = [entry["path"] for entry in ours["storage"] if entry["method"] in WRITES]
    assert len(writes) == 1


def test_the_same_question_has_the_same_answer(emulated_cloud: Cloud, cloud_environment):
    first, second = (step.run(REST, f"resolve-2-{number}", COMPILED, **PARAMETERS) for number in range(2))
    assert {**first[2], "run_id": ""} == {**second[2], "run_id": ""}


def test_the_servers_key_is_resolved_to_its_version_and_stays_unsaid(emulated_cloud: Cloud, cloud_environment, capfd):
    rest = {**REST, "engine": {"api_key_secret": "projects/demo-project/secrets/hf-token/versions/latest"}}
    _, merged, release = step.run(rest, "resolve-key", COMPILED, **PARAMETERS)
    assert release["api_key_version"] == "projects/123456789012/secrets/hf-token/versions/1"
    key = emulated_cloud.secrets["hf-token"]
    assert google.secret(release["api_key_version"]) == key
    assert key not in f"{merged} {release} {outcome('resolve-key')} {capfd.readouterr()}"


def test_under_a_pin_the_outcome_tells_what_serves(emulated_cloud: Cloud, cloud_environment):
    parameters = {**PARAMETERS, "namespace": "pinned"}
    settings = from_parameters(REST, **parameters)
    cluster = kubernetes.connect(settings)
    cluster.create(render.namespace(settings))
    known = Known(model="google/gemma-3-1b-it", commit="b" * 40, weights_key="f" * 16, weights_uri="gs://demo-bucket/x")
    pin = Pin(generation="g1", at=record.now(), reason="rolled back from g2")
    Record(live="g1", pinned=pin, generations={"g1": known}).write(cluster, settings)
    proceed, _, release = step.run(REST, "resolve-pinned", COMPILED, **parameters)
    assert not proceed
    written = outcome("resolve-pinned")
    assert (written["status"], written["decision"]) == ("skipped", "pinned")
    assert written["serves"] == {"generation": "g1", "model": known.model, "commit": known.commit}
    assert written["generation"] == release["generation"]
    assert (
        f"{release['generation']} (google/gemma-3-4b-it at {release['commit'][:12]}) is not deployed"
        in written["reason"]
    )


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"revision": "nope"}, "RequestError", "has no revision 'nope'"),
        ({"model": "google/gemma-3-27b-it"}, "RequestError", "is not on http"),
    ],
)
def test_what_is_wrong_with_the_request_ends_the_step_with_words(
    emulated_cloud: Cloud, cloud_environment, changes: dict, error: str, words: str
):
    run_id = f"resolve-{error.lower()}-{'-'.join(changes)}"
    rest = {**REST, "accelerator": {"type": "nvidia-h100-80gb"}}
    with pytest.raises(SystemExit) as ended:
        step.run(rest, run_id, COMPILED, **{**PARAMETERS, **changes})
    assert ended.value.code == 1
    written = outcome(run_id)
    assert written["status"] == "failed"
    assert written["error"]["type"] == error
    assert words in written["error"]["message"]


def test_an_engine_that_cannot_serve_the_model_is_refused_before_a_byte_moves(emulated_cloud: Cloud, cloud_environment):
    before = len(emulated_cloud.requests("storage"))
    rest = {**REST, "engine": {"image": "vllm/vllm-openai:v0.7.0"}}
    with pytest.raises(SystemExit):
        step.run(rest, "resolve-old", COMPILED, **PARAMETERS)
    assert "cannot serve" in outcome("resolve-old")["message"]
    asked = emulated_cloud.requests("storage")[before:]
    assert not [entry for entry in asked if "models" in entry["path"]]


@pytest.mark.parametrize(
    ("rest", "words"),
    [
        ({"scenario": "no-such"}, "there is no scenario 'no-such'"),
        ({"replicas": 3}, "unknown key"),
        ({"pipeline_root": "gs://"}, "pipeline_root"),
    ],
)
def test_wrong_parameters_leave_an_outcome_with_one_clear_error(cloud_environment, rest: dict, words: str):
    run_id = f"resolve-wrong-{next(iter(rest))}".replace("_", "-")
    with pytest.raises(SystemExit) as ended:
        step.run({**REST, **rest}, run_id, COMPILED, **PARAMETERS)
    assert ended.value.code == 1
    written = outcome(run_id)
    assert written["error"]["type"] == "RequestError"
    assert words in written["error"]["message"]


def test_an_image_of_the_settings_own_goes_before_the_compiled_one():
    settings = from_parameters({**REST, "images": {"components": "example.com/ours:1"}}, **PARAMETERS)
    assert step.with_image(settings, IMAGE).images.components == "example.com/ours:1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"scenario": "inference-gateway"}, "for the scenario inference-gateway with gcs-fuse, gpu, service"),
        ({"features": ["hyperdisk-ml", "gpu", "service"]}, "for the scenario gcs-fuse with hyperdisk-ml, gpu, service"),
    ],
)
def test_a_pipeline_that_was_compiled_for_something_else_says_so(cloud_environment, changes: dict, words: str):
    run_id = f"resolve-compiled-{next(iter(changes))}"
    with pytest.raises(SystemExit):
        step.run(REST, run_id, {**COMPILED, **changes}, **PARAMETERS)
    message = outcome(run_id)["message"]
    assert words in message
    assert "ask for the scenario gcs-fuse with gcs-fuse, gpu, service" in message
    assert "`gemma-pipelines compile gcs-fuse -f FILE`" in message


def test_a_job_with_a_long_name_is_a_run_with_a_legal_one(emulated_cloud: Cloud, cloud_environment):
    job = "gemma-gcs-fuse-" + "0123456789" * 8
    _, _, release = step.run(REST, job, COMPILED, **PARAMETERS)
    assert release["run_id"] == names.run(job)
    assert outcome(release["run_id"])["generation"] == release["generation"]
