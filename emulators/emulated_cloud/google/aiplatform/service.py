"""Vertex AI Pipelines of one project: what there is, what runs, and what time it is."""

from __future__ import annotations

import threading
from typing import Any

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.google.aiplatform import errors, jobs, schedules
from emulated_cloud.google.aiplatform.clock import Clock
from emulated_cloud.google.aiplatform.logs import Logs
from emulated_cloud.google.aiplatform.operations import Operations
from emulated_cloud.google.aiplatform.run import Run
from emulated_cloud.google.aiplatform.schedules import Ticking
from emulated_cloud.google.aiplatform.store import Store
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import AiPlatformConfig, Config
from emulated_cloud.google.iam import Iam


class AiPlatform:
    """The API, and the runs behind it. `address` is the emulator's own, host and port."""

    def __init__(self, config: Config, aiplatform: AiPlatformConfig, faults: Faults, iam: Iam, address: str):
        self.config, self.aiplatform, self.faults, self.iam, self.address = config, aiplatform, faults, iam, address
        self.clock = Clock()
        self.store = Store(aiplatform.folder)
        self.logs = Logs(config, self.clock)
        self.operations = Operations(self.name, self.clock)
        self.runs: dict[str, Run] = {}
        self.lock = threading.RLock()
        """Held while what there is changes, and not while anybody waits."""
        jobs.recover(self)
        schedules.recover(self)
        self.ticking = Ticking(self)
        self.ticking.start()

    def answer(self, call: Call) -> dict[str, Any] | None:
        from emulated_cloud.google.aiplatform import routes

        return routes.answer(self, call)

    def close(self) -> None:
        """Ends every run; what there is stays."""
        self.ticking.stop()
        for run in list(self.runs.values()):
            run.stop()

    # -- what the verbs share ---------------------------------------------------------------------------------

    def name(self, path: str) -> str:
        """A resource's whole name, by its path in the store; it has the project's number."""
        location, _, below = path.partition("/")
        parent = f"projects/{self.config.project_number}/locations/{location}"
        return f"{parent}/{below}" if below else parent

    def path(self, name: str, location: str, kind: str) -> str:
        """The path in the store of a resource that is named by its whole name. Raises HttpError."""
        match name.split("/"):
            case ["projects", project, "locations", its, its_kind, below] if self.config.is_project(project) and (
                its,
                its_kind,
            ) == (location, kind):
                return f"{its}/{kind}/{below}"
        raise errors.invalid(("names", f"Not one of {kind} in {location}: {name!r}."))

    def existing(self, kind: str, path: str) -> dict[str, Any]:
        """Raises HttpError 404."""
        found = self.store.get(path)
        if found is None:
            raise errors.not_found(kind, self.name(path))
        return found

    def outcome(self, method: str, path: str) -> Fault | None:
        """What a test has scripted to come of this request."""
        return self.faults.take_outcome(method, f"/v1/projects/{self.config.project_id}/locations/{path}")
