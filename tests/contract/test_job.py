"""Jobs of steps in a cluster, through the official client: progress, results, and every way to end without one.

kubernetes_cluster.py says how to run this against a real control plane.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.clients.kubernetes import Cluster as Client
from serving.deployment import job
from serving.errors import InconclusiveError, RequestError, ToldToEnd
from serving.settings import Settings, validated
from tests.contract.kubernetes_cluster import PYTHON_IMAGE, Kube, cluster, kube, wait_for

__all__ = ["cluster", "kube"]

JOB: dict[str, Any] = {
    "step": "validate-server",
    "run_id": "run-1",
    "generation": "g1",
    "image": PYTHON_IMAGE,
    "timeout": 600,
}


class Step:
    """A step that runs Jobs in a namespace; `said` is what it would tell a reader."""

    def __init__(self, kube: Kube, folder: Path):
        self.kube, self.client = kube, Client(kube.raw)
        values = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
        self.settings = validated(Settings, {**values, "namespace": kube.namespace})
        self.said: list[str] = []
        self.go_on = folder / "go-on"

    def run(self, program: str, **changes: Any) -> dict[str, Any]:
        args = {**JOB, "args": ["-c", program], **changes}
        return job.run_job(self.client, self.settings, say=self._hear, **args)

    @property
    def waits(self) -> str:
        """A program that goes on when its first line, or that it was there already, has been told here."""
        if os.environ.get("CLUSTER_KUBECONFIG"):
            pytest.skip("its pods do not see this machine's files")
        # Of a path in a command the kubelet would make the pod's own /tmp.
        path = str(self.go_on).encode().hex()
        return f"import os, time\nwhile not os.path.exists(bytes.fromhex('{path}')): time.sleep(0.05)\n"

    def _hear(self, line: str) -> None:
        self.said.append(line)
        if line == "one" or "is there already" in line:
            self.go_on.touch()

    def leave(self, program: str) -> None:
        """What is there of a step that was killed as soon as it had made its Job."""
        body = job.manifest(self.settings, job.Work(["-c", program]), **JOB, env=[], resources=job.SMALL)
        self.client.create(body)

    def pod(self) -> Any:
        return next(iter(self.kube.pods("batch.kubernetes.io/job-name=validate-server-run-1")), None)

    def running(self) -> Any:
        pod = self.pod()
        return pod if pod and pod.status.phase == "Running" else None

    def meanwhile(self, act: Any) -> threading.Thread:
        thread = threading.Thread(target=act)
        thread.start()
        return thread


@pytest.fixture
def step(kube: Kube, tmp_path: Path) -> Step:
    return Step(kube, tmp_path)


def test_progress_comes_while_the_job_runs_and_the_last_line_is_its_result(step: Step) -> None:
    program = f"print('one', flush=True)\n{step.waits}print('two')\nprint('{{\"passed\": true}}')"
    assert step.run(program) == {"passed": True}
    assert [line for line in step.said if "waits for a node" not in line] == ["one", "two"]
    wait_for(lambda: step.kube.batch.list_namespaced_job(step.kube.namespace).items == [])
    wait_for(lambda: step.kube.pods() == [])


def test_a_result_may_be_longer_than_a_line_of_a_container_log(step: Step) -> None:
    assert step.run("import json; print(json.dumps({'text': '대한민국' * 8000}, ensure_ascii=False))") == {
        "text": "대한민국" * 8000
    }


def test_an_argument_comes_as_it_is(step: Step) -> None:
    text = 'a "quoted" $$ 대한민국 \n line'.replace("$", "\\u0024")
    assert step.run(
        "import sys, json; print(json.dumps({'got': sys.argv[1:]}))",
        args=["-c", "import sys, json; print(json.dumps({'got': sys.argv[1:]}))", text],
    ) == {"got": [text]}


def test_a_step_that_was_killed_takes_its_running_job_over(step: Step) -> None:
    step.leave(f"{step.waits}print('{{\"attempt\": 1}}')")
    wait_for(step.running)
    assert step.run("print('{\"attempt\": 2}')") == {"attempt": 1}


def test_a_job_that_ended_while_nobody_looked_is_read(step: Step) -> None:
    step.leave("print('{\"attempt\": 1}')")
    wait_for(lambda: step.kube.batch.read_namespaced_job("validate-server-run-1", step.kube.namespace).status.succeeded)
    assert step.run("print('{\"attempt\": 2}')") == {"attempt": 1}


def test_a_crash_is_told_with_its_last_words_and_a_retry_starts_anew(step: Step) -> None:
    with pytest.raises(InconclusiveError, match="crashed with exit code 1") as raised:
        step.run("print('about to', flush=True); raise ValueError('no such thing')")
    assert "about to" in str(raised.value)
    assert str(raised.value).endswith("ValueError: no such thing")
    assert step.run("print('{\"attempt\": 2}')") == {"attempt": 2}


def test_no_result_is_told_with_what_was_said_instead(step: Step) -> None:
    with pytest.raises(InconclusiveError, match="left no result; its log ends:\nnothing to see"):
        step.run("print('nothing to see')")


def test_an_image_that_is_not_there_is_told_early(step: Step) -> None:
    with pytest.raises(RequestError, match=r"ImagePullBackOff.*Is example\.com/absent:1 pushed"):
        step.run("", image="example.com/absent:1", timeout=3600)


def test_a_secret_that_is_not_there_is_told_early(step: Step) -> None:
    variable = {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "key"}}}
    with pytest.raises(RequestError, match='CreateContainerConfigError: secret "absent" not found'):
        step.run("", env=[variable], timeout=600)


def test_a_job_that_no_node_can_hold_is_no_verdict(step: Step) -> None:
    with pytest.raises(InconclusiveError, match="ran out of time: its pod still waits for a node"):
        step.run("", resources={"cpu": "900", "memory": "256Mi"}, timeout=15)
    assert any("waits for a node" in line for line in step.said)


def test_a_job_that_takes_too_long_is_told_with_its_last_words(step: Step) -> None:
    with pytest.raises(InconclusiveError, match="ran out of time") as raised:
        step.run("import time; print('load: 3 of 16', flush=True); time.sleep(600)", timeout=15)
    assert "load: 3 of 16" in str(raised.value)


def test_an_evicted_pod_is_no_verdict(step: Step) -> None:
    def evict() -> None:
        pod = wait_for(step.running)
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.metadata.name}}
        step.kube.core.create_namespaced_pod_eviction(pod.metadata.name, step.kube.namespace, eviction)

    evicting = step.meanwhile(evict)
    with pytest.raises(InconclusiveError, match=r"taken away|was deleted while it ran"):
        step.run("import time; time.sleep(600)")
    evicting.join()


def test_a_job_that_somebody_deletes_is_no_verdict(step: Step) -> None:
    def delete() -> None:
        wait_for(step.running)
        step.kube.batch.delete_namespaced_job(
            "validate-server-run-1", step.kube.namespace, propagation_policy="Background"
        )

    deleting = step.meanwhile(delete)
    with pytest.raises(InconclusiveError, match="was deleted by somebody else"):
        step.run("import time; time.sleep(600)")
    deleting.join()


def test_a_step_that_is_told_to_end_ends_its_job(step: Step) -> None:
    def tell() -> None:
        wait_for(step.running)
        os.kill(os.getpid(), signal.SIGTERM)

    def end(*_: object) -> None:
        raise ToldToEnd

    before = signal.signal(signal.SIGTERM, end)
    try:
        telling = step.meanwhile(tell)
        with pytest.raises(ToldToEnd):
            step.run("import time; time.sleep(600)")
        telling.join()
    finally:
        signal.signal(signal.SIGTERM, before)
    wait_for(lambda: not step.client.list("Job", step.kube.namespace) and not step.pod())


def test_a_log_is_one_json_document_a_line_whatever_the_client_makes_of_json(step: Step) -> None:
    assert step.run('print(\'{"a": [1, {"b": null}]}\')') == json.loads('{"a": [1, {"b": null}]}')
