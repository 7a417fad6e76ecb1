"""What Vertex AI is asked to run, once or on a schedule: compared with golden files, judged by its own document.

`make golden` writes them again.
"""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.compile import specification
from pipelines.vertex import request, schedule
from serving.scenarios import SCENARIOS, find
from serving.settings import Settings, validated
from tests.contract.discovery import Conformance, _validate

GOLDEN = Path(__file__).parent / "vertex"
IMAGE = "us-central1-docker.pkg.dev/demo-project/gemma-gke-pipelines/python-components@sha256:" + "1" * 64
NOW = datetime.datetime(2026, 11, 29, tzinfo=datetime.UTC)
HOUSE_RULES = {
    "location": "europe-west4-a",
    "pipeline_root": "gs://other-bucket/runs",
    "pipeline_service_account": "refresher@demo-project.iam.gserviceaccount.com",
    "vertex": {
        "network_attachment": "projects/host-project/regions/europe-west4/networkAttachments/pipelines",
        "dns_peering": [{"domain": "corp.internal.", "project": "host-project", "network": "shared"}],
        "kms_key": "projects/demo-project/locations/europe-west4/keyRings/r/cryptoKeys/k",
        "labels": {"team": "assistants", "cost-center": "a1"},
    },
    "schedule": {
        "cron": "30 2 * * mon-fri",
        "timezone": "Asia/Seoul",
        "start": "2027-01-01T00:00:00+09:00",
        "end": "2028-01-01T00:00:00+09:00",
    },
}
DEPLOYMENTS: dict[str, dict[str, Any]] = {
    **{scenario.name: {"scenario": scenario.name} for scenario in SCENARIOS},
    "house-rules": {"scenario": "gcs-fuse", **HOUSE_RULES},
    "peered": {"scenario": "gcs-fuse", "vertex": {"network": "projects/1/global/networks/shared"}},
}


def settings_of(name: str) -> Settings:
    return validated(Settings, {"project": "demo-project", "bucket": "demo-bucket", **DEPLOYMENTS[name]})


def job_of(settings: Settings) -> dict[str, Any]:
    return request.pipeline_job(settings, specification(find(settings.scenario), IMAGE, settings.features))


def wanted(settings: Settings) -> dict[str, Any]:
    parent = f"projects/{settings.project}/locations/{settings.vertex_location}"
    return schedule.wanted(settings, job_of(settings), parent, NOW)


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_requests_are_those_of_the_golden_files(name: str, update_golden: bool):
    settings = settings_of(name)
    made: dict[str, Any] = {"pipelineJob": job_of(settings)}
    document = Conformance("aiplatform", "v1")
    _validate("GoogleCloudAiplatformV1PipelineJob", document._requests, made["pipelineJob"], "job")
    if settings.schedule.cron:
        made["schedule"] = wanted(settings)
        _validate("GoogleCloudAiplatformV1Schedule", document._requests, made["schedule"], "schedule")
        assert made["schedule"]["createPipelineJobRequest"].pop("pipelineJob") == made["pipelineJob"]
    made["pipelineJob"]["pipelineSpec"] = "(tests/golden/pipelines)"
    # It is of the specification too, whose own golden file it must not double.
    made["pipelineJob"]["labels"]["gemma-spec"] = "(a digest)"
    text = json.dumps(made, indent=2) + "\n"
    path = GOLDEN / f"{name}.json"
    if update_golden:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.read_text() == text, "run: make golden"


def test_there_is_no_golden_file_of_nothing():
    assert {path.stem for path in GOLDEN.iterdir()} == DEPLOYMENTS.keys()


def test_the_digest_is_of_all_but_labels():
    first = job_of(settings_of("gcs-fuse"))
    labelled = job_of(validated(Settings, {**settings_of("gcs-fuse").as_struct(), "vertex": {"labels": {"a": "b"}}}))
    other = job_of(validated(Settings, {**settings_of("gcs-fuse").as_struct(), "revision": "v2"}))
    assert first["labels"]["gemma-spec"] == labelled["labels"]["gemma-spec"] != other["labels"]["gemma-spec"]
    assert labelled["labels"]["a"] == "b"


def test_another_hour_is_not_another_run():
    night = validated(Settings, {**settings_of("gcs-fuse").as_struct(), "schedule": {"cron": "0 3 * * *"}})
    assert job_of(night) == job_of(settings_of("gcs-fuse"))


def test_an_id_is_a_legal_one_and_another_each_time():
    job = job_of(settings_of("secondary-boot-disk"))
    first, second = (request.job_id(job, NOW) for _ in range(2))
    assert first != second
    assert first.startswith("gemma-secondary-boot-disk-20261129000000-")
    assert len(first) <= 63


def test_nothing_is_cached_and_nobody_s_account_is_taken():
    job = job_of(settings_of("gcs-fuse"))
    assert job["serviceAccount"] == "gemma-pipelines@demo-project.iam.gserviceaccount.com"
    assert '"enableCache": true' not in json.dumps(job)
    assert job["runtimeConfig"]["failurePolicy"] == "PIPELINE_FAILURE_POLICY_FAIL_SLOW"
