"""The builds of one project: what there is, and what runs."""

from __future__ import annotations

import base64
import re
import threading
import uuid
from datetime import UTC, datetime
from typing import Any

from emulated_cloud.faults import Faults
from emulated_cloud.google import filters
from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.cloudbuild.run import ENDED, Run
from emulated_cloud.google.config import CloudBuildConfig, Config
from emulated_cloud.google.errors import refusal
from emulated_cloud.google.iam import Iam
from emulated_cloud.google.policies import Policies
from emulated_cloud.google.store import Store

_ACCOUNT = re.compile(r"projects/[^/]+/serviceAccounts/([^/]+)")
_LOGS_ELSEWHERE = (
    "if 'build.service_account' is specified, the build must either (a) specify 'build.logs_bucket', (b) use the "
    "REGIONAL_USER_OWNED_BUCKET build.options.default_logs_bucket_behavior option, or (c) use either "
    "CLOUD_LOGGING_ONLY / NONE logging options"
)


class CloudBuild:
    """The API, and the builds behind it."""

    def __init__(self, config: Config, cloudbuild: CloudBuildConfig, faults: Faults, iam: Iam, policies: Policies):
        self.config, self.cloudbuild, self.faults, self.iam, self.policies = config, cloudbuild, faults, iam, policies
        self.store = Store(config.folder, "builds")
        self.runs: dict[str, Run] = {}
        for build in self.store.below(f"projects/{config.project_number}"):
            if build["status"] not in ENDED:
                self.store.put(build["name"], {**build, "status": "INTERNAL_ERROR", "finishTime": timestamp()})

    def answer(self, call: Call) -> dict[str, Any] | None:
        match call.version, call.method, call.path, call.verb:
            case "v1", "POST", ["projects", project, "locations", location, "builds"], "":
                allow(call, "cloudbuild.builds.create", f"projects/{project}", project)
                return self._create(call, location)
            case "v1", "GET", ["projects", project, "locations", location, "builds"], "":
                allow(call, "cloudbuild.builds.list", f"projects/{project}", project)
                return self._list(location, call.query)
            case "v1", "GET", ["projects", project, "locations", location, "builds", build], "":
                allow(call, "cloudbuild.builds.get", f"projects/{project}", project)
                return self._build(location, build)
            case "v1", "POST", ["projects", project, "locations", location, "builds", build], "cancel":
                allow(call, "cloudbuild.builds.update", f"projects/{project}", project)
                return self._cancel(location, build)
        return None

    def close(self) -> None:
        """Ends every build; what there is stays."""
        for run in list(self.runs.values()):
            run.stop()

    def _parent(self, location: str) -> str:
        return f"projects/{self.config.project_number}/locations/{location}/builds"

    def _build(self, location: str, build: str) -> dict[str, Any]:
        if not (found := self.store.get(f"{self._parent(location)}/{build}")):
            raise refusal("NOT_FOUND", "Requested entity was not found.")
        return found

    def _list(self, location: str, query: dict[str, str]) -> dict[str, Any]:
        try:
            wanted = filters.parse(query.get("filter", ""))
        except filters.BadFilter as error:
            raise refusal("INVALID_ARGUMENT", f"invalid list filter: {error}") from None
        found = [build for build in self.store.below(self._parent(location)) if wanted(build)]
        found.sort(key=lambda build: build["createTime"], reverse=True)
        size, first = int(query.get("pageSize") or 100), int(query.get("pageToken") or 0)
        page: dict[str, Any] = {"builds": found[first : first + size]} if found[first:] else {}
        return page | ({"nextPageToken": str(first + size)} if found[first + size :] else {})

    def _create(self, call: Call, location: str) -> dict[str, Any]:
        asked = call.body
        self._check(asked)
        build_id = str(uuid.uuid4())
        build = {
            **asked,
            "name": f"{self._parent(location)}/{build_id}",
            "id": build_id,
            "projectId": self.config.project_id,
            "status": "QUEUED",
            "createTime": timestamp(),
            "queueTtl": "3600s",
            "timeout": asked.get("timeout", "3600s"),
            "logUrl": f"https://console.cloud.google.com/cloud-build/builds;region={location}/{build_id}"
            f"?project={self.config.project_number}",
        }
        self.store.put(build["name"], build)
        fault = self.faults.take_outcome(call.method, f"/v1/{call.resource}")
        self.runs[build_id] = run = Run(self, build, fault)
        threading.Thread(target=run.work, daemon=True).start()
        encoded = base64.b64encode(build_id.encode()).decode()
        return {
            "name": f"projects/{self.config.project_number}/locations/{location}/operations/{encoded}",
            "metadata": {
                "@type": "type.googleapis.com/google.devtools.cloudbuild.v1.BuildOperationMetadata",
                "build": build,
            },
        }

    def _check(self, asked: dict[str, Any]) -> None:
        """Raises HttpError for a build that is refused."""
        steps, options = asked.get("steps") or [], asked.get("options", {})
        if not steps:
            raise refusal("INVALID_ARGUMENT", "invalid build: no build steps are specified")
        if nameless := [number for number, step in enumerate(steps) if not step.get("name")]:
            raise refusal("INVALID_ARGUMENT", f"invalid build: build step {nameless[0]} must specify name")
        source = asked.get("source", {}).get("storageSource", {})
        if not source.get("bucket") or not source.get("object"):
            raise refusal("INVALID_ARGUMENT", "invalid build: the source must be an object in Cloud Storage")
        account = _ACCOUNT.fullmatch(asked.get("serviceAccount", ""))
        if not account:
            raise refusal("INVALID_ARGUMENT", "invalid value for 'build.service_account'")
        if options.get("logging") not in ("CLOUD_LOGGING_ONLY", "NONE") and not asked.get("logsBucket"):
            raise refusal("INVALID_ARGUMENT", f"invalid build: {_LOGS_ELSEWHERE}")
        resource = f"projects/{self.config.project_id}/serviceAccounts/{account[1]}"
        denied = self.config.is_denied(resource) or "iam.serviceAccounts.actAs" in self.config.denied_permissions
        if denied or not self.iam.has_account(account[1]):
            words = f"caller does not have permission to act as service account {asked['serviceAccount']}"
            raise refusal("PERMISSION_DENIED", words)

    def _cancel(self, location: str, build_id: str) -> dict[str, Any]:
        build = self._build(location, build_id)
        if build["status"] in ENDED:
            raise refusal("FAILED_PRECONDITION", f"build {build_id} is already finished")
        self.runs[build_id].cancel()
        return self._build(location, build_id)


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
