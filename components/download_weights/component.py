"""KFP interface of download_weights; step.py says what it does."""

from typing import NamedTuple

from kfp import dsl

from serving.component import component


@component
def download_weights(settings: dict, release: dict, weights: dsl.Output[dsl.Model]) -> NamedTuple(
    "Outputs", [("passed", bool), ("reasons", list), ("bytes_transferred", int)]
):
    """Streams the release's files from the hub to the bucket, verified, the manifest last.

    Args:
        settings: the whole settings, as resolve_model returns them.
        release: what resolve_model found.
        weights: where they are in the bucket, and of which commit: what lineage is asked for.

    Returns:
        passed: False when the release itself is broken (a shard cut short or missing).
        reasons: why, in words.
        bytes_transferred: bytes of file content that this run moved.
    """
    from components.download_weights.step import lineage, run

    passed, reasons, moved = run(settings, release)
    if passed:
        weights.uri, weights.metadata = lineage(release)
    return passed, reasons, moved
