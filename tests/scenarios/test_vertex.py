"""The pipelines on the emulated Vertex AI, as against the cloud: `emulators up`, `submit`, a schedule's nights."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from emulated_cloud.hub import models
from emulated_cloud.hub.models import write_gemma3
from emulated_cloud.hub.repository import Repository

from tests.scenarios.command import MODEL, SECONDS, Run

SETTINGS = {
    "scenario": "gcs-fuse",
    "project": "demo-project",
    "bucket": "demo-bucket",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
    "validation": {"concurrencies": [1], "requests_per_concurrency": 2},
    "serving": {"drain_seconds": 0},
    "schedule": {"cron": "0 3 * * *", "timezone": "Asia/Seoul"},
}


class Cloud:
    """An emulated cloud that is up, and commands that are sent to it."""

    def __init__(self, folder: Path):
        self.folder, self.state = folder, folder / "state"
        (folder / "gemma.yaml").write_text(yaml.safe_dump(SETTINGS))
        arguments = ("-f", "gemma.yaml", "--state", str(self.state), "--json")
        self.run = Run(*arguments, folder=folder, command=("emulators", "up"))
        self.environment: dict[str, str] = self.run.result()["environment"]

    def command(self, *words: str, code: int = 0) -> dict[str, Any]:
        """What a command printed that ended with this exit code."""
        run = Run("-f", "gemma.yaml", "--json", folder=self.folder, command=words, variables=self.environment)
        return run.finish(code)

    def release(self, change: Callable[[Path], object], weights: Path) -> None:
        """What the hub's main is from now on: these weights with a change."""
        folder = Path(shutil.copytree(weights, self.folder / f"release-{time.monotonic_ns()}"))
        change(folder)
        Repository(self.state / "tmp" / "hub", MODEL).commit(folder)

    def night(self) -> dict[str, Any]:
        """The report of the run that the schedule's next tick begins."""
        runs = self.state / "buckets" / "demo-bucket" / "objects" / "pipelines"
        before = set(runs.glob("*/report.json"))
        tick = self.command("schedule", "show")["next"][0]
        clock = f"{self.environment['GEMMA_PIPELINES_API_ENDPOINT']}/_emulator/clock"
        requests.post(clock, json={"time": tick}, timeout=60).raise_for_status()
        deadline = time.monotonic() + SECONDS
        while not (new := set(runs.glob("*/report.json")) - before):
            assert time.monotonic() < deadline, "no report came"
            time.sleep(0.5)
        return json.loads(new.pop().read_text())


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    cloud = Cloud(folder)
    yield cloud
    assert cloud.run.stop() == 0


def test_a_schedule_s_nights_promote_change_nothing_reject_and_promote(cloud: Cloud, tiny_gemma3: Path):
    assert cloud.command("bootstrap")["ready"]
    assert cloud.command("schedule", "apply")["drift"] == []
    first = cloud.night()
    assert (first["status"], first["error"]) == ("succeeded", None)

    unchanged = cloud.command("submit", "03", "--wait")
    assert (unchanged["state"], unchanged["run"]["status"]) == ("SUCCEEDED", "unchanged")
    assert unchanged["run"]["generation"] == first["generation"]
    assert unchanged["run"]["bytes_transferred"] == 0

    cloud.release(models.zero_weights, tiny_gemma3)
    rejected = cloud.night()
    assert (rejected["status"], rejected["error"]["step"]) == ("failed", "validate_server")

    again = cloud.command("submit", "03", "--wait", code=1)
    assert (again["state"], again["run"]["error"]["type"]) == ("FAILED", "RejectedBeforeError")

    cloud.release(lambda folder: write_gemma3(folder, seed=7), tiny_gemma3)
    second = cloud.night()
    assert second["status"] == "succeeded"
    assert second["generation"] not in (first["generation"], rejected["generation"])
