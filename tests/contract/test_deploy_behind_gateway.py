"""deploy_server of scenario 05: a generation behind a Gateway comes up, or is told why it does not."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for

from components.deploy_server import step as deploy_server
from components.deploy_server.diagnosis import Patience
from serving import names
from serving.clients import kubernetes, proxies
from serving.clients.kubernetes import Cluster
from serving.deployment import gateway, record, traffic
from serving.rendering import render
from serving.settings import Settings, override
from serving.weights.release import Release
from tests.contract.test_deploy_server import Site

VALUES = {
    "scenario": "inference-gateway",
    "features": ["-live-adapters"],
    "project": "demo-project",
    "bucket": "demo-bucket",
    "endpoint": "ip",
    "inference_gateway": {"objectives": {"batch": -1}},
}


class Behind(Site):
    """A deployment behind a Gateway."""

    def release(self, settings: Settings) -> Release:
        # What its generation is called does not depend on where proxies call from.
        named = settings.section("gateway").model_copy(update={"proxy_ranges": ["10.129.0.0/23"]})
        made = super().release(settings.model_copy(update={"gateway": named}))
        return made.model_copy(update={"proxy_ranges": proxies.ranges(settings)})

    @property
    def cluster(self) -> Cluster:
        return kubernetes.connect(self.settings())

    def administer(self) -> None:
        """As an administrator does it before the first run."""
        for item in render.admin(self.settings()):
            self.cluster.apply(item)


@pytest.fixture
def site(cloud_environment: dict[str, str], tiny_gemma3: Path) -> Iterator[Behind]:
    changes = [f"namespace=t{uuid.uuid4().hex[:8]}", "engine.max_model_len=512", "serving.request_timeout=5s"]
    made = Behind(override(VALUES, changes), tiny_gemma3)
    yield made
    if namespace := made.cluster.get("Namespace", made.settings().namespace):
        made.cluster.delete(namespace)
    for volume in made.cluster.list("PersistentVolume", labels=names.DEPLOYMENT):
        if volume["spec"]["claimRef"]["namespace"] == made.settings().namespace:
            made.cluster.delete(volume)


@pytest.fixture
def faults(emulated_cloud: Any) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Scripts what goes wrong with Gateways."""
    file = emulated_cloud.folder / "tmp" / "gke.json"

    def script(faults: dict[str, Any]) -> None:
        beside = file.with_suffix(".new")
        beside.write_text(json.dumps({**json.loads(file.read_text()), "gateway_faults": faults}))
        os.replace(beside, file)

    yield script
    script({})


def test_from_nothing_to_a_generation_that_a_gateway_can_send_requests_to(site: Behind):
    site.administer()
    settings = site.settings()
    release = site.release(settings)
    site.upload(release)
    passed, reasons, outcome = site.deploy(settings, release)
    assert (passed, reasons, outcome["status"]) == (True, [], "succeeded")
    assert gateway.picker_is_ready(site.cluster, settings, release.generation)
    assert gateway.problems(site.cluster, settings) == []
    assert gateway.address(site.cluster, settings).startswith("http://")
    _, _, again = site.deploy(settings, release)
    assert again["status"] == "skipped", "the second time nothing is written"

    known = record.read(site.cluster, settings)
    traffic.move(site.cluster, settings, known, release.generation, run_id="run-1", say=print)
    gateway.wait_until_well(site.cluster, settings, [release.generation], print)
    assert gateway.amiss(site.cluster, settings, release.generation) == ""

    # A missing picker shows in the pool's status alone.
    site.cluster.delete({**site.cluster.get("Service", names.picker(release.generation), settings.namespace)})
    found: list[str] = []

    def seen() -> bool:
        found[:] = gateway.problems(site.cluster, settings, [release.generation])
        return bool(found)

    assert wait_for(seen, 120)
    assert [line.partition(" is not ")[0] for line in found] == [f"InferencePool {names.server(release.generation)}"]
    assert "the Service of its endpoint picker is missing" in found[0]


def test_a_picker_without_its_account_is_told_with_what_an_administrator_does(
    site: Behind, monkeypatch: pytest.MonkeyPatch
):
    settings = site.settings()
    monkeypatch.setattr(deploy_server, "patience_of", lambda settings: Patience(capacity=60, ready=60, create=1))
    release = site.release(settings)
    site.upload(release)
    outcome = site.broken_off(settings, release)  # It is no verdict on the release.
    assert "gemma-epp" in outcome["message"]
    assert "render inference-gateway -f FILE --access" in outcome["message"]


def test_a_gateway_that_is_never_programmed_says_nothing_of_the_release(
    site: Behind, faults: Callable[[dict[str, Any]], None], emulated_cloud: Any
):
    site.administer()
    settings = site.settings("gateway.timeout=20s", "name=front")
    words = "An active proxy-only subnetwork is required in the same region and VPC"
    faults({"not_programmed": {"front": words}})
    release = site.release(settings)
    site.upload(release)
    for item in render.admin(settings):
        site.cluster.apply(item)
    outcome = site.broken_off(settings, release)
    assert outcome["status"] == "inconclusive"
    assert f"Gateway front is not Programmed (Invalid: {words})" in outcome["message"]
    assert "kubectl" in outcome["message"]
    consumed = json.loads((emulated_cloud.folder / "tmp" / "gke.json.gateways-consumed").read_text())
    assert consumed["not_programmed"]["front"] > 0
