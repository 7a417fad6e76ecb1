"""A whole cluster to run tests against: API server, controllers and GKE's parts, each its own process.

CLUSTER_KUBECONFIG   a kubeconfig of a real control plane (kube-apiserver, controller-manager and scheduler on
                     this machine, tokens for authentication): then only GKE's parts are ours. Its pod addresses
                     must be local: POD_NETWORK and LOAD_BALANCER_NETWORK name them
"""

from __future__ import annotations

import base64
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from emulators import process

PROJECT = {"id": "demo-project", "number": "123456789012"}
PYTHON_IMAGE = "example.com/python:1"
ZONES = ["us-central1-a", "us-central1-b"]
ACCELERATORS = {"nvidia-l4": 2, "nvidia-a100-80gb": 0}


@dataclass
class Cluster:
    """The processes of a cluster, and clients of it."""

    folder: Path
    processes: dict[str, process.Process] = field(default_factory=dict)

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
            "emulators.storage", "--root", str(self.folder / "buckets"), "--bucket", "weights", log=self.log("storage")
        )
        self.processes["storage"] = storage
        if "CLUSTER_KUBECONFIG" not in os.environ:
            self._start_control_plane()
        config = {
            "zones": ZONES,
            "accelerators": ACCELERATORS,
            "cpu_quota": 64,
            "scale_up_seconds": 0.2,
            "backoff_seconds": 1.0,
            "crash_backoff_seconds": 0.3,
            "project": PROJECT,
            "storage": {"endpoint": storage.url, "root": str(self.folder / "buckets")},
            "images": [
                {
                    "match": r"example\.com/python:1",
                    "argv0": {"python": [sys.executable]},
                    "env": {"FROM_IMAGE": "pod at $(POD_IP)"},
                }
            ],
            "pods": str(self.pods),
            "expose": [
                {"namespace": "exposed", "service": "web", "port": 80, "file": str(self.folder / "endpoint")},
            ],
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
            "emulators.kubernetes.apiserver", "--data", str(data), "--tokens", str(tokens), log=self.log("apiserver")
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
            "emulators.kubernetes.controllers",
            "--kubeconfig",
            str(self.kubeconfig),
            "--job-backoff-seconds",
            "0.2",
            log=self.log("controllers"),
        )

    def start_gke(self) -> None:
        self.processes["gke"] = process.start(
            "emulators.kubernetes.gke",
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
        """Changes the file that the autoscaler reads again at each scale-up."""
        self.config_file.write_text(json.dumps({**json.loads(self.config_file.read_text()), **changes}))

    # -- clients --------------------------------------------------------------------------------------------

    def api(self) -> Any:
        """The official client's ApiClient."""
        from kubernetes import config

        return config.new_client_from_config(str(self.kubeconfig))

    @property
    def storage_url(self) -> str:
        return self.processes["storage"].url

    def grant(self, namespace: str, account: str, role: str = "roles/storage.objectViewer") -> None:
        """Gives a Kubernetes service account a role on the bucket `weights`."""
        pool = f"projects/{PROJECT['number']}/locations/global/workloadIdentityPools/{PROJECT['id']}.svc.id.goog"
        member = f"principal://iam.googleapis.com/{pool}/subject/ns/{namespace}/sa/{account}"
        url = f"{self.storage_url}/storage/v1/b/weights/iam"
        policy = requests.get(url, timeout=10).json()
        policy.setdefault("bindings", []).append({"role": role, "members": [member]})
        requests.put(url, json=policy, timeout=10).raise_for_status()

    def upload(self, name: str, data: bytes) -> None:
        url = f"{self.storage_url}/upload/storage/v1/b/weights/o"
        params = {"uploadType": "media", "name": name}
        requests.post(url, params=params, data=data, timeout=10).raise_for_status()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


def wait_for(condition: Callable[[], Any], seconds: float = 20.0, what: Callable[[], Any] | None = None) -> Any:
    """The first true value of `condition`, asked every 50 ms. `what` describes the state when it never comes."""
    deadline = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what() if what else condition}")
        time.sleep(0.05)
