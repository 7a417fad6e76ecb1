"""GKE Inference Gateway as the entry: the Gateway asks an endpoint picker about each request, which knows every pod's
queue, cache and LoRA adapters. A generation is an InferencePool with a picker of its own.

The picker is llm-d's router, once the endpoint picker (EPP) of the Gateway API Inference Extension. Two of them run at
once: a request whose picker is away fails, whatever failure_mode says (Envoy has sent the body off by then).
Source: https://cloud.google.com/kubernetes-engine/docs/concepts/about-gke-inference-gateway
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from serving import names
from serving.errors import InconclusiveError, RequestError
from serving.features import Explanation, Symptom
from serving.image import mirrored
from serving.values import DnsLabel, Image, Quantity, in_seconds
from serving.values import Section as BaseSection

if TYPE_CHECKING:
    from serving.settings import Settings
    from serving.weights.release import Release

POOLS = "inference.networking.k8s.io"
OBJECTIVES = "llm-d.ai"
"""Groups of the API."""
_SINCE = "1.34.0-gke.1626000"
"""The first GKE version that brings InferencePool itself."""
_OF_POOLS = "https://github.com/kubernetes-sigs/gateway-api-inference-extension/releases/download/v1.5.0/manifests.yaml"
_OF_OBJECTIVES = (
    "https://raw.githubusercontent.com/llm-d/llm-d-router/v0.10.0/config/crd/bases/llm-d.ai_inferenceobjectives.yaml"
)


class Section(BaseSection):
    """Who picks the pod for a request. All of it changes in place."""

    objectives: dict[DnsLabel, int] = Field({}, max_length=32)
    """{NAME: priority}: what clients may ask for by the header `x-llm-d-inference-objective: NAME`. Requests of a
    priority below 0 are refused (429) while every pod has a queue; without the header it is 0. {batch: -1, chat: 10},
    say."""
    failure_mode: Literal["FailOpen", "FailClose"] = "FailOpen"
    """What the load balancer does while no picker answers. FailOpen sends it to any pod: GETs, that is, since the body
    of a POST is on its way to the picker by then; those fail with either."""
    picker_image: Image = "ghcr.io/llm-d/llm-d-router-endpoint-picker:v0.10.0"
    """The endpoint picker's image."""
    picker_replicas: int = Field(2, ge=1, le=16)
    """Endpoint pickers of a generation, all at work: with one, its restart is an outage."""
    picker_cpu: Quantity = "1"
    """Processors of each. Its chart asks for 8, for thousands of requests a second."""
    picker_memory: Quantity = "2Gi"
    """Memory of each. Its chart asks for 8Gi."""


def values(settings: Settings, release: Release | None) -> dict[str, Any]:
    """The picker; of a generation, what it and its pool are called."""
    section = _section(settings)
    found: dict[str, Any] = {
        "picker_account": names.picker_account(settings),
        "picker_image": mirrored(settings.images.registry, section.picker_image),
        "picker_port": names.PICKER_PORT,
        "picker_health_port": names.PICKER_HEALTH_PORT,
        "picker_metrics_port": names.PICKER_METRICS_PORT,
        "picker_resources": {"cpu": section.picker_cpu, "memory": section.picker_memory},
        "picker_drain_seconds": math.ceil(in_seconds(settings.serving.request_timeout)),
        "failure_mode": section.failure_mode,
    }
    if release is not None:
        found["picker"] = names.picker(release.generation)
        found["backend_target"] = {"group": POOLS, "kind": "InferencePool", "name": names.server(release.generation)}
    return found


def entered(settings: Settings, generation: str) -> dict[str, Any]:
    """Where the route sends a generation's requests. Without its group a pool is not found."""
    server = names.server(generation)
    return {"backend": {"group": POOLS, "kind": "InferencePool", "name": server, "weight": 100}, "server": server}


def each(settings: Settings) -> dict[str, list[dict[str, Any]]]:
    """The objectives: an object each."""
    objectives = sorted(_section(settings).objectives.items())
    return {"InferenceObjective": [{"objective": name, "priority": priority} for name, priority in objectives]}


def rights(settings: Settings) -> dict[str, set[str]]:
    """Statuses are read; objectives that the settings have no more are taken away."""
    return {"InferencePool": {"get"}, "InferenceObjective": {"list", "delete"}}


def served(settings: Settings, has_group: Callable[[str], bool]) -> None:
    """Raises RequestError for kinds that the cluster lacks, with the commands that bring them."""
    lacking = []
    if not has_group(POOLS):
        lacking.append(
            f"InferencePool ({POOLS}), without which an endpoint picker ends at once: GKE brings it from {_SINCE} on "
            f"(`gcloud container clusters upgrade {settings.cluster} --master --location {settings.location}`), or "
            f"`kubectl apply --server-side -f {_OF_POOLS}`"
        )
    if _section(settings).objectives and not has_group(OBJECTIVES):
        lacking.append(
            f"InferenceObjective ({OBJECTIVES}), which inference_gateway.objectives are: `kubectl apply --server-side "
            f"-f {_OF_OBJECTIVES}`; endpoint pickers that run already have to start again after it"
        )
    if lacking:
        raise RequestError(f"the cluster {settings.cluster} lacks " + ", and ".join(lacking))


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """Why an endpoint picker does not start."""
    if not symptom.pod.startswith(names.picker("")):
        return None
    account, words = names.picker_account(settings), symptom.words
    may_not_read = symptom.kind == "words" and "forbidden" in words.lower()
    if may_not_read or f'serviceaccount "{account}" not found' in words:
        return Explanation(
            RequestError,
            f"the endpoint picker's service account {account} is missing, or may not read pods, pools and objectives. "
            f"An administrator applies it once: `gemma-pipelines render {settings.scenario} -f FILE --access | kubectl "
            "apply --server-side -f -`",
            at_once=True,
        )
    if "no matches for kind" in words or ("InferencePool" in words and "not found" in words):
        return Explanation(
            RequestError,
            f"the endpoint picker does not find InferencePools: `kubectl get crd inferencepools.{POOLS}`. GKE brings "
            f"it from {_SINCE} on, or `kubectl apply --server-side -f {_OF_POOLS}`",
        )
    section = _section(settings)
    if symptom.kind == "out-of-memory":
        return Explanation(
            InconclusiveError,
            f"the endpoint picker was killed at its limit, {section.picker_memory}: give it more "
            "(inference_gateway.picker_memory)",
        )
    if symptom.kind == "no-node":
        return Explanation(
            InconclusiveError,
            f"no node has {section.picker_cpu} processors and {section.picker_memory} free for the endpoint picker "
            f"{symptom.pod}: {words}. Give the cluster nodes without accelerators, or the picker less "
            "(inference_gateway.picker_cpu, .picker_memory)",
        )
    if symptom.kind == "slow":
        return Explanation(
            InconclusiveError,
            f"the endpoint picker {symptom.pod} runs and is not ready within gateway.timeout: `kubectl -n "
            f"{settings.namespace} logs {symptom.pod}`",
        )
    return None


def _section(settings: Settings) -> Section:
    section: Section = settings.section("inference-gateway")
    return section
