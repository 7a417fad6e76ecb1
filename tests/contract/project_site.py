"""An emulated project in which nothing is there yet but a bucket, with our client's exchanges held against the
discovery documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from google.oauth2.credentials import Credentials

from serving.clients import google, registry
from serving.installation.bootstrap import Report, bootstrap
from serving.installation.building import Pace
from serving.settings import Settings, validated
from tests.contract.discovery import Conformance

PROJECT = "demo-project"
TOKEN = "a-token-that-nobody-guesses"
BUCKET = "demo-bucket"
PACE = Pace(look=0.05, log=2.0)
REPOSITORY = f"projects/{PROJECT}/locations/us-central1/repositories/gemma-pipelines"
IMAGE = f"us-central1-docker.pkg.dev/{PROJECT}/gemma-pipelines/python-components"
ON = ["serviceusage.googleapis.com"]
CONFORMANCES = {
    "serviceusage": (Conformance("serviceusage", "v1"), r"/services|/v1/operations/"),
    "iam": (Conformance("iam", "v1"), r"/v1/projects/[^/]+/(serviceAccounts|roles)"),
    "cloudresourcemanager": (Conformance("cloudresourcemanager", "v3"), r"/v3/projects/"),
    "artifactregistry": (Conformance("artifactregistry", "v1"), r"/locations/[^/]+/(repositories|operations)"),
    "cloudbuild": (Conformance("cloudbuild", "v1"), r"/locations/[^/]+/builds"),
    "secretmanager": (Conformance("secretmanager", "v1"), r"/v1/projects/[^/]+/secrets"),
    "logging": (Conformance("logging", "v2"), r"/v2/entries"),
}


def settings(**changes: Any) -> Settings:
    """Settings of a deployment, with changes."""
    base = {
        "scenario": "gcs-fuse",
        "project": PROJECT,
        "bucket": BUCKET,
        "hub": {"token_secret": f"projects/{PROJECT}/secrets/hf-token/versions/latest"},
    }
    return validated(Settings, {**base, **changes})


@dataclass
class Project:
    """The project: its emulators run while the test does, and what is made lies in `folder`."""

    folder: Path
    options: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    say: Callable[[str], None] | None = None
    """What hears of progress in the place of `said`."""
    _running: list[process.Process] = field(default_factory=list)
    url: str = ""
    registry: str = ""
    storage: str = ""

    def start(self) -> None:
        self.folder.mkdir(exist_ok=True)
        storage = process.start(
            "emulated_cloud.storage",
            *("--root", str(self.folder / "buckets"), "--bucket", BUCKET),
            log=self.folder / "storage.log",
        )
        token = self.folder / "token"
        token.write_text(TOKEN)
        images = process.start(
            "emulated_cloud.registry",
            *("--root", str(self.folder / "registry"), "--token", str(token)),
            *("--own", f"{PROJECT}/gemma-pipelines/.*"),
            log=self.folder / "registry.log",
        )
        config = {
            "project": {"id": PROJECT, "number": "123456789012"},
            "service_account": f"admin@{PROJECT}.iam.gserviceaccount.com",
            "token": TOKEN,
            "folder": str(self.folder / "project"),
            "registry": str(self.folder / "registry"),
            "logs": str(self.folder / "logging.jsonl"),
            "services": ON,
            **self.options,
            "cloudbuild": {"storage": storage.url, **self.options.get("cloudbuild", {})},
        }
        path = self.folder / "config.json"
        path.write_text(json.dumps(config))
        emulated = process.start(
            "emulated_cloud.google",
            "--config",
            str(path),
            log=self.folder / "google.log",
            env={"TMPDIR": str(self.folder)},
        )
        self._running = [storage, images, emulated]
        self.url, self.registry, self.storage = emulated.url, images.url, storage.url

    def stop(self) -> None:
        for each in reversed(self._running):
            each.stop()

    @property
    def environment(self) -> dict[str, str]:
        return {
            google.API_ENDPOINT: self.url,
            registry.REGISTRY_ENDPOINT: self.registry,
            "STORAGE_EMULATOR_HOST": self.storage,
        }

    def bootstrap(self, config: Settings | None = None, **options: Any) -> Report:
        return bootstrap(config or settings(), self.say or self.said.append, pace=PACE, **options)

    def script(self, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.url}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        faults = requests.get(f"{self.url}/_emulator/faults", timeout=60).json()
        return [fault["consumed"] for fault in faults]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        found = requests.request(method, f"{self.url}/{path}", headers=headers, json=body, timeout=60)
        found.raise_for_status()
        return found.json()

    def kept(self) -> dict[str, bytes]:
        """All that the project has, as its files: what a second run must not change."""
        return {path.name: path.read_bytes() for path in sorted((self.folder / "project").iterdir())}

    def builds(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("GET", f"v1/projects/{PROJECT}/locations/us-central1/builds").get(
            "builds", []
        )
        return found

    def objects(self) -> list[str]:
        found = requests.get(f"{self.storage}/storage/v1/b/{BUCKET}/o", timeout=60).json()
        return [item["name"] for item in found.get("items", [])]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Project]:
    """An empty project; `@pytest.mark.parametrize("project", [{…}], indirect=True)` changes its configuration."""
    there = Project(tmp_path / "site", getattr(request, "param", {}))
    there.start()
    plain = google.session

    def checked() -> Any:
        session = plain()
        for conformance, where in CONFORMANCES.values():
            conformance.watch(session, where)
        return session

    monkeypatch.setattr(google, "session", checked)
    monkeypatch.setattr(google, "credentials", lambda: Credentials(TOKEN))
    for name, value in there.environment.items():
        monkeypatch.setenv(name, value)
    yield there
    there.stop()
