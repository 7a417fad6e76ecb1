"""KFP interface of verify_autoscaling; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def verify_autoscaling(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list)]
):
    """Loads the new generation until its queue grows, sees pods come, stops, and sees them go.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is loaded.
        reasons: why, in words.

    Returns:
        passed, reasons: the verdict and its reasons after this step.
    """
    from components.verify_autoscaling.step import run

    return run(settings, release, passed, reasons)
