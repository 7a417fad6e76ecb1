"""What is looked at before a run is asked for: credentials, that its bucket is there, which component image it has."""

from __future__ import annotations

from typing import Any

from pipelines.compile import specification
from pipelines.vertex.request import pipeline_job
from serving import image
from serving.clients import google, registry, storage
from serving.errors import AccessError, RequestError
from serving.scenarios import find
from serving.settings import Settings
from serving.values import checked_image


def checked_job(settings: Settings, given_image: str | None = None) -> dict[str, Any]:
    """What a run of the deployment is (request.py), all that it needs to begin being there. Raises RequestError or
    AccessError with the command that mends it."""
    google.check_credentials()
    check_buckets(settings)
    return job_with(settings, digest_of(settings, given_image))


def job_with(settings: Settings, components: str) -> dict[str, Any]:
    """What a run of the deployment is, with this component image."""
    compiled = specification(find(settings.scenario), components, settings.features)
    return pipeline_job(settings, compiled)


def check_buckets(settings: Settings) -> None:
    """Raises RequestError for a bucket that does not exist (Vertex AI's own client would make it), or that is neither
    where the cluster is nor where Vertex AI is."""
    regions = {settings.vertex_location, settings.region}
    for name in sorted({settings.bucket, settings.pipeline_root.split("/")[2]}):
        location = storage.region_of(name)
        if location and location not in regions:
            raise RequestError(
                f"gs://{name} is in {location}, and runs are in {' and '.join(sorted(regions))}: name a bucket that is "
                f"there: `gcloud storage buckets create gs://BUCKET --location={settings.vertex_location} "
                "--uniform-bucket-level-access`"
            )


def digest_of(settings: Settings, given: str | None = None) -> str:
    """The component image by its digest, so that every step of a run, and every run of a schedule, has the same one:
    the given one, else the settings', else the one that `bootstrap` built for this version."""
    wanted = checked_image(given) if given else image.wanted(settings)
    if "@" in wanted:
        return wanted
    try:
        return registry.resolve(wanted).name
    except AccessError:
        raise
    except RequestError as error:
        if given or settings.images.components:
            raise
        raise RequestError(
            f"{error}. `gemma-pipelines bootstrap -f FILE` builds the component image of this version and puts it "
            "there; or name one with `images.components` or --image"
        ) from error
