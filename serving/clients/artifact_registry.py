"""Artifact Registry: repositories, tags, and keeping an image warm for nodes that stream it.

https://cloud.google.com/artifact-registry/docs/reference/rest. Prewarming came in April 2026; for a handful of calls
the client library is not worth its weight.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from serving.clients import google
from serving.errors import AccessError, RequestError

WRITER_ROLE = "roles/artifactregistry.writer"
"""A role with artifactregistry.prewarmedArtifacts.create, as far as is known: nobody has confirmed it."""

_IMAGE = re.compile(r"([a-z0-9-]+)-docker\.pkg\.dev/([^/]+)/([^/]+)/([^:@]+)(:[^@]+)?(@sha256:[0-9a-f]{64})?")


@dataclass(frozen=True)
class Place:
    """Where in Artifact Registry an image is."""

    location: str
    project: str
    repository: str
    path: str

    @property
    def parent(self) -> str:
        """The repository's resource name."""
        return f"projects/{self.project}/locations/{self.location}/repositories/{self.repository}"

    @property
    def package(self) -> str:
        """The image's resource name, without a version or tag."""
        return f"{self.parent}/packages/{quote(self.path, safe='')}"


def parse(image: str) -> Place:
    """Where an image is. Raises RequestError for one of another registry, which no node streams."""
    found = _IMAGE.fullmatch(image)
    if not found:
        raise RequestError(
            f"{image} is not in Artifact Registry, and nodes stream images from there alone. Mirror it and set "
            "images.registry (LOCATION-docker.pkg.dev/PROJECT/REPOSITORY), or set secondary_boot_disk.image to disk"
        )
    return Place(*found.groups()[:4])


def prewarm(image: str, digest: str, location: str, architecture: str, days: int | None = None) -> str:
    """Asks that the image be ready for streaming to nodes of a region, for so many days (None: Artifact Registry's own,
    three). Returns until when it is, as far as that is told at once: it goes on in the background.

    Raises AccessError without the role, RequestError for an image that cannot be, InconclusiveError while nobody
    answers.
    """
    from google.api_core import exceptions

    place = parse(image)
    wanted = {
        "version": f"{place.package}/versions/{digest}",
        "streamLocation": location,
        "platform": {"os": "linux", "architecture": architecture},
        **({"retentionDays": str(days)} if days else {}),
    }
    try:
        operation = google.call("artifactregistry", "POST", f"v1/{place.parent}:prewarmArtifact", wanted)
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        raise AccessError(
            f"{image} may not be prewarmed: {google.said(error)}. Grant the pipeline's service account {WRITER_ROLE}: "
            f"`gcloud artifacts repositories add-iam-policy-binding {place.repository} --location={place.location} "
            f"--project={place.project} --member=serviceAccount:… --role={WRITER_ROLE}`"
        ) from error
    except exceptions.ClientError as error:
        raise RequestError(f"{image} cannot be prewarmed: {google.said(error)}") from error
    artifact: dict[str, str] = operation.get("response", {}).get("prewarmedArtifact", {})
    return artifact.get("expirationTime", "")


# -- repositories of a project's own ------------------------------------------------------------------------


def ensure_repository(repository: str) -> bool:
    """Makes a repository of container images, `projects/P/locations/L/repositories/R`, unless it is there: returns
    whether it did.

    Raises AccessError, RequestError, InconclusiveError.
    """
    from google.api_core import exceptions

    parent, _, name = repository.rpartition("/")
    with google.refusals(f"repository {repository}"):
        try:
            google.call("artifactregistry", "GET", f"v1/{repository}")
        except exceptions.NotFound:
            pass
        else:
            return False
        try:
            operation = google.call(
                "artifactregistry", "POST", f"v1/{parent}?repositoryId={name}", {"format": "DOCKER"}
            )
        except exceptions.Conflict:
            return False
        google.finished("artifactregistry", operation)
        return True


def digest_of(image: str, tag: str) -> str:
    """The digest that an image (HOST/PROJECT/REPOSITORY/PATH) has at a tag; empty when it has no such tag.

    Raises AccessError, RequestError, InconclusiveError.
    """
    from google.api_core import exceptions

    place = parse(image)
    with google.refusals(f"{image}:{tag}"):
        try:
            found = google.call("artifactregistry", "GET", f"v1/{place.package}/tags/{tag}")
        except exceptions.NotFound:
            return ""
    return str(found["version"]).rpartition("/")[2]
