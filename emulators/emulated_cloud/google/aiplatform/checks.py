"""What the service looks at before it accepts a PipelineJob or a Schedule."""

from __future__ import annotations

import re
from typing import Any

from emulated_cloud.google.aiplatform import cron, errors, resources
from emulated_cloud.google.config import Config
from emulated_cloud.google.iam import Iam

JOB_ID = re.compile(r"[a-z][-a-z0-9]{0,126}")
_LABEL = re.compile(r"[^\W\dA-Z_][^\WA-Z]*(-[^\WA-Z]*)*"), re.compile(r"([^\WA-Z]|-)*")
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.gserviceaccount\.com")

JOB_FIELDS = {
    *("name", "displayName", "createTime", "startTime", "endTime", "updateTime", "pipelineSpec", "state", "jobDetail"),
    *("error", "labels", "runtimeConfig", "encryptionSpec", "serviceAccount", "network", "reservedIpRanges"),
    *("pscInterfaceConfig", "templateUri", "templateMetadata", "scheduleName", "preflightValidations"),
}
_GIVEN_BY_THE_SERVICE = {
    *("name", "createTime", "startTime", "endTime", "updateTime", "state", "jobDetail", "error", "templateMetadata"),
    "scheduleName",
}
_RUNTIME_FIELDS = {"gcsOutputDirectory", "parameterValues", "parameters", "failurePolicy", "inputArtifacts"}

SCHEDULE_FIELDS = {
    *("name", "displayName", "startTime", "endTime", "maxRunCount", "startedRunCount", "state", "createTime"),
    *("updateTime", "nextRunTime", "lastPauseTime", "lastResumeTime", "maxConcurrentRunCount", "allowQueueing"),
    *("maxConcurrentActiveRunCount", "catchUp", "lastScheduledRunResponse", "cron", "createPipelineJobRequest"),
    "createNotebookExecutionJobRequest",
}
GIVEN_FIELDS = {
    *("displayName", "startTime", "endTime", "maxRunCount", "maxConcurrentRunCount", "maxConcurrentActiveRunCount"),
    *("allowQueueing", "cron", "createPipelineJobRequest"),
}
"""Of a Schedule, those that its owner says."""
_TYPES: dict[str, Any] = {
    "STRING": str,
    "NUMBER_INTEGER": int,
    "NUMBER_DOUBLE": (int, float),
    "BOOLEAN": bool,
    "LIST": list,
    "STRUCT": dict,
}


def job(config: Config, iam: Iam, location: str, body: dict[str, Any], where: str = "pipeline_job") -> dict[str, Any]:
    """A PipelineJob as it was asked for, as the service keeps it. Raises HttpError."""
    given = resources.fields(body, JOB_FIELDS, "" if where == "pipeline_job" else where)
    given = {name: value for name, value in given.items() if name not in _GIVEN_BY_THE_SERVICE}
    runtime = resources.fields(given.get("runtimeConfig") or {}, _RUNTIME_FIELDS, f"{where}.runtime_config")
    policy = runtime.get("failurePolicy", 0)
    if isinstance(policy, int) and policy < len(resources.POLICIES):
        runtime["failurePolicy"] = resources.POLICIES[policy]
    if runtime.get("failurePolicy") == resources.POLICIES[0]:
        del runtime["failurePolicy"]
    if violations := [*_violations(location, given, runtime)]:
        raise errors.invalid(*((f"{where}.{field}", why) for field, why in violations))
    specification = resources.stored(given["pipelineSpec"])
    runtime["parameterValues"] = resources.stored(runtime.get("parameterValues") or {})
    _check_parameters(specification, runtime["parameterValues"])
    _check_account(config, iam, given.get("serviceAccount", ""))
    return {**given, "pipelineSpec": specification, "runtimeConfig": runtime}


def _violations(location: str, given: dict[str, Any], runtime: dict[str, Any]) -> Any:
    if len(given.get("displayName", "")) > 128:
        yield "display_name", "The display name must be at most 128 characters long."
    specification = given.get("pipelineSpec") or {}
    if "templateUri" in given and not specification:
        yield "template_uri", "There is no template registry here: send the pipeline_spec."
    elif not specification.get("root", {}).get("dag", {}).get("tasks"):
        yield "pipeline_spec", "Required field is not set."
    elif not specification.get("pipelineInfo", {}).get("name"):
        yield "pipeline_spec.pipeline_info.name", "Required field is not set."
    elif not str(specification.get("schemaVersion", "")).startswith("2.1"):
        yield "pipeline_spec.schema_version", f"Unsupported version {specification.get('schemaVersion', '')!r}."
    root = runtime.get("gcsOutputDirectory", "")
    if not root:
        yield "runtime_config.gcs_output_directory", "Required field is not set."
    elif not re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+(/.*)?", root):
        yield "runtime_config.gcs_output_directory", f"Invalid Cloud Storage path: {root!r}."
    if runtime.get("failurePolicy") not in (None, *resources.POLICIES):
        yield "runtime_config.failure_policy", f"Invalid value: {runtime['failurePolicy']!r}."
    yield from _label_violations(given.get("labels") or {})
    key = (given.get("encryptionSpec") or {}).get("kmsKeyName", "")
    if key and not re.fullmatch(rf"projects/[^/]+/locations/{location}/keyRings/[^/]+/cryptoKeys/[^/]+", key):
        yield "encryption_spec.kms_key_name", f"Not a key of {location}: {key!r}."
    network = given.get("pscInterfaceConfig") or {}
    attachment = network.get("networkAttachment", "")
    wanted = rf"projects/[^/]+/regions/{location}/networkAttachments/[^/]+"
    if "/" in attachment and not re.fullmatch(wanted, attachment):
        yield "psc_interface_config.network_attachment", f"Not an attachment of {location}: {attachment!r}."
    for peering in network.get("dnsPeeringConfigs") or []:
        if not peering.get("domain", "").endswith("."):
            yield "psc_interface_config.dns_peering_configs.domain", "The domain must end with a dot."


def _label_violations(labels: dict[str, str]) -> Any:
    if len(labels) > 64:
        yield "labels", "There can be no more than 64 labels."
    for key, value in labels.items():
        if not _LABEL[0].fullmatch(key) or len(key) > 63:
            yield "labels", f"Invalid label key: {key!r}. Keys: lower case letters, digits, _ and -, at most 63."
        if not _LABEL[1].fullmatch(value) or len(value) > 63:
            yield "labels", f"Invalid label value: {value!r}. Values: lower case letters, digits, _ and -, at most 63."


def _check_parameters(specification: dict[str, Any], values: dict[str, Any]) -> None:
    known = specification["root"].get("inputDefinitions", {}).get("parameters", {})
    if unknown := sorted(values.keys() - known.keys()):
        why = f"parameter(s) provided are not required by pipeline: {', '.join(unknown)}"
        raise errors.invalid(("pipeline_job.runtime_config.parameter_values", why))
    for name, definition in known.items():
        if name not in values:
            if "defaultValue" not in definition and not definition.get("isOptional"):
                why = f"parameter {name} is not optional, yet has neither default value nor user provided value"
                raise errors.invalid(("pipeline_job.runtime_config.parameter_values", why))
            continue
        value, kind = values[name], definition.get("parameterType", "")
        # A bool is an int to Python.
        is_one = isinstance(value, bool) == (kind == "BOOLEAN") and isinstance(value, _TYPES.get(kind, object))
        if value is not None and not is_one:
            why = f"parameter {name} is a {kind}, and {value!r} is none"
            raise errors.invalid(("pipeline_job.runtime_config.parameter_values", why))


def _check_account(config: Config, iam: Iam, account: str) -> None:
    account = account or f"{config.project_number}-compute@developer.gserviceaccount.com"
    denied = config.is_denied(f"projects/{config.project_id}/serviceAccounts/{account}")
    default = account.endswith("@developer.gserviceaccount.com")
    if denied or default or not _ACCOUNT.fullmatch(account) or not iam.has_account(account):
        raise errors.may_not_act_as(account)


def schedule(config: Config, iam: Iam, location: str, given: dict[str, Any]) -> dict[str, Any]:
    """What the owner of a Schedule says, as the service keeps it: all of it, or what a PATCH changes. Raises
    HttpError."""
    found = {name: value for name, value in given.items() if name in GIVEN_FIELDS}
    violations = []
    if "createNotebookExecutionJobRequest" in given:
        violations.append(("schedule.request", "Only create_pipeline_job_request is supported."))
    if len(found.get("displayName", "")) > 128:
        violations.append(("schedule.display_name", "The display name must be at most 128 characters long."))
    if "cron" in found:
        try:
            cron.parse(found["cron"])
        except cron.BadCron as error:
            violations.append(("schedule.cron", f"Invalid cron expression {found['cron']!r}: {error}."))
    for name in ("maxRunCount", "maxConcurrentRunCount", "maxConcurrentActiveRunCount"):
        if name in found:
            if not str(found[name]).isdecimal() or not int(found[name]):
                violations.append((f"schedule.{resources.snake(name)}", "Must be a positive number."))
            found[name] = str(found[name])
    for name in ("startTime", "endTime"):
        if name in found:
            field = f"schedule.{resources.snake(name)}"
            found[name] = resources.timestamp(resources.time_of(found[name], field))
    if violations:
        raise errors.invalid(*violations)
    if "createPipelineJobRequest" in found:
        found["createPipelineJobRequest"] = _request(config, iam, location, found["createPipelineJobRequest"])
    return found


def _request(config: Config, iam: Iam, location: str, body: dict[str, Any]) -> dict[str, Any]:
    where = "schedule.create_pipeline_job_request"
    request = resources.fields(body, {"parent", "pipelineJob", "pipelineJobId"}, where)
    if request.get("pipelineJobId"):
        raise errors.invalid((f"{where}.pipeline_job_id", "The scheduler API doesn't support this parameter."))
    parents = {f"projects/{name}/locations/{location}" for name in (config.project_id, config.project_number)}
    if request.get("parent") not in parents:
        raise errors.invalid((f"{where}.parent", f"Not this schedule's location: {request.get('parent', '')!r}."))
    found = job(config, iam, location, request.get("pipelineJob") or {}, f"{where}.pipeline_job")
    return {"parent": request["parent"], "pipelineJob": found}
