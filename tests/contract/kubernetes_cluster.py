"""A whole cluster to run tests against: API server, controllers and GKE's parts, each its own process.

CLUSTER_KUBECONFIG   a kubeconfig of a real control plane (kube-apiserver, controller-manager and scheduler on
                     this machine, tokens for authentication): then only GKE's parts are ours. Its pod addresses
                     must be local: POD_NETWORK and LOAD_BALANCER_NETWORK name them
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from emulated_cloud import process
from kubernetes import client
from kubernetes import config as client_config
from kubernetes.client.exceptions import ApiException

PROJECT = {"id": "demo-project", "number": "123456789012"}
PYTHON_IMAGE = "example.com/python:1"
ZONES = ["us-central1-a", "us-central1-b"]
ACCELERATORS = {"nvidia-l4": 2, "nvidia-a100-80gb": 0}


@dataclass
class Cluster:
    """The processes of a cluster, and clients of it."""

    folder: Path
    processes: dict[str, process.Process] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    """Further configuration of GKE's parts."""

    @property
    def kubeconfig(self) -> Path:
        return Path(os.environ.get("CLUSTER_KUBECONFIG") or self.folder / "kubeconfig")

    @property
    def config_file(self) -> Path:
        return self.folder / "gke.json"

    @property
    def pods(self) -> Path:
        return self.folder / "pods"

    def start(self) -> None:
        storage = process.start(
            "emulated_cloud.storage",
            "--root",
            str(self.folder / "buckets"),
            "--bucket",
            "weights",
            log=self.log("storage"),
        )
        self.processes["storage"] = storage
        if "CLUSTER_KUBECONFIG" not in os.environ:
            self._start_control_plane()
        config = {
            "zones": ZONES,
            "accelerators": ACCELERATORS,
            "cpu_quota": 64,
            "scale_up_seconds": 0.2,
            # Long enough that a busy autoscaler looks again meanwhile, and says that it leaves a pool alone.
            "backoff_seconds": 5.0,
            "crash_backoff_seconds": 0.3,
            "project": PROJECT,
            "storage": {"endpoint": storage.url, "root": str(self.folder / "buckets")},
            "disks": str(self.folder / "disks"),
            "tls": str(self.folder / "apiserver" / "tls"),
            "images": [
                {
                    "match": r"example\.com/python:1|vllm/python@.*",
                    "argv0": {"python": [sys.executable]},
                    "env": {"FROM_IMAGE": "pod at $(POD_IP)"},
                }
            ],
            "pods": str(self.pods),
            "expose": [
                {"namespace": "exposed", "service": "web", "port": 80, "file": str(self.folder / "endpoint")},
                {
                    "namespace": "exposed-gateway",
                    "gateway": "front",
                    "port": 80,
                    "file": str(self.folder / "gateway-endpoint"),
                },
            ],
            **self.more,
        }
        for key, variable in (("pod_network", "POD_NETWORK"), ("load_balancer_network", "LOAD_BALANCER_NETWORK")):
            if variable in os.environ:
                config[key] = os.environ[variable]
        self.config_file.write_text(json.dumps(config))
        self.start_gke()

    def _start_control_plane(self) -> None:
        tokens = self.folder / "tokens.csv"
        tokens.write_text('admin-token,admin,admin,"system:masters"\n')
        data = self.folder / "apiserver"
        server = process.start(
            "emulated_cloud.kubernetes.apiserver",
            "--data",
            str(data),
            "--tokens",
            str(tokens),
            log=self.log("apiserver"),
        )
        self.processes["apiserver"] = server
        authority = base64.b64encode((data / "tls" / "ca.crt").read_bytes()).decode()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server.url, "certificate-authority-data": authority}}],
            "users": [{"name": "u", "user": {"token": "admin-token"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        self.kubeconfig.write_text(yaml.safe_dump(config))
        self.processes["controllers"] = process.start(
            "emulated_cloud.kubernetes.controllers",
            "--kubeconfig",
            str(self.kubeconfig),
            "--job-backoff-seconds",
            "0.2",
            "--autoscaler-seconds",
            "0.3",
            log=self.log("controllers"),
        )

    def start_gke(self) -> None:
        self.processes["gke"] = process.start(
            "emulated_cloud.kubernetes.gke",
            "--kubeconfig",
            str(self.kubeconfig),
            "--config",
            str(self.config_file),
            log=self.log("gke"),
        )

    def stop(self) -> None:
        for name in ("gke", "controllers", "apiserver", "storage"):
            if name in self.processes:
                self.processes.pop(name).stop()

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def configure(self, **changes: Any) -> None:
        """Changes what the process reads again each time that it matters."""
        new = self.config_file.with_name("gke.json.new")
        new.write_text(json.dumps({**json.loads(self.config_file.read_text()), **changes}))
        new.replace(self.config_file)

    def consumed(self, of: str = "consumed") -> dict[str, dict[str, int]]:
        """How often each scripted fault has happened, of a disk by zone, of a Gateway (`gateways-consumed`) by name."""
        file = self.config_file.with_name(f"gke.json.{of}")
        return json.loads(file.read_text()) if file.exists() else {}

    # -- clients --------------------------------------------------------------------------------------------

    def api(self) -> Any:
        """The official client's ApiClient."""
        return client_config.new_client_from_config(str(self.kubeconfig))

    @property
    def storage_url(self) -> str:
        return self.processes["storage"].url

    def grant(self, namespace: str, account: str, role: str = "roles/storage.objectViewer") -> None:
        """Gives a Kubernetes service account a role on the bucket `weights`."""
        pool = f"projects/{PROJECT['number']}/locations/global/workloadIdentityPools/{PROJECT['id']}.svc.id.goog"
        member = f"principal://iam.googleapis.com/{pool}/subject/ns/{namespace}/sa/{account}"
        url = f"{self.storage_url}/storage/v1/b/weights/iam"
        policy = requests.get(url, timeout=60).json()
        policy.setdefault("bindings", []).append({"role": role, "members": [member]})
        requests.put(url, json=policy, timeout=60).raise_for_status()

    def upload(self, name: str, data: bytes) -> None:
        url = f"{self.storage_url}/upload/storage/v1/b/weights/o"
        params = {"uploadType": "media", "name": name}
        requests.post(url, params=params, data=data, timeout=60).raise_for_status()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def wait_for(condition: Callable[[], Any], seconds: float = 120, what: Callable[[], Any] | None = None) -> Any:
    """The first true value of `condition`, asked every 50 ms. `what` describes the state when it never comes."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what() if what else condition}")
        time.sleep(0.05)


SERVER = """
import http.server, os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = os.environ["ANSWER"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *args):
        pass
print("serving", flush=True)
http.server.ThreadingHTTPServer((sys.argv[1], 8000), Handler).serve_forever()
"""


class Kube:
    """The official client in one namespace."""

    def __init__(self, cluster: Cluster, namespace: str):
        api = cluster.api()
        self.cluster, self.namespace = cluster, namespace
        self.core, self.apps, self.batch = client.CoreV1Api(api), client.AppsV1Api(api), client.BatchV1Api(api)
        self.raw = api

    def pods(self, selector: str = "") -> list[Any]:
        return self.core.list_namespaced_pod(self.namespace, label_selector=selector).items

    def pod(self, name: str) -> Any:
        return self.core.read_namespaced_pod(name, self.namespace)

    def create_pod(self, name: str, command: list[str] | None = None, **spec: Any) -> Any:
        return self.core.create_namespaced_pod(self.namespace, pod_manifest(name, command, **spec))

    def log(self, pod: str, **options: Any) -> str:
        # Left to itself the client takes a log that is JSON for an object.
        answer = self.core.read_namespaced_pod_log(pod, self.namespace, _preload_content=False, **options)
        return answer.data.decode()

    def events(self, name: str) -> list[tuple[str, str, str]]:
        """(type, reason, message) of an object's events, in order."""
        items = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={name}").items
        items.sort(key=lambda event: int(event.metadata.resource_version))
        return [(event.type, event.reason, event.message) for event in items]

    def wait_event(self, name: str, reason: str, words: str = "", seconds: float = 120) -> str:
        return wait_for(
            lambda: next((text for _, why, text in self.events(name) if why == reason and words in text), None),
            seconds,
            lambda: self.events(name),
        )

    def wait_phase(self, name: str, phase: str, seconds: float = 120) -> Any:
        def there() -> Any:
            pod = self.pod(name)
            return pod if pod.status.phase == phase else None

        return wait_for(there, seconds, lambda: (self.pod(name).status, self.events(name)))

    def kubectl(self, *args: str, text: str = "") -> str:
        command = ["kubectl", "--kubeconfig", str(self.cluster.kubeconfig), "-n", self.namespace, *args]
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def pod_manifest(name: str, command: list[str] | None = None, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": spec.pop("image", PYTHON_IMAGE),
        "command": command or ["python", "-c", "print('hello')"],
        **spec.pop("container", {}),
    }
    metadata = {"name": name, "annotations": spec.pop("annotations", {}), "labels": spec.pop("labels", {})}
    spec.setdefault("restartPolicy", "Never")
    spec.setdefault("terminationGracePeriodSeconds", 5)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container], **spec}}


def deployment(name: str, answer: str, replicas: int = 1, labels: dict[str, str] | None = None, **spec: Any) -> dict:
    labels = {"app": name, **(labels or {})}
    template = {
        "metadata": {"labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 5,
            "containers": [
                {
                    "name": "server",
                    "image": PYTHON_IMAGE,
                    "command": ["python", "-c", SERVER],
                    "args": ["0.0.0.0"],
                    "env": [{"name": "ANSWER", "value": answer}],
                    "ports": [{"name": "http", "containerPort": 8000}],
                    "readinessProbe": {
                        "httpGet": {"path": "/", "port": "http"},
                        "periodSeconds": 1,
                        "timeoutSeconds": 10,
                    },
                }
            ],
            **spec.pop("pod", {}),
        },
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


@pytest.fixture
def kube(cluster: Cluster, request: pytest.FixtureRequest) -> Any:
    """A namespace of the test's own, deleted afterwards."""
    name = request.node.name.replace("_", "-").split("[")[0].removeprefix("test-")[:50].strip("-")
    made = Kube(cluster, name)
    made.core.create_namespace({"metadata": {"name": name}})
    wait_for(lambda: exists(lambda: made.core.read_namespaced_service_account("default", name)))
    yield made
    cluster.configure(decline={})
    made.core.delete_namespace(name)


def exists(read: Any) -> bool:
    try:
        read()
    except ApiException as error:
        if error.status != 404:
            raise
        return False
    return True


def get(url: str) -> str:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=60) as answer:
        return answer.read().decode()
