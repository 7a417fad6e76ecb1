"""Scenario 05 whole, with real Envoy: what clients see of it while adapters come and go, pickers and the proxy die, and
releases take over in steps, or do not. One cloud that is up, and runs on Vertex AI, in this order.

How canaries end that do not go to their end is in test_canary.py; a person's part in them, and engines that die, in
tests/contract/test_canary.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.cloud import wait_for
from emulated_cloud.hub import models
from emulated_cloud.hub.repository import Repository

from serving.rendering import render
from serving.settings import Settings, validated
from tests.scenarios import behind_gateway
from tests.scenarios.behind_gateway import (
    GATEWAY,
    RECORD,
    ROUTE,
    as_one,
    ask,
    engine_environment,
    more,
    outcome,
    processes,
    shares,
    submitted,
    text,
)
from tests.scenarios.command import MODEL, Traffic
from tests.scenarios.emulated import SETTINGS, Cloud, up

KOREAN, LEGAL, BROKEN = ("someone/gemma-ko-lora", "someone/gemma-legal-lora", "someone/gemma-broken-lora")
COMMON: dict[str, Any] = {
    **behind_gateway.COMMON,
    "adapters": {"korean": {"model": KOREAN}},
    "inference_gateway": {"objectives": {"batch": -1, "chat": 10}},
    "engine": {"extra_args": ["--max-num-seqs", "8"]},
}
SLOW = engine_environment(EMULATED_ENGINE_TOKENS_PER_SECOND="1")
"""A second to the first token."""
PICKER = "emulated_cloud.gateway.picker"


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    """A cloud whose hub has two adapters, and one that is another model's."""
    another, broken = folder / "another", folder / "broken"
    models.write_gemma4(another)
    models.write_lora_adapter(broken, another, base_name=MODEL)
    in_the_hub = {"korean": {"model": KOREAN}, "legal": {"model": LEGAL}, "broken": {"model": BROKEN}}
    with up(folder, **{**COMMON, "adapters": in_the_hub}) as cloud:
        Repository(cloud.state / "tmp" / "hub", BROKEN).commit(broken)
        cloud.settings("gemma.yaml", **COMMON)
        assert cloud.command("bootstrap")["ready"]
        yield cloud


@pytest.fixture(scope="module")
def endpoint(cloud: Cloud) -> Path:
    return cloud.state / "endpoint"


@pytest.fixture(scope="module")
def first(cloud: Cloud, endpoint: Path) -> dict[str, Any]:
    report = submitted(cloud)
    assert wait_for(endpoint.exists, 120), "nobody answers through the Gateway"
    return report


def settings() -> Settings:
    return validated(Settings, {**SETTINGS, **COMMON})


def pods(cloud: Cloud) -> dict[str, tuple[str, int]]:
    """The servers that run: name → uid and how often a container started again."""
    found = cloud.in_cluster("/api/v1/namespaces/gemma/pods?labelSelector=app.kubernetes.io%2Fname%3Dvllm")
    return {
        pod["metadata"]["name"]: (
            pod["metadata"]["uid"],
            sum(status["restartCount"] for status in pod["status"].get("containerStatuses", [])),
        )
        for pod in found
        if not pod["metadata"].get("deletionTimestamp")
    }


# -- adapters -----------------------------------------------------------------------------------------------


def test_the_base_and_its_adapter_answer_under_one_address(cloud: Cloud, first: dict[str, Any], endpoint: Path):
    assert (first["status"], first["error"]) == ("succeeded", None)
    assert text(endpoint) != text(endpoint, "korean")
    shed = outcome(cloud, first, "validate_server")["through"]["shed"]
    assert (shed["refused"], shed["served"], "not_shown" in shed) == (["batch"], ["", "chat"], False), shed
    nobody = ask(endpoint, "nobody")
    assert (nobody.status_code, nobody.json()["error"]["type"]) == (404, "NotFoundError")


def test_one_adapter_goes_and_another_comes_without_a_pod_restarted(
    cloud: Cloud, first: dict[str, Any], endpoint: Path
):
    before, base = pods(cloud), text(endpoint)
    cloud.settings("gemma.yaml", **{**COMMON, "adapters": {"legal": {"model": LEGAL}}})
    with Traffic(endpoint, MODEL, pause=0.3) as traffic:
        report = submitted(cloud)
    assert (report["status"], report["generation"]) == ("succeeded", first["generation"])
    assert pods(cloud) == before
    assert traffic.errors == []
    assert len(traffic.answers) > 10
    assert text(endpoint) == base
    assert text(endpoint, "legal") != base
    assert ask(endpoint, "korean").status_code == 404


def test_an_adapter_that_does_not_load_leaves_the_others(cloud: Cloud, first: dict[str, Any], endpoint: Path):
    before = pods(cloud)
    cloud.settings("gemma.yaml", **{**COMMON, "adapters": {"legal": {"model": LEGAL}, "broken": {"model": BROKEN}}})
    report = submitted(cloud, code=1)
    assert (report["status"], report["error"]["step"]) == ("failed", "deploy_server")
    assert "the adapter broken: " in report["error"]["message"]
    assert pods(cloud) == before
    assert text(endpoint, "legal")
    assert ask(endpoint, "broken").status_code == 404
    cloud.settings("gemma.yaml", **{**COMMON, "adapters": {"legal": {"model": LEGAL}}})


# -- the data plane -----------------------------------------------------------------------------------------


def test_a_picker_dies_another_is_frozen_and_the_proxy_dies(cloud: Cloud, first: dict[str, Any], endpoint: Path):
    """One of two pickers that dies costs the requests that it had; one that says nothing, those until its probe fails;
    the proxy, all until it is there again."""
    pickers = processes(cloud, PICKER)
    assert len(pickers) == 2
    with Traffic(endpoint, MODEL) as traffic:
        assert wait_for(more(traffic), 120)
        assert traffic.errors == []
        os.kill(pickers[0], signal.SIGKILL)
        assert wait_for(more(traffic, 20), 120)
        assert all("500" in error for error in traffic.errors), traffic.errors
        assert wait_for(lambda: ready_pickers(cloud, first["generation"]) == 2, 120)

        (frozen, *_) = processes(cloud, PICKER)
        os.kill(frozen, signal.SIGSTOP)
        try:
            assert wait_for(lambda: ready_pickers(cloud, first["generation"]) == 1, 120)
            assert wait_for(more(traffic, 10), 120), "what waited for it has ended"
            traffic.errors.clear()
            assert wait_for(more(traffic, 20), 120)
            assert traffic.errors == []
        finally:
            with contextlib.suppress(ProcessLookupError):  # Its liveness probe has ended it.
                os.kill(frozen, signal.SIGCONT)

        (proxy,) = processes(cloud, "envoy")
        os.kill(proxy, signal.SIGKILL)
        assert wait_for(lambda: traffic.errors != [], 120), "it was in use"
        assert wait_for(more(traffic), 120)
        traffic.errors.clear()
        assert wait_for(more(traffic, 20), 120)
        assert traffic.errors == []
    assert wait_for(lambda: ready_pickers(cloud, first["generation"]) == 2, 120)


def ready_pickers(cloud: Cloud, generation: str) -> int:
    there = cloud.ask(f"/apis/apps/v1/namespaces/gemma/deployments/epp-{generation}")
    return int(there["status"].get("readyReplicas", 0))


# -- releases -----------------------------------------------------------------------------------------------


def test_a_release_takes_over_in_steps_and_no_request_fails(
    cloud: Cloud, first: dict[str, Any], endpoint: Path, tiny_gemma3: Path
):
    cloud.release(lambda folder: models.write_gemma3(folder, seed=1), tiny_gemma3)
    with Traffic(endpoint, MODEL, clients=4, pause=0.2) as traffic:
        report = as_one(cloud.begin("submit", "05", "--wait").finish())
    assert report["status"] == "succeeded"
    assert report["generation"] != first["generation"]
    assert traffic.errors == []
    assert len({answer for _, answer in traffic.answers}) == 2, "the old and the new generation answered"
    (step,) = outcome(cloud, report, "promote_generation")["canary"]
    assert (step["verdict"], step["percent"], step["reasons"]) == ("passed", 50, [])
    assert step["candidate"]["requests"] >= 5
    assert step["candidate"]["errors"] == step["live"]["errors"] == 0
    page = next((cloud.state / "buckets").rglob(f"{report['id']}/report.html")).read_text()
    assert "<h2>Canary</h2>" in page
    assert f">{step['candidate']['requests']}<" in page
    assert shares(cloud) == {report["generation"]: 100}
    assert text(endpoint, "legal")


def test_a_release_that_is_slower_goes_back_by_itself(
    cloud: Cloud, first: dict[str, Any], endpoint: Path, tiny_gemma3: Path
):
    (live,) = shares(cloud)
    cloud.release(lambda folder: models.write_gemma3(folder, seed=2), tiny_gemma3)
    adapters = {"legal": {"model": LEGAL}}
    canary = {**COMMON["canary"], "hold": "1h", "max_p95_first_token_ratio": 2}  # It ends at the breach.
    cloud.settings("gemma.yaml", **{**COMMON, "adapters": adapters, "patches": SLOW, "canary": canary})
    run = cloud.begin("submit", "05", "--wait")
    run.wait_for("promote_generation: running")
    with Traffic(endpoint, MODEL, clients=6, max_tokens=2, pause=0.2) as traffic:
        report = as_one(run.finish(code=1))
    assert (report["status"], report["error"]["step"]) == ("failed", "promote_generation")
    assert "of its requests have their first token within" in report["error"]["message"]
    assert traffic.errors == []
    (step,) = outcome(cloud, report, "promote_generation")["canary"]
    assert step["verdict"] == "failed"
    assert step["candidate"]["p95_first_token_ms"] > 2 * step["live"]["p95_first_token_ms"]
    assert shares(cloud) == {live: 100}
    record = cloud.ask(RECORD)["data"]
    assert "of its requests have their first token within" in json.dumps(record)


def test_another_manager_of_the_route_is_named_and_left_alone(cloud: Cloud, first: dict[str, Any]):
    cloud.settings("gemma.yaml", **{**COMMON, "canary": {**COMMON["canary"], "hold": "1s"}})
    (live,) = shares(cloud)
    kept = first["generation"]
    body = render.entry(settings(), {live: 100})
    cloud.apply(ROUTE, body, "argocd-controller")
    refused = cloud.begin("promote", "--to", kept)
    refused.finish(2)
    assert "argocd-controller" in refused._text()
    assert "ignoreDifferences" in refused._text()
    assert "jsonPointers: [/spec/rules]" in refused._text()
    assert shares(cloud) == {live: 100}


def test_a_gateway_that_is_never_programmed_teaches_nothing(cloud: Cloud, first: dict[str, Any], tiny_gemma3: Path):
    """The last one: what serves is unreachable meanwhile."""
    words = "no proxy-only subnet"
    script(cloud, {"not_programmed": {"gemma": words}})
    touched = {"metadata": {"name": "gemma", "namespace": "gemma", "annotations": {"team": "network"}}}
    kind = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway"}
    cloud.apply(GATEWAY, {**kind, **touched}, "kubectl")  # Its controller looks at it again.
    assert wait_for(lambda: not cloud.ask(GATEWAY)["status"].get("addresses"), 120)
    cloud.release(lambda folder: shutil.copytree(tiny_gemma3, folder, dirs_exist_ok=True), tiny_gemma3)
    cloud.settings("gemma.yaml", **{**COMMON, "engine": {"max_model_len": 2048}, "gateway": {"timeout": "20s"}})
    report = submitted(cloud, code=1)
    assert (report["error"]["step"], report["error"]["type"]) == ("deploy_server", "InconclusiveError")
    assert f"Gateway gemma is not Programmed (Invalid: {words})" in report["error"]["message"]
    assert "describe gateway gemma" in report["error"]["message"]
    consumed = json.loads((cloud.state / "tmp" / "gke.json.gateways-consumed").read_text())
    assert consumed["not_programmed"]["gemma"] > 0
    script(cloud, {})


def script(cloud: Cloud, faults: dict[str, Any]) -> None:
    file = cloud.state / "tmp" / "gke.json"
    new = file.with_name(".gke.json")
    new.write_text(json.dumps({**json.loads(file.read_text()), "gateway_faults": faults}))
    new.replace(file)
