"""Path → answer: which service a path belongs to. What lies below is that service's module's."""

from __future__ import annotations

import re
from typing import Any

from emulated_cloud.google import logging, monitoring, resourcemanager
from emulated_cloud.google.call import Api, Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import no_such_method, refusal
from emulated_cloud.http import Handler

APIS: tuple[Api, ...] = (
    resourcemanager.answer,  # /v3/projects/…, /v1/projects/…
    logging.answer,  # /v2/entries:list
    monitoring.answer,  # /v3/projects/…/{metricDescriptors,timeSeries}
)
"""Those that remember nothing. These do (server.py): Vertex AI (/v1/projects/…/locations/…/{pipelineJobs,schedules}),
GKE (…/{clusters,serverConfig,operations}), Cloud Build (…/builds), Artifact Registry
(…/{repositories,operations}/…), Secret Manager (/v1/projects/…/secrets/…), IAM
(/v1/projects/…/{serviceAccounts,roles}/…), Service Usage (/v1/projects/…/services), Compute Engine
(/compute/v1/projects/…); and the IAM policies of everything (`:getIamPolicy` and so on)."""


def is_metadata(path: str) -> bool:
    """Whether a path is the metadata server's, whose answers are not JSON and need no token."""
    return path == "/" or path.startswith("/computeMetadata/")


def call_of(request: Handler, config: Config) -> Call:
    """Raises HttpError 404 for a path that is no API's, 400 for a body that is no JSON object."""
    version, *path = request.segments()
    if version == "compute" and path:
        # The one API that says its name in its paths.
        version = f"compute/{path.pop(0)}"
    # `ui` is where Vertex AI's clients look for operations first.
    if not re.fullmatch(r"(compute/)?v\d\w*|ui", version) or not path:
        raise no_such_method()
    path[-1], _, verb = path[-1].partition(":")
    return Call(request.command, version, path, verb, request.query, config, _body(request))


def _body(request: Handler) -> dict[str, Any]:
    try:
        body = request.read_json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise refusal("INVALID_ARGUMENT", "Invalid JSON payload received.")
    return body


def answer(call: Call, apis: tuple[Api, ...]) -> dict[str, Any]:
    """The answer of the API that the path belongs to. Raises HttpError."""
    for api in apis:
        if (found := api(call)) is not None:
            return found
    raise no_such_method()
