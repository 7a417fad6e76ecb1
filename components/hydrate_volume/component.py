"""KFP interface of hydrate_volume; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def hydrate_volume(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list)]
):
    """Makes the generation's volume, a copy in every zone, and reads every byte of it back.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, no volume is made.
        reasons: why, in words.

    Returns:
        passed, reasons: the verdict and its reasons after this step; False when a zone's copy has other bytes.
    """
    from components.hydrate_volume.step import run

    return run(settings, release, passed, reasons)
