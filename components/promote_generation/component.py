"""KFP interface of promote_generation; step.py says what it does."""

from serving.component import component


@component
def promote_generation(settings: dict, release: dict):
    """Moves the traffic to the generation that passed, lets the old one finish and keeps it.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
    """
    from components.promote_generation.step import run

    run(settings, release)
