"""KFP interface of resolve_model; step.py says what it does."""

from typing import NamedTuple

from kfp import dsl

from serving.image import DEFAULT


@dsl.component(base_image=DEFAULT, packages_to_install=[], install_kfp_package=False)
def resolve_model(
    project: str,
    location: str,
    cluster: str,
    namespace: str,
    bucket: str,
    model: str,
    revision: str,
    settings: dict,
    run_id: str,
) -> NamedTuple("Outputs", [("Output", bool), ("merged", dict), ("release", dict)]):
    """Finds, by reading alone, what the revision is and whether there is anything to do.

    Args:
        project, location, cluster, namespace, bucket, model, revision: see serving/settings.
        settings: all other settings, as one struct.
        run_id: name of this run, which labels all that it makes.

    Returns:
        Output: whether the run goes on (by this name kfp.local finds what a condition in the same DAG reads).
        merged: the whole settings, validated.
        release: commit, weights key, generation and the live generation (serving/weights/release.py).
    """
    from components.resolve_model.step import run

    return run(
        settings,
        run_id,
        project=project,
        location=location,
        cluster=cluster,
        namespace=namespace,
        bucket=bucket,
        model=model,
        revision=revision,
    )
