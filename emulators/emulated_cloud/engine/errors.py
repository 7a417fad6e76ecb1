"""What the API answers when it does not answer: status, and vLLM's error object."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """An answer other than success, as vLLM words it."""

    def __init__(self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None):
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}


def not_found(model: str, names: list[str]) -> ApiError:
    words = f"The model `{model}` does not exist. Valid aliases: {', '.join(names)}."
    return ApiError(404, words, "NotFoundError", "model")


def refused(message: str, parameter: str, value: Any = None) -> ApiError:
    """vLLM's VLLMValidationError: it names the parameter, and the value where it has one."""
    suffix = f"(parameter={parameter})" if value is None else f"(parameter={parameter}, value={value})"
    return ApiError(400, f"{message} {suffix}", param=parameter)


def invalid(details: list[Any], param: str | None) -> ApiError:
    """vLLM's answer to a body that does not validate: at most ten errors are told."""
    label = "error" if len(details) == 1 else "errors"
    lines = [f"{len(details)} validation {label}:", *(f"  {detail}" for detail in details[:10])]
    if len(details) > 10:
        lines.append(f"  ...and {len(details) - 10} more {label}")
    return ApiError(400, "\n".join(lines), "Bad Request", param)
