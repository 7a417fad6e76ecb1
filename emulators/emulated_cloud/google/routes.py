"""Path → answer: which service a path belongs to. What lies below is that service's module's."""

from __future__ import annotations

import re
from typing import Any

from emulated_cloud.google import container, resourcemanager, secretmanager
from emulated_cloud.google.call import Api, Call
from emulated_cloud.google.config import Config
from emulated_cloud.google.errors import no_such_method

APIS: tuple[Api, ...] = (
    container.answer,  # /v1/projects/…/locations/…/{clusters,serverConfig}
    secretmanager.answer,  # /v1/projects/…/secrets/…
    resourcemanager.answer,  # /v3/projects/…, /v1/projects/…
)


def is_metadata(path: str) -> bool:
    """Whether a path is the metadata server's, whose answers are not JSON and need no token."""
    return path == "/" or path.startswith("/computeMetadata/")


def call_of(method: str, segments: list[str], query: dict[str, str], config: Config) -> Call:
    """Raises HttpError 404 for a path that is no API's."""
    version, *path = segments
    if not re.fullmatch(r"v\d\w*", version) or not path:
        raise no_such_method()
    path[-1], _, verb = path[-1].partition(":")
    return Call(method, version, path, verb, query, config)


def answer(call: Call) -> dict[str, Any]:
    """The answer of the API that the path belongs to. Raises HttpError."""
    for api in APIS:
        if (found := api(call)) is not None:
            return found
    raise no_such_method()
