"""Artifact Registry: keeping an image warm for nodes that stream it.

Prewarming is in the API since April 2026 and in no client library. What it answers is not documented but for its
success, so nothing is read from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from serving.clients import google
from serving.errors import AccessError, RequestError

WRITER_ROLE = "roles/artifactregistry.writer"
"""The role that the call is said to need."""

_IMAGE = re.compile(r"([a-z0-9-]+)-docker\.pkg\.dev/([^/]+)/([^/]+)/([^:@]+)(:[^@]+)?(@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class Place:
    """Where in Artifact Registry an image is."""

    location: str
    project: str
    repository: str
    path: str


def parse(image: str) -> Place:
    """Where an image is. Raises RequestError for one of another registry, which no node streams."""
    found = _IMAGE.fullmatch(image)
    if not found:
        raise RequestError(
            f"{image} is not in Artifact Registry, and nodes stream images from there alone. Mirror it and set "
            "images.registry (LOCATION-docker.pkg.dev/PROJECT/REPOSITORY), or set secondary_boot_disk.image to disk"
        )
    return Place(*found.groups()[:4])


def prewarm(image: str, digest: str) -> None:
    """Asks that the image be ready for streaming. Raises AccessError without the role, RequestError for an image that
    is not there, InconclusiveError while nobody answers."""
    from google.api_core import exceptions

    place = parse(image)
    name = f"projects/{place.project}/locations/{place.location}/repositories/{place.repository}"
    resource = f"{name}/dockerImages/{quote(f'{place.path}@{digest}', safe='')}"
    try:
        google.call("artifactregistry", "POST", f"v1/{resource}:prewarm", {})
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(
            f"{image} may not be prewarmed: {google.said(error)}. Grant the pipeline's service account {WRITER_ROLE}: "
            f"`gcloud artifacts repositories add-iam-policy-binding {place.repository} --location={place.location} "
            f"--project={place.project} --member=serviceAccount:… --role={WRITER_ROLE}`"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"{image} cannot be prewarmed: {google.said(error)}") from error
