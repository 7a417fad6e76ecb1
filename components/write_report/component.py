"""KFP interface of write_report; step.py says what it does."""

from kfp import dsl

from serving.image import DEFAULT


@dsl.component(base_image=DEFAULT, packages_to_install=[], install_kfp_package=False)
def write_report(
    project: str,
    location: str,
    cluster: str,
    namespace: str,
    bucket: str,
    model: str,
    revision: str,
    settings: dict,
    run_id: str,
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
):
    """Cleans up after the run, gives the Lease back and writes the report, whatever happened before.

    Args:
        project, location, cluster, namespace, bucket, model, revision: see serving/settings.
        settings: all other settings, as one struct.
        run_id: name of this run.
        status: what the orchestrator says became of the run.
        page: the report for a reader.
    """
    from components.write_report.step import run

    html = run(
        settings,
        run_id,
        status.state == "SUCCEEDED",
        project=project,
        location=location,
        cluster=cluster,
        namespace=namespace,
        bucket=bucket,
        model=model,
        revision=revision,
    )
    with open(page.path, "w") as file:
        file.write(html)
