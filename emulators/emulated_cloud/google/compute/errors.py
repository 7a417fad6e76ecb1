"""What Compute Engine answers when it refuses, at once and in an operation: its own older JSON, in its words."""

from __future__ import annotations

from typing import Any

from emulated_cloud.http import HttpError


class OperationFailed(Exception):
    """What was begun did not succeed: the operation ends with this error."""

    def __init__(self, code: str, message: str, status: int, words: str, details: list[dict[str, Any]] | None = None):
        super().__init__(message)
        self.code, self.message, self.status, self.words, self.details = code, message, status, words, details or []

    @property
    def error(self) -> dict[str, Any]:
        shown: dict[str, Any] = {"code": self.code, "message": self.message}
        return shown | ({"errorDetails": self.details} if self.details else {})


def refusal(status: int, reason: str, message: str) -> HttpError:
    error = {"message": message, "domain": "global", "reason": reason}
    return HttpError(status, {"error": {"code": status, "message": message, "errors": [error]}})


def not_found(resource: str) -> HttpError:
    return refusal(404, "notFound", f"The resource '{resource}' was not found")


def already_exists(resource: str) -> HttpError:
    return refusal(409, "alreadyExists", f"The resource '{resource}' already exists")


def in_use(kind: str, resource: str, user: str) -> HttpError:
    words = f"The {kind} resource '{resource}' is already being used by '{user}'"
    return refusal(400, "resourceInUseByAnotherResource", words)


def not_ready(resource: str) -> HttpError:
    return refusal(400, "resourceNotReady", f"The resource '{resource}' is not ready")


def invalid(field: str, value: object, why: str) -> HttpError:
    return refusal(400, "invalid", f"Invalid value for field '{field}': '{value}'. {why}")


def stale_fingerprint() -> HttpError:
    return refusal(412, "conditionNotMet", "Labels fingerprint either invalid or resource labels have changed")


def forbidden(permission: str, resource: str) -> HttpError:
    return refusal(403, "forbidden", f"Required '{permission}' permission for '{resource}'")


def stock_out(zone: str) -> OperationFailed:
    cure = "Try a different zone, or try again later."
    message = f"The zone '{zone}' does not have enough resources available to fulfill the request.  {cure}"
    return OperationFailed("ZONE_RESOURCE_POOL_EXHAUSTED", message, 503, "SERVICE UNAVAILABLE")


def quota_exceeded(metric: str, limit: float, where: str, dimensions: dict[str, str]) -> OperationFailed:
    info = {
        "metricName": f"compute.googleapis.com/{metric.lower()}",
        "limitName": f"{metric.replace('_', '-')}-per-project{'-region' if dimensions else ''}",
        "dimensions": dimensions,
        "limit": limit,
    }
    message = f"Quota '{metric}' exceeded.  Limit: {limit} {where}."
    return OperationFailed("QUOTA_EXCEEDED", message, 403, "FORBIDDEN", [{"quotaInfo": info}])


def scripted(given: dict[str, Any], zone: str) -> OperationFailed:
    """An error that a test asked for: `{"code", "message"}`; a stock-out needs no message."""
    code = given["code"]
    if code == "ZONE_RESOURCE_POOL_EXHAUSTED" and "message" not in given:
        return stock_out(zone)
    message = given.get("message", "An internal error has occurred. Please retry your request or contact support.")
    status, words = {
        "QUOTA_EXCEEDED": (403, "FORBIDDEN"),
        "INTERNAL_ERROR": (500, "INTERNAL SERVER ERROR"),
        "RESOURCE_NOT_FOUND": (404, "NOT FOUND"),
    }.get(code, (400, "BAD REQUEST"))
    if code.startswith("ZONE_RESOURCE_POOL_EXHAUSTED"):
        status, words = 503, "SERVICE UNAVAILABLE"
    return OperationFailed(code, message, status, words)
