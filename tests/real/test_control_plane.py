"""A real control plane: seen from outside its network, worked by our kubelet and node pools, kept across restarts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.cloud import Cloud, wait_for
from emulated_cloud.process import EmulatorFailed, Process, start
from emulated_cloud.real.namespace import LOAD_BALANCER_NETWORK, POD_NETWORK, Namespace

from .kube import KUBECTL, PYTHON, USER, deployment, endpoint, kubectl, namespace, service

SERVER = """
import http.server, json, os
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps([os.getuid(), os.getgid(), sorted(os.listdir("/")), os.access("/usr", os.W_OK)]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
print("serving as", os.getuid(), flush=True)
http.server.ThreadingHTTPServer((os.environ["ADDRESS"], 8000), Answer).serve_forever()
"""


def test_kubectl_and_the_official_client_reach_it_from_outside(cloud: Cloud) -> None:
    from kubernetes.client import VersionApi
    from kubernetes.config import new_client_from_config

    assert "Server Version: v1.35" in kubectl(cloud, "version")
    assert "podmonitorings.monitoring.googleapis.com" in kubectl(cloud, "get", "crd", "-o", "name")
    with new_client_from_config(str(cloud.kubeconfig)) as api:
        assert (VersionApi(api).get_code().major, VersionApi(api).get_code().minor) == ("1", "35")


def test_a_deployment_becomes_ready_from_nothing(cloud: Cloud) -> None:
    container = {
        "image": PYTHON,
        "command": ["python", "-c", SERVER],
        "env": [{"name": "ADDRESS", "value": "0.0.0.0"}],
        "ports": [{"containerPort": 8000}],
        "readinessProbe": {"httpGet": {"path": "/", "port": 8000}, "periodSeconds": 1, "timeoutSeconds": 10},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    data = [{"name": "data", "emptyDir": {}}]
    kubectl(cloud, "apply", "-f", "-", objects=[namespace("web")])
    kubectl(cloud, "apply", "-f", "-", objects=[service("web"), deployment("web", container, data)])
    kubectl(cloud, "-n", "web", "rollout", "status", "deployment/web", "--timeout=120s")

    with urllib.request.urlopen(endpoint(cloud.expose[0]["file"]), timeout=60) as answer:
        user, group, root, writes = json.load(answer)
    assert (user, group, writes) == (USER, USER, False)
    assert "data" in root
    assert not {"home", "mnt"} & set(root)
    # The API server reaches pods and kubelets, which no loopback address would let it.
    assert json.loads(kubectl(cloud, "get", "--raw", "/api/v1/namespaces/web/services/web/proxy/"))[0] == USER
    assert f"serving as {USER}" in kubectl(cloud, "-n", "web", "logs", "deployment/web")
    kubectl(cloud, "-n", "web", "delete", "pod", "--all", "--force", "--grace-period=0")
    kubectl(cloud, "-n", "web", "rollout", "status", "deployment/web", "--timeout=120s")


def test_gkes_parts_have_the_rights_that_they_use_and_no_others(cloud: Cloud) -> None:
    refused = [entry for entry in cloud.requests("apiserver") if entry["status"] == 403]
    assert [(entry["user"], entry["verb"], entry["path"]) for entry in refused if entry["user"] == "system:gke"] == []
    for right in ("create pods", "delete deployments.apps", "list secrets", "update clusterroles"):
        assert kubectl(cloud, "auth", "can-i", *right.split(), "--as=system:gke", "-A", fails=True).startswith("no")


def test_the_request_log_says_who_asked_what(cloud: Cloud) -> None:
    kubectl(cloud, "create", "configmap", "logged", "-n", "default")
    path = "/api/v1/namespaces/default/configmaps"

    def found() -> list[dict[str, object]]:
        return [
            entry
            for entry in cloud.requests("apiserver")
            if entry["path"].startswith(path) and entry["user"] == "admin"
        ]

    assert wait_for(lambda: bool(found()), 120)
    (entry,) = found()
    assert (entry["method"], entry["status"], entry["verb"], entry["resource"]) == ("POST", 201, "create", "configmaps")
    assert str(entry["user_agent"]).startswith("kubectl")


# -- the process ------------------------------------------------------------------------------------------------


@pytest.fixture
def own_network(parts: None, tmp_path: Path) -> Iterator[Namespace]:
    made = Namespace.start(tmp_path / "namespace.log")
    yield made
    made.stop()


def begin(folder: Path, network: Namespace, *options: str) -> Process:
    tokens = folder / "tokens.csv"
    tokens.write_text('admin-token,admin,admin,"system:masters"\n')
    arguments = ("--data", str(folder / "data"), "--tokens", str(tokens), "--port", str(network.publish()))
    return start("emulated_cloud.real.control_plane", *arguments, *options, log=folder / "log", within=network.prefix)


def ask(process: Process, folder: Path, *args: str) -> str:
    flags = [f"--server={process.url}", f"--certificate-authority={folder / 'data/tls/ca.crt'}", "--token=admin-token"]
    argv = ["timeout", "120", str(KUBECTL), "--kubeconfig=/dev/null", *flags, *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def running(folder: Path) -> list[int]:
    """Processes whose command line names the folder, our own not among them."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_what_was_stored_outlives_it(own_network: Namespace, tmp_path: Path) -> None:
    first = begin(tmp_path, own_network, "--bare")
    ask(first, tmp_path, "create", "configmap", "kept", "--from-literal=a=1")
    first.stop()
    assert running(tmp_path) == []
    second = begin(tmp_path, own_network, "--bare")
    assert ask(second, tmp_path, "get", "configmap", "kept", "-o", "jsonpath={.data.a}") == "1"
    second.stop()


def test_one_component_does_not_outlive_another(own_network: Namespace, tmp_path: Path) -> None:
    process = begin(tmp_path, own_network, "--bare")
    (etcd,) = [pid for pid in running(tmp_path) if "/etcd\0" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(etcd, signal.SIGKILL)
    assert process.popen.wait(120) == 1
    assert wait_for(lambda: running(tmp_path) == [], 120)
    assert "etcd was ended by SIGKILL" in (tmp_path / "log").read_text()
    process.stop()


def test_a_kill_leaves_nothing_running(own_network: Namespace, tmp_path: Path) -> None:
    process = begin(tmp_path, own_network, "--bare")
    process.popen.kill()
    process.stop()
    assert wait_for(lambda: running(tmp_path) == [], 120)


def test_a_malformed_role_is_one_clear_error(own_network: Namespace, tmp_path: Path) -> None:
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": "r"},
        "rules": [{"verbs": []}],
    }
    (tmp_path / "roles.yaml").write_text(json.dumps(role))
    with pytest.raises(EmulatorFailed, match=r"roles\.yaml: Role r: .*verbs must contain at least one value"):
        begin(tmp_path, own_network, "--bare", "--objects", str(tmp_path / "roles.yaml"))
    assert running(tmp_path) == []


# -- the same tests as the emulator's -------------------------------------------------------------------------------


def kubeconfig(process: Process, folder: Path) -> Path:
    cluster = {"server": process.url, "certificate-authority": str(folder / "data/tls/ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "x",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": "admin-token"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    return folder / "kubeconfig"


def contract(pattern: str, network: Namespace, variables: dict[str, str], *arguments: str) -> None:
    """Contract tests, from the cluster's side: pods and kubelets have addresses there."""
    files = sorted(Path(__file__).parents[1].glob(f"contract/{pattern}"))
    assert files
    done = subprocess.run(
        [*network.prefix, sys.executable, "-m", "pytest", "-q", "--tb=short", *map(str, files), *arguments],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_the_api_contract_holds_here(own_network: Namespace, tmp_path: Path) -> None:
    process = begin(tmp_path, own_network, "--bare")
    try:
        contract("test_kubernetes_api*.py", own_network, {"KUBECONFIG_CONTRACT": str(kubeconfig(process, tmp_path))})
    finally:
        process.stop()


def test_the_cluster_contract_holds_here(own_network: Namespace, tmp_path: Path) -> None:
    """Nodes, kubelet, CSI, Services and autoscaler work for a real control plane as for the emulated one."""
    process = begin(tmp_path, own_network)
    networks = {"POD_NETWORK": POD_NETWORK, "LOAD_BALANCER_NETWORK": LOAD_BALANCER_NETWORK}
    try:
        contract(
            "test_kubernetes_cluster*.py",
            own_network,
            {"CLUSTER_KUBECONFIG": str(kubeconfig(process, tmp_path)), **networks},
            # Pods that look at files of their node have no place here, and the real autoscaler knows nothing of GKE's
            # AutoscalingMetric (test_scenarios.py sees it at work).
            *("-k", "not cluster_pools and not pods_come_and_go"),
        )
    finally:
        process.stop()
