"""The pipelines on the emulated Vertex AI, as against the cloud: `emulators up`, `submit`, a schedule's nights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.hub import models
from emulated_cloud.hub.models import write_gemma3

from tests.scenarios.emulated import Cloud


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
