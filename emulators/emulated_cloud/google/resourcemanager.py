"""Resource Manager: looking up a project, version 3, and version 1, which aiplatform and others still ask."""

from __future__ import annotations

from typing import Any

from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import refusal

CREATED = "2026-01-01T00:00:00Z"


def answer(call: Call) -> dict[str, Any] | None:
    match call.version, call.method, call.path, call.verb:
        case "v3" | "v1" as version, "GET", ["projects", project], "":
            config = call.config
            # A project that does not exist is not told from one that the caller may not see.
            if not config.is_project(project) or config.is_denied(f"projects/{config.project_id}"):
                raise refusal("PERMISSION_DENIED", "The caller does not have permission")
            if version == "v1":
                return {
                    "projectNumber": config.project_number,
                    "projectId": config.project_id,
                    "lifecycleState": "ACTIVE",
                    "name": config.project_id,
                    "createTime": CREATED,
                }
            return {
                "name": f"projects/{config.project_number}",
                "projectId": config.project_id,
                "displayName": config.project_id,
                "state": "ACTIVE",
                "createTime": CREATED,
                "updateTime": CREATED,
                "etag": 'W/"1"',
            }
    return None
