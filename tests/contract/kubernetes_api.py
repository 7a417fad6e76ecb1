"""An API server to test with the official client and kubectl.

KUBECONFIG_CONTRACT   a kubeconfig of a real API server, with the right to do everything: then no emulator is started.
                      For the tests of logs it must reach this machine's loopback as the InternalIP of a node
                      (`--kubelet-preferred-address-types=InternalIP`)

Every test has a namespace of its own, so that tests leave nothing that another could trip over.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.config import new_client_from_config

from tests.contract.apiserver_process import start_emulator, write_kubeconfig
from tests.contract.kubernetes_objects import Requests


@pytest.fixture(scope="session")
def kubeconfig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A kubeconfig of the API server under test."""
    if "KUBECONFIG_CONTRACT" in os.environ:
        yield Path(os.environ["KUBECONFIG_CONTRACT"])
        return
    folder = tmp_path_factory.mktemp("apiserver")
    server = start_emulator(folder)
    yield write_kubeconfig(folder, server.url)
    server.stop()


@pytest.fixture
def api(kubeconfig: Path) -> Iterator[client.ApiClient]:
    made = new_client_from_config(str(kubeconfig))
    yield made
    made.close()


@pytest.fixture
def core(api: client.ApiClient) -> client.CoreV1Api:
    return client.CoreV1Api(api)


@pytest.fixture
def apps(api: client.ApiClient) -> client.AppsV1Api:
    return client.AppsV1Api(api)


@pytest.fixture
def namespace(core: client.CoreV1Api) -> Iterator[str]:
    """A new namespace with the service account that pods need."""
    name = f"contract-{uuid.uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    try:
        core.create_namespaced_service_account(name, {"metadata": {"name": "default"}})
    except ApiException as error:
        # Where there are controllers, they may have been faster.
        if error.status != 409:
            raise
    yield name
    core.delete_namespace(name)


@pytest.fixture
def ask(api: client.ApiClient, namespace: str) -> Requests:
    return Requests(api, namespace)


@pytest.fixture
def kubectl(kubeconfig: Path, namespace: str, tmp_path: Path) -> Callable[..., str]:
    """Runs kubectl in the test's namespace; its stdout. Raises CalledProcessError with what it said."""
    binary = shutil.which("kubectl")
    if binary is None:
        pytest.skip("kubectl is not on this machine")

    def run(*arguments: str, stdin: str | None = None) -> str:
        command = [binary, "--namespace", namespace, "--cache-dir", str(tmp_path / "cache"), *arguments]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        done = subprocess.run(command, input=stdin, env=environment, capture_output=True, text=True, timeout=180)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    return run
