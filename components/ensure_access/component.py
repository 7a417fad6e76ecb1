"""KFP interface of ensure_access; step.py says what it does."""

from serving.component import component


@component
def ensure_access(settings: dict, release: dict):
    """Takes the deployment's Lease and sees to the namespace, the service account and the bucket's binding.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
    """
    from components.ensure_access.step import run

    run(settings, release)
