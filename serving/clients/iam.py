"""IAM: service accounts, roles of a project's own, and who has which role on what.

https://cloud.google.com/iam/docs/reference/rest and, for a project's policy,
https://cloud.google.com/resource-manager/reference/rest/v3/projects. A handful of calls, the same on every resource.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from serving.clients import google
from serving.errors import InconclusiveError

_SEE = 3
"""The version of policies in which conditions are shown; a write that leaves it out would drop them."""
_ATTEMPTS = 10


@dataclass(frozen=True)
class Guarded:
    """A resource that has a policy."""

    service: str
    """Of which API it is: `artifactregistry`."""
    path: str
    """Version and name: `v1/projects/P/secrets/S`."""
    called: str
    """What a reader knows it as."""
    read_by: str = "GET"
    """How its policy is asked for."""


def of_project(project: str) -> Guarded:
    return Guarded("cloudresourcemanager", f"v3/projects/{project}", f"project {project}", "POST")


def of_secret(secret: str) -> Guarded:
    """secret: `projects/P/secrets/S`."""
    return Guarded("secretmanager", f"v1/{secret}", secret)


def of_repository(repository: str) -> Guarded:
    """repository: `projects/P/locations/L/repositories/R`."""
    return Guarded("artifactregistry", f"v1/{repository}", repository)


def of_account(email: str) -> Guarded:
    return Guarded("iam", _account(email), email, "POST")


# -- policies -----------------------------------------------------------------------------------------------


def has_binding(resource: Guarded, role: str, member: str) -> bool:
    """Whether the resource's own policy gives the role to the member, without a condition.

    Raises AccessError, RequestError and InconclusiveError, as everything here.
    """
    with google.refusals(f"who may do what on {resource.called}"):
        return _holds(_policy(resource), role, member)


def ensure_binding(resource: Guarded, role: str, member: str) -> bool:
    """Gives the role to the member unless the policy does already: returns whether it changed anything.

    The policy's etag goes with the change, so that no other change of it is lost.
    """
    from google.api_core.exceptions import Conflict

    with google.refusals(f"{role} on {resource.called} for {member}"):
        for _ in range(_ATTEMPTS):
            policy = _policy(resource)
            if _holds(policy, role, member):
                return False
            bindings = [*policy.get("bindings", []), {"role": role, "members": [member]}]
            changed = {**policy, "version": _SEE, "bindings": bindings}
            try:
                google.call(resource.service, "POST", f"{resource.path}:setIamPolicy", {"policy": changed})
            except Conflict:
                continue  # Somebody changed it meanwhile: look again.
            return True
    raise InconclusiveError(f"{resource.called}: its IAM policy kept changing while {role} was being added. Run again")


def missing_permissions(resource: Guarded, permissions: Iterable[str]) -> list[str]:
    """Those of the permissions that the caller has not got on the resource."""
    wanted = list(permissions)
    with google.refusals(f"what this caller may do on {resource.called}"):
        answer = google.call(resource.service, "POST", f"{resource.path}:testIamPermissions", {"permissions": wanted})
    has = set(answer.get("permissions", []))
    return [permission for permission in wanted if permission not in has]


def _policy(resource: Guarded) -> dict[str, Any]:
    path = f"{resource.path}:getIamPolicy"
    if resource.service == "cloudresourcemanager":
        return google.call(resource.service, "POST", path, {"options": {"requestedPolicyVersion": _SEE}})
    return google.call(resource.service, resource.read_by, f"{path}?options.requestedPolicyVersion={_SEE}")


def _holds(policy: dict[str, Any], role: str, member: str) -> bool:
    return any(
        binding["role"] == role and member in binding.get("members", []) and not binding.get("condition")
        for binding in policy.get("bindings", [])
    )


# -- service accounts ---------------------------------------------------------------------------------------


def account_exists(email: str) -> bool:
    from google.api_core.exceptions import NotFound

    with google.refusals(f"service account {email}"):
        try:
            google.call("iam", "GET", _account(email))
        except NotFound:
            return False
        return True


def ensure_account(email: str, title: str) -> bool:
    """Makes a service account of its own project unless it is there: returns whether it did."""
    from google.api_core.exceptions import Conflict

    if account_exists(email):
        return False
    body = {"accountId": email.partition("@")[0], "serviceAccount": {"displayName": title}}
    with google.refusals(f"service account {email}"):
        try:
            google.call("iam", "POST", _account(email).rpartition("/")[0], body)
        except Conflict:
            return False
        return True


def project_of(email: str) -> str:
    """The project that a service account is of; empty for one of Google's own, whose name does not say it."""
    found = re.fullmatch(r"[^@]+@([a-z][-a-z0-9]+)\.iam\.gserviceaccount\.com", email)
    return found[1] if found else ""


def _account(email: str) -> str:
    # With the wildcard for a project, one that does not exist is answered like one that we may not see.
    return f"v1/projects/{project_of(email) or '-'}/serviceAccounts/{email}"


# -- roles of a project's own -------------------------------------------------------------------------------


def role_permissions(project: str, role_id: str) -> list[str] | None:
    """What a role of the project's own permits; None when there is none of that name, or it was deleted."""
    from google.api_core.exceptions import NotFound

    with google.refusals(f"role {role_id} of {project}"):
        try:
            role = google.call("iam", "GET", f"v1/projects/{project}/roles/{role_id}")
        except NotFound:
            return None
    return None if role.get("deleted") else sorted(role.get("includedPermissions", []))


def ensure_role(project: str, role_id: str, title: str, permissions: Iterable[str], *, only: bool = True) -> bool:
    """Sees to a role of the project's own that permits this: returns whether it changed anything.

    only: that it permits nothing else. A role that others use as well may permit more.
    """
    from google.api_core.exceptions import Conflict

    wanted, there = sorted(permissions), role_permissions(project, role_id)
    if there is not None and (there == wanted or (not only and set(wanted) <= set(there))):
        return False
    if there and not only:
        wanted = sorted({*wanted, *there})
    path, role = f"v1/projects/{project}/roles", {"title": title, "includedPermissions": wanted, "stage": "GA"}
    with google.refusals(f"role {role_id} of {project}"):
        try:
            google.call("iam", "POST", path, {"roleId": role_id, "role": role})
        except Conflict:
            # It is there with other permissions, or was deleted: its name stays taken for weeks.
            if there is None:
                google.call("iam", "POST", f"{path}/{role_id}:undelete", {})
            google.call("iam", "PATCH", f"{path}/{role_id}?updateMask=includedPermissions", role)
        return True
