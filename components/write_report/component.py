"""KFP interface of write_report; step.py says what it does."""

from kfp import dsl

from serving.component import component


@component
def write_report(
    project: str,
    location: str,
    cluster: str,
    namespace: str,
    bucket: str,
    model: str,
    revision: str,
    settings: dict,
    job: str,
    status: dsl.PipelineTaskFinalStatus,
    page: dsl.Output[dsl.HTML],
):
    """Cleans up after the run, gives the Lease back and writes the report, whatever happened before.

    Args:
        project, location, cluster, namespace, bucket, model, revision: see serving/settings.
        settings: all other settings, as one struct.
        job: the orchestrator's name of this run.
        status: what the orchestrator says became of the run; the outcomes know better.
        page: the report for a reader.
    """
    from components.write_report.step import run

    html = run(
        settings,
        job,
        status.state,
        project=project,
        location=location,
        cluster=cluster,
        namespace=namespace,
        bucket=bucket,
        model=model,
        revision=revision,
    )
    with open(page.path, "w", encoding="utf-8") as file:
        file.write(html)
