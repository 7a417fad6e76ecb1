"""Service Usage: which of Google's APIs a project has switched on.

https://cloud.google.com/service-usage/docs/reference/rest
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote

from serving.clients import google

_AT_ONCE = 20
"""APIs that one call switches on."""


def enabled(project: str) -> set[str]:
    """The names of the APIs that are on: `aiplatform.googleapis.com`. Raises AccessError, InconclusiveError."""
    found: set[str] = set()
    token: str | None = ""
    while token is not None:
        after = f"&pageToken={quote(token, safe='')}" if token else ""
        with google.refusals(f"the APIs of project {project}"):
            page = google.call(
                "serviceusage", "GET", f"v1/projects/{project}/services?filter=state:ENABLED&pageSize=200{after}"
            )
        found |= {service["name"].rpartition("/")[2] for service in page.get("services", [])}
        token = page.get("nextPageToken")
    return found


def enable(project: str, apis: Sequence[str]) -> None:
    """Switches APIs on, and returns when they are; those that are on stay so."""
    for first in range(0, len(apis), _AT_ONCE):
        some = list(apis[first : first + _AT_ONCE])
        with google.refusals(f"{', '.join(some)} of project {project}"):
            operation = google.call(
                "serviceusage", "POST", f"v1/projects/{project}/services:batchEnable", {"serviceIds": some}
            )
            google.finished("serviceusage", operation)
