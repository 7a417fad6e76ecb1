"""IAM policies, the same three verbs on every resource that has one: who was given which role on it.

They are kept, and nothing here is allowed or refused for them: the caller may do everything but what the configuration
takes away (`denied`, `denied_permissions`). What acts as an account of its own may be asked about (Policies.gives).
"""

from __future__ import annotations

import base64
import re
from typing import Any

from emulated_cloud.google.access import allow
from emulated_cloud.google.artifactregistry import ArtifactRegistry
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import refusal
from emulated_cloud.google.iam import Iam
from emulated_cloud.google.secretmanager import SecretManager
from emulated_cloud.google.store import Store

_MEMBER = re.compile(r"allUsers|allAuthenticatedUsers|(user|serviceAccount|group|domain|principal|principalSet):.+")


class Policies:
    """The policies of the project's resources, which these APIs have."""

    def __init__(self, config: Config, iam: Iam, secrets: SecretManager, repositories: ArtifactRegistry):
        self._config, self._iam, self._secrets, self._repositories = config, iam, secrets, repositories
        self._store = Store(config.folder, "policies")

    def gives(self, resource: str, role: str, member: str) -> bool:
        """Whether a resource's own policy gives a role to a member."""
        bindings = self._policy(resource).get("bindings", [])
        return any(each["role"] == role and member in each["members"] for each in bindings)

    def answer(self, call: Call) -> dict[str, Any] | None:
        if call.verb not in ("getIamPolicy", "setIamPolicy", "testIamPermissions"):
            return None
        match call.version, call.path:
            case "v3", ["projects", project]:
                kind, reads = "resourcemanager.projects", "POST"
            case "v1", ["projects", project, "serviceAccounts", _]:
                kind, reads = "iam.serviceAccounts", "POST"
            case "v1", ["projects", project, "secrets", _]:
                kind, reads = "secretmanager.secrets", "GET"
            case "v1", ["projects", project, "locations", _, "repositories", _]:
                kind, reads = "artifactregistry.repositories", "GET"
            case _:
                return None
        resource = "/".join(["projects", self._config.project_id, *call.path[2:]])
        if call.verb == "testIamPermissions" and call.method == "POST":
            return self._test(call, resource)
        if call.verb == "getIamPolicy" and call.method == reads:
            allow(call, f"{kind}.getIamPolicy", call.resource, project)
            self._demand(resource)
            return self._policy(resource)
        if call.verb == "setIamPolicy" and call.method == "POST":
            allow(call, f"{kind}.setIamPolicy", call.resource, project)
            self._demand(resource)
            return self._set(resource, call.body.get("policy") or {})
        return None

    def has(self, resource: str) -> bool:
        """Whether there is such a resource."""
        match resource.split("/"):
            case [_, _, "serviceAccounts", email]:
                return self._iam.has_account(email)
            case [_, _, "secrets", secret]:
                return self._secrets.exists(secret)
            case [_, _, "locations", _, "repositories", _]:
                return self._repositories.exists(resource)
        return True

    def _demand(self, resource: str) -> None:
        if not self.has(resource):
            raise refusal("NOT_FOUND", f"{resource} was not found.")

    def _test(self, call: Call, resource: str) -> dict[str, Any]:
        asked = call.body.get("permissions") or []
        if any("*" in permission for permission in asked):
            raise refusal("INVALID_ARGUMENT", "Permissions with wildcards are not allowed.")
        if not self._config.is_project(call.path[1]) or self._config.is_denied(resource):
            return {}
        has = [permission for permission in asked if permission not in self._config.denied_permissions]
        return {"permissions": has} if has else {}

    def _policy(self, resource: str) -> dict[str, Any]:
        return self._store.get(resource) or {"version": 1, "etag": "ACAB"}

    def _set(self, resource: str, asked: dict[str, Any]) -> dict[str, Any]:
        for binding in asked.get("bindings", []):
            if not self._iam.has_role(binding["role"]):
                words = f"Role ({binding['role']}) does not exist in the resource's hierarchy."
                raise refusal("INVALID_ARGUMENT", words)
            for member in binding["members"]:
                kind, _, name = member.partition(":")
                if not _MEMBER.fullmatch(member):
                    raise refusal("INVALID_ARGUMENT", f"The member {member} is of an unknown type.")
                if kind == "serviceAccount" and not self._iam.has_account(name):
                    raise refusal("INVALID_ARGUMENT", f"Service account {name} does not exist.")
        with self._store.lock:
            there = self._policy(resource)
            if asked.get("etag", there["etag"]) != there["etag"]:
                words = "There were concurrent policy changes. Please retry the whole read-modify-write with backoff."
                raise refusal("ABORTED", words)
            number = int.from_bytes(base64.b64decode(there["etag"]), "big") + 1
            bindings: dict[str, dict[str, Any]] = {}
            for binding in asked.get("bindings", []):
                # Bindings of one role (and condition) are one.
                key = f"{binding['role']} {binding.get('condition')}"
                merged = bindings.setdefault(key, {**binding, "members": []})
                merged["members"] = sorted({*merged["members"], *binding["members"]})
            policy = {
                "version": 3 if any("condition" in each for each in bindings.values()) else 1,
                "etag": base64.b64encode(number.to_bytes(9, "big")).decode(),
                "bindings": list(bindings.values()),
            }
            self._store.put(resource, policy)
        return policy
