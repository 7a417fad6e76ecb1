"""Secret Manager, version 1: secrets and their versions. Those of the configuration are there from the start."""

from __future__ import annotations

import base64
import re
from typing import Any

import google_crc32c

from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Config, SecretVersion
from emulated_cloud.google.errors import error_info, refusal
from emulated_cloud.google.store import Store

CREATED = "2026-01-01T00:00:00Z"
_SECRET_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")


class SecretManager:
    """The project's secrets, by their ids: those that were made here are kept beside those of the configuration."""

    def __init__(self, config: Config):
        self._config = config
        self._store = Store(config.folder, "secrets")

    def exists(self, secret: str) -> bool:
        return secret in self._config.secrets or self._store.get(secret) is not None

    def answer(self, call: Call) -> dict[str, Any] | None:
        match call.version, call.method, call.path, call.verb:
            case "v1", "GET", ["projects", project, "secrets", secret, "versions", version], "access":
                return self._access(call, project, secret, version)
            case "v1", "GET", ["projects", project, "secrets", secret], "":
                allow(call, "secretmanager.secrets.get", call.resource, project)
                return self._shown(secret)
            case "v1", "POST", ["projects", project, "secrets"], "":
                allow(call, "secretmanager.secrets.create", f"projects/{project}", project)
                return self._create(call.query.get("secretId", ""), call.body)
            case "v1", "POST", ["projects", project, "secrets", secret], "addVersion":
                allow(call, "secretmanager.versions.add", call.resource, project)
                return self._add(secret, call.body)
            case "v1", "GET", ["projects", project, "secrets", secret, "versions"], "":
                allow(call, "secretmanager.versions.list", f"projects/{project}/secrets/{secret}", project)
                return self._list(secret, call.query.get("filter", ""))
        return None

    def _name(self, secret: str) -> str:
        """Names carry the project's number."""
        return f"projects/{self._config.project_number}/secrets/{secret}"

    def _versions(self, secret: str) -> dict[str, SecretVersion]:
        made = (self._store.get(secret) or {}).get("versions", {})
        return {
            **self._config.secrets.get(secret, {}),
            **{number: SecretVersion(**each) for number, each in made.items()},
        }

    def _shown(self, secret: str) -> dict[str, Any]:
        if not self.exists(secret):
            raise refusal("NOT_FOUND", f"Secret [{self._name(secret)}] not found.")
        return {
            "name": self._name(secret),
            "replication": {"automatic": {}},
            "createTime": CREATED,
            "etag": '"1"',
        }

    def _create(self, secret: str, asked: dict[str, Any]) -> dict[str, Any]:
        if not _SECRET_ID.fullmatch(secret):
            raise refusal("INVALID_ARGUMENT", f"The provided Secret ID [{secret}] does not match the expected format.")
        if not asked.get("replication"):
            raise refusal("INVALID_ARGUMENT", "The replication field is required.")
        if self.exists(secret):
            raise refusal("ALREADY_EXISTS", f"Secret [{self._name(secret)}] already exists.")
        self._store.put(secret, {"versions": {}})
        return self._shown(secret)

    def _add(self, secret: str, asked: dict[str, Any]) -> dict[str, Any]:
        self._shown(secret)
        data = base64.b64decode(asked.get("payload", {}).get("data", ""))
        if not data:
            raise refusal("INVALID_ARGUMENT", "The secret payload is required.")
        with self._store.lock:
            number = str(max(map(int, self._versions(secret)), default=0) + 1)
            made = (self._store.get(secret) or {}).get("versions", {})
            self._store.put(secret, {"versions": {**made, number: {"value": data.decode(), "state": "ENABLED"}}})
        return self._shown_version(secret, number, "ENABLED")

    def _list(self, secret: str, wanted: str) -> dict[str, Any]:
        self._shown(secret)
        found = [
            self._shown_version(secret, number, version.state)
            for number, version in sorted(self._versions(secret).items(), key=lambda each: -int(each[0]))
            if wanted in ("", f"state:{version.state}")
        ]
        return {"versions": found, "totalSize": len(found)} if found else {}

    def _shown_version(self, secret: str, number: str, state: str) -> dict[str, Any]:
        return {"name": f"{self._name(secret)}/versions/{number}", "createTime": CREATED, "state": state, "etag": '"1"'}

    def _access(self, call: Call, project: str, secret: str, version: str) -> dict[str, Any]:
        """The payload of a version; `latest` is the newest, whatever its state."""
        config = call.config
        names = (f"projects/{given}/secrets/{secret}" for given in (config.project_id, config.project_number))
        permission = "secretmanager.versions.access"
        may = permission not in config.denied_permissions and not any(config.is_denied(name) for name in names)
        if not config.is_project(project) or not may:
            raise refusal(
                "PERMISSION_DENIED",
                f"Permission '{permission}' denied for resource '{call.resource}' (or it may not exist).",
                [
                    error_info(
                        "IAM_PERMISSION_DENIED", "iam.googleapis.com", permission=permission, resource=call.resource
                    )
                ],
            )
        name, versions = self._name(secret), self._versions(secret)
        if not versions:
            raise refusal("NOT_FOUND", f"Secret [{name}] not found or has no versions.")
        number = max(versions, key=int) if version == "latest" else version
        if number not in versions:
            raise refusal("NOT_FOUND", f"Secret Version [{name}/versions/{number}] not found.")
        found = versions[number]
        if found.state != "ENABLED":
            words = f"Secret Version [{name}/versions/{number}] is in {found.state} state."
            raise refusal("FAILED_PRECONDITION", words)
        data = found.value.encode()
        return {
            "name": f"{name}/versions/{number}",
            "payload": {"data": base64.b64encode(data).decode(), "dataCrc32c": str(google_crc32c.value(data))},
        }
