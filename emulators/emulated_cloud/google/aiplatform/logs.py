"""What the service writes to Cloud Logging: what tasks print, and the events of runs (google/logging.py reads it)."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

from emulated_cloud.google.aiplatform.clock import Clock
from emulated_cloud.google.aiplatform.resources import BILLING_LABEL, timestamp
from emulated_cloud.google.config import Config

_SEVERITIES = {"DEBUG", "INFO", "NOTICE", "WARNING", "ERROR", "CRITICAL", "ALERT", "EMERGENCY"}
_EVENTS = "aiplatform.googleapis.com"


class Logs:
    def __init__(self, config: Config, clock: Clock):
        self._config, self._clock = config, clock
        self._file = Path(config.logs) if config.logs else None
        self._lock = threading.Lock()

    def line(self, custom_job: str, line: str, severity: str) -> None:
        """A line that a task printed. One that is a JSON object is an entry with these fields."""
        payload: Any = None
        if line.startswith("{"):
            try:
                payload = json.loads(line)
            except ValueError:
                pass
        if not isinstance(payload, dict):
            payload = {"message": line}
        if payload.get("severity") in _SEVERITIES:
            severity = payload.pop("severity")
        labels = {"job_id": custom_job, "project_id": self._config.project_id, "task_name": "workerpool0-0"}
        self._write(
            "workerpool0-0",
            {"type": "ml_job", "labels": labels},
            severity,
            payload,
            {"ml.googleapis.com/job_id/log_area": "root", "ml.googleapis.com/trial_id": ""},
        )

    def job_event(self, job: dict[str, Any]) -> None:
        """That a job has another state."""
        payload = {"state": job["state"], **({"error": job["error"]} if "error" in job else {})}
        self._event("pipeline_job_events", "PipelineJobLogEntry", job, payload, {})

    def task_event(self, job: dict[str, Any], task: dict[str, Any], custom_job: str) -> None:
        """That a task has another state."""
        payload = {"taskName": task["taskName"], "taskId": task["taskId"], "state": task["state"]}
        payload |= {"error": task["error"]} if "error" in task else {}
        labels = {"custom_job_id": custom_job} if custom_job else {}
        self._event("pipeline_job_task_events", "PipelineJobTaskLogEntry", job, payload, labels)

    def _event(self, log: str, kind: str, job: dict[str, Any], payload: dict[str, Any], labels: dict[str, str]) -> None:
        _, _, _, location, _, job_id = job["name"].split("/")
        resource = {
            "type": f"{_EVENTS}/PipelineJob",
            "labels": {
                "pipeline_job_id": job_id,
                "location": location,
                "resource_container": f"projects/{self._config.project_number}",
            },
        }
        labels |= {
            "pipeline_name": job["pipelineSpec"]["pipelineInfo"]["name"],
            "service_account": job.get("serviceAccount", ""),
            BILLING_LABEL: job["labels"][BILLING_LABEL],
        }
        if "scheduleName" in job:
            labels["schedule_name"] = job["scheduleName"]
        failed = payload["state"].endswith("FAILED")
        kind = f"type.googleapis.com/google.cloud.aiplatform.logging.{kind}"
        payload = {"@type": kind, "pipelineName": labels["pipeline_name"], **payload}
        self._write(f"{_EVENTS}%2F{log}", resource, "ERROR" if failed else "INFO", payload, labels)

    def _write(
        self, log: str, resource: dict[str, Any], severity: str, payload: dict[str, Any], labels: dict[str, str]
    ) -> None:
        if not self._file:
            return
        entry = {
            "logName": f"projects/{self._config.project_id}/logs/{log}",
            "resource": resource,
            "timestamp": timestamp(self._clock.now()),
            "severity": severity,
            "labels": labels,
            "jsonPayload": payload,
        }
        with self._lock, open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
