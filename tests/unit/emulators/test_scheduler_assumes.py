"""A pod that was bound takes its place at once, though the watch has not shown it yet."""

from __future__ import annotations

import asyncio
from typing import Any

from emulated_cloud.kubernetes.controllers.scheduler import Scheduler
from emulated_cloud.kubernetes.resources import NODES, PODS

Object = dict[str, Any]
TERM = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "lone"}}}


class Known:
    def __init__(self, *items: Object):
        self.items = {item["metadata"]["name"]: item for item in items}

    def on_change(self, _: Any) -> None: ...
    def observe(self, _: Object) -> None: ...


class Informers:
    def __init__(self, **known: Known):
        self._known = known

    def of(self, resource: Any) -> Known:
        return self._known.setdefault(resource.plural, Known())


class Client:
    def __init__(self) -> None:
        self.bound: list[tuple[str, str]] = []

    async def create(self, resource: Any, body: Object, namespace: str, subresource: str = "") -> Object:
        if subresource == "binding":
            self.bound.append((body["metadata"]["name"], body["target"]["name"]))
        return body

    async def patch(self, *_: Any, **__: Any) -> Object:
        return {}


def pod(name: str) -> Object:
    affinity = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [TERM]}}
    meta = {"name": name, "namespace": "n", "uid": name, "labels": {"app": "lone"}}
    meta["creationTimestamp"] = "2026-11-29T00:00:00Z"  # type: ignore[assignment]
    return {
        "kind": "Pod",
        "metadata": meta,
        "spec": {"containers": [{"name": "c"}], "affinity": affinity},
        "status": {},
    }


def test_a_second_pod_does_not_join_one_whose_binding_has_not_been_seen():
    node = {
        "kind": "Node",
        "metadata": {"name": "one", "labels": {"kubernetes.io/hostname": "one"}},
        "spec": {},
        "status": {"allocatable": {"cpu": "8", "memory": "8Gi", "pods": "110"}},
    }
    pods, client = Known(pod("first")), Client()
    informers = Informers(**{PODS.plural: pods, NODES.plural: Known(node)})

    async def passes() -> None:
        scheduler = Scheduler(client, informers)  # type: ignore[arg-type]
        await scheduler._schedule_all("all")
        # The watch is slow: the first is shown as it was, and another comes.
        pods.items["second"] = pod("second")
        await scheduler._schedule_all("all")
        await scheduler.queue.stop()

    asyncio.run(passes())
    assert client.bound == [("first", "one")]
