"""What the tests of scenario 05 share: its settings, what the cluster says of its entry, requests by its address."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from tests.scenarios.command import MODEL, Traffic, processes_below
from tests.scenarios.emulated import Cloud

COMMON: dict[str, Any] = {
    "scenario": "inference-gateway",
    "validation": {"concurrencies": [1], "requests_per_concurrency": 2, "max_tokens": 4, "load_max_tokens": 4},
    "serving": {"drain_seconds": 20},
    # How much longer an engine takes on a machine that has much else to do says nothing.
    "canary": {"steps": [50], "hold": "15s", "settle": "1s", "min_requests": 5, "max_p95_first_token_ratio": 0},
    "gateway": {"timeout": "5m"},
}
GATEWAY = "/apis/gateway.networking.k8s.io/v1/namespaces/gemma/gateways/gemma"
ROUTES = "/apis/gateway.networking.k8s.io/v1/namespaces/gemma/httproutes"
ROUTE = f"{ROUTES}/gemma"
POOLS = "/apis/inference.networking.k8s.io/v1/namespaces/gemma/inferencepools"
RECORD = "/api/v1/namespaces/gemma/configmaps/gemma-generations"


def engine_environment(**variables: str) -> list[dict[str, Any]]:
    """`patches` that give every engine these variables."""
    env = [{"name": name, "value": value} for name, value in variables.items()]
    spec = {"template": {"spec": {"containers": [{"name": "vllm", "env": env}]}}}
    return [{"kind": "Deployment", "spec": spec}]


def submitted(cloud: Cloud, *more: str, code: int = 0) -> dict[str, Any]:
    """The report of a run."""
    return as_one(cloud.command("submit", "05", "--wait", *more, code=code))


def as_one(told: dict[str, Any]) -> dict[str, Any]:
    """A run's report, with the run's own id."""
    return {**told["run"], "id": told["id"]}


def outcome(cloud: Cloud, report: dict[str, Any], step: str) -> dict[str, Any]:
    return cloud.of_run(report["id"], f"steps/{step}.json")  # type: ignore[no-any-return]


def ask(endpoint: Path, model: str = MODEL) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "Say something."}], "max_tokens": 16}
    with httpx.Client(base_url=endpoint.read_text().strip(), timeout=60, trust_env=False) as client:
        return client.post("/v1/chat/completions", json={**body, "temperature": 0})


def text(endpoint: Path, model: str = MODEL) -> str:
    answer = ask(endpoint, model)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]  # type: ignore[no-any-return]


def shares_of(route: dict[str, Any]) -> dict[str, int]:
    (rule,) = route["spec"]["rules"]
    return {backend["name"].removeprefix("vllm-"): backend["weight"] for backend in rule["backendRefs"]}


def shares(cloud: Cloud) -> dict[str, int]:
    """Generation → its weight in the entry."""
    return shares_of(cloud.ask(ROUTE))


def processes(cloud: Cloud, words: str) -> list[int]:
    return [int(line.split(":")[0]) for line in processes_below(cloud.state) if words in line]


def more(traffic: Traffic, number: int = 10) -> Callable[[], bool]:
    """Whether so many more requests have been answered."""
    wanted = len(traffic.answers) + number
    return lambda: len(traffic.answers) >= wanted
