"""What goes wrong with real parts under a run: killed, dropped, out of memory, a port in use.

One clear error each, nothing left running or mounted, and a state that the next run goes on with. The runs share a
state, so that each begins on what the one before left; any of them may be the first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from emulated_cloud.cloud import Cloud, wait_for
from emulated_cloud.process import EmulatorFailed, start
from emulated_cloud.real.namespace import Namespace, NamespaceError

from tests.scenarios.command import PATIENCE_SECONDS, Run, processes_below

from .kube import kubectl, mounts

pytestmark = [pytest.mark.timeout(600)]
REAL = "control-plane,gcsfuse"


@pytest.fixture(scope="module")
def folder(parts: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bad-input")


@dataclass
class Runs:
    """Runs on one state, and the namespaces that they had."""

    folder: Path
    started: list[Run] = field(default_factory=list)
    namespaces: dict[str, int] = field(default_factory=dict)
    """Each with an open file: what is held open, no later namespace of somebody else's is called like."""

    def start(self, *arguments: str, real: str = REAL, state: str = "state") -> Run:
        run = Run("--real", real, "--state", str(self.folder / state), *arguments, folder=self.folder)
        self.started.append(run)
        return run

    def processes(self, program: str) -> list[int]:
        """The processes of the present run that this program is: `/PROGRAM ` or ` -m PROGRAM ` in the command line."""
        found = [
            int(line.split(":")[0])
            for line in processes_below(self.folder)
            if re.match(rf"\d+: (\S*/|\S+ -m ){re.escape(program)} ", line)
        ]
        assert found, f"no {program} in {processes_below(self.folder)}"
        for pid in found:
            own = namespaces_of(Path("/proc", str(pid)))
            assert not own & namespaces_of(Path("/proc/self")), "a real part is in namespaces of the run's own"
            for kind in ("net", "mnt"):
                file = Path("/proc", str(pid), "ns", kind)
                name = os.readlink(file)
                if name not in self.namespaces:
                    self.namespaces[name] = os.open(file, os.O_RDONLY)
        return found

    def kill(self, program: str) -> float:
        """Ends them as the kernel would; when that was. A pod of a run before may be ending with a mount of its own."""
        for pid in self.processes(program):
            os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    def kubectl(self, *arguments: str) -> str:
        """What kubectl prints of the present run's cluster."""
        return kubectl(Cloud(self.folder / "state"), "-n", "gemma", *arguments)


@pytest.fixture
def runs(folder: Path) -> Iterator[Runs]:
    """Whatever a test does to the parts of its runs, nothing of them is left behind."""
    made = Runs(folder)
    yield made
    running = [run.stop(signal.SIGKILL) for run in made.started if run.popen.poll() is None]
    assert not running, "every run of a test has ended"
    assert wait_for(lambda: not processes_below(folder), 120), processes_below(folder)
    assert mounts() == []
    # A mount is gone with the last process of its namespace.
    assert made.namespaces, "the test has looked at a part"
    looked_at = set(made.namespaces)
    assert wait_for(lambda: not in_any(looked_at), 120), in_any(looked_at)
    for descriptor in made.namespaces.values():
        os.close(descriptor)


def namespaces_of(process: Path) -> set[str]:
    """Network and mount namespace of a process, given by its folder in /proc."""
    return {os.readlink(process / "ns" / kind) for kind in ("net", "mnt")}


def in_any(namespaces: set[str]) -> list[str]:
    """The processes of this machine that are in one of these."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if namespaces_of(process) & namespaces:
                found.append(process.name)
    return found


def test_a_run_that_is_killed_leaves_nothing_running_and_nothing_mounted(runs: Runs) -> None:
    killed = runs.start()
    killed.wait_for("deploy_server: the image is there")
    assert runs.processes("gcsfuse"), "there was a mount to be left"
    assert killed.stop(signal.SIGKILL) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("program", "moment", "step"),
    [
        ("etcd", "resolve_model: started", "resolve_model"),
        ("kube-apiserver", "deploy_server: applied Deployment", "deploy_server"),
    ],
)
def test_a_control_plane_that_dies_ends_the_run_with_its_name(runs: Runs, program: str, moment: str, step: str) -> None:
    # Another length, another generation: there is something to deploy.
    dying = runs.start("--set", "engine.max_model_len=1024")
    dying.wait_for(moment)
    killed = runs.kill(program)
    result = dying.finish(code=1)
    assert time.monotonic() - killed < PATIENCE_SECONDS, "it does not wait for what does not come back"
    assert result["status"] == "failed"
    assert (result["error"]["step"], result["error"]["type"]) == (step, "InconclusiveError")
    assert f"{program} was ended by SIGKILL" in result["error"]["message"]
    log = runs.folder / "state" / "control-plane" / f"{program}.log"
    assert f"(its log is {log})" in result["error"]["message"]
    assert log.exists()
    stderr = dying._text()
    assert stderr.splitlines()[-1] == f"error: {step}: {result['error']['message']}"
    assert "Traceback" not in stderr


def test_a_mount_that_is_dropped_while_the_engine_loads_is_not_the_releases_fault(runs: Runs) -> None:
    loading = runs.start("--set", "engine.max_model_len=3072")
    loading.wait_for("deploy_server: the image is there")
    runs.kill("gcsfuse")
    error = loading.finish(code=1)["error"]
    assert (error["step"], error["type"]) == ("deploy_server", "InconclusiveError"), error["message"]
    assert "has lost its gcsfuse" in error["message"]
    assert "transport endpoint is not connected" in error["message"].lower()
    assert "kubectl -n gemma delete pod vllm-" in error["message"]


def test_a_server_outlives_its_mount_and_is_back_with_the_next_run(runs: Runs) -> None:
    """It is the generation that lost its mount above, which nobody holds against it."""
    settings = ("--set", "engine.max_model_len=3072")
    serving = runs.start(*settings, "--keep")
    result = serving.result()
    assert result["status"] == "succeeded"
    deployment = f"vllm-{result['generation']}"
    runs.kill("gcsfuse")
    for _ in range(5):
        body = {"model": result["model"], "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
        answer = httpx.post(f"{result['endpoint']}/v1/chat/completions", json=body, timeout=30, trust_env=False)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"]
        time.sleep(0.5)
    # What needs the files again does not get them, as on GKE: a mount is as old as its pod.
    runs.kill("emulated_cloud.engine")
    words = "Transport endpoint is not connected"
    assert wait_for(lambda: words in runs.kubectl("logs", "deployment/" + deployment), 30)
    path = "jsonpath={.status.readyReplicas}"
    assert runs.kubectl("get", "deployment", deployment, "-o", path) == ""
    assert serving.stop(signal.SIGINT) == 0
    assert wait_for(lambda: not processes_below(runs.folder), 5), processes_below(runs.folder)

    again = runs.start(*settings).finish()
    assert (again["status"], again["generation"]) == ("unchanged", result["generation"])


def test_an_engine_that_needs_more_memory_than_its_limit_is_told_so(runs: Runs) -> None:
    """vLLM itself, in a pod in which not even its imports have room."""
    # In a state of its own: in the others' it would first load what is live there.
    small = runs.start("--set", "accelerator.memory=300Mi", real=f"{REAL},vllm", state="small")
    small.wait_for("deploy_server: started")
    runs.processes("kube-apiserver")
    error = small.finish(code=1)["error"]
    assert (error["step"], error["type"]) == ("deploy_server", "InconclusiveError")
    assert "was killed for want of memory (OOMKilled): its limit is 300Mi" in error["message"]
    assert "accelerator.memory" in error["message"]


def test_a_port_in_use_is_named(folder: Path) -> None:
    network = Namespace.start(folder / "namespace.log")
    taken = None
    try:
        port = network.publish()
        with pytest.raises(NamespaceError, match=rf"port {port} on 127\.0\.0\.1: Address already in use\. `ss -ltnp`"):
            network.publish(port)
        assert network.publish() != port, "it goes on after a refusal"

        listen = f"import socket, time; s = socket.create_server(('', {port})); print(flush=True); time.sleep(600)"
        taken = subprocess.Popen([*network.prefix, sys.executable, "-c", listen], stdout=subprocess.PIPE)
        assert taken.stdout
        assert taken.stdout.readline() == b"\n"
        (folder / "tokens").write_text("t,admin,admin\n")
        arguments = ("--data", str(folder / "cluster"), "--tokens", str(folder / "tokens"), "--port", str(port))
        with pytest.raises(EmulatorFailed, match=r"kube-apiserver ended with exit code 1: .*address already in use"):
            start("emulated_cloud.real.control_plane", *arguments, log=folder / "plane.log", within=network.prefix)
    finally:
        if taken:
            taken.kill()
            taken.communicate()
        network.stop()
