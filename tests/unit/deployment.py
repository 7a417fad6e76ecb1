"""Objects of one small deployment, for tests of the logic that promotes, discards and collects."""

from __future__ import annotations

import json
from typing import Any

from serving import names
from serving.settings import Settings, validated
from serving.weights.release import Release

SETTINGS: Settings = validated(Settings, {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"})
RELEASE = Release(
    run_id="run-2",
    model="google/gemma-3-4b-it",
    commit="c" * 40,
    weights_key="0123456789abcdef",
    weights_uri="gs://demo-bucket/models/google/gemma-3-4b-it/0123456789abcdef",
    generation="g2",
    live="g1",
)


def quick(**changes: Any) -> Settings:
    """The settings with changes, and with times that suit a test."""
    values = SETTINGS.model_dump()
    values["serving"] |= {"drain_seconds": 0, "ready_timeout": "1s"}
    values["lease"] |= {"duration": "60s"}
    for key, value in changes.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return validated(Settings, values)


def behind_a_gateway(**changes: Any) -> Settings:
    """The same of a deployment whose entry is an HTTPRoute over Services. By default requests move at once."""
    canary = {"steps": [], **changes.pop("canary", {})}
    proxies = {"proxy_ranges": ["10.129.0.0/23"]}
    return quick(features=["gateway"], gateway=proxies, canary=canary, **changes)


def labels(generation: str, run_id: str = "run-1") -> dict[str, str]:
    return {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: generation, names.RUN: run_id}


def deployment(
    generation: str, *, replicas: int = 1, ready: int | None = None, run_id: str = "run-1"
) -> dict[str, Any]:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": names.server(generation),
            "namespace": SETTINGS.namespace,
            "labels": labels(generation, run_id),
            "generation": 1,
        },
        "spec": {"replicas": replicas},
        "status": {
            "observedGeneration": 1,
            "replicas": replicas,
            "updatedReplicas": replicas,
            "readyReplicas": replicas if ready is None else ready,
        },
    }


STALLED = {"replicas": 2, "updatedReplicas": 1, "readyReplicas": 1, "unavailableReplicas": 1}
"""The status of an update in place of one pod that does not go on: the new pod has no node, the old one is ready."""


def owned(generation: str, *, run_id: str = "run-1", namespace: str = SETTINGS.namespace) -> list[dict[str, Any]]:
    """What a generation owns beside its Deployment."""
    meta = {"name": names.server(generation), "namespace": namespace, "labels": labels(generation, run_id)}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": dict(meta), "spec": {}},
        {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": dict(meta), "spec": {}},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": dict(meta), "spec": {}},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {
                "name": f"{namespace}.{SETTINGS.name}.{generation}",
                "labels": {**labels(generation, run_id), names.NAMESPACE: namespace},
            },
            "spec": {"claimRef": {"namespace": namespace, "name": names.server(generation)}},
        },
    ]


def service(generation: str) -> dict[str, Any]:
    """The stable Service, selecting a generation."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SETTINGS.name, "namespace": SETTINGS.namespace},
        "spec": {"selector": {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: generation}},
    }


def route(*weights: tuple[str, int | None], canary: object = None) -> dict[str, Any]:
    """An HTTPRoute as the entry: (generation, weight) of its backends, None for no weight; `canary` its annotation."""
    meta: dict[str, Any] = {"name": SETTINGS.name, "namespace": SETTINGS.namespace}
    if canary is not None:
        meta["annotations"] = {names.CANARY: canary if isinstance(canary, str) else json.dumps(canary)}
    backends = [
        {"name": names.server(generation), "port": names.PORT} | ({} if weight is None else {"weight": weight})
        for generation, weight in weights
    ]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": meta,
        "spec": {"rules": [{"backendRefs": backends}]},
    }


def job(name: str, run_id: str) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": SETTINGS.namespace, "labels": labels("g2", run_id)},
        "spec": {},
    }


def lease(holder: str, renewed: str = "2026-11-24T00:00:00.000000Z") -> dict[str, Any]:
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": SETTINGS.name, "namespace": SETTINGS.namespace},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": 5, "renewTime": renewed, "leaseTransitions": 0},
    }
