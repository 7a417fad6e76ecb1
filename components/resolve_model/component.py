"""KFP interface of resolve_model; step.py says what it does."""

from typing import NamedTuple

from serving.component import component


@component
def resolve_model(
    project: str,
    location: str,
    cluster: str,
    namespace: str,
    bucket: str,
    model: str,
    revision: str,
    settings: dict,
    job: str,
    compiled: dict,
) -> NamedTuple("Outputs", [("Output", bool), ("merged", dict), ("release", dict)]):
    """Finds, by reading alone, what the revision is and whether there is anything to do.

    Args:
        project, location, cluster, namespace, bucket, model, revision: see serving/settings.
        settings: all other settings, as one struct.
        job: the orchestrator's name of this run, which becomes the label of all that it makes.
        compiled: what this pipeline was compiled for (pipelines/compile.py): a constant, never a parameter.

    Returns:
        Output: whether the run goes on (by this name kfp.local finds what a condition in the same DAG reads).
        merged: the whole settings, validated.
        release: commit, weights key, generation and the live generation (serving/weights/release.py).
    """
    from components.resolve_model.step import run

    return run(
        settings,
        job,
        compiled,
        project=project,
        location=location,
        cluster=cluster,
        namespace=namespace,
        bucket=bucket,
        model=model,
        revision=revision,
    )
