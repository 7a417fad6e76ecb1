"""What the registry answers when it refuses, in the words of Docker's distribution."""

from __future__ import annotations

from typing import Any

from emulated_cloud.http import HttpError


def _refusal(status: int, code: str, message: str, detail: Any = None, **headers: str) -> HttpError:
    error: dict[str, Any] = {"code": code, "message": message}
    if detail is not None:
        error["detail"] = detail
    return HttpError(status, {"errors": [error]}, {name.replace("_", "-"): value for name, value in headers.items()})


def unauthorized(realm: str, repository: str) -> HttpError:
    """The challenge: where a token is to be had, and for what."""
    scope = f',scope="repository:{repository}:pull"' if repository else ""
    detail = [{"Type": "repository", "Class": "", "Name": repository, "Action": "pull"}] if repository else None
    return _refusal(
        401,
        "UNAUTHORIZED",
        "authentication required",
        detail,
        WWW_Authenticate=f'Bearer realm="{realm}/token",service="registry.emulated"{scope}',
    )


def denied() -> HttpError:
    return _refusal(403, "DENIED", "requested access to the resource is denied")


def name_unknown(repository: str) -> HttpError:
    return _refusal(404, "NAME_UNKNOWN", "repository name not known to registry", {"name": repository})


def manifest_unknown(reference: str) -> HttpError:
    return _refusal(404, "MANIFEST_UNKNOWN", "manifest unknown", f"unknown tag or digest {reference}")


def blob_unknown(digest: str) -> HttpError:
    return _refusal(404, "BLOB_UNKNOWN", "blob unknown to registry", {"digest": digest})


def unsupported() -> HttpError:
    return _refusal(405, "UNSUPPORTED", "The operation is unsupported.")


def not_found() -> HttpError:
    return HttpError(404, "404 page not found\n")


def blob_host(status: int, code: str, message: str) -> HttpError:
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return HttpError(status, body, {"Content-Type": "application/xml"})
