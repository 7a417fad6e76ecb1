"""IAM, version 1: service accounts of the project, and roles of its own."""

from __future__ import annotations

import re
import uuid
from typing import Any

from emulated_cloud.google.access import allow
from emulated_cloud.google.call import Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import refusal
from emulated_cloud.google.store import Store

_ACCOUNT_ID = re.compile(r"[a-z][-a-z0-9]{4,28}[a-z0-9]")
_ROLE_ID = re.compile(r"[a-zA-Z0-9_.]{3,64}")
_PERMISSION = re.compile(r"[a-z]+(\.[a-zA-Z]+){2}")


class Iam:
    """What the project has of both, by resource name."""

    def __init__(self, config: Config):
        self._config = config
        self._accounts, self._roles = Store(config.folder, "accounts"), Store(config.folder, "roles")

    def has_account(self, email: str) -> bool:
        """Whether there is an account of that name; those of other projects, and of Google's own, we take for there."""
        ours = email.endswith(f"@{self._config.project_id}.iam.gserviceaccount.com")
        known = {self._config.service_account, *self._config.accounts}
        return not ours or email in known or self._accounts.get(self._account(email)) is not None

    def has_role(self, role: str) -> bool:
        """Whether a role is there; Google's own all are."""
        found = self._roles.get(role)
        return role.startswith("roles/") or bool(found and not found.get("deleted"))

    def answer(self, call: Call) -> dict[str, Any] | None:
        match call.version, call.method, call.path, call.verb:
            case "v1", "POST", ["projects", project, "serviceAccounts"], "":
                allow(call, "iam.serviceAccounts.create", f"projects/{project}", project)
                return self._create_account(call.body)
            case "v1", "GET", ["projects", project, "serviceAccounts"], "":
                allow(call, "iam.serviceAccounts.list", f"projects/{project}", project)
                found = self._accounts.below(f"projects/{self._config.project_id}")
                return {"accounts": found} if found else {}
            case "v1", "GET", ["projects", project, "serviceAccounts", email], "":
                project = self._config.project_id if project == "-" else project
                allow(call, "iam.serviceAccounts.get", call.resource, project)
                if not (account := self._accounts.get(self._account(email))):
                    raise refusal("NOT_FOUND", f"Unknown service account: {email}")
                return account
            case "v1", "POST", ["projects", project, "roles"], "":
                allow(call, "iam.roles.create", f"projects/{project}", project)
                return self._create_role(call.body)
            case "v1", "GET", ["projects", project, "roles", _], "":
                allow(call, "iam.roles.get", f"projects/{project}", project)
                return self._role(call)
            case "v1", "PATCH", ["projects", project, "roles", _], "":
                allow(call, "iam.roles.update", f"projects/{project}", project)
                return self._update_role(call)
            case "v1", "DELETE", ["projects", project, "roles", _], "":
                allow(call, "iam.roles.delete", f"projects/{project}", project)
                return self._put_role({**self._role(call), "deleted": True})
            case "v1", "POST", ["projects", project, "roles", _], "undelete":
                allow(call, "iam.roles.undelete", f"projects/{project}", project)
                return self._put_role({key: value for key, value in self._role(call).items() if key != "deleted"})
        return None

    def _account(self, email: str) -> str:
        return f"projects/{self._config.project_id}/serviceAccounts/{email}"

    def _create_account(self, asked: dict[str, Any]) -> dict[str, Any]:
        account_id = asked.get("accountId", "")
        if not _ACCOUNT_ID.fullmatch(account_id):
            raise refusal("INVALID_ARGUMENT", f'The account ID "{account_id}" does not have a length between 6 and 30.')
        email = f"{account_id}@{self._config.project_id}.iam.gserviceaccount.com"
        name = self._account(email)
        with self._accounts.lock:
            if self._accounts.get(name):
                raise refusal("ALREADY_EXISTS", f"Service account {account_id} already exists within project {name}.")
            unique = str(uuid.uuid4().int)[:21]
            account = {
                **{key: asked.get("serviceAccount", {}).get(key, "") for key in ("displayName", "description")},
                "name": name,
                "projectId": self._config.project_id,
                "uniqueId": unique,
                "oauth2ClientId": unique,
                "email": email,
                "etag": "MDEwMjE5MjA=",
            }
            self._accounts.put(name, account)
        return account

    def _role(self, call: Call) -> dict[str, Any]:
        name = f"projects/{self._config.project_id}/roles/{call.path[3]}"
        if not (role := self._roles.get(name)):
            raise refusal("NOT_FOUND", f"The role named {name} was not found.")
        return role

    def _create_role(self, asked: dict[str, Any]) -> dict[str, Any]:
        role_id = asked.get("roleId", "")
        if not _ROLE_ID.fullmatch(role_id):
            raise refusal("INVALID_ARGUMENT", f"Invalid role ID: {role_id!r}.")
        name = f"projects/{self._config.project_id}/roles/{role_id}"
        if self._roles.get(name):
            raise refusal(
                "ALREADY_EXISTS", f"A role named {role_id} in {name.rpartition('/roles/')[0]} already exists."
            )
        return self._put_role({"stage": "ALPHA", **asked.get("role", {}), "name": name})

    def _update_role(self, call: Call) -> dict[str, Any]:
        role = self._role(call)
        if role.get("deleted"):
            raise refusal("FAILED_PRECONDITION", f"You can't update role {role['name']} because it has been deleted.")
        fields = call.query.get("updateMask", "").split(",")
        return self._put_role({**role, **{key: call.body[key] for key in fields if key in call.body}})

    def _put_role(self, role: dict[str, Any]) -> dict[str, Any]:
        if wrong := [each for each in role.get("includedPermissions", []) if not _PERMISSION.fullmatch(each)]:
            raise refusal("INVALID_ARGUMENT", f"Permission {wrong[0]} is not valid.")
        role = {**role, "etag": f"Bw{uuid.uuid4().hex[:10]}="}
        self._roles.put(role["name"], role)
        return role
