"""What an API server's refusal means: our error for it, in the server's own words.

The one place that tells what waiting heals from what somebody has to change, wherever the words are heard.
"""

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

    may_be_own = False
    """The answer to an earlier try of the same write was lost: what it ran into may be that very write."""


def is_away(status: int) -> bool:
    """Whether an HTTP status says that the server is away or busy, and the same may be asked again."""
    return status in (429, 500, 502, 503, 504)


def may_pass(message: str) -> bool:
    """Whether a refusal by admission may be gone later though nobody changes what was asked for: a quota that others
    use up, a webhook that is away. `message`: the refusal's, or that of an event which tells of one."""
    return "exceeded quota" in message or "failed calling webhook" in message


def words(error: ApiException, request: str) -> str:
    """What the server said; `request` (method and path) for an answer that says nothing itself."""
    return _status(error).get("message") or f"{request}: {error.status} {error.reason}"


def refusal(error: ApiException, request: str, cluster: str, grant: str) -> PipelineError:
    """Our error for an answer that is an error and no reason to ask again (`is_away`).

    request: method and path, for an answer that says nothing itself.
    cluster: its name for people.
    grant: the command by which an administrator gives the pipeline the rights that it lacks; may be empty.
    """
    status, message = _status(error), words(error, request).rstrip(" .")
    if error.status == 401:
        return AccessError(
            f"{cluster} does not take these credentials ({message}). See `gcloud auth application-default login`"
        )
    if may_pass(message):
        return InconclusiveError(f"{cluster}: {message}. Run again later")
    if error.status == 403:
        # Admission refuses with 403 too; what is a missing right names the verb that is.
        cure = f". An administrator grants it: `{grant}`" if grant and " cannot " in message else ""
        return AccessError(f"{cluster}: {message}{cure}")
    if error.status == 409:
        return ConflictError(message, 409, status.get("reason", ""), status.get("details") or {})
    return ApiError(message, error.status, status.get("reason", ""), status.get("details") or {})


def _status(error: ApiException) -> Object:
    """The Status object of an answer; empty where it is none."""
    try:
        status = json.loads(error.body)
    except (TypeError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
