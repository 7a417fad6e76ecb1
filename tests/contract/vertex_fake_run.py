"""A run that does nothing and leaves outcomes as a refresh does, for tests of those who look at runs."""

from kfp import dsl

from tests.contract.vertex_pipelines import component


@component
def resolve_model(bucket: str, job: str):
    from serving.outcome import recorded

    with recorded("resolve_model", f"gs://{bucket}/pipelines", job) as outcome:
        outcome.details.update(decision="deploy", model="google/gemma-3-4b-it", commit="c" * 40, generation="g1")
        outcome.succeeded("g1 is new")


@component
def validate_server(bucket: str, job: str, model: str):
    import time

    from serving.errors import ReleaseError
    from serving.outcome import recorded

    if model.endswith("dies"):
        raise SystemExit(3)
    if model.endswith("tells"):
        from serving import log

        log.entry("half of it is done", step="validate_server", run_id=job)
    if model.endswith(("waits", "tells")):
        time.sleep(600)
    with recorded("validate_server", f"gs://{bucket}/pipelines", job) as outcome:
        if model.endswith("bad"):
            raise ReleaseError("g1 answered nothing but padding")
        outcome.succeeded("g1 answers")


@component
def collect_garbage(bucket: str, job: str):
    from serving.outcome import recorded

    with recorded("collect_garbage", f"gs://{bucket}/pipelines", job) as outcome:
        outcome.skipped("nothing to collect")


@component
def write_report(bucket: str, job: str):
    from serving.outcome import recorded

    with recorded("write_report", f"gs://{bucket}/pipelines", job) as outcome:
        outcome.succeeded("written")


@dsl.pipeline(name="gemma-gcs-fuse")
def fake_run(
    project: str,
    bucket: str,
    settings: dict,
    location: str = "us-central1",
    cluster: str = "gemma",
    namespace: str = "gemma",
    model: str = "google/gemma-3-4b-it",
    revision: str = "main",
):
    about = {"bucket": bucket, "job": dsl.PIPELINE_JOB_NAME_PLACEHOLDER}
    with dsl.ExitHandler(write_report(**about), name="refresh"):
        resolved = resolve_model(**about)
        validated = validate_server(**about, model=model).after(resolved)
        collect_garbage(**about).after(validated)
