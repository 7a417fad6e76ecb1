"""A job that runs: its states, the details of its tasks, as the process that runs it (runner.py) tells of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import traceback
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emulated_cloud.faults import Fault
from emulated_cloud.google.aiplatform import errors, resources
from emulated_cloud.process import machine_environment

if TYPE_CHECKING:
    from emulated_cloud.google.aiplatform.service import AiPlatform

_STOP_SECONDS = 5.0
_EXECUTIONS = {"SUCCEEDED": "COMPLETE", "FAILED": "FAILED", "CANCELLED": "CANCELLED"}


class Run(threading.Thread):
    """The job at `path`, for the `tick` of a schedule or for nobody's; `run_id` is the number that bills have."""

    def __init__(self, service: AiPlatform, path: str, run_id: str, fault: Fault | None, tick: datetime | None):
        super().__init__(daemon=True)
        self._service, self._path, self._run_id, self._tick = service, path, run_id, tick
        self._fault = fault
        self._outcome: dict[str, Any] = fault.outcome if fault else {}
        self._folder = Path(tempfile.mkdtemp(prefix=f"{path.rpartition('/')[2][:60]}-"))
        self._runner: subprocess.Popen[str] | None = None
        self._go = threading.Event()
        """Set when nothing is to be waited for any more."""
        self._told_to_cancel = self._stopped = False
        self._end: dict[str, Any] | None = None

    def run(self) -> None:
        try:
            self._run()
        except Exception:  # noqa: BLE001 (nobody waits for this thread: who looks at the job must learn of it)
            if not self._stopped:
                traceback.print_exc(file=sys.stderr)
            self._finish("FAILED", errors.INTERNAL_ERROR)
        finally:
            with self._service.lock:
                self._service.runs.pop(self._path, None)
                if not self._stopped:
                    self._service.ticking.look()
            shutil.rmtree(self._folder, ignore_errors=True)

    def cancel(self, fault: Fault | None) -> None:
        """Begins to cancel it. The service's lock is held."""
        if self._job["state"] == "PIPELINE_STATE_CANCELLING":
            return
        self._change(state="PIPELINE_STATE_CANCELLING")
        threading.Thread(target=self._cancel, args=(fault,), daemon=True).start()

    def stop(self) -> None:
        """Ends it, with all that it runs, and leaves the job as it is."""
        with self._service.lock:
            self._stopped = True
            self._go.set()
            runner = self._runner
        if runner and runner.stdin:
            runner.stdin.close()
            try:
                runner.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                runner.kill()
        self.join(_STOP_SECONDS)

    @property
    def _job(self) -> dict[str, Any]:
        job = self._service.store.get(self._path)
        assert job, "a job that runs cannot be deleted"
        return job

    def _run(self) -> None:
        with self._service.lock:
            if self._job["state"] == "PIPELINE_STATE_QUEUED":
                self._change(state="PIPELINE_STATE_PENDING")
        if self._fault and self._outcome.keys() & {"hold", "seconds"}:
            self._wait(self._fault, self._go)
        if "error" in self._outcome:
            self._consumed(self._fault)
            return self._finish("FAILED", self._outcome["error"])
        with self._service.lock:
            if self._stopped:
                return None
            if not self._told_to_cancel:
                self._runner = self._start()
        if not self._runner:
            return self._finish("CANCELLED", errors.cancelled("pipeline job"))
        assert self._runner.stdout
        for line in self._runner.stdout:
            self._hear(json.loads(line))
        code = self._runner.wait()
        self._runner.stdout.close()
        if self._stopped:
            return None
        if not self._end:
            words = (self._folder / "runner.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
            print(f"the runner of {self._path} ended with exit code {code}", *words[-20:], sep="\n", file=sys.stderr)
            return self._finish("FAILED", errors.INTERNAL_ERROR)
        error = None
        if self._end["end"] == "FAILED":
            error = errors.job_failed(self._service.config.project_id, self._run_id, self._end["failed"])
        elif self._end["end"] == "CANCELLED":
            error = errors.cancelled("pipeline job")
        return self._finish(self._end["end"], error)

    def _wait(self, fault: Fault, over: threading.Event) -> None:
        """As long as a test has scripted, or until it is over."""
        self._consumed(fault)

        def wait() -> None:
            self._service.faults.wait_until_replaced(fault)
            over.set()

        if fault.outcome.get("hold"):
            threading.Thread(target=wait, daemon=True).start()
        over.wait(fault.outcome.get("seconds"))

    def _cancel(self, fault: Fault | None) -> None:
        if fault and fault.outcome.keys() & {"hold", "seconds"}:
            self._wait(fault, threading.Event())
        with self._service.lock:
            self._told_to_cancel = True
            self._go.set()
            if self._runner and self._runner.stdin and not self._stopped:
                try:
                    self._runner.stdin.write("cancel\n")
                    self._runner.stdin.flush()
                except (OSError, ValueError):
                    pass  # It has just ended.

    def _start(self) -> subprocess.Popen[str]:
        job, service = self._job, self._service
        request = {
            "specification": job["pipelineSpec"],
            "parameters": job["runtimeConfig"]["parameterValues"],
            "fail_fast": job["runtimeConfig"].get("failurePolicy") == resources.POLICIES[2],
            "root": job["runtimeConfig"]["gcsOutputDirectory"].rstrip("/"),
            "name": job["name"],
            "run_id": self._run_id,
            "project": service.config.project_number,
            "create_time": job["createTime"],
            "schedule_time": resources.timestamp(self._tick) if self._tick else "",
            "folder": str(self._folder),
            "grace_seconds": service.aiplatform.grace_seconds,
            "scripted": self._outcome,
        }
        file = self._folder / "request.json"
        file.write_text(json.dumps(request), encoding="utf-8")
        given = service.aiplatform.environment
        environment = {
            **machine_environment(),
            **{name: value.replace("{self}", service.address) for name, value in given.items()},
            "TMPDIR": str(self._folder),
            # What tasks print is UTF-8, and is in the log as soon as it is printed.
            "PYTHONUTF8": "1",
            "PYTHONUNBUFFERED": "1",
        }
        with open(self._folder / "runner.log", "w", encoding="utf-8") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "emulated_cloud.google.aiplatform.runner", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=environment,
                start_new_session=True,
            )

    # -- what the runner tells ----------------------------------------------------------------------------------

    def _hear(self, event: dict[str, Any]) -> None:
        if "line" in event:
            return self._service.logs.line(event["custom_job"], event["line"], event["severity"])
        with self._service.lock:
            if self._stopped:
                return None
            if "end" in event:
                self._end = event
            elif "fault" in event:
                self._consumed(self._fault)
            elif "cancel" in event:
                self.cancel(None)
            elif "running" in event:
                now = resources.timestamp(self._service.clock.now())
                job = {**self._job, "startTime": now, "jobDetail": self._details(now)}
                self._service.store.put(self._path, job)
                if job["state"] == "PIPELINE_STATE_PENDING":
                    self._change(state="PIPELINE_STATE_RUNNING")
            else:
                self._task(event)
        return None

    def _details(self, now: str) -> dict[str, Any]:
        """The details of a job of which no task has begun."""
        location, _, job_id = self._path.split("/")
        context = self._service.name(f"{location}/metadataStores/default/contexts/{job_id}")
        root = {
            "taskId": f"-{resources.new_id()}",
            "taskName": job_id,
            "taskUniqueName": job_id,
            "state": "RUNNING",
            "createTime": now,
            "startTime": now,
        }
        return {"pipelineRunContext": {"name": context, "displayName": job_id}, "taskDetails": [root]}

    def _task(self, event: dict[str, Any]) -> None:
        """What an event changes of a task: `state`, `custom_job` (another attempt), `inputs`, `outputs`, `error`."""
        job = self._job
        now = resources.timestamp(self._service.clock.now())
        root, *tasks = job["jobDetail"]["taskDetails"]
        by_name = {task["taskUniqueName"]: task for task in tasks}
        *parents, name = event["task"]
        task = by_name.get(".".join(event["task"]))
        if task is None:
            task = self._new_task(name, by_name[".".join(parents)] if parents else root, event["task"], now)
            if event["state"] != "NOT_TRIGGERED":
                task["execution"] = self._execution(name, event["schema"], now)
            tasks.append(task)
        if "custom_job" in event:
            location = self._path.partition("/")[0]
            executed = task.setdefault("executorDetail", {}).setdefault("containerDetail", {})
            if "mainJob" in executed:
                executed.setdefault("failedMainJobs", []).append(executed["mainJob"])
            executed["mainJob"] = self._service.name(f"{location}/customJobs/{event['custom_job']}")
        for kind in ("inputs", "outputs"):
            if kind in event:
                parameters, artifacts = event[kind]
                metadata = task["execution"]["metadata"]
                metadata |= {f"{kind[:-1]}:{key}": value for key, value in parameters.items()}
                if artifacts:
                    task[kind] = {key: {"artifacts": found} for key, found in artifacts.items()}
        if "state" in event:
            self._change_task(task, event, now)
            executed = task.get("executorDetail", {}).get("containerDetail", {})
            self._service.logs.task_event(job, task, executed.get("mainJob", "").rpartition("/")[2])
        job["jobDetail"]["taskDetails"] = [root, *tasks]
        self._change()

    def _new_task(self, name: str, parent: dict[str, Any], path: list[str], now: str) -> dict[str, Any]:
        return {
            "taskId": resources.new_id(),
            "parentTaskId": parent["taskId"],
            "taskName": name,
            "taskUniqueName": ".".join(path),
            "createTime": now,
            "pipelineTaskStatus": [],
        }

    def _execution(self, name: str, schema: str, now: str) -> dict[str, Any]:
        location = self._path.partition("/")[0]
        return {
            "name": self._service.name(f"{location}/metadataStores/default/executions/{resources.new_id()}"),
            "displayName": name,
            "state": "RUNNING",
            "schemaTitle": schema,
            "schemaVersion": "0.0.1",
            "createTime": now,
            "updateTime": now,
            "metadata": {},
        }

    def _change_task(self, task: dict[str, Any], event: dict[str, Any], now: str) -> None:
        state, error = event["state"], {"error": event["error"]} if "error" in event else {}
        status = {"updateTime": now, "state": state, **error}
        task["state"] = state
        task["pipelineTaskStatus"].append(status)
        if state == "RUNNING":
            task.setdefault("startTime", now)
        if state in (*_EXECUTIONS, "NOT_TRIGGERED"):
            task["endTime"] = now
            task |= error
        if "execution" in task:
            task["execution"]["updateTime"] = now
            task["execution"]["state"] = _EXECUTIONS.get(state, "RUNNING")

    def _finish(self, state: str, error: dict[str, Any] | None) -> None:
        with self._service.lock:
            if self._stopped:
                return
            now = resources.timestamp(self._service.clock.now())
            ended = {"endTime": now, **({"error": error} if error else {})}
            # The job itself, and what a runner that broke did not come to say.
            for task in self._job.get("jobDetail", {}).get("taskDetails", []):
                if task["state"] in ("PENDING", "RUNNING", "CANCELLING"):
                    task |= {"state": state, **ended}
            self._change(state=f"PIPELINE_STATE_{state}", **ended)

    def _change(self, **fields: Any) -> None:
        """Sets fields of the job, and says so where its state is another."""
        job = {**self._job, **fields, "updateTime": resources.timestamp(self._service.clock.now())}
        self._service.store.put(self._path, job)
        if "state" in fields:
            self._service.logs.job_event(job)

    def _consumed(self, fault: Fault | None) -> None:
        if fault:
            self._service.faults.consume(fault)
