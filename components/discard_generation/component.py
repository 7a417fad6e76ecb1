"""KFP interface of discard_generation; step.py says what it does."""

from serving.component import component


@component
def discard_generation(settings: dict, release: dict, reasons: list):
    """Takes a generation that did not pass out of the cluster, remembers why, and fails the run.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        reasons: why it did not pass, in words.
    """
    from components.discard_generation.step import run

    run(settings, release, reasons)
