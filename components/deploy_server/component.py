"""KFP interface of deploy_server; step.py says what it does."""

from typing import NamedTuple

from kfp import dsl

from serving.image import DEFAULT


@dsl.component(base_image=DEFAULT, packages_to_install=[], install_kfp_package=False)
def deploy_server(settings: dict, release: dict, passed: bool, reasons: list) -> NamedTuple(
    "Outputs", [("so_far", bool), ("why", list)]
):
    """Brings the generation up beside the live one, and waits until it is ready or cannot become it.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        passed: the verdict so far; when it is False already, nothing is deployed.
        reasons: why, in words.

    Returns:
        so_far, why: the verdict and its reasons after this step.
    """
    from components.deploy_server.step import run

    return run(settings, release, passed, reasons)
