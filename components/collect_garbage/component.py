"""KFP interface of collect_garbage; step.py says what it does."""

from serving.component import component


@component
def collect_garbage(settings: dict, release: dict):
    """Deletes generations beyond those that are kept, and weights that no deployment names.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
    """
    from components.collect_garbage.step import run

    run(settings, release)
