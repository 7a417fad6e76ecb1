"""KFP interface of verify_placement; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def verify_placement(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list)]
):
    """Looks in which zones the generation's pods are, and that each has the volume's disk of its own zone; or on which
    accelerators they come, for which it asks for a few more and gives them back.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is looked at.
        reasons: why, in words.

    Returns:
        passed, reasons: as they came: where pods are is nobody's verdict on a release.
    """
    from components.verify_placement.step import run

    return run(settings, release, passed, reasons)
