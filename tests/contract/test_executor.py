"""The command of a compiled step, run as an orchestrator does: a container's first process, told to end, retried."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.compile import compile_scenario
from serving.clients import kubernetes, storage
from serving.deployment import lease
from serving.outcome import recorded
from serving.scenarios import find
from serving.settings import Settings, validated
from serving.weights.release import Release
from tests.contract.test_resolve_model import COMPILED, PARAMETERS, REST

ISOLATED = ["unshare", "--pid", "--fork", "--kill-child"]
"""A process table of its own, where the step is process 1 as in a container: it takes root."""


def isolated() -> list[str]:
    """ISOLATED where this machine allows it; else the command is a child like any other."""
    return ISOLATED if subprocess.run([*ISOLATED, "true"], capture_output=True).returncode == 0 else []


class Executor:
    """A step's command in the compiled pipeline, with its parameters in place of the placeholder."""

    def __init__(self, step: str, folder: Path, environment: dict[str, str], **parameters: Any):
        compiled = yaml.safe_load(compile_scenario(find("03"), folder).read_text())
        container = compiled["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
        given = {"inputs": {"parameterValues": parameters}, "outputs": {"outputFile": str(folder / "output.json")}}
        arguments = [part.replace("{{$}}", json.dumps(given)) for part in container["args"]]
        self.command = [*container["command"], *arguments]
        self.environment = {
            **environment,
            "PATH": f"{Path(sys.executable).parent}:{environment['PATH']}",
            "TMPDIR": str(folder),
            "PYTHONUNBUFFERED": "1",
        }

    @contextmanager
    def running(self, *before: str) -> Iterator[subprocess.Popen[str]]:
        """The command, run by `before`; nothing of it is left after the block."""
        command = [*before, *self.command]
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment
        ) as started:
            try:
                yield started
                started.wait()
            finally:
                started.kill()


@pytest.fixture
def deployment(cloud_environment: dict[str, str]) -> tuple[Settings, Release]:
    """A deployment in a namespace of its own, and a release for it."""
    values = {**REST, **PARAMETERS, "namespace": "told-to-end", "lease": {"wait": "10m"}}
    release = Release(
        run_id="told-to-end-2",
        model=PARAMETERS["model"],
        commit="c" * 40,
        weights_key="0" * 16,
        weights_uri="gs://demo-bucket/models/google/gemma-3-4b-it/" + "0" * 16,
        generation="g0",
    )
    return validated(Settings, values), release


def outcome(settings: Settings, release: Release, step: str) -> Any:
    return storage.read_json(f"{settings.pipeline_root}/{release.run_id}/steps/{step}.json")


def first_process(started: subprocess.Popen[str], *, isolated: bool) -> int:
    """The pid of what an orchestrator would signal, and of nothing else."""
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children")
    return int(children.read_text().split()[0]) if isolated else started.pid


def test_a_step_whose_first_process_alone_is_told_to_end_says_so_and_leaves_its_outcome(
    deployment: tuple[Settings, Release], cloud_environment: dict[str, str], tmp_path: Path
):
    settings, release = deployment
    cluster = kubernetes.connect(settings)
    cluster.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": settings.namespace}})
    lease.take(cluster, settings, "told-to-end-1", print)
    executor = Executor(
        "ensure-access",
        tmp_path,
        cloud_environment,
        settings=settings.as_struct(),
        release=release.model_dump(),
    )
    before = isolated()
    with executor.running(*before) as started:
        assert started.stdout
        for line in started.stdout:
            if "waiting for the Lease" in line:
                os.kill(first_process(started, isolated=bool(before)), signal.SIGTERM)
                break
        said = started.stdout.read()
    assert started.returncode == 128 + signal.SIGTERM, said
    left = outcome(settings, release, "ensure_access")
    assert (left["status"], left["error"]["type"]) == ("inconclusive", "ToldToEnd")
    held = cluster.get("Lease", settings.name, settings.namespace)
    assert held
    assert lease.holder(held) == "told-to-end-1", "it was another's, and stays so"


def test_an_attempt_after_a_final_error_does_nothing_and_leaves_the_first_outcome(
    cloud_environment: dict[str, str], tmp_path: Path
):
    job = "no-such-scenario"
    parameters = {**PARAMETERS, "settings": {**REST, "scenario": "no-such"}, "job": job, "compiled": COMPILED}
    executor = Executor("resolve-model", tmp_path, cloud_environment, **parameters)
    outcomes, logs = [], []
    for _ in range(2):
        with executor.running() as started:
            assert started.stdout
            logs.append(started.stdout.read())
        assert started.returncode == 1
        outcomes.append(storage.read_json(f"gs://demo-bucket/pipelines/{job}/steps/resolve_model.json"))
    assert outcomes[0] == outcomes[1]
    assert "there is no scenario 'no-such'" in outcomes[0]["message"]
    assert "not tried again: scenario: there is no scenario 'no-such'" in logs[1]


def test_an_outcome_is_written_whole_though_its_step_is_told_to_end_meanwhile(
    cloud_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    write = storage.write_json

    def write_while_told(uri: str, value: Any) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return write(uri, value)

    monkeypatch.setattr(storage, "write_json", write_while_told)
    root = "gs://demo-bucket/pipelines"
    with recorded("promote_generation", root, "told-late") as made:
        made.succeeded("it serves")
    assert storage.read_json(f"{root}/told-late/steps/promote_generation.json")["status"] == "succeeded"
