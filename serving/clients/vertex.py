"""Vertex AI Pipelines through Google's own clients: runs (PipelineJobs) and schedules, as JSON in and out.

https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.pipelineJobs and …schedules. Only the
command line needs it: the library is the extra `vertex`, which the component image does not carry.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving import names
from serving.clients import google
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

ROLE = "roles/aiplatform.user"
ACT_AS_ROLE = "roles/iam.serviceAccountUser"
_CALL_SECONDS = 60.0
_PAGE = 100

Body = dict[str, Any]
"""A PipelineJob or a Schedule in Vertex AI's own JSON: enums by their names, numbers of 64 bits as texts."""

ENDED = ("PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED")


class Vertex:
    """Vertex AI Pipelines of a project in a region.

    Everything waits while the API is away or busy, and raises RequestError for what is not there or cannot be,
    AccessError for a role that is missing, InconclusiveError when nobody answers.
    """

    def __init__(self, project: str, location: str):
        self.project, self.location = project, location
        self._library = _library()

    @property
    def parent(self) -> str:
        return f"projects/{self.project}/locations/{self.location}"

    @property
    def _host(self) -> str:
        return f"{self.location}-aiplatform.googleapis.com"

    @functools.cached_property
    def _jobs(self) -> Any:
        return google.client_of(self._library.PipelineServiceClient, self._host)

    @functools.cached_property
    def _schedules(self) -> Any:
        return google.client_of(self._library.ScheduleServiceClient, self._host)

    # -- runs -----------------------------------------------------------------------------------------------------

    def create_job(self, job: Body, job_id: str) -> Body:
        """Begins a run with an id that nobody else has. An answer that was lost is not a second run: the one that is
        there under the id is ours when it was asked for the same."""
        from google.api_core import exceptions

        name = f"{self.parent}/pipelineJobs/{job_id}"
        wanted = self._library.PipelineJob.from_json(json.dumps(job))

        def ask() -> Any:
            request = {"parent": self.parent, "pipeline_job": wanted, "pipeline_job_id": job_id}
            try:
                return self._jobs.create_pipeline_job(request, retry=None, timeout=_CALL_SECONDS)
            except exceptions.Conflict:
                there = self._jobs.get_pipeline_job(name=name, retry=None, timeout=_CALL_SECONDS)
                if all(there.labels.get(key) == job["labels"][key] for key in (names.SPEC, names.RUNS_AT)):
                    return there
                raise

        try:
            return self._asked(f"run {job_id}", ask, account=job.get("serviceAccount", ""))
        except InconclusiveError as error:
            raise InconclusiveError(f"{error}. It may have begun all the same: see {self.console(job_id)}") from error

    def job(self, name: str) -> Body:
        """A run, by its id or its whole name, with the details of its tasks."""
        return self._asked(
            f"run {name.rpartition('/')[2]}",
            lambda: self._jobs.get_pipeline_job(name=self._job_name(name), retry=None, timeout=_CALL_SECONDS),
        )

    def jobs(self, condition: str = "", most: int = 5) -> list[Body]:
        """The newest runs that a condition holds for (AIP-160: `labels.gemma-place="…"`), without their tasks."""
        request = {
            "parent": self.parent,
            "filter": condition,
            "order_by": "create_time desc",
            "page_size": min(most, _PAGE),
        }
        return self._listed("runs", self._jobs.list_pipeline_jobs, request, most)

    def cancel(self, name: str) -> None:
        """Tells a run to end. It is CANCELLING until its tasks have."""
        request = {"name": self._job_name(name)}
        self._asked(
            f"run {name.rpartition('/')[2]}",
            lambda: self._jobs.cancel_pipeline_job(request, retry=None, timeout=_CALL_SECONDS),
        )

    def _job_name(self, name: str) -> str:
        return name if "/" in name else f"{self.parent}/pipelineJobs/{name}"

    def console(self, name: str) -> str:
        """Where a browser shows a run."""
        job_id = name.rpartition("/")[2]
        return (
            f"https://console.cloud.google.com/vertex-ai/locations/{self.location}/pipelines/runs/{job_id}"
            f"?project={self.project}"
        )

    def command(self, method: str, name: str) -> str:
        """What a person types for what `gcloud` has no command for, such as `…:cancel`."""
        host = os.environ.get(google.API_ENDPOINT) or f"https://{self._host}"
        sent = " -H 'Content-Type: application/json' -d '{}'" if method == "POST" else ""
        who = '-H "Authorization: Bearer $(gcloud auth print-access-token)"'
        return f"curl -X {method} {who}{sent} {host}/v1/{name}"

    # -- schedules ------------------------------------------------------------------------------------------------

    def schedules(self, display_name: str) -> list[Body]:
        """The schedules that are called so: several may be."""
        request = {"parent": self.parent, "filter": f'display_name="{display_name}"', "page_size": _PAGE}
        return self._listed("schedules", self._schedules.list_schedules, request)

    def create_schedule(self, schedule: Body) -> Body:
        """Makes a schedule. The service gives it its id, so what was asked once is looked for before it is asked
        again."""
        from google.api_core import exceptions

        wanted = self._library.Schedule.from_json(json.dumps(schedule))
        asked_before = False

        def ask() -> Any:
            nonlocal asked_before
            if asked_before and (there := self._same(schedule)):
                return there
            asked_before = True
            return self._schedules.create_schedule(
                parent=self.parent, schedule=wanted, retry=None, timeout=_CALL_SECONDS
            )

        account = schedule["createPipelineJobRequest"]["pipelineJob"].get("serviceAccount", "")
        try:
            return self._asked("the schedule", ask, account=account)
        except exceptions.Conflict as error:
            raise RequestError(f"the schedule: {google.said(error)}") from error

    def _same(self, schedule: Body) -> Any:
        """The one that is there and was asked for the same, as the library has it."""
        its_labels = schedule["createPipelineJobRequest"]["pipelineJob"]["labels"]
        request = {"parent": self.parent, "filter": f'display_name="{schedule["displayName"]}"'}
        for there in self._schedules.list_schedules(request, retry=None, timeout=_CALL_SECONDS):
            labels = there.create_pipeline_job_request.pipeline_job.labels
            if all(labels.get(key) == its_labels[key] for key in (names.SPEC, names.RUNS_AT)):
                return there
        return None

    def update_schedule(self, name: str, changes: Body) -> Body:
        """Changes fields of a schedule in place; the others stay."""
        wanted = self._library.Schedule.from_json(json.dumps({"name": name, **changes}))
        request = {"schedule": wanted, "update_mask": {"paths": [_snake(field) for field in changes]}}
        account = changes.get("createPipelineJobRequest", {}).get("pipelineJob", {}).get("serviceAccount", "")
        return self._asked(
            f"schedule {name}",
            lambda: self._schedules.update_schedule(request, retry=None, timeout=_CALL_SECONDS),
            account=account,
        )

    def pause_schedule(self, name: str) -> None:
        """No run begins any more; one that runs goes on."""
        self._asked(
            f"schedule {name}",
            lambda: self._schedules.pause_schedule(name=name, retry=None, timeout=_CALL_SECONDS),
        )

    def resume_schedule(self, name: str) -> None:
        """Runs begin again, those of the pause left out: a month of them would start at once."""
        self._asked(
            f"schedule {name}",
            lambda: self._schedules.resume_schedule(name=name, catch_up=False, retry=None, timeout=_CALL_SECONDS),
        )

    def delete_schedule(self, name: str) -> None:
        """Its runs stay. Deleted before is deleted."""
        from google.api_core import exceptions

        def ask() -> None:
            try:
                operation = self._schedules.delete_schedule(name=name, retry=None, timeout=_CALL_SECONDS)
                operation.result(timeout=_CALL_SECONDS, retry=None)
            except exceptions.NotFound:
                pass

        self._asked(f"schedule {name}", ask)

    # -- asking ---------------------------------------------------------------------------------------------------

    def _listed(self, what: str, method: Callable[..., Any], request: Body, most: int | None = None) -> list[Body]:
        def ask() -> list[Any]:
            pages = method(request, retry=None, timeout=_CALL_SECONDS)
            return list(itertools.islice(pages, most))

        with self._errors(f"the {what} of {self.project} in {self.location}"):
            found = google.asked(f"Vertex AI in {self.location}", ask)
        return [_as_json(each) for each in found]

    def _asked(self, what: str, ask: Callable[[], Any], account: str = "") -> Body:
        with self._errors(what, account):
            found = google.asked(f"{what}: Vertex AI in {self.location}", ask)
        return _as_json(found) if found is not None else {}

    @contextmanager
    def _errors(self, what: str, account: str = "") -> Iterator[None]:
        """Says in our words what Vertex AI refuses. account: the service account that a run is to have."""
        from google.api_core import exceptions

        try:
            yield
        except exceptions.ClientError as error:
            raise self._refused(what, error, account) from error

    def _refused(self, what: str, error: Any, account: str) -> PipelineError:
        from google.api_core import exceptions

        said = google.said(error)
        if account and "act as" in said:
            return AccessError(
                f"you may not let runs have the account {account}, or there is none: {said}. Grant yourself "
                f"{ACT_AS_ROLE} on it: `gcloud iam service-accounts add-iam-policy-binding {account} "
                f"--project={self.project} --member=user:YOU --role={ACT_AS_ROLE}`; `gemma-pipelines bootstrap -f "
                "FILE` makes the account"
            )
        if isinstance(error, (exceptions.Forbidden, exceptions.Unauthorized)):
            permission = (error.metadata or {}).get("permission")
            return AccessError(
                f"{what}: {said}. Grant yourself {ROLE}{f' (it has {permission})' if permission else ''}: `gcloud "
                f"projects add-iam-policy-binding {self.project} --member=user:YOU --role={ROLE}`"
            )
        if isinstance(error, exceptions.NotFound):
            return RequestError(
                f"{what} does not exist in {self.location}, or Vertex AI is not there: {said[:300]}. See "
                f"`vertex.location` in the settings"
            )
        if "location" in said.lower() and self.location in said:
            return RequestError(
                f"{what}: Vertex AI in {self.location} refused it: {said}. Set `vertex.location` (empty is the "
                f"cluster's region) to one of `gcloud compute regions list --project={self.project}`: Vertex AI is in "
                "most of them"
            )
        return RequestError(f"{what}: Vertex AI in {self.location} refused it: {said}")


def _library() -> Any:
    """Google's client for Vertex AI, which takes a second to import. Raises RequestError when it is not installed."""
    try:
        from google.cloud import aiplatform_v1
    except ImportError as error:
        raise RequestError(
            "this needs Google's client for Vertex AI: `pip install 'gemma-gke-pipelines[vertex]'`"
        ) from error
    return aiplatform_v1


def _as_json(message: Any) -> Body:
    text = type(message).to_json(message, use_integers_for_enums=False, always_print_fields_with_no_presence=False)
    found: Body = json.loads(text)
    return found


def _snake(field: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in field)
