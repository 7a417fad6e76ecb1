"""The emulated vLLM on a `gs://` address: what it asks of Cloud Storage, and how it fails.

The words are those that runai-model-streamer 0.17.1 said of the same faults, and those of vLLM 0.33.0's source;
tests/real/test_vllm.py has real vLLM stream from the same emulated bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.engine.__main__ import main
from emulated_cloud.hub import models

from serving.clients import storage
from serving.features import Symptom, streamed
from serving.settings import Settings, validated
from tests.contract.engine_process import running
from tests.contract.transfer_site import Site, _site, site

__all__ = ["_site", "site"]

FLAGS = ("--served-model-name", "tiny", "--max-model-len", "512", "--load-format", "runai_streamer")
SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "model"
    models.write_gemma3(folder)
    return folder


@pytest.fixture
def address(site: Site, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A checkpoint in the bucket, and an assets' folder of the test's own."""
    monkeypatch.setenv("VLLM_ASSETS_CACHE", str(tmp_path / "assets"))
    uri = f"gs://demo-bucket/streamed/{tmp_path.name}"
    for path in tiny.iterdir():
        storage.write_bytes(f"{uri}/{path.name}", path.read_bytes(), content_type="application/octet-stream")
    yield uri
    site.script("storage")


def streaming() -> Settings:
    base = {"scenario": "gcs-fuse", "features": ["streamed"], "project": "demo-project", "bucket": "demo-bucket"}
    return validated(Settings, base)


def asked(site: Site, since: int) -> list[str]:
    return [entry["path"] for entry in site.requests("storage")[since:]]


def test_it_pulls_the_small_files_and_streams_the_rest(site: Site, address: str, tmp_path: Path):
    since = len(site.requests("storage"))
    environment = {"VLLM_ASSETS_CACHE": str(tmp_path / "assets")}
    extra = json.dumps({"concurrency": 4, "memory_limit": 1 << 30, "distributed": True})
    with running(
        address, *FLAGS, "--model-loader-extra-config", extra, log=tmp_path / "log", env=environment
    ) as engine:
        (card,) = engine.client.get("/v1/models").json()["data"]
        assert (card["id"], card["root"]) == ("tiny", address)
        assert engine.chat("Hello", max_tokens=4).status_code == 200
    paths = asked(site, since)
    assert paths[0].startswith("/storage/v1/b/demo-bucket?"), "the streamer looks at the bucket first"
    pulled = {path.name for path in (tmp_path / "assets" / "model_streamer").rglob("*") if path.is_file()}
    assert {"config.json", "tokenizer.json", "chat_template.jinja"} <= pulled
    assert not [name for name in pulled if name.endswith(".safetensors")]
    streamed = [path for path in paths if ".safetensors?alt=media" in path]
    assert {path.rpartition("%2F")[2].partition("?")[0] for path in streamed} >= {SHARD}
    assert not [path for path in streamed if "generation=" in path], "as the streamer asks"


def test_the_answers_are_those_of_the_same_checkpoint_on_a_disk(site: Site, address: str, tiny: Path, tmp_path: Path):
    said = []
    for model in (address, tiny):
        flags = FLAGS if model is address else FLAGS[:-2]
        env = {"VLLM_ASSETS_CACHE": str(tmp_path / "assets")}
        with running(model, *flags, log=tmp_path / "log", env=env) as engine:
            answer = engine.chat("Hello there", max_tokens=8, temperature=0).json()
        said.append(answer["choices"][0]["message"]["content"])
    assert said[0] == said[1]


def test_what_is_busy_is_asked_again(site: Site, address: str, tmp_path: Path):
    site.script("storage", {"action": "status", "status": 503, "path": rf"{SHARD}\?alt=media", "times": 2})
    with running(address, *FLAGS, log=tmp_path / "log", env={"VLLM_ASSETS_CACHE": str(tmp_path / "assets")}):
        assert site.consumed("storage") == [2]


def _error(code: int, words: str) -> dict[str, Any]:
    return {"action": "status", "status": code, "body": json.dumps({"error": {"code": code, "message": words}})}


FILE_ACCESS = "ValueError: Could not receive response from libstreamer due to: b'File access error'"
FAILURES: dict[str, tuple[dict[str, Any], str]] = {
    "the bucket may not be looked at": (
        {**_error(403, "x does not have storage.buckets.get access"), "path": r"/b/demo-bucket\?"},
        "google.api_core.exceptions.Forbidden: 403 GET ",
    ),
    "the bucket may not be listed": (
        {**_error(403, "x does not have storage.objects.list access"), "path": r"/o\?"},
        "storage.objects.list access",
    ),
    "an object is refused": ({**_error(403, "no"), "path": rf"{SHARD}\?alt=media"}, FILE_ACCESS),
    "an object is gone": ({**_error(404, "no"), "path": rf"{SHARD}\?alt=media"}, FILE_ACCESS),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_it_fails_in_the_streamers_words(site: Site, address: str, failure: str, capsys: pytest.CaptureFixture[str]):
    fault, words = FAILURES[failure]
    site.script("storage", {"method": "GET", "times": 1000, **fault})
    assert main([address, *FLAGS]) == 1
    assert words in capsys.readouterr().err
    assert site.consumed("storage")[0] >= 1


HEADER = b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}'
BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is truncated or empty."),
    "a header beyond all bounds": (
        (1 << 40).to_bytes(8, "little"),
        "Corrupted File: Header size 1099511627776 in gs://",
    ),
    "a header that ends early": ((99).to_bytes(8, "little") + b"{}", "Streamer failed to read header body"),
    "no JSON": ((4).to_bytes(8, "little") + b"oops", "is not valid JSON. Error: "),
    "less than it declares": (len(HEADER).to_bytes(8, "little") + HEADER + b"thr", "File access error"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_shard_that_is_none_is_told_in_the_streamers_words(
    site: Site, address: str, kind: str, capsys: pytest.CaptureFixture[str]
):
    data, words = BROKEN[kind]
    storage.write_bytes(f"{address}/{SHARD}", data, content_type="application/octet-stream")
    assert main([address, *FLAGS]) == 1
    said = capsys.readouterr().err
    assert "ValueError: " in said
    assert words in said
    found = streamed.explain(streaming(), Symptom("words", "p", said))
    assert found, "and never held against the release"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "Cannot find any safetensors model weights with `gs://demo-bucket/empty`"),
        (["--load-format", "safetensors"], "'load_format' must be 'modelexpress', 'runai_streamer' or"),
        (["--model-loader-extra-config", '{"threads": 4}'], "Unexpected extra config keys for runai_streamer"),
        (["--model-loader-extra-config", '{"memory_limit": 9}'], "Memory limit supplied: 9 cannot be smaller than: "),
        (["--model-loader-extra-config", '{"memory_limit": -2}'], "memory_limit must be an integer >= -1, got -2"),
        (["--model-loader-extra-config", '{"concurrency": true}'], "concurrency must be a positive integer, got True"),
        (["--model-loader-extra-config", '{"distributed": 1}'], "distributed must be a bool, got 1"),
    ],
)
def test_what_is_no_model_to_stream_is_refused(
    site: Site, address: str, tiny: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
):
    storage.write_bytes(
        "gs://demo-bucket/empty/config.json", (tiny / "config.json").read_bytes(), content_type="application/json"
    )
    model = "gs://demo-bucket/empty" if "`gs://demo-bucket/empty`" in words else address
    assert main([model, "--tokenizer", str(tiny), *FLAGS[:4], *flags]) == 1
    assert words in capsys.readouterr().err


def test_a_bucket_that_is_not_there_is_named(site: Site, address: str, capsys: pytest.CaptureFixture[str]):
    assert main(["gs://nobody-has-this/x", *FLAGS]) == 1
    said = capsys.readouterr().err
    assert "google.api_core.exceptions.NotFound: 404 GET " in said
    assert "The specified bucket does not exist." in said
