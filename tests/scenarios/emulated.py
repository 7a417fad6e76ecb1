"""An emulated cloud that is up (`emulators up`), and commands that are sent to it, as against the cloud."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests
import yaml
from emulated_cloud.hub.repository import Repository

from tests.scenarios.command import MODEL, SECONDS, Run

SETTINGS = {
    "scenario": "gcs-fuse",
    "project": "demo-project",
    "bucket": "demo-bucket",
    "hub": {"token_secret": "projects/demo-project/secrets/hf-token/versions/latest"},
    "validation": {"concurrencies": [1], "requests_per_concurrency": 2},
    "serving": {"drain_seconds": 0},
    "schedule": {"cron": "0 3 * * *", "timezone": "Asia/Seoul"},
}


class Cloud:
    """An emulated cloud that is up, and commands that are sent to it."""

    def __init__(self, folder: Path, *options: str, **changes: Any):
        self.folder, self.state = folder, folder / "state"
        self.settings("gemma.yaml", **changes)
        arguments = ("-f", "gemma.yaml", "--state", str(self.state), "--json", *options)
        self.run = Run(*arguments, folder=folder, command=("emulators", "up"))
        self.environment: dict[str, str] = self.run.result()["environment"]

    def settings(self, name: str, **changes: Any) -> None:
        """Writes a settings file."""
        (self.folder / name).write_text(yaml.safe_dump({**SETTINGS, **changes}))

    def begin(self, *words: str, file: str = "gemma.yaml") -> Run:
        """A command that has begun."""
        return Run("-f", file, "--json", folder=self.folder, command=words, variables=self.environment)

    def command(self, *words: str, code: int = 0, file: str = "gemma.yaml") -> dict[str, Any]:
        """What a command printed that ended with this exit code."""
        return self.begin(*words, file=file).finish(code)

    def release(self, change: Callable[[Path], object], weights: Path) -> None:
        """What the hub's main is from now on: these weights with a change."""
        folder = Path(shutil.copytree(weights, self.folder / f"release-{time.monotonic_ns()}"))
        change(folder)
        Repository(self.state / "tmp" / "hub", MODEL).commit(folder)

    def night(self) -> dict[str, Any]:
        """The report of the run that the schedule's next tick begins."""
        runs = self.state / "buckets" / "demo-bucket" / "objects" / "pipelines"
        before = set(runs.glob("*/report.json"))
        tick = self.command("schedule", "show")["next"][0]
        clock = f"{self.environment['GEMMA_PIPELINES_API_ENDPOINT']}/_emulator/clock"
        requests.post(clock, json={"time": tick}, timeout=60).raise_for_status()
        deadline = time.monotonic() + SECONDS
        while not (new := set(runs.glob("*/report.json")) - before):
            assert time.monotonic() < deadline, "no report came"
            time.sleep(0.5)
        return json.loads(new.pop().read_text())

    def script(self, *faults: dict[str, Any]) -> None:
        """Has Google's APIs fail from now on."""
        faulty = f"{self.environment['GEMMA_PIPELINES_API_ENDPOINT']}/_emulator/faults"
        requests.post(faulty, json=list(faults), timeout=60).raise_for_status()

    def consumed(self) -> list[int]:
        faulty = f"{self.environment['GEMMA_PIPELINES_API_ENDPOINT']}/_emulator/faults"
        return [fault["consumed"] for fault in requests.get(faulty, timeout=60).json()]

    def in_cluster(self, path: str) -> list[dict[str, Any]]:
        """The objects at a path of the cluster's API."""
        config = json.loads((self.state / "kubeconfig").read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        headers = {"Authorization": f"Bearer {user['token']}"}
        answer = requests.get(
            f"{cluster['server']}{path}", headers=headers, verify=cluster["certificate-authority"], timeout=60
        )
        answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()["items"]
        return found

    def of_run(self, run_id: str, file: str) -> Any:
        """A JSON document that a run left."""
        folder = self.state / "buckets" / "demo-bucket" / "objects" / "pipelines" / run_id
        return json.loads((folder / file).read_text())


def held(cloud: Cloud, namespace: str = "gemma") -> Mapping[str, Any]:
    """What a deployment holds that costs money or keeps others out: its Lease's holder, Jobs, accelerators by
    Deployments that want any, machines and disks that bake."""
    leases = cloud.in_cluster(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
    deployments = cloud.in_cluster(f"/apis/apps/v1/namespaces/{namespace}/deployments")
    folder = cloud.state / "compute"
    return {
        "lease": "".join(lease["spec"].get("holderIdentity") or "" for lease in leases),
        "jobs": [job["metadata"]["name"] for job in cloud.in_cluster(f"/apis/batch/v1/namespaces/{namespace}/jobs")],
        "deployments": sorted(each["metadata"]["name"] for each in deployments if each["spec"].get("replicas", 1)),
        "baking": sorted(str(file.relative_to(folder)) for file in folder.glob("zones/**/*.json")),
    }
