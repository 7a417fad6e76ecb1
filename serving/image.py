"""The component image: what every step and every Job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.settings import Settings

VERSION = "0.1.0"
"""The distribution's version (setup.cfg says the same; a test holds them together)."""

DEFAULT = f"gemma-gke-pipelines/python-components:{VERSION}"
"""What is compiled in when nobody says `--image`: a name that runs nowhere until an image is pushed under it.
(kfp.local warns about an image without "python" in its name.)"""

REPOSITORY = "gemma-pipelines"
"""The repository of Artifact Registry that `bootstrap` makes in a project."""
PACKAGE = "python-components"
"""The image's name in it."""


def published(project: str, region: str) -> str:
    """The image's name in the project's own repository, where `bootstrap` builds it; the tag is this VERSION."""
    return f"{region}-docker.pkg.dev/{project}/{REPOSITORY}/{PACKAGE}"


def wanted(settings: Settings) -> str:
    """The component image of a deployment's runs: the one that its settings name, else this version's, in the mirror if
    there is one, else in the project's own repository, where `bootstrap` puts it."""
    if settings.images.components:
        return settings.images.components
    if settings.images.registry:
        return f"{settings.images.registry}/{DEFAULT}"
    return f"{published(settings.project, settings.region)}:{VERSION}"


def mirrored(registry: str | None, image: str) -> str:
    """An image's name in a mirror: REGISTRY/<path of the image>, or as it is without a mirror, or already there."""
    if not registry or image.startswith(f"{registry}/"):
        return image
    host, slash, path = image.partition("/")
    # As docker reads names: a first part with a dot or a port is a registry, any other belongs to the path.
    has_registry = slash and ("." in host or ":" in host or host == "localhost")
    return f"{registry}/{path if has_registry else image}"
