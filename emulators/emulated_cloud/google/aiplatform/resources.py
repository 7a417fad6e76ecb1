"""The shapes of what Vertex AI shows: names, times, numbers of enums, masks."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

from emulated_cloud.google.aiplatform import errors

BILLING_LABEL = "vertex-ai-pipelines-run-billing-id"

_STATES = ("UNSPECIFIED", "QUEUED", "PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELLING", "CANCELLED", "PAUSED")
_TASK_STATES = (
    *("STATE_UNSPECIFIED", "PENDING", "RUNNING", "SUCCEEDED", "CANCEL_PENDING", "CANCELLING", "CANCELLED", "FAILED"),
    *("SKIPPED", "NOT_TRIGGERED"),
)
_EXECUTION_STATES = ("STATE_UNSPECIFIED", "NEW", "RUNNING", "COMPLETE", "FAILED", "CACHED", "CANCELLED")
POLICIES = tuple(f"PIPELINE_FAILURE_POLICY_{name}" for name in ("UNSPECIFIED", "FAIL_SLOW", "FAIL_FAST"))

TERMINAL = {"PIPELINE_STATE_SUCCEEDED", "PIPELINE_STATE_FAILED", "PIPELINE_STATE_CANCELLED"}

_TASK = "jobDetail.taskDetails."
_JOB_ENUMS: dict[str, tuple[str, ...]] = {
    "state": tuple(f"PIPELINE_STATE_{name}" for name in _STATES),
    "runtimeConfig.failurePolicy": POLICIES,
    f"{_TASK}state": _TASK_STATES,
    f"{_TASK}pipelineTaskStatus.state": _TASK_STATES,
    f"{_TASK}execution.state": _EXECUTION_STATES,
}
_SCHEDULE_ENUMS = {
    "state": ("STATE_UNSPECIFIED", "ACTIVE", "PAUSED", "COMPLETED"),
    "createPipelineJobRequest.pipelineJob.runtimeConfig.failurePolicy": POLICIES,
}


def numbered(resource: dict[str, Any]) -> dict[str, Any]:
    """A resource, a list or an operation as clients get it that want enums as numbers."""
    kind = _SCHEDULE_ENUMS if "/schedules/" in resource.get("name", "") or "schedules" in resource else _JOB_ENUMS
    return _numbered(resource, "", kind)


def _numbered(value: Any, path: str, enums: dict[str, tuple[str, ...]]) -> Any:
    if isinstance(value, list):
        return [_numbered(each, path, enums) for each in value]
    if isinstance(value, dict):
        if path and not any(name.startswith(path) for name in enums):
            return value
        inside = {"pipelineJobs", "schedules"}
        return {
            key: _numbered(each, path if key in inside else f"{path}.{key}".lstrip("."), enums)
            for key, each in value.items()
        }
    return enums[path].index(value) if path in enums else value


def timestamp(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def time_of(text: Any, field: str) -> datetime:
    """Raises HttpError 400 for what is no time with an offset."""
    try:
        # Nanoseconds are more than a datetime holds.
        time = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", text))
        if time.tzinfo is None:
            raise ValueError
    except (ValueError, TypeError):
        raise errors.invalid((field, f"Illegal timestamp format: {text!r}")) from None
    return time


def new_id() -> str:
    return str(random.getrandbits(60) + (1 << 60))


def camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def snake(name: str) -> str:
    return re.sub(r"[A-Z]", lambda found: f"_{found[0].lower()}", name)


def fields(body: dict[str, Any], known: Collection[str], where: str = "") -> dict[str, Any]:
    """A message's fields as the service reads them: by either form of their names, null for not set.

    Raises HttpError for a name that is none."""
    found = {}
    for name, value in body.items():
        if camel(name) not in known:
            raise errors.unknown_field(name, where)
        if value is not None:
            found[camel(name)] = value
    return found


def stored(value: Any) -> Any:
    """A value of a struct as the service keeps it: numbers are doubles, which it shows without a fraction that is 0."""
    if isinstance(value, dict):
        return {key: stored(each) for key, each in value.items()}
    if isinstance(value, list):
        return [stored(each) for each in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value) if float(value).is_integer() else float(value)
    return value


def searched(resource: dict[str, Any]) -> dict[str, Any]:
    """A resource as filters name its fields, and what only they know."""
    found = {snake(name): value for name, value in resource.items()}
    if "pipelineSpec" in resource:
        found["pipeline_name"] = resource["pipelineSpec"]["pipelineInfo"]["name"]
        found["pipeline_job_user_id"] = resource["name"].rpartition("/")[2]
    return found


def masked(resource: dict[str, Any], mask: str) -> dict[str, Any]:
    """What a read mask lets through of what is set; all with an empty one."""
    wanted = {camel(name.strip()).partition(".")[0] for name in mask.split(",") if name.strip()}
    everything = not wanted or "*" in wanted
    return {name: value for name, value in resource.items() if value is not None and (everything or name in wanted)}
