"""Managed Service for Prometheus: the pods that PodMonitoring objects select are scraped, and Cloud Monitoring has what
they said.

What is kept are gauges, the last points of each, as TimeSeries objects in one file (google/monitoring.py reads it). As
on GKE a pod is scraped at its endpoint's interval, or at a shorter one that the configuration asks for.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import logging
from pathlib import Path

import aiohttp

from emulated_cloud.kubernetes.client import Informers, Object
from emulated_cloud.kubernetes.gke.config import Config
from emulated_cloud.kubernetes.pods import is_active
from emulated_cloud.kubernetes.resources import POD_MONITORINGS, PODS
from emulated_cloud.kubernetes.scraping import scrape
from emulated_cloud.kubernetes.selectors import matches

log = logging.getLogger(__name__)

POINTS = 20
"""Points of a series that are kept."""
_TIMEOUT = aiohttp.ClientTimeout(total=5)


class ManagedPrometheus:
    """Scrapes as PodMonitoring says, and keeps what came in `path`."""

    def __init__(self, informers: Informers, config: Config, path: Path):
        self._monitorings = informers.of(POD_MONITORINGS)
        self._pods = informers.of(PODS)
        self._config, self._path = config, path
        self._series: dict[str, Object] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="managed prometheus")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        # Pods' addresses are local: no proxy that knows names.
        async with aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=False) as session:
            while True:
                targets = self._targets()
                await asyncio.gather(*(self._scrape(session, *target) for target in targets))
                if targets:
                    self._write()
                await asyncio.sleep(self._pause())

    def _pause(self) -> float:
        intervals = [
            float(endpoint["interval"].removesuffix("s"))
            for monitoring in self._monitorings.items.values()
            for endpoint in monitoring["spec"]["endpoints"]
            if endpoint["interval"].endswith("s") and not endpoint["interval"].endswith("ms")
        ]
        return min([self._config.scrape_seconds, *intervals])

    def _targets(self) -> list[tuple[Object, Object, Object]]:
        """(PodMonitoring, endpoint, pod) of all that is to be scraped."""
        return [
            (monitoring, endpoint, pod)
            for monitoring in self._monitorings.items.values()
            for pod in self._pods.in_namespace(monitoring["metadata"]["namespace"])
            if is_active(pod) and (pod.get("status") or {}).get("phase") == "Running" and pod["status"].get("podIP")
            if matches(monitoring["spec"]["selector"], pod["metadata"].get("labels"))
            for endpoint in monitoring["spec"]["endpoints"]
        ]

    async def _scrape(self, session: aiohttp.ClientSession, monitoring: Object, endpoint: Object, pod: Object) -> None:
        port = port_of(pod, endpoint["port"])
        if port is None:
            return
        try:
            gauges = await scrape(session, pod, port, endpoint.get("path", "/metrics"))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            log.info("scraping %s: %s", pod["metadata"]["name"], error)  # It starts, or goes.
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        resource = {
            "type": "prometheus_target",
            "labels": {
                "project_id": self._config.project.id,
                "location": self._config.location or self._config.region,
                "cluster": self._config.cluster,
                "namespace": pod["metadata"]["namespace"],
                "job": monitoring["metadata"]["name"],
                "instance": f"{pod['metadata']['name']}:{endpoint['port']}",
            },
        }
        own = _labels(monitoring, pod)
        for name, labels, value in gauges:
            metric = {"type": f"prometheus.googleapis.com/{name}/gauge", "labels": {**labels, **own}}
            key = json.dumps([metric, resource], sort_keys=True)
            series = self._series.setdefault(
                key,
                {"metric": metric, "resource": resource, "metricKind": "GAUGE", "valueType": "DOUBLE", "points": []},
            )
            point = {"interval": {"startTime": now, "endTime": now}, "value": {"doubleValue": value}}
            series["points"] = [point, *series["points"]][:POINTS]

    def _write(self) -> None:
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(list(self._series.values())), encoding="utf-8")
        part.replace(self._path)


def _labels(monitoring: Object, pod: Object) -> dict[str, str]:
    """What `targetLabels` adds to every metric of a pod."""
    wanted = monitoring["spec"].get("targetLabels") or {}
    values = {
        "pod": pod["metadata"]["name"],
        "container": pod["spec"]["containers"][0]["name"],
        "node": pod["spec"].get("nodeName", ""),
    }
    found = {name: values[name] for name in wanted.get("metadata") or ("pod", "container") if name in values}
    labels = pod["metadata"].get("labels") or {}
    for entry in wanted.get("fromPod") or []:
        if entry["from"] in labels:
            found[entry.get("to") or entry["from"]] = labels[entry["from"]]
    return found


def port_of(pod: Object, port: int | str) -> int | None:
    """A port's number, which may be given by its name in the pod."""
    if isinstance(port, int):
        return port
    ports = (entry for container in pod["spec"]["containers"] for entry in container.get("ports") or [])
    return next((int(entry["containerPort"]) for entry in ports if entry.get("name") == port), None)
