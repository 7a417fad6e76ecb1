"""Scenario 03: weights in a bucket, mounted into the server with GCS FUSE."""

from kfp import dsl

from components.collect_garbage.component import collect_garbage
from components.deploy_server.component import deploy_server
from components.discard_generation.component import discard_generation
from components.download_weights.component import download_weights
from components.ensure_access.component import ensure_access
from components.promote_generation.component import promote_generation
from components.resolve_model.component import resolve_model
from components.validate_server.component import validate_server
from components.write_report.component import write_report
from pipelines.wiring import retried, step


@dsl.pipeline(
    name="gemma-gcs-fuse",
    description="A Gemma release from Hugging Face to a validated, serving vLLM on GKE, weights in a GCS FUSE volume",
)
def pipeline(
    project: str,
    bucket: str,
    location: str = "us-central1",
    cluster: str = "gemma",
    namespace: str = "gemma",
    model: str = "google/gemma-3-4b-it",
    revision: str = "main",
    settings: dict = {"scenario": "gcs-fuse"},  # noqa: B006 (kfp reads it, nobody writes it)
):
    where = {
        "project": project,
        "location": location,
        "cluster": cluster,
        "namespace": namespace,
        "bucket": bucket,
        "model": model,
        "revision": revision,
        "settings": settings,
        "run_id": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
    }
    report = step(write_report(**where), "Write the report")
    with dsl.ExitHandler(report, name="refresh"):
        resolved = retried(step(resolve_model(**where), "Resolve the model"))
        merged, release = resolved.outputs["merged"], resolved.outputs["release"]
        with dsl.If(resolved.outputs["Output"] == True, name="there-is-something-to-do"):  # noqa: E712
            access = retried(step(ensure_access(settings=merged, release=release), "Ensure access"))
            weights = retried(step(download_weights(settings=merged, release=release), "Download the weights"))
            weights.after(access)
            deployed = retried(
                step(
                    deploy_server(
                        settings=merged,
                        release=release,
                        passed=weights.outputs["passed"],
                        reasons=weights.outputs["reasons"],
                    ),
                    "Deploy the server",
                )
            )
            validated = retried(
                step(
                    validate_server(
                        settings=merged,
                        release=release,
                        passed=deployed.outputs["so_far"],
                        reasons=deployed.outputs["why"],
                    ),
                    "Validate the server",
                )
            )
            with dsl.If(validated.outputs["verdict"] == True, name="it-passed"):  # noqa: E712
                promoted = retried(step(promote_generation(settings=merged, release=release), "Promote"))
                collected = retried(step(collect_garbage(settings=merged, release=release), "Collect garbage"))
                collected.after(promoted)
            with dsl.Else(name="it-failed"):
                # Fails on purpose when its work is done: a retry would do nothing but fail again.
                step(discard_generation(settings=merged, release=release, reasons=validated.outputs["why"]), "Discard")
