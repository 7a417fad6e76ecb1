"""The process that runs one job: `python -m emulated_cloud.google.aiplatform.runner REQUEST` (run.py writes it).

kfp's local runner walks the DAG, evaluates conditions, hands outputs on and tries again; what it does not tell, such as
which task is where, is taken from the few of its functions that are replaced here. Each task's command is a process of
its own, process 1 of a process table of its own where this user may have one.

It tells on stdout what happens, one JSON object a line:

    {"running": true}
    {"task": ["exit-handler-1", "train"], "state": "PENDING", "schema": "system.ContainerExecution"}
    {"task": …, "state": "RUNNING", "custom_job": "42"}    an attempt
    {"task": …, "inputs": [{parameters}, {artifacts}]}
    {"task": …, "state": "FAILED", "error": {"code", "message"}, "outputs": [{…}, {…}]}
    {"custom_job": "42", "line": "a line that it printed", "severity": "INFO"}
    {"fault": true}                                        what a test has scripted for a task has happened
    {"cancel": true}                                       somebody has to ask for the job's end now: a test's script
    {"end": "FAILED", "failed": ["exit-handler-1"]}

and reads on stdin `cancel`. When stdin closes it ends, with all that it runs.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from google.protobuf import json_format
from kfp import dsl, local
from kfp.local import io, subprocess_task_handler, utils
from kfp.local.orchestrator import enhanced_dag_orchestrator, task_executor
from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils
from kfp.local.status import Status
from kfp.pipeline_spec import pipeline_spec_pb2

from emulated_cloud.google.aiplatform import errors, resources

_ISOLATED = ["unshare", "--pid", "--fork", "--kill-child", "--"]
_SCHEMAS = {"dag": "system.DagExecution", "executor_label": "system.ContainerExecution"}
_PR_SET_PDEATHSIG = 1
_HELD = """
import os, re, sys, time


class Held:
    def __init__(self, stream, pattern):
        self._stream, self._pattern, self._line = stream, pattern, ""

    def write(self, text):
        written = self._stream.write(text)
        *lines, self._line = (self._line + text).split("\\n")
        if any(re.search(self._pattern, line) for line in lines):
            self._stream.flush()
            time.sleep(3600)
        return written

    def __getattr__(self, name):
        return getattr(self._stream, name)


sys.stdout = Held(sys.stdout, os.environ.pop("HELD_AT"))
del os.environ["PYTHONPATH"]
"""
"""What Python runs first in a task that is to stand still at a line that it prints. SIGTERM ends the sleep."""
_libc = ctypes.CDLL(None)

Path_ = tuple[str, ...]
"""A task: the names of those that it is in, and its own."""


class Cancelled(Exception):
    """The task was cancelled: it is not tried again."""


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    # What kfp prints is not what we tell.
    events = os.dup(1)
    os.dup2(2, 1)
    runner = Runner(request, events)
    threading.Thread(target=runner.obey, daemon=True).start()
    runner.run()


class Runner:
    def __init__(self, request: dict[str, Any], events: int):
        self._request, self._events = request, events
        self._job_id = request["name"].rpartition("/")[2]
        self._root = Path(request["folder"]) / "root"
        self._scripted = request["scripted"]
        self._strikes_left = self._scripted.get("attempts", 1) if "task" in self._scripted else 0
        self._isolated = _may_isolate()
        self._thread = threading.local()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._processes: dict[Path_, subprocess.Popen[str]] = {}
        self._told: set[Path_] = set()
        """Those whose process was told to end."""
        self._exits: set[Path_] = set()
        """Exit tasks: they run whatever came before."""
        self._states: dict[Path_, str] = {}
        self._errors: dict[Path_, dict[str, Any]] = {}

    # -- the job ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        specification = self._specification()
        arguments = self._arguments_of(specification)
        executors = specification.deployment_spec["executors"]
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(self._root),
            workspace_root=str(self._root / "workspace"),
        )
        self._take_over()
        self._tell(running=True)
        _, status = enhanced_dag_orchestrator.run_enhanced_dag(
            pipeline_resource_name=self._job_id,
            dag_component_spec=specification.root,
            executors={name: utils.struct_to_executor_spec(executor) for name, executor in executors.items()},
            components=dict(specification.components.items()),
            dag_arguments=arguments,
            pipeline_root=str(self._root),
            runner=local.config.LocalExecutionConfig.instance.runner,
            unique_pipeline_id=self._request["run_id"],
            fail_stack=[],
        )
        failed = self._scope_ended((), specification.root.dag)
        end = "SUCCEEDED" if status == Status.SUCCESS else "CANCELLED" if self._cancelled.is_set() else "FAILED"
        self._tell(end=end, failed=failed)

    def _specification(self) -> Any:
        """The pipeline, with what kfp's local runner would put in otherwise, or does not know."""
        text = json.dumps(self._request["specification"])
        for placeholder, value in {
            dsl.PIPELINE_JOB_NAME_PLACEHOLDER: self._job_id,
            dsl.PIPELINE_JOB_ID_PLACEHOLDER: self._request["run_id"],
            dsl.PIPELINE_JOB_RESOURCE_NAME_PLACEHOLDER: self._request["name"],
            dsl.PIPELINE_JOB_CREATE_TIME_UTC_PLACEHOLDER: self._request["create_time"],
            dsl.PIPELINE_JOB_SCHEDULE_TIME_UTC_PLACEHOLDER: self._request["schedule_time"],
            dsl.PIPELINE_ROOT_PLACEHOLDER: self._request["root"],
        }.items():
            text = text.replace(placeholder, value)
        return json_format.Parse(text, pipeline_spec_pb2.PipelineSpec())

    def _arguments_of(self, specification: Any) -> dict[str, Any]:
        kinds = pipeline_spec_pb2.ParameterType
        known = specification.root.input_definitions.parameters
        return {
            name: float(value) if known[name].parameter_type == kinds.NUMBER_DOUBLE and value is not None else value
            for name, value in self._request["parameters"].items()
        }

    def _take_over(self) -> None:
        runner = self

        class Scope(io.IOStore):
            """A DAG's values; made in the thread that has just begun the DAG's task."""

            def __init__(self, parent: Any = None):
                super().__init__(parent=parent)
                self.path = runner._here

        self._run_task = enhanced_dag_orchestrator.execute_task
        self._make_arguments = OrchestratorUtils.make_task_arguments
        io.IOStore = Scope
        enhanced_dag_orchestrator.execute_task = self._task
        OrchestratorUtils.make_task_arguments = self._arguments
        subprocess_task_handler.run_local_subprocess = self._attempt
        task_executor.time = SimpleNamespace(sleep=self._cancelled.wait)

    @property
    def _here(self) -> Path_:
        """The task that this thread is about."""
        found: Path_ = getattr(self._thread, "path", ())
        return found

    # -- tasks --------------------------------------------------------------------------------------------------

    def _task(self, task_name: str, task_spec: Any, io_store: Any, components: Any, **rest: Any) -> Any:
        """Runs a task, in place of kfp's function: outputs and status."""
        path = (*io_store.path, task_name)
        if _is_exit_task(task_spec):
            self._exits.add(path)
        if not self._may_start(path):
            return {}, Status.FAILURE
        component = components[task_spec.component_ref.name]
        kind = component.WhichOneof("implementation")
        self._set(path, "RUNNING" if kind == "dag" else "PENDING", schema=_SCHEMAS[kind])
        before, self._thread.path = self._here, path
        outputs: Mapping[str, Any] = {}
        status = Status.FAILURE
        try:
            outputs, status = self._run_task(
                task_name=task_name, task_spec=task_spec, io_store=io_store, components=components, **rest
            )
        except Cancelled:
            self._told.add(path)
        except Exception as error:  # noqa: BLE001 (whatever kfp makes of outputs that are none: the task's failure)
            self._errors[path] = {"code": errors.INTERNAL, "message": f"{type(error).__name__}: {error}"}
        finally:
            self._thread.path = before
        failed = self._scope_ended(path, component.dag) if kind == "dag" else []
        if status == Status.SUCCESS:
            self._set(path, "SUCCEEDED", outputs=self._shown(outputs))
        elif path in self._told or (kind == "dag" and self._cancelled.is_set() and not failed):
            self._set(path, "CANCELLED", error=errors.cancelled("task"))
        else:
            why = errors.dag_failed(failed) if failed else self._errors.get(path, errors.INTERNAL_ERROR)
            self._set(path, "FAILED", error=why)
        return outputs, status

    def _may_start(self, path: Path_) -> bool:
        """Whether a task may begin, or be tried again."""
        of_an_exit_task = any(path[: length + 1] in self._exits for length in range(len(path)))
        if self._cancelled.is_set():
            if of_an_exit_task and not self._scripted.get("exit_after_cancel", True):
                self._tell(fault=True)
                return False
            return of_an_exit_task and path not in self._told
        return of_an_exit_task or not self._request["fail_fast"] or "FAILED" not in [*self._states.values()]

    def _scope_ended(self, path: Path_, dag: Any) -> list[str]:
        """Says of which tasks of a DAG nothing came; returns those that failed."""
        begun = {task[-1]: state for task, state in [*self._states.items()] if task[:-1] == path}
        loops = {name.rpartition("-iteration-")[0] for name in begun}
        for name in sorted(dag.tasks):
            if name not in begun and name not in loops:
                self._set((*path, name), "NOT_TRIGGERED")
        return sorted(name for name, state in begun.items() if state == "FAILED")

    def _arguments(self, task_inputs_spec: Any, io_store: Any) -> Any:
        """A task's arguments, in place of kfp's function, of which a final status is as the service tells it."""
        arguments = self._make_arguments(task_inputs_spec, io_store)
        for name, given in task_inputs_spec.parameters.items():
            if given.HasField("task_final_status"):
                producer = given.task_final_status.producer_task
                arguments[name] = self._final_status((*io_store.path, producer))
        self._tell(task=self._here, inputs=self._shown(arguments))
        return arguments

    def _final_status(self, path: Path_) -> dict[str, Any]:
        state = self._states.get(path, "NOT_TRIGGERED")
        error = self._errors.get(path)
        return {
            "state": state,
            "pipelineJobResourceName": self._request["name"],
            "pipelineTaskName": path[-1],
            **({"error": error} if error and state != "SUCCEEDED" else {}),
        }

    def _shown(self, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Parameters, and artifacts where the service would keep them."""
        parameters, artifacts = {}, {}
        for name, value in values.items():
            several = value if isinstance(value, list) else [value]
            if several and all(isinstance(each, dsl.Artifact) for each in several):
                artifacts[name] = [self._artifact(each) for each in several]
            elif value is not None:
                parameters[name] = value
        return parameters, artifacts

    def _artifact(self, artifact: Any) -> dict[str, Any]:
        uri = artifact.uri.replace(f"{self._root}/", f"{self._request['root']}/")
        parent = "/".join(self._request["name"].split("/")[:4])
        return {
            "name": f"{parent}/metadataStores/default/artifacts/{resources.new_id()}",
            "displayName": artifact.name,
            "uri": uri,
            "schemaTitle": artifact.schema_title,
            "schemaVersion": artifact.schema_version,
            "state": "LIVE",
            "metadata": artifact.metadata,
        }

    # -- processes ----------------------------------------------------------------------------------------------

    def _attempt(self, full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        """Runs a task's command to its end, in place of kfp's function: its exit code. Raises Cancelled."""
        path, custom_job = self._here, resources.new_id()
        with self._lock:
            if self._cancelled.is_set() and not self._may_start(path):
                raise Cancelled
            process = subprocess.Popen(
                [*(_ISOLATED if self._isolated else []), *full_command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
                errors="replace",
                env={**os.environ, **(env_vars or {}), **self._held(path)},
                start_new_session=True,
                # When we are killed, too.
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
            )
            self._processes[path] = process
        self._set(path, "RUNNING", custom_job=custom_job)
        if self._is_struck(path, None):
            self._strike(process)
        readers = [
            threading.Thread(target=self._read, args=(path, process, stream, custom_job, severity), daemon=True)
            for stream, severity in ((process.stdout, "INFO"), (process.stderr, "ERROR"))
        ]
        for reader in readers:
            reader.start()
        code = process.wait()
        if not self._isolated:
            self._kill(process)  # What it has left behind.
        for reader in readers:
            reader.join()
        with self._lock:
            del self._processes[path]
        if code and path in self._told:
            raise Cancelled
        code = 128 - code if code < 0 else code
        if code:
            self._errors[path] = errors.task_failed(self._request["project"], custom_job, code)
        return code

    def _read(self, path: Path_, process: Any, stream: Any, custom_job: str, severity: str) -> None:
        for line in stream:
            self._tell(custom_job=custom_job, line=line.rstrip("\n"), severity=severity)
            if process.poll() is None and self._is_struck(path, line):
                self._strike(process)
        stream.close()

    def _held(self, path: Path_) -> dict[str, str]:
        """What has a task stand still at the line at which a test cancels the job, until it is told to end."""
        if not self._scripted.get("cancel") or path[-1] != self._scripted["task"]:
            return {}
        folder = Path(self._request["folder"]) / "held"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_HELD, encoding="utf-8")
        return {"PYTHONPATH": str(folder), "HELD_AT": self._scripted["after"]}

    def _is_struck(self, path: Path_, line: str | None) -> bool:
        """Whether what a test wants for this task is due: now that it runs, or has printed a line."""
        after = self._scripted.get("after")
        due = line is None if after is None else line is not None and re.search(after, line) is not None
        with self._lock:
            if not (due and self._strikes_left and path[-1] == self._scripted["task"]):
                return False
            self._strikes_left -= 1
            first = self._strikes_left == self._scripted.get("attempts", 1) - 1
        if first:
            self._tell(fault=True)
        return True

    def _strike(self, process: Any) -> None:
        """The task dies without a word, or the job is cancelled."""
        if self._scripted.get("cancel"):
            self._tell(cancel=True)
        else:
            self._kill(process)

    def _kill(self, process: Any) -> None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def _kill_if_there(self, process: Any) -> None:
        if process.poll() is None:
            self._kill(process)

    def obey(self) -> None:
        """Does what is asked on stdin, to its end."""
        for line in sys.stdin:
            if line.strip() == "cancel":
                self._cancel()
        with self._lock:
            for process in self._processes.values():
                self._kill(process)
            os._exit(1)

    def _cancel(self) -> None:
        with self._lock:
            self._cancelled.set()
            running = dict(self._processes)
            self._told |= running.keys()
        for path, process in running.items():
            self._set(path, "CANCELLING")
            self._tell_to_end(process)
            timer = threading.Timer(self._request["grace_seconds"], self._kill_if_there, [process])
            timer.daemon = True
            timer.start()

    def _tell_to_end(self, process: Any) -> None:
        """SIGTERM to the task's first process, and to no other."""
        pid = process.pid
        while self._isolated and process.poll() is None:
            try:
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
                pid = int(children.read_text(encoding="ascii").split()[0])
                break
            except (OSError, IndexError):
                time.sleep(0.01)  # It has not begun yet.
        try:
            os.kill(pid, signal.SIGTERM)
        except ProcessLookupError:
            pass

    # -- telling ------------------------------------------------------------------------------------------------

    def _set(self, path: Path_, state: str, **more: Any) -> None:
        self._states[path] = state
        if "error" in more:
            self._errors[path] = more["error"]
        self._tell(task=path, state=state, **more)

    def _tell(self, **event: Any) -> None:
        # One write is one line, whoever else writes.
        line = json.dumps(event, default=str).encode() + b"\n"
        with self._telling:
            while line:
                line = line[os.write(self._events, line) :]

    _telling = threading.Lock()


def _may_isolate() -> bool:
    """Whether this user may have process tables of their own."""
    if shutil.which(_ISOLATED[0]) is None:
        return False
    return subprocess.run([*_ISOLATED, "true"], capture_output=True, check=False).returncode == 0


def _is_exit_task(task_spec: Any) -> bool:
    return any(given.HasField("task_final_status") for given in task_spec.inputs.parameters.values())


if __name__ == "__main__":
    main()
