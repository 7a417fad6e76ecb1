"""No token, no upload session and no signed link reaches a log or an outcome, however loud a library is told to be.

One transfer as the step does it, with a fault on each side and a token out of Secret Manager, in a process whose every
logger is open and whose environment asks the libraries for all they have. It is run twice: as it is, and with what
silences the libraries taken out: then signed links are there to be read, so that the search is known to find one.
"""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud.cloud import Cloud

from serving.settings import Settings, validated
from tests.contract.transfer_site import MIB, write_release

MODEL = "test/secret"
HUB_TOKEN = "hf_" + "kXqWvZrTgBnYhUjM" * 2
LOUD = {"GOOGLE_SDK_PYTHON_LOGGING_SCOPE": "google", "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug"}

# The step's own way through recorded(), without a cluster for the Lease.
CHILD = """
import json, logging, sys
settings, commit, silenced = json.load(sys.stdin)
logging.basicConfig(level=1, stream=sys.stderr)
from google.api_core import client_logging
client_logging.initialize_logging()  # What the environment asks of Google's clients, before any of them is made.
from serving import log
from serving.weights import checkpoint, identity
from serving.clients import hub
from components.download_weights.step import bring
from components.download_weights.transfer import Limits
from serving.outcome import recorded
from serving.weights.release import Release
from serving.settings import Settings
if not silenced:
    log.silence_libraries = lambda: None
settings = Settings(**settings)
with recorded("download_weights", settings.pipeline_root, "run-1") as outcome:
    chosen = checkpoint.select(hub.of(settings).at(settings.model, commit))
    key = identity.weights_key([("base", chosen.served)])
    uri = f"gs://{settings.bucket}/models/{settings.model}/{key}"
    release = Release(
        run_id="run-1", model=settings.model, commit=commit, weights_key=key, weights_uri=uri, generation="g0"
    )
    for name in list(logging.root.manager.loggerDict):
        logging.getLogger(name).setLevel(1)
    sent = bring(settings, release, outcome.say, Limits(threads=4, stall_seconds=1, report_seconds=0.2))
    outcome.succeeded(f"moved {sent} bytes")
"""


class Transfer:
    """A transfer in a cloud of its own: what it wrote, and the secrets that it used."""

    def __init__(self, cloud: Cloud, *, silenced: bool):
        commit = requests.get(f"{cloud.url('hub')}/api/models/{MODEL}", timeout=60).json()["sha"]
        cdn = {"method": "GET", "path": "^/cdn/", "after_bytes": 2 * MIB}
        put = {"method": "PUT", "path": "upload_id="}
        faults: dict[str, list[dict[str, Any]]] = {
            "hub": [{"action": "reset", **cdn}, {"action": "status", "status": 403, **cdn}],
            "storage": [
                {"action": "status", "status": 503, **put},
                {"action": "reset", **put, "after_bytes": MIB},
                {"action": "corrupt", **put, "after_bytes": MIB},
            ],
        }
        for emulator, scripted in faults.items():
            requests.post(f"{cloud.url(emulator)}/_emulator/faults", json=scripted, timeout=60).raise_for_status()
        self.settings = settings()
        self.child = subprocess.run(
            [sys.executable, "-c", CHILD],
            input=json.dumps([self.settings.model_dump(mode="json"), commit, silenced]),
            capture_output=True,
            text=True,
            env={**cloud.environment, **LOUD},
            timeout=120,
        )
        assert self.child.returncode == 0, self.child.stderr[-3000:]
        for emulator in faults:
            found = requests.get(f"{cloud.url(emulator)}/_emulator/faults", timeout=60).json()
            assert [fault["consumed"] for fault in found] == [1] * len(found)
        self.cloud = cloud

    def secrets(self) -> dict[str, list[str]]:
        """What was used on the wire, by what it is."""
        uploads = self.cloud.folder / "buckets" / self.settings.bucket / "uploads"
        sessions = [json.loads(file.read_bytes()) for file in uploads.glob("*.json")]
        config = json.loads((self.cloud.folder / "tmp" / "google.json").read_bytes())
        assert len(sessions) >= 3  # Two shards, and one that was started over.
        assert [
            entry for entry in self.cloud.requests("google") if entry["path"].rpartition("?")[0].endswith(":access")
        ]
        resolved = [entry for entry in self.cloud.requests("hub") if "/resolve/" in entry["path"]]
        assert {entry["user"] for entry in resolved} == {"reader"}
        return {
            "hub token": [HUB_TOKEN, base64.b64encode(HUB_TOKEN.encode()).decode()],
            "access token": [config["token"]],
            "upload session": [session["id"] for session in sessions],
        }

    def written(self) -> dict[str, str]:
        """Everything that anybody may read afterwards, by what it is: all logs, and all objects but the private ones
        that remember sessions."""
        texts = {"stdout": self.child.stdout, "stderr": self.child.stderr}
        for file in [*self.cloud.folder.glob("logs/*"), *self.cloud.folder.glob("tmp/*.requests")]:
            texts[file.name] = file.read_text()
        objects = self.cloud.folder / "buckets" / self.settings.bucket / "objects"
        for file in objects.rglob("*.json"):
            texts[str(file.relative_to(objects))] = file.read_text()
        assert "pipelines/run-1/steps/download_weights.json" in texts
        assert {"hub.requests", "storage.requests", "storage.log"} <= set(texts)
        return texts


def settings() -> Settings:
    values = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket", "model": MODEL}
    secret = "projects/demo-project/secrets/hf-token/versions/latest"
    return validated(Settings, {**values, "hub": {"token_secret": secret}})


def leaks(transfer: Transfer) -> set[tuple[str, str]]:
    """(what, where) of each secret that can be read."""
    found = set()
    for where, text in transfer.written().items():
        for what, values in transfer.secrets().items():
            if any(value in text for value in values):
                found.add((what, where))
        if re.search(r"Signature=[0-9A-Za-z]", text):
            found.add(("signed link", where))
    return found


@pytest.fixture
def cloud(new_cloud, tmp_path: Path) -> Cloud:
    write_release(tmp_path / "release")
    return new_cloud(repositories={MODEL: tmp_path / "release"}, secrets={"hf-token": HUB_TOKEN})


def test_no_secret_is_written_down_with_every_library_at_debug(cloud: Cloud):
    transfer = Transfer(cloud, silenced=True)
    assert leaks(transfer) == set()
    assert '"message": "moved ' in transfer.child.stdout


def test_without_the_silence_a_library_tells_signed_links(cloud: Cloud):
    assert ("signed link", "stderr") in leaks(Transfer(cloud, silenced=False))
