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


def wanted(settings: Settings) -> str:
    """The component image of a deployment's runs: the one that its settings name, else this version's, in the mirror if
    there is one, else in the project's own repository, where `bootstrap` puts it."""
    own = f"{settings.vertex_location}-docker.pkg.dev/{settings.project}"
    return settings.images.components or f"{settings.images.registry or own}/{DEFAULT}"
