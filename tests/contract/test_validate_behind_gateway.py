"""validate_server through a Gateway: a real Envoy with a certificate, and pickers that know priorities.

One generation, which nobody but validation asks, is deployed for all of it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import Cloud
from emulated_cloud.hub import models

from components.validate_server import shedding
from components.validate_server import step as validate_server
from serving.clients import storage
from serving.settings import Settings, override
from serving.weights.release import Release
from serving.weights.repositories import ADAPTERS_FOLDER
from tests.contract import jobs_site
from tests.contract.test_deploy_behind_gateway import VALUES, Behind

HOST, OTHER = "gemma.example.com", "other.example.com"
KEY = "what-clients-have-to-show"
CHANGES: dict[str, Any] = {
    "adapters": {"korean": {"model": "someone/gemma-ko-lora"}},
    "engine": {
        "api_key_secret": "projects/demo-project/secrets/api-key/versions/latest",
        "max_model_len": 512,
        "extra_args": ["--max-num-seqs", "2"],
    },
    "gateway": {"certificate": "demo", "host": HOST, "timeout": "60s"},
    "inference_gateway": {"objectives": {"batch": -1, "chat": 10}},
    "validation": {"concurrencies": [1], "requests_per_concurrency": 2, "max_tokens": 4, "load_max_tokens": 4},
}

pytestmark = pytest.mark.timeout(600)


class Validated(Behind):
    """A deployment whose generation is validated."""

    def release(self, settings: Settings) -> Release:
        return super().release(settings).model_copy(update={"max_lora_rank": 8})

    def validate(self, release: Release) -> dict[str, Any]:
        """The outcome, whatever it is."""
        settings = self.settings()
        try:
            validate_server.run(settings.as_struct(), release.model_dump(), True, [])
        except SystemExit:
            pass
        return self.outcome(release, "validate_server")


@pytest.fixture(scope="module")
def emulated_cloud(
    tmp_path_factory: pytest.TempPathFactory, tiny_gemma3: Path, emulated_cloud_options: dict[str, Any]
) -> Iterator[Cloud]:
    with jobs_site.up(
        tmp_path_factory.mktemp("validated"), tiny_gemma3, secrets={"api-key": KEY}, **emulated_cloud_options
    ) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def kept() -> list[tuple[Validated, Release]]:
    """The deployment of all tests, once there is one."""
    return []


@pytest.fixture
def deployed(
    kept: list[tuple[Validated, Release]],
    cloud_environment: dict[str, str],
    tiny_gemma3: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Validated, Release]:
    """A candidate that is ready."""
    if not kept:
        made = Validated(override({**VALUES, **CHANGES}, [f"namespace=t{uuid.uuid4().hex[:8]}"]), tiny_gemma3)
        made.administer()
        release = made.release(made.settings())
        made.upload(release)
        adapter = tmp_path_factory.mktemp("korean")
        models.write_lora_adapter(adapter, tiny_gemma3)
        for path in sorted(adapter.iterdir()):
            uri = f"{release.weights_uri}/{ADAPTERS_FOLDER}/korean/{path.name}"
            storage.write_bytes(uri, path.read_bytes(), content_type="application/octet-stream")
        passed, reasons, _ = made.deploy(made.settings(), release)
        assert (passed, reasons) == (True, [])
        kept.append((made, release))
    return kept[0]


def test_over_https_model_and_adapter_answer_whoever_has_the_key_and_priorities_count(
    deployed: tuple[Validated, Release],
):
    site, release = deployed
    outcome = site.validate(release)
    assert outcome["status"] == "succeeded", outcome["message"]
    through = outcome["through"]
    assert (through["problems"], through["warnings"], through["key"]) == ([], [], "sent")
    assert through["asked"] == [site.settings().model, "korean"]
    shed = through["shed"]
    assert (shed["refused"], shed["served"], shed["pods"]) == (["batch"], ["", "chat"], 1)
    assert shed["waiting"] >= shedding.FULL
    assert "not_shown" not in shed
    for kind in ("HTTPRoute", "InferenceObjective"):
        assert site.cluster.list(kind, site.settings().namespace) == [], "its own, as long as it was asked"
    assert KEY not in json.dumps(outcome)


def test_a_certificate_for_another_host_is_told_and_teaches_nothing(
    deployed: tuple[Validated, Release], emulated_cloud: Cloud
):
    site, release = deployed
    name = site.settings().name
    script(emulated_cloud, {"certificate_of": {name: OTHER}})
    try:
        site.values = override(site.values, ["gateway.timeout=5s"])
        outcome = site.validate(release)
    finally:
        script(emulated_cloud, {})
    assert outcome["status"] == "inconclusive"
    assert f"certificate is not valid for '{HOST}'" in outcome["message"]
    assert "The API key was not sent" in outcome["message"]
    assert consumed(emulated_cloud)["certificate_of"][name] > 0


def script(cloud: Cloud, faults: dict[str, Any]) -> None:
    file = cloud.folder / "tmp" / "gke.json"
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps({**json.loads(file.read_text()), "gateway_faults": faults}))
    os.replace(beside, file)


def consumed(cloud: Cloud) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cloud.folder / "tmp" / "gke.json.gateways-consumed").read_text())
    return found
