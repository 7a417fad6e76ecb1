"""What every API gets and gives: a call, and google.rpc.Status for a refusal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from emulated_cloud.google.config import Config
from emulated_cloud.http import HttpError

_HTTP_CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
}


@dataclass(frozen=True)
class Call:
    """A request: `path` split and unquoted, without the version; `verb` is what follows a colon at its end."""

    method: str
    version: str
    path: list[str]
    verb: str
    query: dict[str, str]
    config: Config

    @property
    def resource(self) -> str:
        return "/".join(self.path)


Api = Callable[[Call], dict[str, Any] | None]
"""Answers a call with a JSON document, None when the call is for another API. May raise HttpError."""


def refusal(status: str, message: str, details: list[dict[str, Any]] | None = None) -> HttpError:
    """google.rpc.Status as the REST APIs give it."""
    code = _HTTP_CODES[status]
    body = {"error": {"code": code, "message": message, "status": status, "details": details or []}}
    return HttpError(code, body)


def error_info(reason: str, domain: str = "googleapis.com", **metadata: str) -> dict[str, Any]:
    """google.rpc.ErrorInfo."""
    kind = "type.googleapis.com/google.rpc.ErrorInfo"
    return {"@type": kind, "reason": reason, "domain": domain, "metadata": metadata}


def permission_denied(permission: str, resource: str) -> HttpError:
    """What IAM says, also of what does not exist."""
    return refusal(
        "PERMISSION_DENIED",
        f"Permission '{permission}' denied on resource '{resource}' (or it may not exist).",
        [error_info("IAM_PERMISSION_DENIED", "iam.googleapis.com", permission=permission, resource=resource)],
    )
