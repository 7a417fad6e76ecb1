"""KFP interface of verify_image_cache; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def verify_image_cache(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list)]
):
    """Looks whether the new generation's nodes found the engine's image in their cache, or pulled it from the registry.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is looked at.
        reasons: why, in words.

    Returns:
        passed, reasons: the verdict and its reasons after this step.
    """
    from components.verify_image_cache.step import run

    return run(settings, release, passed, reasons)
