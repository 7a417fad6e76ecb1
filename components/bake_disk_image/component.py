"""KFP interface of bake_disk_image; step.py says what it does."""

from serving.component import component


@component
def bake_disk_image(settings: dict, release: dict):
    """Makes the disk image that the new generation's nodes start with, unless it is there already.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
    """
    from components.bake_disk_image.step import run

    run(settings, release)
