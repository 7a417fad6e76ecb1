"""What Google's APIs answer when they refuse: google.rpc.Status, in IAM's and the front door's words."""

from __future__ import annotations

from typing import Any

from emulated_cloud.http import HttpError

_HTTP_CODES = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "UNIMPLEMENTED": 501,
}


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


def no_such_method() -> HttpError:
    return refusal("NOT_FOUND", "Method not found.")


def unauthenticated(with_credentials: bool) -> HttpError:
    """For a caller without the service account's token; `with_credentials`: it has others."""
    if with_credentials:
        reason, said = "ACCESS_TOKEN_TYPE_UNSUPPORTED", "Request had invalid authentication credentials."
    else:
        reason, said = "CREDENTIALS_MISSING", "Request is missing required authentication credential."
    expected = "Expected OAuth 2 access token, login cookie or other valid authentication credential."
    see = "See https://developers.google.com/identity/sign-in/web/devconsole-project."
    error = refusal("UNAUTHENTICATED", f"{said} {expected} {see}", [error_info(reason)])
    return HttpError(401, error.body, {"WWW-Authenticate": 'Bearer realm="https://accounts.google.com/"'})
