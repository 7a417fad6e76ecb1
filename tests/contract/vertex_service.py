"""The emulated Vertex AI as a process, with its real clients, held against its discovery document; tiny pipelines."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from google.api_core.client_options import ClientOptions
from google.cloud import aiplatform_v1
from google.oauth2.credentials import Credentials
from google.protobuf import json_format

from tests.contract import google_process
from tests.contract.discovery import Conformance
from tests.contract.google_process import ACCOUNT, TOKEN, GoogleProcess

PARENT = "projects/demo/locations/us-central1"
NUMBERED = "projects/123456789012/locations/us-central1"
CONFORMANCE = Conformance("aiplatform", "v1")
TERMINAL = {"PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED"}


@dataclass
class Vertex(GoogleProcess):
    """An emulated Vertex AI."""

    _clients: dict[Any, Any] = field(default_factory=dict)

    def config(self) -> dict[str, Any]:
        return {
            "denied": ["projects/demo/serviceAccounts/kept-back@demo.iam.gserviceaccount.com"],
            "aiplatform": {
                "folder": str(self.folder / "aiplatform"),
                "locations": ["us-central1"],
                "environment": {"FOLDER": str(self.folder), "GCE_METADATA_HOST": "{self}"},
                **self.options,
            },
        }

    def environment(self) -> dict[str, str]:
        return {"TMPDIR": str(self.folder)}

    def start(self) -> None:
        self._clients.clear()
        super().start()

    def kill(self) -> None:
        self.process.popen.kill()
        self.process.stop()

    def client(self, kind: Any) -> Any:
        if kind not in self._clients:
            client = kind(
                transport="rest",
                credentials=Credentials(TOKEN),
                client_options=ClientOptions(api_endpoint=self.process.url),
            )
            CONFORMANCE.watch(client.transport._session)
            self._clients[kind] = client
        return self._clients[kind]

    @property
    def jobs(self) -> Any:
        return self.client(aiplatform_v1.PipelineServiceClient)

    @property
    def schedules(self) -> Any:
        return self.client(aiplatform_v1.ScheduleServiceClient)

    def submit(self, pipeline: dict[str, Any], job_id: str = "", **parameters: Any) -> str:
        """Begins a run of a pipeline; its name."""
        asked = {"parent": PARENT, "pipeline_job": job_of(pipeline, **parameters), "pipeline_job_id": job_id}
        return self.jobs.create_pipeline_job(asked).name

    def get(self, name: str) -> dict[str, Any]:
        """A job as JSON, with names for enums."""
        found = self.jobs.get_pipeline_job(name=name)
        return json_format.MessageToDict(type(found).pb(found))

    def wait_for(self, name: str, *states: str) -> dict[str, Any]:
        """The job as soon as it is in one of these states; without any, when it has ended."""
        wanted = {f"PIPELINE_STATE_{state}" for state in states} or TERMINAL
        job: dict[str, Any] = {}

        def there() -> bool:
            job.update(self.get(name))
            assert job["state"] in wanted or job["state"] not in TERMINAL, job
            return job["state"] in wanted

        until(there)
        return job

    def ran(self, pipeline: dict[str, Any], **parameters: Any) -> dict[str, Any]:
        """What became of a run."""
        return self.wait_for(self.submit(pipeline, **parameters))

    def rest(self, method: str, path: str, body: Any = None) -> requests.Response:
        """A request by hand."""
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return requests.request(method, f"{self.process.url}/v1/{path}", json=body, headers=headers, timeout=60)

    def script(self, *faults: dict[str, Any]) -> None:
        self.set_faults(*faults)

    def outcome(self, path: str = "pipelineJobs$", **outcome: Any) -> None:
        """What becomes of the next request to a path."""
        self.script({"action": "outcome", "path": path, "outcome": outcome})

    def set_clock(self, text: str) -> None:
        url = f"{self.process.url}/_emulator/clock"
        requests.post(url, json={"time": text}, timeout=60).raise_for_status()

    def entries(self, wanted: str) -> list[dict[str, Any]]:
        """Entries of Cloud Logging."""
        asked = {"resourceNames": ["projects/demo"], "filter": wanted, "pageSize": 1000}
        headers = {"Authorization": f"Bearer {TOKEN}"}
        answer = requests.post(f"{self.process.url}/v2/entries:list", json=asked, headers=headers, timeout=60)
        return answer.json().get("entries", [])

    def lines(self, custom_job: str) -> list[str]:
        """What a task has printed, as gcloud finds it."""
        wanted = f'(resource.type="ml_job" OR resource.type="cloudml_job") resource.labels.job_id="{custom_job}"'
        return [entry["jsonPayload"].get("message", "") for entry in self.entries(wanted)]


def job_of(pipeline: dict[str, Any], **parameters: Any) -> dict[str, Any]:
    return {
        "display_name": "a run",
        "pipeline_spec": pipeline,
        "labels": {"team": "gemma"},
        "service_account": ACCOUNT,
        "runtime_config": {"gcs_output_directory": "gs://demo-bucket/pipelines", "parameter_values": parameters},
    }


def tasks_of(job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The details of a job's tasks by their unique names."""
    root, *tasks = job["jobDetail"]["taskDetails"]
    assert root["taskName"] == job["name"].rpartition("/")[2]
    return {task["taskUniqueName"]: task for task in tasks}


def states_of(job: dict[str, Any]) -> dict[str, str]:
    return {name: task["state"] for name, task in tasks_of(job).items()}


def custom_job(task: dict[str, Any]) -> str:
    return task["executorDetail"]["containerDetail"]["mainJob"].rpartition("/")[2]


def compiled(pipeline: Any, folder: Path) -> dict[str, Any]:
    """A pipeline as Vertex is given it. Its tasks take SIGTERM themselves, as a container's first process has to."""
    import yaml
    from kfp import compiler

    path = folder / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    found = yaml.safe_load(path.read_text())
    for executor in found["deploymentSpec"]["executors"].values():
        command = executor["container"]["command"]
        executor["container"]["command"] = [
            part.replace("_KFP_RUNTIME=true python3 -m", "exec env _KFP_RUNTIME=true python3 -m") for part in command
        ]
    return found


until = functools.partial(google_process.until, seconds=150)
"""A run takes longer than a request."""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def new_vertex(tmp_path: Path) -> Iterator[Callable[..., Vertex]]:
    """Starts emulators of a test's own, with options of `aiplatform` in their configuration."""
    made: list[Vertex] = []

    def make(**options: Any) -> Vertex:
        vertex = Vertex(tmp_path / f"vertex-{len(made)}", options)
        vertex.folder.mkdir()
        vertex.start()
        made.append(vertex)
        return vertex

    yield make
    for vertex in made:
        vertex.stop_in_peace()


@pytest.fixture(scope="module")
def vertex(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vertex]:
    """One for all tests of a file."""
    started = Vertex(tmp_path_factory.mktemp("vertex"))
    started.start()
    yield started
    started.stop_in_peace()
    assert not [path.name for path in started.folder.iterdir() if path.name.endswith("-")], "a run left its folder"
