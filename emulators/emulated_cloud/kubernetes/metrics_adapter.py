"""The custom-metrics adapter over Cloud Monitoring, as an image's program: what Google's does for metrics of pods.

It answers `custom.metrics.k8s.io` (v1beta1, v1beta2) with the newest point that Cloud Monitoring has of a metric for
each pod that a selector means, by the two calls that Google's makes: is there such a metric, and its time series.
Flags are those of Google's that its manifest has; others are refused. Facts:
github.com/GoogleCloudPlatform/k8s-stackdriver, custom-metrics-stackdriver-adapter.

Surroundings that a container of GKE finds by name it is told in its environment: EMULATED_HOST (its pod's address),
EMULATED_SERVICE_ACCOUNT (the folder of its token), EMULATED_GOOGLE (where Google's APIs answer).
"""

from __future__ import annotations

import argparse
import asyncio
import datetime
import logging
import os
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from emulated_cloud.kubernetes import tls
from emulated_cloud.kubernetes.client import Client, Object, timestamp
from emulated_cloud.kubernetes.resources import PODS

GROUP = "custom.metrics.k8s.io"
VERSIONS = ("v1beta2", "v1beta1")
AT_ONCE = 100
"""Pods in one filter."""
WINDOW_SECONDS = 300
"""How old a point may be."""
log = logging.getLogger(__name__)


@dataclass
class Monitoring:
    """Cloud Monitoring, for the cluster that this runs in."""

    session: aiohttp.ClientSession
    url: str
    metadata: str
    project: str = ""
    location: str = ""
    cluster: str = ""

    async def learn(self) -> None:
        """Which project, location and cluster this is: the metadata server says it."""
        self.project = await self._metadata("project/project-id")
        self.location = await self._metadata("instance/attributes/cluster-location")
        self.cluster = await self._metadata("instance/attributes/cluster-name")

    async def is_metric(self, kind: str) -> bool:
        status, _ = await self._get(f"metricDescriptors/{kind}", {})
        return status == 200

    async def values(self, kind: str, namespace: str, pods: list[str]) -> dict[str, tuple[float, str]]:
        """Pod → the newest value, and when it was."""
        now = datetime.datetime.now(datetime.UTC)
        start = now - datetime.timedelta(seconds=WINDOW_SECONDS)
        named = ",".join(f'"{pod}"' for pod in pods)
        query = {
            "filter": " AND ".join(
                [
                    'resource.type = "prometheus_target"',
                    f'metric.type = "{kind}"',
                    f'resource.labels.project_id = "{self.project}"',
                    f'resource.labels.cluster = "{self.cluster}"',
                    f'resource.labels.location = "{self.location}"',
                    f'resource.labels.namespace = "{namespace}"',
                    f"metric.labels.pod = one_of({named})",
                ]
            ),
            "interval.startTime": start.isoformat().replace("+00:00", "Z"),
            "interval.endTime": now.isoformat().replace("+00:00", "Z"),
            "aggregation.perSeriesAligner": "ALIGN_NEXT_OLDER",
            "aggregation.alignmentPeriod": f"{WINDOW_SECONDS}s",
        }
        _, found = await self._get("timeSeries", query)
        return {
            series["metric"]["labels"]["pod"]: (
                series["points"][0]["value"]["doubleValue"],
                series["points"][0]["interval"]["endTime"],
            )
            for series in found.get("timeSeries", [])
        }

    async def _get(self, path: str, query: dict[str, str]) -> tuple[int, Any]:
        token = await self._metadata("instance/service-accounts/default/token")
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        url = f"{self.url}/v3/projects/{self.project}/{path}"
        async with self.session.get(url, params=query, headers=headers) as answer:
            body = await answer.json(content_type=None)
            if answer.status not in (200, 404):
                raise web.HTTPInternalServerError(text=body["error"]["message"])
            return answer.status, body

    async def _metadata(self, path: str) -> Any:
        headers = {"Metadata-Flavor": "Google"}
        async with self.session.get(f"http://{self.metadata}/computeMetadata/v1/{path}", headers=headers) as answer:
            answer.raise_for_status()
            return await (answer.json() if path.endswith("token") else answer.text())


class Adapter:
    """The API on the wire."""

    def __init__(self, client: Client, monitoring: Monitoring):
        self._client, self._monitoring = client, monitoring

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_get("/apis/{group}/{version}", self.resources)
        app.router.add_get("/apis/{group}/{version}/namespaces/{namespace}/pods/{name}/{metric}", self.metric)
        return app

    async def resources(self, request: web.Request) -> web.Response:
        """Discovery. (Google's lists every metric of the project; nobody needs that to ask for one.)"""
        version = self._version(request)
        body = {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{GROUP}/{version}", "resources": []}
        return web.json_response(body)

    async def metric(self, request: web.Request) -> web.Response:
        version, name = self._version(request), request.match_info["metric"]
        namespace, which = request.match_info["namespace"], request.match_info["name"]
        kind = name.replace("|", "/") if "|" in name else f"custom.googleapis.com/{name}"
        selector = {"labelSelector": request.query["labelSelector"]} if "labelSelector" in request.query else {}
        pods = [pod["metadata"]["name"] for pod in await self._client.list(PODS, namespace, **selector)]
        wanted = pods if which == "*" else [pod for pod in pods if pod == which]
        if not await self._monitoring.is_metric(kind):
            raise _not_found(f"the server could not find the metric {name} for pods {which}")
        values: dict[str, tuple[float, str]] = {}
        for first in range(0, len(wanted), AT_ONCE):
            values |= await self._monitoring.values(kind, namespace, wanted[first : first + AT_ONCE])
        if not values:
            raise _not_found(f"the server could not find the metric {name} for pods {which}")
        items = [_item(version, name, namespace, pod, *values[pod]) for pod in wanted if pod in values]
        return web.json_response({"kind": "MetricValueList", "apiVersion": f"{GROUP}/{version}", "items": items})

    def _version(self, request: web.Request) -> str:
        version = request.match_info["version"]
        if request.match_info["group"] != GROUP or version not in VERSIONS:
            raise _not_found("the server could not find the requested resource")
        return version


def _item(version: str, name: str, namespace: str, pod: str, value: float, at: str) -> Object:
    named = {"metricName": name} if version == "v1beta1" else {"metric": {"name": name, "selector": None}}
    described = {"kind": "Pod", "namespace": namespace, "name": pod, "apiVersion": "/v1"}
    moment = timestamp(datetime.datetime.fromisoformat(at))
    return {"describedObject": described, **named, "timestamp": moment, "value": f"{round(value * 1000)}m"}


def _not_found(message: str) -> web.HTTPNotFound:
    status = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "NotFound",
        "code": 404,
    }
    return web.HTTPNotFound(text=web.json_response(status).text, content_type="application/json")


async def serve(port: int, folder: Path) -> None:
    """Until told to end."""
    environment = os.environ
    account = Path(environment["EMULATED_SERVICE_ACCOUNT"])
    told = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, told.set)
    async with (
        Client.in_cluster(account, environment, "adapter") as client,
        # All of these are addresses: no proxy that knows names.
        aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=10)) as session,
    ):
        monitoring = Monitoring(session, environment["EMULATED_GOOGLE"], environment["GCE_METADATA_HOST"])
        await monitoring.learn()
        runner = web.AppRunner(Adapter(client, monitoring).app(), access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        host = environment["EMULATED_HOST"]
        site = web.TCPSite(runner, host, port, ssl_context=tls.ensure(folder, [host]))
        await site.start()
        await told.wait()
        await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--use-new-resource-model", choices=["true"], required=True)
    parser.add_argument("--fallback-for-container-metrics", choices=["true", "false"])
    parser.add_argument("--secure-port", type=int, default=443)
    parser.add_argument("--cert-dir", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    with tempfile.TemporaryDirectory() as own:
        asyncio.run(serve(options.secure_port, options.cert_dir or Path(own)))


if __name__ == "__main__":
    main()
