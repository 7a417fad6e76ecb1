"""What Vertex AI answers when it refuses, and what it says of a run that failed, in its words."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from emulated_cloud.google.errors import refusal
from emulated_cloud.http import HttpError

CANCELLED, INVALID_ARGUMENT, FAILED_PRECONDITION, INTERNAL = 1, 3, 9, 13
"""google.rpc.Code, as in the `error` of a job."""

INTERNAL_ERROR = {"code": INTERNAL, "message": "Internal error occurred. Please retry in a few minutes."}
"""Of a job that the service lost."""


def invalid(*violations: tuple[str, str]) -> HttpError:
    """A request with fields that cannot be: field and what is wrong with it, of each."""
    found = [f"{number}.Field: {field}; Message: {why}" for number, (field, why) in enumerate(violations, 1)]
    details = [
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [{"field": field, "description": why} for field, why in violations],
        }
    ]
    return refusal("INVALID_ARGUMENT", "List of found errors:\t" + "\t".join(found) + "\t", details)


def unknown_field(name: str, where: str) -> HttpError:
    at = f" at '{where}'" if where else ""
    why = f'Invalid JSON payload received. Unknown name "{name}"{at}: Cannot find field.'
    details = [
        {
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "fieldViolations": [{"field": where, "description": why}],
        }
    ]
    return refusal("INVALID_ARGUMENT", why, details)


def not_found(kind: str, name: str) -> HttpError:
    return refusal("NOT_FOUND", f"The {kind} does not exist. Resource name: {name}")


def already_exists(kind: str, name: str) -> HttpError:
    return refusal("ALREADY_EXISTS", f"The {kind} already exists. Resource name: {name}")


def wrong_state(kind: str, name: str, state: str, what: str) -> HttpError:
    return refusal("FAILED_PRECONDITION", f"The {kind} {name} is in state {state} and cannot be {what}.")


def may_not_act_as(account: str) -> HttpError:
    who = f"service_account: {account}. (or the resource may not exist)."
    return refusal("INVALID_ARGUMENT", f"You do not have permission to act as {who}")


# -- runs -----------------------------------------------------------------------------------------------------------


def dag_failed(tasks: list[str]) -> dict[str, Any]:
    words = f"The DAG failed because some tasks failed. The failed tasks are: [{', '.join(tasks)}]."
    return {"code": FAILED_PRECONDITION, "message": words}


def job_failed(project: str, run: str, tasks: list[str]) -> dict[str, Any]:
    """What a job says of itself: never why."""
    why = dag_failed(tasks)["message"]
    about = f"Job (project_id = {project}, job_id = {run}) is failed due to the above error."
    return {"code": FAILED_PRECONDITION, "message": f"{why}; {about}"}


def task_failed(project: str, custom_job: str, code: int) -> dict[str, Any]:
    """What a task says whose process ended with an exit code."""
    asked = f'resource.type="ml_job"\nresource.labels.job_id="{custom_job}"'
    query = f"project={project}&resource=ml_job%2Fjob_id%2F{custom_job}&advancedFilter={quote(asked, safe='')}"
    message = (
        f"The replica workerpool0-0 exited with a non-zero status of {code}. Termination reason: Error. "
        "To find out more about why your job exited please check the logs: "
        f"https://console.cloud.google.com/logs/viewer?{query}"
    )
    return {"code": FAILED_PRECONDITION, "message": message}


def cancelled(what: str) -> dict[str, Any]:
    return {"code": CANCELLED, "message": f"The {what} was cancelled by the user."}
