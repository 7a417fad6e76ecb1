"""The DAG of every scenario: from a release on the hub to a generation that serves, or that is remembered as bad.

Every step that can judge takes `passed, reasons` from the one before it and hands them on: what a feature has to say
about a release stands in that one chain, between the download and the promotion. A feature's work without a verdict
runs beside the chain, and what needs it says `.after()`.
"""

from typing import Any

from kfp import dsl

from components.bake_disk_image.component import bake_disk_image
from components.collect_garbage.component import collect_garbage
from components.deploy_server.component import deploy_server
from components.discard_generation.component import discard_generation
from components.download_weights.component import download_weights
from components.ensure_access.component import ensure_access
from components.ensure_cluster.component import ensure_cluster
from components.hydrate_volume.component import hydrate_volume
from components.promote_generation.component import promote_generation
from components.resolve_model.component import resolve_model
from components.validate_server.component import validate_server
from components.verify_autoscaling.component import verify_autoscaling
from components.verify_image_cache.component import verify_image_cache
from components.verify_placement.component import verify_placement
from components.write_report.component import write_report
from serving.scenarios import Scenario

DISK = "secondary-boot-disk"
EITHER = "gpu-or-tpu"


def refresh(scenario: Scenario, compiled: dict[str, Any]) -> Any:
    """The scenario's DAG, as `@dsl.pipeline` makes it. `compiled` is what resolve_model is told of it
    (pipelines/compile.py); its `features` are those whose steps the DAG has."""

    @dsl.pipeline(
        name=f"gemma-{scenario.name}",
        description=f"A Gemma release from Hugging Face to a validated, serving vLLM on GKE: {scenario.title}",
    )
    def pipeline(
        project: str,
        bucket: str,
        location: str = "us-central1",
        cluster: str = "gemma",
        namespace: str = "gemma",
        model: str = "google/gemma-3-4b-it",
        revision: str = "main",
        settings: dict = {"scenario": scenario.name},  # noqa: B006 (kfp reads it, nobody writes it)
    ):
        parameters = {
            "project": project,
            "location": location,
            "cluster": cluster,
            "namespace": namespace,
            "bucket": bucket,
            "model": model,
            "revision": revision,
            "settings": settings,
            "job": dsl.PIPELINE_JOB_NAME_PLACEHOLDER,
        }
        with dsl.ExitHandler(_named(write_report(**parameters), "Write the report"), name="refresh"):
            resolved = _retried(resolve_model(**parameters, compiled=compiled), "Resolve the model")
            found = {"settings": resolved.outputs["merged"], "release": resolved.outputs["release"]}
            with dsl.If(resolved.outputs["Output"] == True, name="there-is-something-to-do"):  # noqa: E712
                access = _retried(ensure_access(**found), "Ensure access")
                if EITHER in compiled["features"]:
                    # What is not as it has to be is said before bytes have moved.
                    access = _retried(ensure_cluster(**found), "Ensure the cluster").after(access)
                judged = _retried(download_weights(**found), "Download the weights").after(access)
                if "hyperdisk-ml" in compiled["features"]:
                    judged = _retried(hydrate_volume(**found, **_verdict(judged)), "Hydrate the volume")
                judged = _retried(deploy_server(**found, **_verdict(judged)), "Deploy the server")
                if DISK in compiled["features"]:
                    judged.after(_retried(bake_disk_image(**found), "Bake the disk image").after(access))
                judged = _retried(validate_server(**found, **_verdict(judged)), "Validate the server")
                if DISK in compiled["features"]:
                    judged = _retried(verify_image_cache(**found, **_verdict(judged)), "Verify the image cache")
                if {"hyperdisk-ml", EITHER} & set(compiled["features"]):
                    judged = _retried(verify_placement(**found, **_verdict(judged)), "Verify the placement")
                if "queue-hpa" in compiled["features"]:
                    judged = _retried(verify_autoscaling(**found, **_verdict(judged)), "Verify the autoscaling")
                with dsl.If(judged.outputs["passed"] == True, name="it-passed"):  # noqa: E712
                    promoted = _retried(promote_generation(**found), "Promote")
                    _retried(collect_garbage(**found), "Collect garbage").after(promoted)
                with dsl.Else(name="it-failed"):
                    # Fails on purpose when its work is done: a retry would do nothing but fail again.
                    _named(discard_generation(**found, reasons=judged.outputs["reasons"]), "Discard")

    return pipeline


def _verdict(task: Any) -> dict[str, Any]:
    """What the next step that can judge takes from this one."""
    return {"passed": task.outputs["passed"], "reasons": task.outputs["reasons"]}


def _named(task: Any, display_name: str) -> Any:
    """A task under its display name, never cached: every step reads or writes the world, which no cache key holds."""
    return task.set_display_name(display_name).set_caching_options(False)


def _retried(task: Any, display_name: str) -> Any:
    """A named task that is tried again when its machine went away: steps are idempotent.

    At once: an API that is away is waited for inside the step, and after a final error the next attempts end before
    they do anything (serving/outcome.py), so that nobody waits for them. `backoff_max_duration` is left alone: where
    it counts from the first attempt's start, a long step would lose its other attempts.
    """
    return _named(task, display_name).set_retry(num_retries=2, backoff_duration="0s")
