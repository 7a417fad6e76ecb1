"""Who may do what: the one caller, unless the configuration takes something away."""

from __future__ import annotations

from emulated_cloud.google.call import Call
from emulated_cloud.google.errors import permission_denied


def allow(call: Call, permission: str, resource: str, project: str) -> None:
    """Raises HttpError 403 for a resource of somebody else's project, one that is denied, or a permission that is."""
    config = call.config
    if not config.is_project(project) or config.is_denied(resource) or permission in config.denied_permissions:
        raise permission_denied(permission, resource)
