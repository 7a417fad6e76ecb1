"""PipelineJobs: what can be asked of them. What they do is in run.py."""

from __future__ import annotations

import importlib.util
from datetime import datetime
from typing import TYPE_CHECKING, Any

from emulated_cloud.google.aiplatform import checks, errors, resources
from emulated_cloud.google.aiplatform.run import Run
from emulated_cloud.google.errors import refusal

if TYPE_CHECKING:
    from emulated_cloud.google.aiplatform.service import AiPlatform

KIND = "PipelineJob"
MOST_IN_A_BATCH = 32


def create(service: AiPlatform, location: str, body: dict[str, Any], job_id: str) -> dict[str, Any]:
    """Accepts a job and begins to run it. Raises HttpError."""
    job = checks.job(service.config, service.iam, location, body)
    if not job_id:
        job_id = f"{_pipeline(job)[:80]}-{service.clock.now():%Y%m%d%H%M%S}-{resources.new_id()[-6:]}"
    elif not checks.JOB_ID.fullmatch(job_id):
        raise errors.invalid(("pipeline_job_id", f"Invalid id {job_id!r}: it must match {checks.JOB_ID.pattern}."))
    return begin(service, location, job, job_id)


def begin(
    service: AiPlatform,
    location: str,
    job: dict[str, Any],
    job_id: str,
    schedule: str = "",
    tick: datetime | None = None,
) -> dict[str, Any]:
    """Begins to run a job that was accepted, of a `schedule` for its `tick` or of nobody's. Raises HttpError."""
    if importlib.util.find_spec("kfp") is None:
        why = "This emulator runs pipelines with kfp, which is not installed. Run: pip install kfp==2.17.0"
        raise refusal("UNIMPLEMENTED", why)
    path = f"{location}/pipelineJobs/{job_id}"
    if service.store.get(path):
        raise errors.already_exists(KIND, service.name(path))
    fault = service.outcome("POST", f"{location}/pipelineJobs")
    if fault and "refused" in fault.outcome:
        service.faults.consume(fault)
        raise refusal("INVALID_ARGUMENT", fault.outcome["refused"]["message"])
    now = resources.timestamp(service.clock.now())
    run_id = resources.new_id()
    accepted = {
        **job,
        "name": service.name(path),
        "displayName": job.get("displayName") or job_id,
        "createTime": now,
        "updateTime": now,
        "state": "PIPELINE_STATE_QUEUED",
        "labels": {**(job.get("labels") or {}), resources.BILLING_LABEL: run_id},
        **({"scheduleName": schedule} if schedule else {}),
    }
    service.store.put(path, accepted)
    service.logs.job_event(accepted)
    service.runs[path] = Run(service, path, run_id, fault, tick)
    service.runs[path].start()
    return accepted


def job_id_of(schedule: str, job: dict[str, Any], tick: datetime) -> str:
    """The id of a schedule's job."""
    return f"{_pipeline(job)[:80]}-{tick:%Y%m%d%H%M%S}-{schedule.rpartition('/')[2]}"


def _pipeline(job: dict[str, Any]) -> str:
    name: str = job["pipelineSpec"]["pipelineInfo"]["name"]
    return name


def cancel(service: AiPlatform, path: str) -> dict[str, Any]:
    job = service.existing(KIND, path)
    if job["state"] in resources.TERMINAL:
        raise errors.wrong_state(KIND, job["name"], job["state"], "cancelled")
    service.runs[path].cancel(service.outcome("POST", path))
    return {}


def delete(service: AiPlatform, path: str) -> dict[str, Any]:
    _check_deletable(service.existing(KIND, path))
    service.store.remove(path)
    return service.operations.done(path)


def batch(service: AiPlatform, location: str, verb: str, body: dict[str, Any]) -> dict[str, Any]:
    """Cancels or deletes several at once, all or none."""
    names = body.get("names") or []
    if not 0 < len(names) <= MOST_IN_A_BATCH:
        raise errors.invalid(("names", f"There must be 1 to {MOST_IN_A_BATCH} names."))
    paths = [service.path(name, location, "pipelineJobs") for name in names]
    jobs = [service.existing(KIND, path) for path in paths]
    if verb == "batchDelete":
        for job in jobs:
            _check_deletable(job)
        for path in paths:
            service.store.remove(path)
        return service.operations.done(location, "BatchDeletePipelineJobsResponse", {"pipelineJobs": jobs})
    for path, job in zip(paths, jobs, strict=True):
        if job["state"] not in resources.TERMINAL:
            service.runs[path].cancel(service.outcome("POST", path))
    running = [service.runs[path] for path in paths if path in service.runs]
    return service.operations.when(
        lambda: not any(run.is_alive() for run in running),
        lambda: {"pipelineJobs": [service.existing(KIND, path) for path in paths]},
        location,
        "BatchCancelPipelineJobsResponse",
    )


def _check_deletable(job: dict[str, Any]) -> None:
    if job["state"] not in resources.TERMINAL:
        raise errors.wrong_state(KIND, job["name"], job["state"], "deleted")


def recover(service: AiPlatform) -> None:
    """What ran when the emulator ended has failed since, or was cancelled."""
    for path, job in service.store.of_kind("pipelineJobs"):
        if job["state"] in resources.TERMINAL:
            continue
        state, error = "FAILED", errors.INTERNAL_ERROR
        if job["state"] == "PIPELINE_STATE_CANCELLING":
            state, error = "CANCELLED", errors.cancelled("pipeline job")
        now = resources.timestamp(service.clock.now())
        for task in job.get("jobDetail", {}).get("taskDetails", []):
            if task["state"] in ("PENDING", "RUNNING", "CANCELLING"):
                task.update(state=state, error=error, endTime=now)
        job |= {"state": f"PIPELINE_STATE_{state}", "error": error, "endTime": now, "updateTime": now}
        service.store.put(path, job)
        service.logs.job_event(job)
