"""What verify_image_cache and prewarming ask Google for, held against the discovery documents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from google.oauth2.credentials import Credentials

from components.verify_image_cache import step
from serving.clients import artifact_registry, logging
from serving.clients import google as ours
from serving.errors import AccessError, RequestError
from tests.contract.discovery import Conformance

TOKEN = "a-token-that-nobody-guesses"
DIGEST = "sha256:" + "a" * 64
IMAGE = "us-docker.pkg.dev/demo-project/mirror/vllm/vllm-openai:v1"


@dataclass
class Google:
    url: str
    logs: Path

    def say(self, node: str, disk: int, at: str, digest: str = DIGEST) -> None:
        """A node writes its line."""
        words = (
            f"Image docker.io/vllm/vllm-openai@{digest} is backed by secondary boot disk caching by {disk / 27:.1%} "
            f"({disk}/27 layers), by image streaming by 0.0% ({27 - disk}/27 layers)."
        )
        entry = {
            "logName": "projects/demo-project/logs/gcfs-snapshotter",
            "resource": {"type": "k8s_node", "labels": {"node_name": node, "cluster_name": "gemma"}},
            "timestamp": at,
            "jsonPayload": {"MESSAGE": words},
        }
        with open(self.logs, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def warm(self, repository: str) -> list[dict[str, Any]]:
        """What Artifact Registry keeps warm of a repository."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.get(f"{self.url}/v1/{repository}/prewarmedArtifacts", headers=headers, timeout=60)
        found: list[dict[str, Any]] = answer.json().get("prewarmedArtifacts", [])
        return found


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    folder = tmp_path_factory.mktemp("google")
    config, logs = folder / "config.json", folder / "logging.jsonl"
    config.write_text(
        json.dumps(
            {
                "project": {"id": "demo-project", "number": "123456789012"},
                "service_account": "runner@demo-project.iam.gserviceaccount.com",
                "token": TOKEN,
                "logs": str(logs),
                "denied": ["projects/demo-project/locations/us/repositories/closed"],
            }
        )
    )
    started = process.start("emulated_cloud.google", "--config", str(config), log=folder / "google.log")
    yield Google(started.url, logs)
    started.stop()


@pytest.fixture
def service(emulator: Google, monkeypatch: pytest.MonkeyPatch) -> Google:
    """The services as our client finds them; each exchange is checked."""

    plain = ours.session

    def checked() -> Any:
        session = plain()
        Conformance("logging", "v2").watch(session, "/v2/")
        Conformance("artifactregistry", "v1").watch(session, "/v1/")
        return session

    monkeypatch.setattr(ours, "session", checked)
    monkeypatch.setattr(ours, "credentials", lambda: Credentials(TOKEN))
    monkeypatch.setenv(ours.API_ENDPOINT, emulator.url)
    return emulator


def test_the_words_of_nodes_on_an_image_are_found_the_newest_first(service: Google):
    assert step.lines("demo-project", DIGEST) == []
    today = step.datetime.datetime.now(step.datetime.UTC)

    def ago(days: float) -> str:
        return (today - step.datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    service.say("node-1", 20, ago(3))
    service.say("node-1", 27, ago(0.1))
    service.say("node-2", 27, ago(2))
    service.say("node-3", 27, ago(40))
    service.say("node-4", 27, ago(0.1), "sha256:" + "b" * 64)
    found = step.lines("demo-project", DIGEST)
    assert [(line.node, line.disk) for line in found] == [("node-1", 27), ("node-2", 27), ("node-1", 20)]


def test_a_page_without_entries_is_not_the_end_while_it_has_a_token(service: Google, monkeypatch: pytest.MonkeyPatch):
    asked, plain = [], ours.call

    def call(name: str, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
        asked.append(body)
        if "pageToken" not in body:
            return {"nextPageToken": "0"}  # It has looked for long enough, and found none so far.
        return plain(name, method, path, body)

    monkeypatch.setattr(ours, "call", call)
    now = step.datetime.datetime.now(step.datetime.UTC)
    service.say("node-1", 27, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), digest := "sha256:" + "c" * 64)
    assert [line.node for line in step.lines("demo-project", digest)] == ["node-1"]
    first, second = asked
    assert second == first | {"pageToken": "0"}


def test_logs_that_may_not_be_read_name_the_role(service: Google):
    with pytest.raises(AccessError, match=r"roles/logging\.viewer \(logging\.logEntries\.list\)"):
        logging.entries("somebody-elses", "")


def test_a_condition_that_is_none_is_a_wrong_request(service: Google):
    with pytest.raises(RequestError, match="the logs of demo-project"):
        logging.entries("demo-project", "logName=(")


def test_an_image_is_kept_warm_where_the_nodes_are(service: Google):
    until = artifact_registry.prewarm(IMAGE, DIGEST, "us-central1", "amd64", 7)
    (warm,) = service.warm("projects/demo-project/locations/us/repositories/mirror")
    assert warm["uri"] == f"us-docker.pkg.dev/demo-project/mirror/vllm/vllm-openai@{DIGEST}"
    assert (warm["location"], warm["state"], warm["expirationTime"]) == ("us-central1", "ACTIVE", until)
    assert artifact_registry.prewarm(IMAGE, DIGEST, "us-central1", "amd64") < until


def test_without_the_role_prewarming_names_it(service: Google):
    with pytest.raises(AccessError, match=r"closed --location=us .*--role=roles/artifactregistry\.writer"):
        artifact_registry.prewarm("us-docker.pkg.dev/demo-project/closed/vllm:v1", DIGEST, "us-central1", "amd64")


@pytest.mark.parametrize("image", ["vllm/vllm-openai:v1", "gcr.io/p/vllm:v1", "us-docker.pkg.dev/p/vllm"])
def test_an_image_of_another_registry_is_not_streamed(image: str):
    with pytest.raises(RequestError, match=r"is not in Artifact Registry, and nodes stream images from there alone"):
        artifact_registry.prewarm(image, DIGEST, "us-central1", "amd64")
