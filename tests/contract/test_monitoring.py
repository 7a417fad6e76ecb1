"""Cloud Monitoring as the custom-metrics adapter asks it: each exchange held against the discovery document."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import requests
from emulated_cloud.kubernetes.metrics_adapter import Monitoring

from tests.contract.discovery import Conformance, check_refusal
from tests.contract.google_process import TOKEN, GoogleProcess

QUEUE = "prometheus.googleapis.com/vllm:num_requests_waiting/gauge"
CLUSTER = {
    "name": "gemma",
    "location": "us-central1",
    "endpoint": "127.0.0.1:6443",
    "ca_certificate": "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
    "version": "1.35.1-gke.1396000",
}


@dataclass
class Google(GoogleProcess):
    """With points of a few pods."""

    def config(self) -> dict[str, Any]:
        return {"metrics": str(self.folder / "metrics.json"), "clusters": [CLUSTER]}

    def show(self, **waiting: list[float]) -> None:
        """Pod → its queue, the newest first, a minute apart."""
        now = datetime.datetime.now(datetime.UTC)
        written = []
        for pod, values in waiting.items():
            points = [
                {"interval": {"startTime": at, "endTime": at}, "value": {"doubleValue": value}}
                for number, value in enumerate(values)
                if (at := (now - datetime.timedelta(minutes=number)).isoformat().replace("+00:00", "Z"))
            ]
            labels = {"project_id": "demo", "location": "us-central1", "cluster": "gemma", "namespace": "gemma"}
            written.append(
                {
                    "metric": {"type": QUEUE, "labels": {"pod": pod, "model_name": "m"}},
                    "resource": {"type": "prometheus_target", "labels": {**labels, "job": "j", "instance": pod}},
                    "metricKind": "GAUGE",
                    "valueType": "DOUBLE",
                    "points": points,
                }
            )
        (self.folder / "metrics.json").write_text(json.dumps(written), encoding="utf-8")


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Google]:
    made = Google(tmp_path_factory.mktemp("google"))
    made.start()
    yield made
    made.stop_in_peace()


@pytest.fixture
def session() -> requests.Session:
    made = requests.Session()
    made.headers["Authorization"] = f"Bearer {TOKEN}"
    Conformance("monitoring", "v3").watch(made)
    return made


def ask(google: Google, question: Any) -> Any:
    """What the adapter's client makes of a question."""

    async def run() -> Any:
        async with aiohttp.ClientSession() as http:
            url = google.process.url
            monitoring = Monitoring(http, url, url.removeprefix("http://"))
            await monitoring.learn()
            return await question(monitoring)

    return asyncio.run(run())


def test_the_adapter_reads_the_newest_point_of_each_pod_that_it_names(google: Google):
    google.show(p1=[30.0, 5.0], p2=[7.0], p3=[99.0])
    found = ask(google, lambda monitoring: monitoring.values(QUEUE, "gemma", ["p1", "p2", "p4"]))
    assert {pod: value for pod, (value, _) in found.items()} == {"p1": 30.0, "p2": 7.0}
    assert ask(google, lambda monitoring: monitoring.values(QUEUE, "other", ["p1"])) == {}


def test_points_that_are_old_are_none(google: Google):
    google.show(p1=[1.0])
    path = google.folder / "metrics.json"
    path.write_text(path.read_text().replace(str(datetime.datetime.now(datetime.UTC).year), "2020"))
    assert ask(google, lambda monitoring: monitoring.values(QUEUE, "gemma", ["p1"])) == {}


def test_a_metric_that_nobody_has_written_is_none(google: Google):
    google.show(p1=[1.0])
    assert ask(google, lambda monitoring: monitoring.is_metric(QUEUE))
    assert not ask(google, lambda monitoring: monitoring.is_metric("prometheus.googleapis.com/vllm:other/gauge"))


def test_all_that_the_adapter_asks_is_what_the_discovery_document_has(google: Google, session: requests.Session):
    google.show(p1=[1.0])
    ask(google, lambda monitoring: monitoring.values(QUEUE, "gemma", ["p1"]))
    ask(google, lambda monitoring: monitoring.is_metric(QUEUE))
    asked = requests.get(f"{google.process.url}/_emulator/requests", timeout=60).json()
    paths = [request["path"] for request in asked if request["path"].startswith("/v3/")]
    assert len({path.partition("?")[0] for path in paths}) >= 2
    for path in paths[-2:]:
        assert session.get(google.process.url + path, timeout=60).status_code == 200


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({}, "it must restrict metric.type"),
        ({"filter": 'metric.type = "x"'}, "interval.endTime"),
        ({"filter": 'metric.type = "x" AND ('}, "filter had an invalid value"),
        (
            {
                "filter": 'metric.type = "x"',
                "interval.endTime": "2026-11-29T00:00:00Z",
                "aggregation.perSeriesAligner": "ALIGN_RATE",
            },
            "perSeriesAligner",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused(google: Google, session: requests.Session, query: Any, words: str):
    answer = session.get(f"{google.process.url}/v3/projects/demo/timeSeries", params=query, timeout=60)
    assert answer.status_code == 400
    check_refusal(answer)
    assert words in answer.json()["error"]["message"]


def test_somebody_elses_project_is_not_shown(google: Google, session: requests.Session):
    answer = session.get(f"{google.process.url}/v3/projects/other/metricDescriptors/{QUEUE}", timeout=60)
    assert answer.status_code == 403
