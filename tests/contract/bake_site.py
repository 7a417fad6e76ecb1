"""Where disk images are baked: an emulated Compute Engine that acts out what its machines say, a bucket, a registry.

Every exchange of our client with Compute Engine is held against its discovery document.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from google.oauth2.credentials import Credentials

from components.bake_disk_image import bodies
from components.bake_disk_image.step import Baking, Pace
from serving import names
from serving.clients import google, registry, storage
from serving.clients.compute import Compute
from serving.settings import Settings, validated
from serving.weights.release import Release
from tests.contract.discovery import Conformance
from tests.contract.registry_service import TAR, Registry, there
from tests.unit.deployment import RELEASE

__all__ = ["there"]

CONFORMANCE = Conformance("compute", "v1")
PROJECT = "demo-project"
TOKEN = "a-token-that-nobody-guesses"
ZONES = [f"us-central1-{letter}" for letter in "abc"]
DONE = f"GP-BAKE done {'ab' * 32}"
WORKS = ["GP-BAKE heartbeat 0", "GP-BAKE progress 40 layer 1 of 2", "GP-BAKE progress 90 layer 2 of 2", DONE]
"""What a machine says when all goes well."""
PACE = Pace(look=0.02, start=20.0, silence=20.0)
IMPATIENT = Pace(look=0.02, start=1.5, silence=1.5)
PLACEHOLDER = "#!/usr/bin/python3\nprint('this emulator does not run it')\n"

MACHINES = f"projects/{PROJECT}/zones/[^/]+/instances$"
IMAGES = f"projects/{PROJECT}/global/images$"


def settings(**changes: Any) -> Settings:
    """The deployment's settings, with changes of its section."""
    return validated(
        Settings,
        {
            "scenario": "gcs-fuse",
            "features": ["secondary-boot-disk"],
            "project": PROJECT,
            "bucket": "demo-bucket",
            "engine": {"image": "vllm/vllm-openai:v0.33.0"},
            "secondary_boot_disk": {"timeout": "10m", **changes.pop("section", {})},
            **changes,
        },
    )


def until(found: Callable[[], Any], seconds: float = 120) -> Any:
    """What is found, as soon as something is."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return value


@dataclass
class Site:
    """Compute Engine, as one deployment sees it."""

    folder: Path
    registry: Registry
    url: str
    digest: str
    """Of the engine image's manifest."""
    said: list[str] = field(default_factory=list)
    test: str = field(default_factory=lambda: uuid.uuid4().hex[:8])

    def release(self, config: Settings, run_id: str) -> Release:
        """The release of what the registry has."""
        reference = registry.parse(config.engine.image or "")
        image = f"{reference.host}/{reference.repository}@{self.digest}"
        section = config.section("secondary-boot-disk")
        name = names.disk_image_name(config, [image], architecture=section.architecture, kms_key=section.kms_key)
        # No two tests have one run: it would be asking for the same again.
        run_id = f"{run_id}-{self.test}"
        return RELEASE.model_copy(update={"run_id": run_id, "image_digest": self.digest, "disk_image": name})

    def baking(self, config: Settings | None = None, run_id: str = "run-1", pace: Pace = PACE) -> Baking:
        config = config or settings()
        return Baking(Compute(PROJECT), config, self.release(config, run_id), self.said.append, pace)

    def bake(self, config: Settings | None = None, run_id: str = "run-1", pace: Pace = PACE) -> bool:
        return self.baking(config, run_id, pace).bake()

    # -- what is there ----------------------------------------------------------------------------------------

    def ask(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        found = requests.get(f"{self.url}/compute/v1/projects/{PROJECT}/{path}", headers=headers, timeout=60)
        found.raise_for_status()
        return found.json()

    def there(self) -> dict[str, str]:
        """Every machine, disk and image that there is (`kind/name`), with its status."""
        found = {}
        for kind in ("instances", "disks"):
            for scope in self.ask(f"aggregated/{kind}")["items"].values():
                found |= {f"{kind}/{each['name']}": each["status"] for each in scope.get(kind, [])}
        for each in self.ask("global/images").get("items", []):
            found[f"images/{each['name']}"] = each["status"]
        return found

    def image(self, name: str) -> Any:
        return self.ask(f"global/images/{name}")

    def machine(self) -> Any:
        """The one machine that there is; None without."""
        scopes = self.ask("aggregated/instances")["items"].values()
        return next((each for scope in scopes for each in scope.get("instances", [])), None)

    def writes(self) -> list[str]:
        """What was asked of Compute Engine that changes something, `METHOD path`."""
        log = requests.get(f"{self.url}/_emulator/requests", timeout=60).json()
        made = (f"{each['method']} {each['path'].partition('?')[0]}" for each in log if each["method"] != "GET")
        return [each for each in made if "/compute/v1/" in each and not each.endswith("/wait")]

    def clear(self) -> None:
        """Takes everything away, whoever's it is."""
        self.script()
        for kind in ("instances", "disks"):
            for scope, found in self.ask(f"aggregated/{kind}")["items"].items():
                for each in found.get(kind, []):
                    if kind == "instances" or not each.get("users"):
                        self.delete(f"{scope}/{kind}/{each['name']}")
        for each in self.ask("global/images").get("items", []):
            self.delete(f"global/images/{each['name']}")
        for uri in storage.list_uris("gs://demo-bucket/"):
            storage.delete(uri)
        until(lambda: not self.there())

    def delete(self, path: str) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        url = f"{self.url}/compute/v1/projects/{PROJECT}/{path}"
        assert requests.delete(url, headers=headers, timeout=60).status_code in (200, 404)

    # -- what is to go wrong ----------------------------------------------------------------------------------

    def outcome(self, method: str, path: str, **outcome: Any) -> dict[str, Any]:
        """What becomes of a request after its answer."""
        return {"action": "outcome", "method": method, "path": path, "outcome": outcome}

    def script(self, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.url}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        return [each["consumed"] for each in requests.get(f"{self.url}/_emulator/faults", timeout=60).json()]

    def in_a_child(self, work: Callable[[], None]) -> multiprocessing.Process:
        """Runs `work` in a process of its own, which has all that this one has imported."""
        child = multiprocessing.get_context("fork").Process(target=work)
        child.start()
        return child


@dataclass
class Emulators:
    """Compute Engine and a bucket, as processes."""

    folder: Path
    compute: process.Process
    storage: process.Process

    def stop(self) -> None:
        self.compute.stop()
        self.storage.stop()
        log = self.folder / "google.log"
        assert not log.exists() or log.read_text() == "", log.read_text()


def started(folder: Path, **compute: Any) -> Emulators:
    """New emulators; `compute`: what they are told of Compute Engine."""
    config = {
        "project": {"id": PROJECT, "number": "123456789012"},
        "service_account": f"runner@{PROJECT}.iam.gserviceaccount.com",
        "token": TOKEN,
        "compute": {
            "folder": str(folder / "compute"),
            "zones": ZONES,
            "run_scripts": False,
            "script_output": WORKS,
            **compute,
        },
    }
    path = folder / "google.json"
    path.write_text(json.dumps(config))
    arguments = ("--config", str(path), "--request-log", str(folder / "requests.jsonl"))
    bucket = ("--root", str(folder / "storage"), "--bucket", "demo-bucket")
    return Emulators(
        folder,
        process.start("emulated_cloud.google", *arguments, log=folder / "google.log"),
        process.start("emulated_cloud.storage", *bucket, log=folder / "storage.log"),
    )


@pytest.fixture(scope="module")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulators]:
    """Those of all tests of a file."""
    found = started(tmp_path_factory.mktemp("bake"))
    yield found
    found.stop()


@pytest.fixture
def site(emulators: Emulators, there: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty one."""
    found = site_of(emulators, there, monkeypatch)
    yield found
    found.clear()


def site_of(emulators: Emulators, there: Registry, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv(google.API_ENDPOINT, emulators.compute.url)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", emulators.storage.url)
    monkeypatch.setattr(google, "credentials", lambda: Credentials(TOKEN))
    monkeypatch.setattr(bodies, "script", lambda: PLACEHOLDER)
    plain = google.client_of

    def watched(kind: Any) -> Any:
        client = plain(kind)
        CONFORMANCE.watch(client.transport._session)
        return client

    monkeypatch.setattr(google, "client_of", watched)
    digest = there.put_image("v0.33.0", TAR, b"second")["digest"]
    return Site(emulators.folder, there, emulators.compute.url, digest)
