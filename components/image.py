"""The component image: what every step and every Job runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.settings import Settings

VERSION = "0.1.0"
"""The distribution's version (setup.cfg says the same; a test holds them together)."""

DEFAULT = f"gemma-gke-pipelines/python-components:{VERSION}"
"""What is compiled in when nobody says `--image`: a name that runs nowhere until an image is pushed under it.
(kfp.local warns about an image without "python" in its name.)"""


def reference(settings: Settings) -> str:
    """The image that Jobs run: the one that the pipeline was compiled with, from the mirror if there is one."""
    image = settings.images.components or DEFAULT
    return f"{settings.images.registry}/{image.split('/', 1)[-1]}" if settings.images.registry else image
