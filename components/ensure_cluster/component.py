"""KFP interface of ensure_cluster; step.py says what it does."""

from serving.component import component


@component
def ensure_cluster(settings: dict, release: dict):
    """Looks whether the cluster has the node pools that the settings name, as they have to be, or makes them.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
    """
    from components.ensure_cluster.step import run

    run(settings, release)
