"""The PipelineJob that Vertex AI is asked to run: the one builder, for `submit` and for `schedule`. Pure."""

from __future__ import annotations

import datetime
import hashlib
import json
import secrets
from typing import Any

from serving import names
from serving.settings import Settings

FAIL_SLOW = "PIPELINE_FAILURE_POLICY_FAIL_SLOW"
"""What still can be done is done after a failure: the discard, and the report."""


def pipeline_job(settings: Settings, specification: dict[str, Any]) -> dict[str, Any]:
    """What a run of the deployment is, for a compiled pipeline (pipelines/compile.py).

    Without an id: `submit` gives it one, and a schedule must not. Without a word on caching: every task of ours says
    itself that it has none.
    """
    vertex = settings.vertex
    job: dict[str, Any] = {
        "displayName": names.shown_run(settings),
        "pipelineSpec": specification,
        "serviceAccount": settings.pipeline_service_account,
        "runtimeConfig": {
            "gcsOutputDirectory": settings.pipeline_root,
            "parameterValues": settings.as_parameters(),
            "failurePolicy": FAIL_SLOW,
        },
    }
    if vertex.network:
        job["network"] = vertex.network
    if vertex.kms_key:
        job["encryptionSpec"] = {"kmsKeyName": vertex.kms_key}
    if vertex.network_attachment:
        peerings = [
            {"domain": each.domain, "targetProject": each.project, "targetNetwork": each.network}
            for each in vertex.dns_peering
        ]
        job["pscInterfaceConfig"] = {
            "networkAttachment": vertex.network_attachment,
            **({"dnsPeeringConfigs": peerings} if peerings else {}),
        }
    return {**job, "labels": {**vertex.labels, **labels(settings), names.SPEC: digest(job)}}


def labels(settings: Settings) -> dict[str, str]:
    """By which the deployment's runs and its schedule are found again."""
    return {
        names.RUNS: settings.scenario,
        names.RUNS_OF: settings.name,
        names.RUNS_AT: names.place_label(settings),
    }


def digest(job: dict[str, Any]) -> str:
    """The first 16 digits of a sha256 over all that was asked for but labels."""
    text = json.dumps({key: value for key, value in job.items() if key != "labels"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def job_id(job: dict[str, Any], now: datetime.datetime) -> str:
    """An id for a run that nobody else has: `<pipeline>-<UTC>-<4 hex>`."""
    pipeline = job["pipelineSpec"]["pipelineInfo"]["name"]
    return f"{pipeline}-{now.astimezone(datetime.UTC):%Y%m%d%H%M%S}-{secrets.token_hex(2)}"
