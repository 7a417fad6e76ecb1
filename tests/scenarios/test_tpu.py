"""Scenario 06 on Spot nodes, which go in the middle of requests: what users see, and what a refresh makes of it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from emulated_cloud.hub import models
from emulated_cloud.kubernetes.gke.preemption import ANNOTATION
from kubernetes import client
from kubernetes.config import new_client_from_config

from serving.scenarios import Scenario, find
from tests.scenarios.command import MODEL, SECONDS, Run, Site

NAMESPACE = "gemma"
PATIENT = {"name": "EMULATED_ENGINE_TOKENS_PER_SECOND", "value": "64"}
"""An engine as slow as this has a request in the works whenever a node goes."""
CONTAINER = {"containers": [{"name": "vllm", "env": [PATIENT]}]}
SETTINGS = {
    "capacity": "spot",
    "serving.replicas": 2,
    "validation.concurrencies": [1],
    "validation.requests_per_concurrency": 4,
    "patches": [{"kind": "Deployment", "spec": {"template": {"spec": CONTAINER}}}],
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return find("06")


@pytest.fixture(scope="module")
def history() -> list[str]:
    """Generations in the order in which they went live."""
    return []


def run(site: Site, weights: Path, *arguments: str) -> Run:
    changes = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return site.run(weights, *changes, *arguments)


@contextmanager
def cluster(site: Site) -> Iterator[client.CoreV1Api]:
    with new_client_from_config(str(site.state / "kubeconfig")) as made:
        yield client.CoreV1Api(made)


def pods_of(core: client.CoreV1Api, generation: str) -> list[Any]:
    """The ready pods of a generation."""
    found = core.list_namespaced_pod(NAMESPACE, label_selector=f"gemma-pipelines/generation={generation}").items
    return [
        pod
        for pod in found
        if not pod.metadata.deletion_timestamp
        and any(each.type == "Ready" and each.status == "True" for each in pod.status.conditions or [])
        and pod.spec.containers[0].name == "vllm"
    ]


def preempt(core: client.CoreV1Api, node: str) -> None:
    """Compute Engine takes the node, without any notice."""
    core.patch_node(node, {"metadata": {"annotations": {ANNOTATION: "0"}}})


def eventually(what: str, holds: Callable[[], Any]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


@dataclass
class Client:
    """Asks for one long answer in a stream, and asks again when it does not come whole."""

    url: str
    tries: int = 0
    text: str = ""
    errors: list[str] = field(default_factory=list)
    begun: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        deadline = time.monotonic() + SECONDS
        while not self.text and time.monotonic() < deadline:
            self.tries += 1
            try:
                self.text = self._answer()
            except (httpx.HTTPError, ConnectionError) as error:
                self.errors.append(repr(error))
                time.sleep(0.2)

    def _answer(self) -> str:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "Say something long."}],
            "max_tokens": 960,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        said, is_whole = "", False
        with (
            httpx.Client(timeout=SECONDS, trust_env=False) as http,
            http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response,
        ):
            response.raise_for_status()
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    is_whole = True
                elif line.startswith("data: ") and (choices := json.loads(line[6:])["choices"]):
                    said += choices[0]["delta"].get("content") or ""
                    self.begun.set()
        if not is_whole:
            raise ConnectionError(f"cut after {said!r}")
        return said


def running_requests(pod: Any) -> float:
    text = httpx.get(f"http://{pod.status.pod_ip}:8000/metrics", trust_env=False, timeout=60).text
    return sum(
        float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith("vllm:num_requests_running{")
    )


def test_a_node_that_goes_costs_its_requests_another_try_and_nothing_else(
    site: Site, weights: Path, history: list[str]
):
    going_on = run(site, weights, "--keep")
    result = going_on.result()
    assert result["status"] == "succeeded"
    assert "warning: nobody is known to serve google/gemma-3-4b-it on 1 × tpu-v6e-slice" in going_on.stderr

    generation = result["generation"]
    history.append(generation)
    with cluster(site) as core:
        serving = pods_of(core, generation)
        nodes = {pod.spec.node_name: core.read_node(pod.spec.node_name) for pod in serving}
        assert len(nodes) == 2
        for node in nodes.values():
            labels, taints = node.metadata.labels, {taint.key for taint in node.spec.taints}
            assert labels["cloud.google.com/gke-tpu-topology"] == "1x1"
            assert taints == {"google.com/tpu", "cloud.google.com/gke-spot"}
        log = core.read_namespaced_pod_log(serving[0].metadata.name, NAMESPACE, container="vllm")
        assert "Automatically detected platform tpu." in log
        assert "Compilation finished in" in log

        clients = [Client(site.endpoint.read_text().strip()) for _ in range(4)]
        threads = [threading.Thread(target=each.ask) for each in clients]
        for thread in threads:
            thread.start()
        for each in clients:
            assert each.begun.wait(SECONDS)
        busiest = max(serving, key=running_requests)
        cut = running_requests(busiest)
        assert cut >= 1
        preempt(core, busiest.spec.node_name)
        for thread in threads:
            thread.join()

        assert len([each for each in clients if each.errors]) == cut, "those that it was answering, and no other"
        assert all(each.text for each in clients)
        assert len({each.text for each in clients}) == 1
        eventually("two servers again", lambda: len(pods_of(core, generation)) == 2)
        left = {node.metadata.name for node in core.list_node().items}
        assert busiest.spec.node_name not in left
    going_on.stop()


def test_a_candidate_that_is_taken_away_while_it_is_judged_is_judged_again(site: Site, history: list[str]):
    other = site.folder / "other"
    models.write_gemma3(other, seed=1)
    # One request of several seconds: it is not over before its server goes.
    long = {"validation.requests_per_concurrency": 1, "validation.load_max_tokens": 960}
    going_on = run(site, other, *(word for key, value in long.items() for word in ("--set", f"{key}={value}")))
    going_on.wait_for("validate_server: load: 1 at once")
    with cluster(site) as core:
        pods = core.list_namespaced_pod(NAMESPACE, label_selector="gemma-pipelines/generation").items
        (candidate,) = {pod.metadata.labels["gemma-pipelines/generation"] for pod in pods} - {*history}
        servers = pods_of(core, candidate)
        assert len(servers) == 2
        for pod in servers:
            preempt(core, pod.spec.node_name)
    going_on.wait_for("validate_server: inconclusive")
    assert "Nothing was learnt about the release; run again" in going_on.stderr
    result = going_on.finish()
    assert (result["status"], result["generation"]) == ("succeeded", candidate)
