"""What an API server's refusal means: our error for it, in the server's own words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from serving.clients.kubernetes.kinds import Object
from serving.errors import AccessError, InconclusiveError, PipelineError

if TYPE_CHECKING:
    from kubernetes.client.exceptions import ApiException


class ApiError(PipelineError):
    """The API server refused a request. `status` is the HTTP code, `reason` the Status object's reason."""

    def __init__(self, message: str, status: int, reason: str, details: Object):
        super().__init__(message)
        self.status, self.reason, self.details = status, reason, details


class ConflictError(ApiError):
    """A precondition did not hold, or another field manager owns what was to be written (409)."""


def refusal(error: ApiException, request: str, cluster: str, grant: str) -> PipelineError:
    """Our error for an answer that is an error.

    request: method and path, for an answer that says nothing itself.
    cluster: its name for people.
    grant: the command by which an administrator gives the pipeline the rights that it lacks; may be empty.
    """
    try:
        status = json.loads(error.body)
    except (TypeError, ValueError):
        status = {}
    message = status.get("message") or f"{request}: {error.status} {error.reason}"
    if error.status == 401:
        return AccessError(
            f"{cluster} does not take these credentials ({message}). See `gcloud auth application-default login`"
        )
    if error.status == 403:
        # Admission and quotas refuse with 403 too; what is a missing right names the verb that is.
        cure = f". An administrator grants it: `{grant}`" if grant and " cannot " in message else ""
        return AccessError(f"{cluster}: {message}{cure}")
    if error.status == 409:
        return ConflictError(message, 409, status.get("reason", ""), status.get("details") or {})
    if error.status >= 500 or error.status == 429:
        return InconclusiveError(f"the API server of {cluster} does not answer: {message}")
    return ApiError(message, error.status, status.get("reason", ""), status.get("details") or {})
