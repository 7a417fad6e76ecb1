"""Where an autoscaler's metric of pods comes from: the custom-metrics API, or, for names that begin with
`autoscaling.gke.io|`, the pods themselves, as an AutoscalingMetric says."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import quote

import aiohttp

from emulated_cloud.kubernetes.client import ApiError, Client, Informers, Object
from emulated_cloud.kubernetes.pods import is_active
from emulated_cloud.kubernetes.quantity import parse_quantity
from emulated_cloud.kubernetes.resources import AUTOSCALING_METRICS, PODS
from emulated_cloud.kubernetes.scraping import scrape
from emulated_cloud.kubernetes.selectors import matches

_OF_GKE = "autoscaling.gke.io"
_VERSIONS = ("v1beta2", "v1beta1")


class NoMetric(Exception):
    """An autoscaler has nothing to go by: the reason of its condition, and why."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Gauges:
    def __init__(self, client: Client, informers: Informers):
        self._client = client
        self._metrics = informers.of(AUTOSCALING_METRICS)
        self._pods = informers.of(PODS)

    async def of_pods(self, namespace: str, selector: str, name: str) -> dict[str, Decimal]:
        """Pod → value. Raises NoMetric, ApiError, aiohttp.ClientError, TimeoutError."""
        if name.startswith(f"{_OF_GKE}|"):
            return await self._scraped(namespace, name)
        for version in _VERSIONS:
            path = f"/apis/custom.metrics.k8s.io/{version}/namespaces/{namespace}/pods/%2A/{quote(name, safe=':')}"
            try:
                answer = await self._client.request("GET", path, params={"labelSelector": selector})
            except ApiError as error:
                if error.status == 404 and version != _VERSIONS[-1] and not error.reason:
                    continue  # Not a version that is served.
                raise
            return {item["describedObject"]["name"]: parse_quantity(item["value"]) for item in answer["items"]}
        raise NoMetric("FailedGetPodsMetric", "the custom-metrics API is not served")

    async def _scraped(self, namespace: str, name: str) -> dict[str, Decimal]:
        _, resource, metric = name.split("|")
        item = self._metrics.items.get(f"{namespace}/{resource}")
        found: dict[str, Decimal] = {}
        # Pods' addresses are local: no proxy that knows names.
        async with aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=5)) as session:
            for source in (item or {"spec": {"metrics": []}})["spec"]["metrics"]:
                for container in (source.get("pod") or {}).get("containers") or []:
                    for gauge in (each["gauge"] for each in container["metrics"]):
                        if gauge["name"] == metric:
                            shown = gauge.get("prometheusMetricName", metric)
                            found |= await self._of(session, namespace, source["pod"]["selector"], container, shown)
        if not found:
            raise NoMetric("FailedGetPodsMetric", f"unable to get metric {name}: no metrics returned")
        return found

    async def _of(
        self, session: aiohttp.ClientSession, namespace: str, selector: Object, container: Object, shown: str
    ) -> dict[str, Decimal]:
        endpoint, found = container["endpoint"], {}
        for pod in self._pods.in_namespace(namespace):
            if not matches(selector, pod["metadata"].get("labels")) or not is_active(pod):
                continue
            if not (pod.get("status") or {}).get("podIP"):
                continue
            try:
                gauges = await scrape(session, pod, endpoint["port"], endpoint.get("path", "/metrics"))
            except (aiohttp.ClientError, TimeoutError, ValueError):
                continue  # It starts, or goes.
            values = [value for name, _, value in gauges if name == shown]
            if values:
                found[pod["metadata"]["name"]] = Decimal(str(sum(values)))
        return found
