"""An emulated cloud that is up (`emulators up`), and commands that are sent to it, as against the cloud."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import requests
import yaml
from emulated_cloud.hub.repository import Repository

from tests.scenarios.command import MODEL, SECONDS, Run

SETTINGS: dict[str, Any] = {
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
        self.newest: Path | None = None
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
        self.newest = folder
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
        found: list[dict[str, Any]] = self.ask(path)["items"]
        return found

    def ask(self, path: str) -> Any:
        """What the cluster's API answers to its administrator."""
        return self._administer("GET", path)

    def apply(self, path: str, body: dict[str, Any], manager: str) -> None:
        """Has another field manager own what is in `body`, whoever does now."""
        words = {"Content-Type": "application/apply-patch+yaml"}
        self._administer("PATCH", f"{path}?fieldManager={manager}&force=true", headers=words, data=json.dumps(body))

    def delete(self, path: str) -> None:
        """Has the administrator take an object away."""
        self._administer("DELETE", path)

    def watch(self, path: str) -> Iterator[dict[str, Any]]:
        """Each state of the objects at a path, from now until the cluster ends."""
        with self._call("GET", f"{path}{'&' if '?' in path else '?'}watch=1", timeout=None, stream=True) as answer:
            try:
                for line in answer.iter_lines():
                    yield json.loads(line)["object"]
            except requests.ConnectionError:
                return  # It has ended.

    def _administer(
        self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({}), **body: Any
    ) -> Any:
        return self._call(method, path, headers, timeout=60, **body).json()

    def _call(
        self, method: str, path: str, headers: Mapping[str, str] = MappingProxyType({}), **options: Any
    ) -> requests.Response:
        config = json.loads((self.state / "kubeconfig").read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        answer = requests.request(
            method,
            f"{cluster['server']}{path}",
            headers={"Authorization": f"Bearer {user['token']}", **headers},
            verify=cluster["certificate-authority"],
            **options,
        )
        answer.raise_for_status()
        return answer

    def vertex(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What Vertex AI answers to a program of somebody's own."""
        return self.google(method, f"v1/projects/demo-project/locations/us-central1/{path}", body)

    def google(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """What one of Google's APIs answers."""
        google = self.environment["GEMMA_PIPELINES_API_ENDPOINT"]
        token = requests.get(
            f"{google}/computeMetadata/v1/instance/service-accounts/default/token",
            headers={"Metadata-Flavor": "Google"},
            timeout=60,
        ).json()["access_token"]
        url = f"{google}/{path}"
        answer = requests.request(method, url, json=body, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def ran(self, job: dict[str, Any], job_id: str) -> dict[str, Any]:
        """A run that has ended, which somebody asked Vertex AI for without us."""
        self.vertex("POST", f"pipelineJobs?pipelineJobId={job_id}", job)
        return self.ended(job_id)

    def ended(self, job_id: str) -> dict[str, Any]:
        """A run, when it has ended."""
        deadline = time.monotonic() + SECONDS
        while "endTime" not in (job := self.vertex("GET", f"pipelineJobs/{job_id}")):
            assert time.monotonic() < deadline, job
            time.sleep(0.2)
        return job

    def logged(self, condition: str) -> list[dict[str, Any]]:
        """What Cloud Logging has of entries like these, as their fields."""
        body = {"resourceNames": ["projects/demo-project"], "filter": condition, "pageSize": 1000}
        return [entry["jsonPayload"] for entry in self.google("POST", "v2/entries:list", body).get("entries", [])]

    def of_run(self, run_id: str, file: str) -> Any:
        """A JSON document that a run left."""
        (found,) = (self.state / "buckets" / "demo-bucket" / "objects").glob(f"*/{run_id}/{file}")
        return json.loads(found.read_text())


@contextmanager
def up(folder: Path, *options: str, **changes: Any) -> Iterator[Cloud]:
    """A cloud that is up while the block runs, however that ends."""
    cloud = Cloud(folder, *options, **changes)
    try:
        yield cloud
    finally:
        code = cloud.run.stop()
    assert code == 0


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


def holds(cloud: Cloud) -> set[str]:
    """All that the cloud holds, but what runs and builds left to be read, and what comes and goes by itself: schedules,
    objects and IAM bindings of the bucket, disks, machines and images, objects of the cluster."""
    bucket = cloud.state / "buckets" / "demo-bucket"
    stored = {str(file.relative_to(bucket / "objects")) for file in (bucket / "objects").rglob("*") if file.is_file()}
    policy = json.loads((bucket / "bucket.json").read_text()).get("policy", {}).get("bindings", [])
    folders = [cloud.state / name for name in ("aiplatform/us-central1/schedules", "compute", "disks")]
    return {
        *(f"gs://{name}" for name in stored if not name.startswith(("pipelines/", "builds/"))),
        *(f"{each['role']} {member}" for each in policy for member in each["members"]),
        *(str(file.relative_to(cloud.state)) for folder in folders for file in folder.rglob("*") if file.is_file()),
        *_of_cluster(cloud),
    }


_OF_THE_CLUSTER = ("events", "nodes", "csinodes", "leases")
"""What nodes and controllers write all the time; a deployment's Lease is looked at by `held`."""


def _of_cluster(cloud: Cloud) -> Iterator[str]:
    groups = [
        "/api/v1",
        *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in cloud.ask("/apis")["groups"]),
    ]
    for group in groups:
        for kind in cloud.ask(group)["resources"]:
            plural = kind["name"]
            if "list" in kind["verbs"] and plural not in _OF_THE_CLUSTER:
                for item in cloud.in_cluster(f"{group}/{plural}"):
                    yield f"{plural} {item['metadata'].get('namespace', '')}/{item['metadata']['name']}"
