"""KFP interface of deploy_server; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def deploy_server(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list)]
):
    """Brings the generation up beside the live one, and waits until it is ready or cannot become it.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is deployed.
        reasons: why, in words.

    Returns:
        passed, reasons: the verdict and its reasons after this step.
    """
    from components.deploy_server.step import run

    return run(settings, release, passed, reasons)
