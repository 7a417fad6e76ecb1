"""Secret Manager, version 1: reading a version of a secret."""

from __future__ import annotations

import base64
from typing import Any

import google_crc32c

from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import error_info, refusal


def answer(call: Call) -> dict[str, Any] | None:
    match call.version, call.method, call.path, call.verb:
        case "v1", "GET", ["projects", project, "secrets", secret, "versions", version], "access":
            return access(call, project, secret, version)
    return None


def access(call: Call, project: str, secret: str, version: str) -> dict[str, Any]:
    """The payload of a version; `latest` is the newest, whatever its state. Names carry the project's number."""
    config = call.config
    names = (f"projects/{given}/secrets/{secret}" for given in (config.project_id, config.project_number))
    if not config.is_project(project) or any(config.is_denied(name) for name in names):
        permission = "secretmanager.versions.access"
        raise refusal(
            "PERMISSION_DENIED",
            f"Permission '{permission}' denied for resource '{call.resource}' (or it may not exist).",
            [error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com", permission=permission, resource=call.resource)],
        )
    name = f"projects/{config.project_number}/secrets/{secret}"
    versions = config.secrets.get(secret, {})
    if not versions:
        raise refusal("NOT_FOUND", f"Secret [{name}] not found or has no versions.")
    number = max(versions, key=int) if version == "latest" else version
    if number not in versions:
        raise refusal("NOT_FOUND", f"Secret Version [{name}/versions/{number}] not found.")
    found = versions[number]
    if found.state != "ENABLED":
        raise refusal("FAILED_PRECONDITION", f"Secret Version [{name}/versions/{number}] is in {found.state} state.")
    data = found.value.encode()
    return {
        "name": f"{name}/versions/{number}",
        "payload": {
            "data": base64.b64encode(data).decode(),
            "dataCrc32c": str(google_crc32c.value(data)),
        },
    }
