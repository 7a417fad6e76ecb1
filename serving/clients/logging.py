"""Cloud Logging: what nodes said.

https://cloud.google.com/logging/docs/reference/v2/rest/v2/entries/list. One method, for which the client library would
bring a tracing stack.
"""

from __future__ import annotations

from typing import Any

from serving.clients import google
from serving.errors import AccessError, RequestError

VIEWER_ROLE = "roles/logging.viewer"
_MOST = 1000
"""Entries of one answer."""


def entries(project: str, condition: str) -> list[dict[str, Any]]:
    """The newest entries of a project's log that a condition holds for, the newest first.

    condition: in the Logging query language; without a timestamp in it, Cloud Logging looks at the last day alone.
    Raises AccessError without the role, RequestError for a condition that is none, InconclusiveError while nobody
    answers.
    """
    from google.api_core import exceptions

    wanted = {
        "resourceNames": [f"projects/{project}"],
        "filter": condition,
        "orderBy": "timestamp desc",
        "pageSize": _MOST,
    }
    try:
        page = google.call("logging", "POST", "v2/entries:list", wanted)
        # Without entries but with a token: it has found none so far, and not looked everywhere yet.
        while "entries" not in page and page.get("nextPageToken"):
            page = google.call("logging", "POST", "v2/entries:list", wanted | {"pageToken": page["nextPageToken"]})
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(
            f"the logs of {project} may not be read: {google.said(error)}. Grant the pipeline's service account "
            f"{VIEWER_ROLE} (logging.logEntries.list): `gcloud projects add-iam-policy-binding {project} "
            f"--member=serviceAccount:… --role={VIEWER_ROLE}`"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"the logs of {project}: {google.said(error)}") from error
    found: list[dict[str, Any]] = page.get("entries", [])
    return found
