"""What a pod's processes are given, how they are probed, and how they end; the process of GKE's parts restarted."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_cluster import (
    PYTHON_IMAGE,
    Cluster,
    Kube,
    cluster,
    deployment,
    exists,
    kube,
    pod_manifest,
    wait_for,
)

__all__ = ["cluster", "kube"]

SLEEP = ["python", "-c", "import time; print('up', flush=True); time.sleep(600)"]
DUMP = "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'argv': sys.argv, 'cwd': os.getcwd()}))"


def _processes(cluster: Cluster) -> list[int]:
    """Processes of pods: those whose TMPDIR is in the pods' folder."""
    marker = f"TMPDIR={cluster.pods}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_the_environment_is_the_containers_own(kube: Kube) -> None:
    kube.core.create_namespaced_secret(
        kube.namespace, {"metadata": {"name": "hf-token"}, "stringData": {"token": "s3cret"}}
    )
    kube.core.create_namespaced_config_map(
        kube.namespace, {"metadata": {"name": "settings"}, "data": {"MODE": "fast", "file.txt": "content"}}
    )
    env = [
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf-token", "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "no", "key": "x", "optional": True}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "CPUS", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}},
        {"name": "BASE", "value": "/cache"},
        {"name": "NESTED", "value": "$(BASE)/$(MODE)/$(UNKNOWN)"},
    ]
    container = {
        "env": env,
        "envFrom": [{"configMapRef": {"name": "settings"}}],
        "args": ["--model=/model", "--host", "0.0.0.0", "$(MODE)"],
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache"},
            {"name": "settings", "mountPath": "/model"},
            {"name": "info", "mountPath": "/info"},
        ],
        "resources": {"limits": {"cpu": "1500m"}},
        "workingDir": "/cache/work",
    }
    volumes = [
        {"name": "cache", "emptyDir": {"medium": "Memory"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {
            "name": "info",
            "projected": {
                "sources": [
                    {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
                    {"secret": {"name": "hf-token", "items": [{"key": "token", "path": "deep/token"}]}},
                    {"serviceAccountToken": {"path": "jwt", "audience": "gcs"}},
                ]
            },
        },
    ]
    kube.create_pod("env", ["python", "-c", DUMP], container=container, volumes=volumes)
    pod = kube.wait_phase("env", "Succeeded")
    seen = json.loads(kube.log("env"))
    environment, folder = seen["env"], kube.cluster.pods / pod.metadata.uid
    ip = pod.status.pod_ip
    expected = {
        "HF_TOKEN": "s3cret",
        "NODE": pod.spec.node_name,
        "IP": ip,
        "CPUS": "2",
        "MODE": "fast",
        "NESTED": f"{folder}/volumes/cache/fast/$(UNKNOWN)",
        "FROM_IMAGE": f"pod at {ip}",
        "HOSTNAME": "env",
        # What everybody trusts in this cloud.
        "SSL_CERT_FILE": str(kube.cluster.folder / "apiserver" / "tls" / "ca.crt"),
    }
    assert {name: environment.get(name) for name in expected} == expected
    assert "ABSENT" not in environment
    assert environment["TMPDIR"].startswith(str(folder))
    assert environment["http_proxy"].startswith(f"http://{kube.namespace}:pod@")
    assert environment["https_proxy"] == environment["http_proxy"]
    assert "127.0.0.1" in environment["no_proxy"]
    assert environment["KUBERNETES_SERVICE_HOST"]
    inherited = set(environment) & (set(os.environ) - {"PATH", "HOME", "LANG", "TMPDIR", "LC_CTYPE", *expected})
    assert not {name for name in inherited if not name.lower().endswith("proxy")}, "nothing of the launcher's"
    assert seen["argv"][1:] == [f"--model={folder}/volumes/settings", "--host", ip, "fast"]
    assert seen["cwd"] == f"{folder}/volumes/cache/work"
    assert (folder / "volumes/settings/file.txt").read_text() == "content"
    assert (folder / "volumes/info/name").read_text() == "env"
    assert (folder / "volumes/info/deep/token").read_text() == "s3cret"
    claims = json.loads(base64.urlsafe_b64decode((folder / "volumes/info/jwt").read_text().split(".")[1] + "=="))
    assert claims["sub"] == f"system:serviceaccount:{kube.namespace}:default"
    kube.core.delete_namespaced_pod("env", kube.namespace)
    wait_for(lambda: not folder.exists())


def test_what_is_missing_holds_a_container_up_until_it_is_there(kube: Kube) -> None:
    reference = {"secretKeyRef": {"name": "later", "key": "token"}}
    kube.create_pod("waits", container={"env": [{"name": "TOKEN", "valueFrom": reference}]})
    kube.create_pod("mounts", volumes=[{"name": "s", "secret": {"secretName": "later"}}])
    assert kube.wait_event("waits", "Failed") == 'Error: secret "later" not found'
    words = kube.wait_event("mounts", "FailedMount")
    assert words == 'MountVolume.SetUp failed for volume "s" : secret "later" not found'

    def reason() -> str:
        [status] = kube.pod("waits").status.container_statuses
        return status.state.waiting.reason

    wait_for(lambda: reason() == "CreateContainerConfigError", what=reason)
    kube.core.create_namespaced_secret(kube.namespace, {"metadata": {"name": "later"}, "stringData": {"token": "x"}})
    kube.wait_phase("waits", "Succeeded")
    kube.wait_phase("mounts", "Succeeded")


def test_the_folder_of_a_sub_path_is_made(kube: Kube) -> None:
    script = "import os, sys; print([oct(os.stat(path).st_mode & 0o777) for path in sys.argv[1:]])"
    container = {
        "volumeMounts": [
            {"name": "cache", "mountPath": "/cache", "subPath": "made/for"},
            {"name": "cache", "mountPath": "/model", "subPath": "this/pod"},
        ],
    }
    command = ["python", "-c", script, "/cache", "/model"]
    kube.create_pod("sub-path", command, container=container, volumes=[{"name": "cache", "emptyDir": {}}])
    kube.wait_phase("sub-path", "Succeeded")
    assert kube.log("sub-path").strip() == "['0o777', '0o777']"


def test_a_folder_of_the_node_is_its_own_and_none_of_this_machine(kube: Kube) -> None:
    code = "import os, sys; print(sorted(os.listdir(sys.argv[1])))"
    mount = {"volumeMounts": [{"name": "node", "mountPath": "/host"}]}
    node = [{"name": "node", "hostPath": {"path": "/"}}]
    kube.create_pod("host", command=["python", "-c", code, "/host"], container=mount, volumes=node)
    kube.wait_phase("host", "Succeeded")
    assert kube.log("host") == "['dev']\n"


def test_what_a_node_has_not_is_not_mounted(kube: Kube) -> None:
    lacking = {"folder": ("/nowhere", "Directory", "directory"), "file": ("/dev/nvidia0", "File", "file")}
    for name, (path, kind, _) in lacking.items():
        kube.create_pod(name, volumes=[{"name": "node", "hostPath": {"path": path, "type": kind}}])
    for name, (path, _, word) in lacking.items():
        words = f"hostPath type check failed: {path} is not a {word}"
        assert words in kube.wait_event(name, "FailedMount")


def test_init_containers_come_first_and_sidecars_stay(kube: Kube) -> None:
    def container(name: str, code: str, **more: Any) -> dict[str, Any]:
        mounts = [{"name": "shared", "mountPath": "/shared"}]
        command = ["python", "-c", code, "/shared"]
        return {"name": name, "image": PYTHON_IMAGE, "command": command, "volumeMounts": mounts, **more}

    body = pod_manifest("ordered", volumes=[{"name": "shared", "emptyDir": {}}])
    body["spec"]["initContainers"] = [
        container("first", "import sys; open(sys.argv[1] + '/a', 'w').write('1')"),
        container("side", "import time; print('side', flush=True); time.sleep(600)", restartPolicy="Always"),
        container("second", "import sys; open(sys.argv[1] + '/b', 'w').write(open(sys.argv[1] + '/a').read())"),
    ]
    body["spec"]["containers"] = [container("main", "import sys; print(open(sys.argv[1] + '/b').read())")]
    kube.core.create_namespaced_pod(kube.namespace, body)
    status = kube.wait_phase("ordered", "Succeeded").status
    assert kube.log("ordered", container="main") == "1\n"
    assert kube.log("ordered", container="side") == "side\n"
    assert [entry.state.terminated.exit_code for entry in status.init_container_statuses] == [0, 143, 0]
    kube.core.create_namespaced_pod(
        kube.namespace,
        {
            **pod_manifest("broken"),
            "spec": {
                **pod_manifest("broken")["spec"],
                "initContainers": [{"name": "i", "image": PYTHON_IMAGE, "command": ["python", "-c", "exit(4)"]}],
            },
        },
    )
    broken = kube.wait_phase("broken", "Failed").status
    assert broken.init_container_statuses[0].state.terminated.exit_code == 4
    assert broken.container_statuses[0].state.waiting.reason == "PodInitializing"


def test_probes_gate_start_and_readiness_and_restart_what_is_dead(kube: Kube, tmp_path: Path) -> None:
    ready, alive = tmp_path / "ready", tmp_path / "alive"
    ready.touch()
    alive.touch()

    def probe(path: Path, **more: Any) -> dict[str, Any]:
        # What is told here is whether the file is there, and not how long a busy machine takes to look.
        limits = {"periodSeconds": 1, "timeoutSeconds": 60, "failureThreshold": 1}
        return {"exec": {"command": ["test", "-e", str(path)]}, **limits, **more}

    started = tmp_path / "started"
    container = {
        "startupProbe": probe(started, failureThreshold=100),
        "readinessProbe": probe(ready),
        "livenessProbe": probe(alive),
    }
    kube.create_pod("probed", SLEEP, container=container, restartPolicy="Always", terminationGracePeriodSeconds=1)

    def status() -> Any:
        return (kube.pod("probed").status.container_statuses or [None])[0]

    wait_for(lambda: status() and status().state.running)
    assert (status().started, status().ready) == (False, False)
    started.touch()
    wait_for(lambda: status().started and status().ready)
    conditions = {entry.type: entry.status for entry in kube.pod("probed").status.conditions}
    assert conditions["Ready"] == conditions["ContainersReady"] == conditions["Initialized"] == "True"
    ready.unlink()
    wait_for(lambda: not status().ready)
    assert status().restart_count == 0
    not_ready = next(entry for entry in kube.pod("probed").status.conditions if entry.type == "Ready")
    assert (not_ready.reason, not_ready.message) == (
        "ContainersNotReady",
        "containers with unready status: [main]",
    )
    ready.touch()
    wait_for(lambda: status().ready)
    alive.unlink()
    wait_for(lambda: status().restart_count, what=status)
    alive.touch()
    assert status().last_state.terminated.exit_code == 143
    assert kube.wait_event("probed", "Killing") == "Container main failed liveness probe, will be restarted"
    wait_for(lambda: status().ready)


def test_a_pod_ends_by_prestop_then_sigterm_then_sigkill(kube: Kube, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = (
        "import signal, sys, time\n"
        f"def end(*_): open({str(trace)!r}, 'a').write('term '); time.sleep(0.2); sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"printf 'hook ' >> {trace}"]}}}
    kube.create_pod("gentle", ["python", "-c", code], container={"lifecycle": hook}, restartPolicy="Always")
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None); print('up', flush=True)\n"
    stubborn += "while True: time.sleep(600)"
    kube.create_pod("stubborn", ["python", "-c", stubborn], terminationGracePeriodSeconds=1, restartPolicy="Always")
    for name in ("gentle", "stubborn"):
        kube.wait_phase(name, "Running")
        wait_for(lambda name=name: kube.log(name) == "up\n")
        assert kube.core.delete_namespaced_pod(name, kube.namespace).metadata.deletion_timestamp
    wait_for(lambda: not kube.pods())
    assert trace.read_text() == "hook term "
    assert kube.wait_event("gentle", "Killing") == "Stopping container main"
    wait_for(lambda: not _processes(kube.cluster))


def test_a_forced_deletion_leaves_no_process(kube: Kube) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    pod = kube.create_pod("forced", ["python", "-c", code])
    wait_for(lambda: kube.pod("forced").status.phase == "Running" and kube.log("forced"))
    kube.kubectl("delete", "pod", "forced", "--force", "--grace-period=0")
    assert not exists(lambda: kube.pod("forced"))
    wait_for(lambda: not _processes(kube.cluster))
    wait_for(lambda: not (kube.cluster.pods / pod.metadata.uid).exists())


def test_there_is_no_way_into_a_container(kube: Kube) -> None:
    kube.create_pod("closed", SLEEP)
    kube.wait_phase("closed", "Running")
    config = ["--kubeconfig", str(kube.cluster.kubeconfig), "-n", kube.namespace]
    command = ["kubectl", *config, "exec", "closed", "--", "id"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "pods are processes here, and nothing leads into one" in done.stderr


def test_a_pod_has_a_deadline_of_its_own(kube: Kube) -> None:
    kube.create_pod("late", SLEEP, activeDeadlineSeconds=1, terminationGracePeriodSeconds=1)
    status = kube.wait_phase("late", "Failed").status
    assert (status.reason, status.message) == (
        "DeadlineExceeded",
        "Pod was active on the node longer than the specified deadline",
    )


def test_the_end_of_a_container_is_explained(kube: Kube) -> None:
    said = "import sys; open(sys.argv[1], 'w').write('because'); sys.exit(1)"
    kube.create_pod("told", ["python", "-c", said, "/dev/termination-log"])
    kube.create_pod(
        "logged",
        ["python", "-c", "raise SystemExit('from the log')"],
        container={"terminationMessagePolicy": "FallbackToLogsOnError"},
    )
    kube.create_pod("absent", ["no-such-command"])

    def terminated(name: str) -> Any:
        return kube.wait_phase(name, "Failed").status.container_statuses[0].state.terminated

    assert terminated("told").message == "because"
    assert terminated("logged").message == "from the log\n"
    absent = terminated("absent")
    assert (absent.reason, absent.exit_code) == ("StartError", 128)
    assert 'exec: "no-such-command": executable file not found in $PATH' in absent.message


def test_logs_are_cut_and_followed_as_kubectl_asks(kube: Kube) -> None:
    code = (
        "import signal; signal.signal(signal.SIGUSR1, lambda *_: None)\n"
        "for i in range(8): print('line', i, flush=True); i == 3 and signal.pause()"
    )
    kube.create_pod("talks", ["python", "-c", code])
    kube.wait_phase("talks", "Running")
    following = subprocess.Popen(
        ["kubectl", "--kubeconfig", str(kube.cluster.kubeconfig), "-n", kube.namespace, "logs", "-f", "talks"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert following.stdout
    followed = "".join(following.stdout.readline() for _ in range(4))
    [pid] = [pid for pid in _processes(kube.cluster) if b"signal.pause" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(pid, signal.SIGUSR1)
    followed += following.communicate(timeout=120)[0]
    assert followed == "".join(f"line {i}\n" for i in range(8))
    assert kube.log("talks", tail_lines=2) == "line 6\nline 7\n"
    assert kube.log("talks", limit_bytes=6) == "line 0"
    assert kube.log("talks", since_seconds=3600) == followed
    first = kube.log("talks", timestamps=True).splitlines()[0]
    assert first.endswith("Z line 0")
    assert first.startswith("20")
    with pytest.raises(ApiException, match="previous terminated container"):
        kube.log("talks", previous=True)


def test_a_reboot_of_the_nodes(kube: Kube) -> None:
    """GKE's process ends and starts again: what runs for ever is started in place, what ran once has failed."""
    cluster = kube.cluster
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "x"))
    kube.create_pod("once", SLEEP)
    kube.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    kube.wait_phase("once", "Running")
    done = kube.create_pod("done")
    kube.wait_phase("done", "Succeeded")
    [before] = kube.pods("app=web")
    nodes = {node.metadata.name: node.metadata.uid for node in kube.core.list_node().items}
    gke = cluster.processes.pop("gke")
    gke.stop(seconds=200)
    assert gke.popen.returncode == 0, "it waits for no pod's grace"
    assert not _processes(cluster), "nothing is left behind"
    cluster.start_gke()
    kube.kubectl("wait", "--for=condition=Ready", "pod", before.metadata.name, "--timeout=120s")
    wait_for(lambda: kube.pod(before.metadata.name).status.container_statuses[0].restart_count == 1)
    after = kube.pod(before.metadata.name)
    assert after.metadata.uid == before.metadata.uid
    # Another cluster may have claimed the network meanwhile, and then every pod has moved.
    assert after.status.pod_ip
    last = after.status.container_statuses[0].last_state.terminated
    assert (last.exit_code, last.reason) == (255, "Unknown")
    assert kube.wait_phase("once", "Failed").status.container_statuses[0].state.terminated.exit_code == 255
    assert {node.metadata.name: node.metadata.uid for node in kube.core.list_node().items} == nodes
    assert kube.log("done") == "hello\n"
    assert kube.pod("done").metadata.uid == done.metadata.uid
    kube.core.delete_namespaced_pod("once", kube.namespace)
    kube.core.delete_namespaced_pod("done", kube.namespace)
    wait_for(lambda: {pod.metadata.name for pod in kube.pods()} == {after.metadata.name})


def test_a_killed_process_leaves_no_process_behind(kube: Kube) -> None:
    cluster = kube.cluster
    children = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    kube.create_pod("parent", ["python", "-c", children])
    wait_for(lambda: kube.pod("parent").status.phase == "Running" and kube.log("parent"))
    # What a test before left may still be ending.
    wait_for(lambda: len(_processes(cluster)) == 2)
    gke = cluster.processes.pop("gke")
    gke.popen.send_signal(signal.SIGKILL)
    gke.stop()
    wait_for(lambda: not _processes(cluster))
    kube.core.delete_namespaced_pod("parent", kube.namespace)
    cluster.start_gke()
    wait_for(lambda: not kube.pods())


def test_an_idle_cluster_costs_next_to_nothing(kube: Kube) -> None:
    kube.create_pod("idle", SLEEP, container={"resources": {"limits": {"memory": "1Gi"}}})
    kube.wait_phase("idle", "Running")
    pids = [cluster_process.popen.pid for name, cluster_process in kube.cluster.processes.items() if name != "storage"]

    def ticks() -> int:
        return sum(
            sum(map(int, Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13])) for pid in pids
        )

    def used() -> float:
        """Seconds of a processor in four."""
        before = ticks()
        time.sleep(4)
        return (ticks() - before) / os.sysconf("SC_CLK_TCK")

    # It may have to clear away what tests before have left.
    wait_for(lambda: used() < 0.2, what=used)


def test_a_broken_configuration_is_one_clear_line(tmp_path: Path, cluster: Cluster) -> None:
    broken = tmp_path / "gke.json"
    broken.write_text('{"zones": ["a"], "pods": "/tmp/x", "project": {"id": "p", "number": "1"}, "speed": 1}')
    command = [sys.executable, "-m", "emulated_cloud.kubernetes.gke", "--kubeconfig", str(cluster.kubeconfig)]
    done = subprocess.run([*command, "--config", str(broken)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "speed" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
