"""Cloud Build: an image of a source that lies in a bucket.

https://cloud.google.com/build/docs/api/reference/rest
"""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from serving.clients import google, logging
from serving.clients.patience import Interrupted, Patience
from serving.errors import PipelineError

ENDED = ("SUCCESS", "FAILURE", "INTERNAL_ERROR", "TIMEOUT", "CANCELLED", "EXPIRED")

Build = dict[str, Any]
"""A build as the API shows it: `id`, `status`, `steps`, `results`, `failureInfo`, `logUrl`."""


class CloudBuild:
    """The builds of a project in a region."""

    def __init__(self, project: str, region: str):
        self._project, self._builds = project, f"v1/projects/{project}/locations/{region}/builds"

    def begin(self, build: Build, tag: str) -> Build:
        """Begins a build, which has `tag` among its tags; one of that tag that is under way is it already, whoever
        began it.

        So a lost answer begins no second one. Raises AccessError, RequestError, InconclusiveError.
        """
        what = "building the image"

        def attempt() -> Build:
            return self.under_way(tag) or self._created(build)

        with google.refusals(what):
            found: Build = Patience().until_it_works(f"{what}: Cloud Build", attempt)
        return found

    def under_way(self, tag: str) -> Build | None:
        """A build of that tag that has not ended."""
        condition = quote(f'tags="{tag}" AND (status="QUEUED" OR status="WORKING" OR status="PENDING")', safe="")
        with google.refusals("the builds that are under way"):
            page = google.call("cloudbuild", "GET", f"{self._builds}?filter={condition}&pageSize=1")
        return next(iter(page.get("builds", [])), None)

    def get(self, build_id: str) -> Build:
        with google.refusals(f"build {build_id}"):
            return google.call("cloudbuild", "GET", f"{self._builds}/{build_id}")

    def cancel(self, build_id: str) -> None:
        """Ends a build that is under way."""
        from google.api_core.exceptions import ClientError

        try:
            google.call("cloudbuild", "POST", f"{self._builds}/{build_id}:cancel", {})
        except ClientError:
            return  # It has ended.

    def said(self, build_id: str) -> list[str]:
        """What the build has printed so far, as far as Cloud Logging has it and we may read it."""
        condition = (
            f'logName="projects/{self._project}/logs/cloudbuild" AND resource.type="build" AND '
            f'resource.labels.build_id="{build_id}"'
        )
        try:
            found = logging.entries(self._project, condition)
        except PipelineError:
            return []
        return [str(entry.get("textPayload", "")) for entry in reversed(found)]

    def _created(self, build: Build) -> Build:
        """Asks once: `attempt` looks first whether an answer that was lost has begun it."""
        operation = google.call("cloudbuild", "POST", self._builds, build, again=False)
        try:
            return dict(operation["metadata"]["build"])
        except KeyError as error:
            raise Interrupted("an answer without a build") from error
