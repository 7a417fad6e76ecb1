"""A refresh of a deployment that scales, under traffic: no request fails, and no moment has fewer pods than before. And
a first run whose metric GKE itself reads from the pods (the Stackdriver adapter is seen at work in test_refresh.py).
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

from kubernetes import client
from kubernetes import config as client_config

from tests.scenarios.command import MODEL, SECONDS, Run, Traffic

SCALED = ("features=[queue-hpa]", "queue_hpa.verify=false", "queue_hpa.scale_down_window=10m")
BUSY = 2
"""Pods that serve before the refresh, more than the settings then ask for."""


def run(folder: Path, *settings: str, keep: bool = False) -> Run:
    given = [argument for each in (*SCALED, *settings) for argument in ("--set", each)]
    return Run("--state", str(folder / "state"), *given, *(["--keep"] if keep else []), folder=folder)


class Watch:
    """How many ready pods there are of the generation that the entry selects, looked at again and again."""

    def __init__(self, state: Path):
        api = client_config.new_client_from_config(str(state / "kubeconfig"))
        self._core = client.CoreV1Api(api)
        self.autoscalers = client.AutoscalingV2Api(api)
        self.seen: list[int] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        """Begins when as many serve as before: a cloud that was down brings them back one by one."""
        deadline = time.monotonic() + SECONDS
        while self._ready() < BUSY:
            assert time.monotonic() < deadline, "the pods of the live generation did not come back"
            time.sleep(0.1)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.2):
            self.seen.append(self._ready())

    def _ready(self) -> int:
        selector = self._core.read_namespaced_service("gemma", "gemma").spec.selector
        labels = ",".join(f"{key}={value}" for key, value in selector.items())
        return sum(_is_ready(pod) for pod in self._core.list_namespaced_pod("gemma", label_selector=labels).items)


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or []
    return not pod.metadata.deletion_timestamp and any(c.type == "Ready" and c.status == "True" for c in conditions)


def test_a_refresh_of_a_busy_server_takes_no_pod_and_no_request_from_it(folder: Path):
    first = run(folder, f"serving.replicas={BUSY}").finish()
    assert first["status"] == "succeeded"
    running = run(folder, "serving.replicas=1", "engine.max_model_len=4096", keep=True)
    with Traffic(folder / "state" / "endpoint", MODEL) as traffic:
        # By then the live generation, which was down with its cloud, has come back.
        running.wait_for("deploy_server: started")
        with Watch(folder / "state") as watch:
            result = running.result()
    name = f"vllm-{result['generation']}"
    spec = watch.autoscalers.read_namespaced_horizontal_pod_autoscaler(name, "gemma").spec
    running.stop()
    assert result["status"] == "succeeded"
    assert result["generation"] != first["generation"]
    assert traffic.errors == []
    assert len(watch.seen) > 5
    assert min(watch.seen) >= BUSY, "never fewer pods than before"
    assert spec.min_replicas == 1, "and then the settings' minimum"


def test_pods_come_and_go_by_what_gke_itself_reads_from_them(tmp_path: Path):
    settings = ("features=[queue-hpa]", "queue_hpa.adapter=autoscaling-metric", "validation.concurrencies=[1]")
    given = [argument for each in settings for argument in ("--set", each)]
    running = Run("--state", str(tmp_path / "state"), *given, "--keep", folder=tmp_path)
    result = running.result()
    assert result["status"] == "succeeded"
    # With load it came to two pods, and without to one again.
    assert {"verify_autoscaling": "succeeded"}.items() <= {s["name"]: s["status"] for s in result["steps"]}.items()
    server = f"vllm-{result['generation']}"
    watch = Watch(tmp_path / "state")
    found = watch.autoscalers.read_namespaced_horizontal_pod_autoscaler(server, "gemma")
    metrics = [each.pods.metric.name for each in found.spec.metrics]
    assert metrics == [f"autoscaling.gke.io|{server}|queue"]
    assert [each.pods.metric.name for each in found.status.current_metrics] == metrics
    conditions = {each.type: (each.status, each.reason) for each in found.status.conditions}
    assert conditions["ScalingActive"] == ("True", "ValidMetricFound")
    assert running.stop() == 0
