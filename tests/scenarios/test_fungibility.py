"""Scenario 07: node pools that the run makes, in an order that changes in place, and none left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.scenarios import Scenario, find
from tests.scenarios.command import MODEL, Run, Site, Traffic, processes_below

POOLS: list[dict[str, Any]] = [
    {"name": "v6e-1", "accelerator": "tpu", "machine_type": "ct6e-standard-1t", "max_nodes": 1},
    {"name": "l4-spot", "accelerator": "gpu", "machine_type": "g2-standard-8", "spot": True, "max_nodes": 1},
    {"name": "l4", "accelerator": "gpu", "machine_type": "g2-standard-8", "max_nodes": 1},
]
"""One node each: three pods are on three kinds of nodes."""


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return find("07")


def run(site: Site, weights: Path, *arguments: str, order: tuple[int, ...] = (0, 1, 2), **changes: Any) -> Run:
    pools = [POOLS[number] for number in order]
    found = {"gpu_or_tpu.nodes": "create", "gpu_or_tpu.pools": pools, **changes}
    words = [word for key, value in found.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    return site.run(weights, *words, *arguments)


def step_of(site: Site, result: dict[str, Any], name: str) -> dict[str, Any]:
    """What a step of a run left."""
    folder = site.state / "buckets" / "demo-bucket" / "objects" / "pipelines" / result["run_id"]
    found: dict[str, Any] = json.loads((folder / "steps" / f"{name}.json").read_text())
    return found


@pytest.fixture(scope="module")
def history() -> list[str]:
    """Generations in the order in which they went live."""
    return []


def test_the_run_makes_the_node_pools_and_each_accelerator_comes(site: Site, weights: Path, history: list[str]):
    result = run(site, weights).finish()
    assert result["status"] == "succeeded"
    assert [step["name"] for step in result["steps"]] == [
        "resolve_model",
        "ensure_access",
        "ensure_cluster",
        "download_weights",
        "deploy_server",
        "validate_server",
        "verify_placement",
        "promote_generation",
        "collect_garbage",
        "write_report",
    ]
    assert step_of(site, result, "ensure_cluster")["changed"] == [pool["name"] for pool in POOLS]
    came = step_of(site, result, "verify_placement")
    assert {kind: len(pods) for kind, pods in came["accelerators"].items()} == {
        "nvidia-l4": 1,
        "nvidia-l4 (spot)": 1,
        "tpu-v6e-slice": 1,
    }
    assert came["waiting"] == []
    assert processes_below(site.state) == []
    history.append(result["generation"])


def test_another_order_changes_in_place(site: Site, weights: Path, history: list[str]):
    result = run(site, weights, "--set", "gpu_or_tpu.placement_pods=1", order=(1, 2, 0)).finish()
    assert (result["status"], result["generation"]) == ("succeeded", history[-1])
    assert step_of(site, result, "ensure_cluster")["status"] == "skipped", "the pools are there"


def test_with_no_choice_left_the_old_generation_serves_on_and_the_release_is_not_held_guilty(
    site: Site, weights: Path, history: list[str]
):
    """Of its three pods two find nodes that are there already, and the third none: every pool is full."""
    short = {"engine.max_model_len": 2048}
    started = run(site, weights, order=(1, 2, 0), **short, **{"serving.capacity_timeout": "8s", "serving.replicas": 3})
    with Traffic(site.endpoint, MODEL) as traffic:
        started.wait_for("write_report: started")
    result = started.finish(code=1)
    assert traffic.errors == []
    assert len(traffic.answers) > 0
    assert (result["error"]["step"], result["error"]["type"]) == ("deploy_server", "InconclusiveError")
    assert "in any node pool of the order (l4-spot, then l4, then v6e-1): " in result["error"]["message"]
    assert "didn't match pod anti-affinity rules" in result["error"]["message"], "the scheduler's words"
    assert processes_below(site.state) == []

    # It was not rejected: with room it is served. (For three pods there is none beside what serves.)
    again = run(site, weights, order=(1, 2, 0), **short, **{"gpu_or_tpu.placement_pods": 1}).finish()
    assert again["status"] == "succeeded"
    assert again["generation"] == result["generation"] != history[-1]
