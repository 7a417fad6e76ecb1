"""How runs of scenario 05 end that do not go to their end, whole, with real Envoy: a cluster that lacks its kinds, a
release whose requests fail, too little traffic, a run that is killed in its canary. One cloud that is up, and runs on
Vertex AI, in this order; all generations are of one release, so that no weights move but the first run's.

Releases that take over, or are slower, are in test_inference_gateway.py.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from emulated_cloud import kubernetes
from emulated_cloud.cloud import wait_for

from serving import names
from tests.scenarios.behind_gateway import (
    COMMON,
    POOLS,
    RECORD,
    ROUTE,
    ROUTES,
    as_one,
    engine_environment,
    more,
    outcome,
    processes,
    shares,
    shares_of,
    submitted,
    text,
)
from tests.scenarios.command import MODEL, Traffic
from tests.scenarios.emulated import Cloud, held, up

WITH_OBJECTIVES = {**COMMON, "inference_gateway": {"objectives": {"batch": -1}}}
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
LACKING = ("inferencepools.inference.networking.k8s.io", "inferenceobjectives.llm-d.ai")
LEASE = "/apis/coordination.k8s.io/v1/namespaces/gemma/leases/gemma"
REFUSES = {
    "engine": {"extra_args": ["--max-num-seqs", "1", "--max-num-queued-reqs", "1"]},
    "patches": engine_environment(EMULATED_ENGINE_TOKENS_PER_SECOND="20"),
}
"""Answers 503 to whoever comes third, while one answer takes seconds."""
ANOTHER = {"engine": {"max_model_len": 2048}}
"""As good as the first one."""


class Entry:
    """All states of the HTTPRoute, as whoever watches it sees them."""

    def __init__(self, cloud: Cloud):
        self._cloud = cloud
        self._seen: list[dict[str, Any]] = []
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        for route in self._cloud.watch(f"{ROUTES}?fieldSelector=metadata.name%3Dgemma"):
            self._seen.append(route)

    @property
    def has_note(self) -> bool:
        """Whether a canary goes on."""
        return bool(self._seen) and _has_note(self._seen[-1])

    def states(self) -> list[tuple[dict[str, int], bool]]:
        """(weights, whether the note of a canary is there), of each state up to the one that is there now."""
        newest = self._cloud.ask(ROUTE)["metadata"]["resourceVersion"]
        assert wait_for(lambda: newest in [route["metadata"]["resourceVersion"] for route in [*self._seen]], 60)
        return [(shares_of(route), _has_note(route)) for route in [*self._seen]]


def _has_note(route: dict[str, Any]) -> bool:
    return names.CANARY in route["metadata"].get("annotations", {})


@pytest.fixture(scope="module")
def cloud(folder: Path) -> Iterator[Cloud]:
    with up(folder, **WITH_OBJECTIVES) as cloud:
        assert cloud.command("bootstrap")["ready"]
        yield cloud


@pytest.fixture(scope="module")
def entry(cloud: Cloud) -> Entry:
    return Entry(cloud)


@pytest.fixture(scope="module")
def endpoint(cloud: Cloud) -> Path:
    return cloud.state / "endpoint"


def is_whole(cloud: Cloud, entry: Entry, live: str, kept: set[str]) -> None:
    """Whether that generation alone serves, nothing is left of another but those that are kept at rest, and no state of
    the entry has lost a request: weights that add up, and two generations share them under a note alone."""
    assert shares(cloud) == {live: 100}
    assert not _has_note(cloud.ask(ROUTE))
    serving = [f"epp-{live}", f"vllm-{live}"]
    assert held(cloud) == {"lease": "", "jobs": [], "deployments": serving, "baking": []}
    servers = {f"vllm-{each}" for each in {live} | kept}
    assert {pool["metadata"]["name"] for pool in cloud.in_cluster(POOLS)} == servers
    deployments = cloud.in_cluster("/apis/apps/v1/namespaces/gemma/deployments")
    assert {each["metadata"]["name"] for each in deployments if each["metadata"]["name"].startswith("vllm-")} == servers
    assert [route["metadata"]["name"] for route in cloud.in_cluster(ROUTES)] == ["gemma"]
    for weights, has_note in entry.states():
        assert sum(weights.values()) == 100
        assert has_note == (len([weight for weight in weights.values() if weight]) == 2), weights


def test_a_cluster_without_its_kinds_is_told_what_brings_them_before_anything_is_spent(cloud: Cloud):
    folder = Path(kubernetes.__file__).parent / "crds"
    definitions = [yaml.safe_load(file.read_text()) for file in sorted(folder.glob("*.yaml"))]
    lacking = [each for each in definitions if each["metadata"]["name"] in LACKING]
    assert len(lacking) == len(LACKING)
    for name in LACKING:
        cloud.delete(f"{DEFINITIONS}/{name}")
    run = cloud.begin("submit", "05", "--wait")
    report = as_one(run.finish(code=1))
    assert (report["error"]["step"], report["error"]["type"]) == ("ensure_access", "RequestError")
    for words in (
        "the cluster gemma lacks InferencePool (inference.networking.k8s.io)",
        "`gcloud container clusters upgrade gemma --master --location us-central1",
        "and InferenceObjective (llm-d.ai), which inference_gateway.objectives are: `kubectl apply --server-side -f ",
    ):
        assert words in report["error"]["message"]
        assert words in run._text()
    assert held(cloud) == {"lease": "", "jobs": [], "deployments": [], "baking": []}
    assert not (cloud.state / "buckets" / "demo-bucket" / "objects" / "models").exists()
    for definition in lacking:
        cloud.apply(f"{DEFINITIONS}/{definition['metadata']['name']}", definition, "kubectl")


@pytest.fixture(scope="module")
def first(cloud: Cloud, entry: Entry, endpoint: Path) -> str:
    """The generation that serves first."""
    cloud.settings("gemma.yaml", **COMMON)
    report = submitted(cloud)
    assert wait_for(endpoint.exists, 120), "nobody answers through the Gateway"
    assert text(endpoint)
    return str(report["generation"])


def test_a_release_whose_requests_fail_goes_back_by_itself(cloud: Cloud, entry: Entry, first: str, endpoint: Path):
    canary = {**COMMON["canary"], "hold": "1h"}
    cloud.settings("gemma.yaml", **{**COMMON, **REFUSES, "canary": canary})
    run = cloud.begin("submit", "05", "--wait")
    assert wait_for(lambda: entry.has_note, 600)
    with Traffic(endpoint, MODEL, clients=8, pause=0.2) as traffic:
        assert wait_for(lambda: not entry.has_note, 600)
    failed = traffic.errors
    assert failed, "clients saw it"
    assert all("503" in error for error in failed), failed
    with Traffic(endpoint, MODEL) as traffic:
        assert wait_for(more(traffic, 20), 60)
    assert traffic.errors == [], "none since the requests went back"
    report = as_one(run.finish(code=1))

    (step,) = outcome(cloud, report, "promote_generation")["canary"]
    assert (step["verdict"], step["percent"]) == ("failed", 50)
    assert 0 < step["candidate"]["errors"] <= len(failed)
    assert step["live"]["errors"] == 0
    candidate, counted = report["generation"], step["candidate"]
    words = (
        f"{candidate} is worse than {first} with 50 % of the requests: {counted['errors']} of its "
        f"{counted['requests']} requests failed, and 0 of {step['live']['requests']} of {first}; "
        f"canary.max_error_rate allows 2.0% more. They are {first}'s again"
    )
    assert report["error"] == {"step": "promote_generation", "type": "ReleaseError", "message": words}
    assert f"promote_generation: {words}" in run._text()
    assert words in json.dumps(cloud.ask(RECORD)["data"])
    is_whole(cloud, entry, first, kept=set())


def test_with_too_little_traffic_to_tell_the_requests_go_back_where_the_settings_say_stop(
    cloud: Cloud, entry: Entry, first: str, endpoint: Path
):
    canary = {**COMMON["canary"], "hold": "1s", "little_traffic": "stop"}
    cloud.settings("gemma.yaml", **{**COMMON, **ANOTHER, "canary": canary})
    run = cloud.begin("submit", "05", "--wait")
    report = as_one(run.finish(code=1))
    candidate = report["generation"]
    assert candidate != first
    least = COMMON["canary"]["min_requests"]
    words = (
        f"too little traffic to tell with 50 % of the requests: {candidate} had 0 requests, fewer than "
        f"canary.min_requests ({least}). They are {first}'s again, as canary.little_traffic: stop has it; hold the "
        "steps longer (canary.hold), or ask for fewer requests (canary.min_requests)"
    )
    assert report["error"] == {"step": "promote_generation", "type": "TooLittleTrafficError", "message": words}
    assert f"promote_generation: {words}" in run._text()
    began = cloud.logged(f'jsonPayload.message:"sends 50 % of the requests to {candidate}"')
    assert len(began) == 1, "no further attempt holds the step again"
    (step,) = outcome(cloud, report, "promote_generation")["canary"]
    assert step["verdict"] == "too-little"
    assert candidate not in json.dumps(cloud.ask(RECORD)["data"]), "nobody holds the release guilty"
    assert text(endpoint)
    is_whole(cloud, entry, first, kept=set())


def test_a_run_that_is_killed_in_its_canary_is_completed_by_the_next_one(
    cloud: Cloud, entry: Entry, first: str, endpoint: Path
):
    """kill -9 of the step, whose next attempt goes on with it, then of the run, exit task and all. The one that
    completes it has too little traffic to tell, and goes on, as it does by default."""
    cloud.settings("gemma.yaml", **{**COMMON, **ANOTHER, "canary": {**COMMON["canary"], "hold": "1h"}})
    killed = {"task": "promote-generation", "after": "50 % to g.* of 60 min"}
    cloud.script({"action": "outcome", "path": "/pipelineJobs$", "outcome": killed})
    with Traffic(endpoint, MODEL, pause=0.5) as traffic:
        run = cloud.begin("submit", "05", "--wait")
        assert wait_for(lambda: bool(cloud.logged('jsonPayload.message:"an earlier attempt began step 1"')), 600)
        assert cloud.consumed() == [1], "the step was killed"
        (runner,) = processes(cloud, "aiplatform.runner")
        os.kill(runner, signal.SIGKILL)
        run.finish(code=1)
        assert "promote_generation: it ended without leaving an outcome" in run._text()
        weights = shares(cloud)
        (candidate,) = weights.keys() - {first}
        assert (weights, _has_note(cloud.ask(ROUTE))) == ({first: 50, candidate: 50}, True)
        assert wait_for(more(traffic), 60), "both serve on"

        ran_out = {"metadata": {"name": "gemma"}, "spec": {"renewTime": "2026-01-01T00:00:00.000000Z"}}
        cloud.apply(LEASE, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", **ran_out}, "clock")
        told = cloud.command("status")
        assert (told["canary"]["candidate"], told["canary"]["percent"], told["canary"]["alive"]) == (
            candidate,
            50,
            False,
        )
        (drift,) = [each for each in told["drift"] if each["what"] == "canary"]
        assert drift["command"] == "gemma-pipelines rollback -f FILE"
        assert drift["why"].endswith("the next run gives them back")

        canary = {**COMMON["canary"], "hold": "1s", "min_requests": 1_000_000}
        cloud.settings("gemma.yaml", **{**COMMON, **ANOTHER, "canary": canary})
        report = submitted(cloud)
    assert traffic.errors == []
    assert (report["status"], report["generation"]) == ("succeeded", candidate)
    assert f"the share of {candidate}" in outcome(cloud, report, "ensure_access")["changed"]
    promoted = outcome(cloud, report, "promote_generation")
    (step,), (warning,) = promoted["canary"], promoted["warnings"]
    assert step["verdict"] == "too-little"
    assert warning.startswith("too little traffic to tell with 50 % of the requests: ")
    assert promoted["message"] == f"{candidate} serves after 1 step of a canary, {warning}"
    page = next((cloud.state / "buckets").rglob(f"{report['id']}/report.html")).read_text()
    assert "too little traffic to tell with 50 % of the requests" in page
    is_whole(cloud, entry, candidate, kept={first})
