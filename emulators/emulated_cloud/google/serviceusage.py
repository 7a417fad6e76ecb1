"""Service Usage, version 1: which APIs the project has switched on; one that is off answers nobody.

Those that the configuration names in `services` are on from the start; without it, all of them are.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import error_info, refusal
from emulated_cloud.google.store import Store
from emulated_cloud.http import HttpError

AT_ONCE = 20
_PROJECT = "projects/[^/]+"
_LOCATION = f"v1/{_PROJECT}/locations/[^/]+"
_PATHS = {
    "aiplatform": rf"({_LOCATION}|ui/{_PROJECT}/locations/[^/]+)/(pipelineJobs|schedules|metadataStores)",
    "artifactregistry": rf"{_LOCATION}/repositories",
    "cloudbuild": rf"{_LOCATION}/builds",
    "cloudresourcemanager": rf"(v3|v1)/{_PROJECT}$",
    "compute": "compute/v1/",
    "container": rf"{_LOCATION}/(clusters|serverConfig)",
    "iam": rf"v1/{_PROJECT}/(serviceAccounts|roles)",
    "logging": "v2/entries",
    "monitoring": rf"v3/{_PROJECT}/(metricDescriptors|timeSeries)",
    "secretmanager": rf"v1/{_PROJECT}/secrets",
    "serviceusage": rf"v1/{_PROJECT}/services|v1/operations",
}
"""Whose a path is, since all of them have one address here: version and resource."""
_OTHERS = ("certificatemanager", "iamcredentials", "networkservices", "storage")
SERVICES = tuple(sorted(f"{name}.googleapis.com" for name in (*_PATHS, *_OTHERS)))
_DISABLED = "type.googleapis.com/google.api.serviceusage.v1.DisableServiceResponse"
_ANSWER = "type.googleapis.com/google.api.serviceusage.v1.BatchEnableServicesResponse"


class ServiceUsage:
    """The project's APIs, and the operations that switched some on."""

    def __init__(self, config: Config):
        self._config = config
        self._store = Store(config.folder, "services")
        self._operations: dict[str, list[str]] = {}
        for service in SERVICES:
            if self._store.get(service) is None:
                is_on = config.services is None or service in config.services
                self._store.put(service, {"state": "ENABLED" if is_on else "DISABLED"})

    def check(self, call: Call) -> None:
        """Raises HttpError 403 for a call to an API that is off."""
        path = f"{call.version}/{call.resource}"
        for name, pattern in _PATHS.items():
            if re.match(pattern, path) and not self._is_on(f"{name}.googleapis.com"):
                raise self._is_off(f"{name}.googleapis.com")

    def answer(self, call: Call) -> dict[str, Any] | None:
        match call.version, call.method, call.path, call.verb:
            case "v1", "GET", ["projects", project, "services"], "":
                self._allow(call, "serviceusage.services.list", project)
                return self._page(call)
            case "v1", "GET", ["projects", project, "services", service], "":
                self._allow(call, "serviceusage.services.get", project)
                self._known([service])
                return self._shown(service)
            case "v1", "POST", ["projects", project, "services"], "batchEnable":
                self._allow(call, "serviceusage.services.enable", project)
                return self._enable(call.body.get("serviceIds") or [])
            case "v1", "POST", ["projects", project, "services", service], "disable":
                self._allow(call, "serviceusage.services.disable", project)
                self._known([service])
                return self._disable(service)
            case "v1", "GET", ["operations", name], "":
                return self._operation(f"operations/{name}", done=True)
        return None

    def _enable(self, services: list[str]) -> dict[str, Any]:
        if not services or len(services) > AT_ONCE:
            raise refusal("INVALID_ARGUMENT", f"Between 1 and {AT_ONCE} services may be enabled at once.")
        self._known(services)
        name = f"operations/acat.p2-{self._config.project_number}-{uuid.uuid4()}"
        self._operations[name] = services
        # Done when it is looked at: what takes minutes there is to be waited for here as well.
        return self._operation(name, done=False)

    def _disable(self, service: str) -> dict[str, Any]:
        """What needs the API is not looked at: nothing here keeps one on."""
        self._store.put(service, {"state": "DISABLED"})
        name = f"operations/acf.p2-{self._config.project_number}-{uuid.uuid4()}"
        return {"name": name, "done": True, "response": {"@type": _DISABLED, "service": self._shown(service)}}

    def _operation(self, name: str, done: bool) -> dict[str, Any]:
        if name not in self._operations:
            raise refusal("NOT_FOUND", f"Operation {name} not found.")
        if not done:
            return {"name": name}
        services = self._operations[name]
        for service in services:
            self._store.put(service, {"state": "ENABLED"})
        response = {"@type": _ANSWER, "services": [self._shown(service) for service in services]}
        return {"name": name, "done": True, "response": response}

    def _page(self, call: Call) -> dict[str, Any]:
        wanted = call.query.get("filter", "")
        if wanted not in ("", "state:ENABLED", "state:DISABLED"):
            raise refusal("INVALID_ARGUMENT", f"Invalid filter: {wanted}")
        size, first = int(call.query.get("pageSize") or 50), int(call.query.get("pageToken") or 0)
        if not 0 < size <= 200:
            raise refusal("INVALID_ARGUMENT", "The page size must be between 1 and 200.")
        found = [service for service in map(self._shown, SERVICES) if wanted in ("", f"state:{service['state']}")]
        page: dict[str, Any] = {"services": found[first : first + size]} if found[first:] else {}
        return page | ({"nextPageToken": str(first + size)} if found[first + size :] else {})

    def _shown(self, service: str) -> dict[str, Any]:
        parent = f"projects/{self._config.project_number}"
        state = "ENABLED" if self._is_on(service) else "DISABLED"
        return {"name": f"{parent}/services/{service}", "parent": parent, "state": state, "config": {"name": service}}

    def _is_on(self, service: str) -> bool:
        return (self._store.get(service) or {}).get("state") == "ENABLED"

    def _is_off(self, service: str) -> HttpError:
        title = service.partition(".")[0]
        number = self._config.project_number
        return refusal(
            "PERMISSION_DENIED",
            f"{title} API has not been used in project {number} before or it is disabled. Enable it by visiting "
            f"https://console.developers.google.com/apis/api/{service}/overview?project={number} then retry. If you "
            "enabled this API recently, wait a few minutes for the action to propagate to our systems and retry.",
            [error_info("SERVICE_DISABLED", consumer=f"projects/{number}", service=service)],
        )

    @staticmethod
    def _allow(call: Call, permission: str, project: str) -> None:
        allow(call, permission, f"projects/{project}", project)

    @staticmethod
    def _known(services: list[str]) -> None:
        if unknown := [service for service in services if service not in SERVICES]:
            raise refusal("PERMISSION_DENIED", f"Not found or permission denied for service(s): {', '.join(unknown)}.")
