"""One container of a pod, across its restarts: image, process, probes, and the state that the pod's status shows."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, Protocol

from emulated_cloud.kubernetes.client import Object, timestamp
from emulated_cloud.kubernetes.kubelet.environment import (
    PATH,
    SERVICE_ACCOUNT,
    ConfigurationError,
    Rewriter,
    Surroundings,
    build_environment,
    expand,
)
from emulated_cloud.kubernetes.kubelet.fields import FieldError
from emulated_cloud.kubernetes.kubelet.logs import LogFile, last_words, log_path
from emulated_cloud.kubernetes.kubelet.node import ImageMapping, Node
from emulated_cloud.kubernetes.kubelet.probes import Probe
from emulated_cloud.kubernetes.kubelet.process import ContainerProcess, StartError, start
from emulated_cloud.kubernetes.quantity import parse_quantity

Kind = Literal["init", "sidecar", "main"]

MAX_BACKOFF_SECONDS = 300.0
# A container that ran this long is no longer in a crash loop.
BACKOFF_RESET_SECONDS = 600.0
# After a preStop hook that used up the grace period, a process still gets this long.
MINIMUM_GRACE_SECONDS = 2.0
CONFIG_RETRY_SECONDS = 1.0


class Worker(Protocol):
    """What a container asks of its pod: the part of PodWorker that it knows."""

    node: Node
    pod: Object
    uid: str
    folder: Path
    around: Surroundings
    has_init: bool

    def restarts(self, kind: Kind, code: int) -> bool:
        """Whether a container of this kind is started again after it ended with this exit code."""

    def mounts(self, container: Object) -> dict[str, Path]:
        """Mount paths of a container, each with the folder or file that stands for it."""

    def make_sub_paths(self, container: Object) -> None:
        """Makes the folders of `subPath`s that are not there. Raises ConfigurationError."""

    def termination_log(self, container: Object) -> Path: ...

    def grace_seconds(self) -> float: ...

    def changed(self) -> None:
        """Something that the pod's status shows is new."""

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str, container: str = "") -> None: ...


class Container:
    """`run()` ends with the last exit code when the container is not to be started again."""

    def __init__(self, worker: Worker, spec: Object, kind: Kind):
        self._worker, self.spec, self.kind, self.name = worker, spec, kind, spec["name"]
        self.state: Object = {"waiting": {"reason": "PodInitializing" if worker.has_init else "ContainerCreating"}}
        self.last_state: Object = {}
        self.restart_count = 0
        self.ready = False
        self.started = False
        self.has_run = False
        self.process: ContainerProcess | None = None
        self.log: LogFile | None = None
        self.followers: set[asyncio.Event] = set()
        self._id = ""
        self._stopping = asyncio.Event()
        self._out_of_memory = False
        self._crashes = 0
        self._restarted_by: asyncio.Task[None] | None = None
        limits = (spec.get("resources") or {}).get("limits") or {}
        self.memory_limit = int(parse_quantity(limits["memory"])) if "memory" in limits else None

    # -- status ---------------------------------------------------------------------------------------------

    def status(self) -> Object:
        image = self.spec["image"]
        return {
            "name": self.name,
            "state": self.state,
            "lastState": self.last_state,
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restart_count,
            "image": image,
            "imageID": f"sha256:{hashlib.sha256(image.encode()).hexdigest()}" if self._id else "",
            "containerID": self._id,
        }

    def restore(self, status: Object, restarts: bool) -> None:
        """Takes over what an earlier process reported: after a node's reboot nothing runs any more."""
        self.restart_count = status.get("restartCount", 0)
        self.last_state = status.get("lastState") or {}
        self._id = status.get("containerID", "")
        state = status.get("state") or {}
        if "running" in state:
            lost = _terminated(255, "Unknown", state["running"].get("startedAt", timestamp()), "", self._id)
        elif "terminated" in state:
            lost = state
        else:
            return
        self.has_run = True
        if restarts:
            self.last_state = lost
            self.restart_count += 1
        else:
            self.state = lost

    def _wait_for(self, reason: str, message: str = "") -> None:
        self.state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        self.ready = False
        self._worker.changed()

    def _event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        self._worker.event(kind, reason, message, self.name)

    # -- life -----------------------------------------------------------------------------------------------

    async def run(self) -> int | None:
        """None when it was stopped before it could start."""
        while await self._have_image():
            code = await self._run_once()
            if code is None or self._stopping.is_set() or not self._worker.restarts(self.kind, code):
                return code
            if not await self._back_off():
                return code
        return None

    async def _have_image(self) -> bool:
        """Waits until the image is there; False when the pod ends first."""
        name, attempts = self.spec["image"], 0
        while not self._stopping.is_set():
            if self._worker.node.image(name) is not None:
                await self._pull(name)
                return True
            why = f'failed to pull and unpack image "{name}": failed to resolve reference "{name}": {name}: not found'
            if self.spec.get("imagePullPolicy") == "Never":
                why = f'Container image "{name}" is not present with pull policy of Never'
                self._wait_for("ErrImageNeverPull", why)
                self._event("Warning", "Failed", "Error: ErrImageNeverPull")
            else:
                self._event("Normal", "Pulling", f'Pulling image "{name}"')
                failure = f'Failed to pull image "{name}": {why}'
                self._event("Warning", "Failed", failure)
                self._event("Warning", "Failed", "Error: ErrImagePull")
                self._wait_for("ErrImagePull", why)
                await self._pause(self._worker.node.crash_backoff_seconds)
                self._event("Normal", "BackOff", f'Back-off pulling image "{name}"')
                self._event("Warning", "Failed", "Error: ImagePullBackOff")
                self._wait_for("ImagePullBackOff", f'Back-off pulling image "{name}": ErrImagePull: {why}')
            await self._pause(self._backoff(attempts))
            attempts += 1
        return False

    async def _pull(self, name: str) -> None:
        node = self._worker.pod["spec"]["nodeName"]
        if self._worker.node.pulls(node, name) or self.spec.get("imagePullPolicy") == "Always":
            self._event("Normal", "Pulling", f'Pulling image "{name}"')
            begun = time.monotonic()
            size = await self._worker.node.pull(node, name)
            took = f"{max(1, round((time.monotonic() - begun) * 1000))}ms"
            words = (
                f'Successfully pulled image "{name}" in {took} ({took} including waiting). Image size: {size} bytes.'
            )
        else:
            words = f'Container image "{name}" already present on machine'
        self._event("Normal", "Pulled", words)

    async def _run_once(self) -> int | None:
        """One process from start to end; None when the pod ended before it started."""
        started_at = timestamp()
        worker = self._worker
        rewrite = self._rewriter()
        environment = await self._environment(rewrite)
        if environment is None:
            return None
        env, argv = environment
        path = log_path(worker.node.pods, worker.uid, self.name, self.restart_count)
        self.log = LogFile(path)
        self._out_of_memory = False
        worker.termination_log(self.spec).write_bytes(b"")
        begun = time.monotonic()
        try:
            cwd = rewrite.path(self.spec.get("workingDir") or "") or worker.folder / "work" / self.name
            cwd.mkdir(parents=True, exist_ok=True)
            self.process = await start(self._command(argv), env, cwd, self._on_output)
        except StartError as error:
            self.log.write(b"")
            self._event("Warning", "Failed", f"Error: {error}")
            return self._end(128, "StartError", started_at, str(error))
        self._id = f"containerd://{hashlib.sha256(f'{worker.uid}{path}'.encode()).hexdigest()}"
        self.has_run = True
        self._event("Normal", "Created", f"Created container: {self.name}")
        self._event("Normal", "Started", f"Started container {self.name}")
        self.state = {"running": {"startedAt": started_at}}
        self.started = "startupProbe" not in self.spec
        self.ready = self.started and "readinessProbe" not in self.spec and self.kind != "init"
        worker.changed()
        if self._stopping.is_set():
            await self._stop_process(0)
        probes = self._start_probes(env, rewrite)
        try:
            if hook := (self.spec.get("lifecycle") or {}).get("postStart"):
                await self._hook(hook, self.process, env, rewrite)
            code = await asyncio.shield(self.process.exited)
        finally:
            for probe in probes:
                probe.cancel()
        if time.monotonic() - begun > BACKOFF_RESET_SECONDS:
            self._crashes = 0
        reason = "OOMKilled" if self._out_of_memory else "Completed" if code == 0 else "Error"
        return self._end(code, reason, started_at, self._last_message(path, code))

    async def _environment(self, rewrite: Rewriter) -> tuple[dict[str, str], list[str]] | None:
        """The process's environment and command, once all that they refer to is there."""
        worker = self._worker
        while not self._stopping.is_set():
            try:
                worker.make_sub_paths(self.spec)
                variables = await build_environment(worker.node.client, worker.pod, self.spec, worker.around)
            except (ConfigurationError, FieldError) as error:
                self._wait_for("CreateContainerConfigError", str(error))
                self._event("Warning", "Failed", f"Error: {error}")
                await self._pause(CONFIG_RETRY_SECONDS)
                continue
            image = worker.node.image(self.spec["image"])
            known = image.env if image else {}
            own_names = {"POD_IP": worker.around.pod_ip, "SERVICE_ACCOUNT": rewrite(SERVICE_ACCOUNT)}
            own = {
                "PATH": PATH,
                "HOME": str(worker.folder / "work" / self.name),
                "HOSTNAME": worker.pod["spec"].get("hostname") or worker.pod["metadata"]["name"],
                "LANG": "C.UTF-8",
                **{key: expand(value, own_names) for key, value in known.items()},
            }
            # What the node gives is meant as it is, the way to a file of this machine say.
            given = worker.around.base
            env = {
                **own,
                **{key: value if given.get(key) == value else rewrite(value) for key, value in variables.items()},
            }
            env["TMPDIR"] = str(worker.folder / "tmp")
            if image and not self._is_mapped(image):
                env["PATH"] = f"{self._make_commands(image)}:{env['PATH']}"
            return env, self._argv(variables, rewrite)
        return None

    def _is_mapped(self, image: ImageMapping) -> bool:
        """Whether the container's command is one that the image has by itself."""
        given = self.spec.get("command") or [""]
        return not given[0] or bool({given[0], os.path.basename(given[0])} & image.argv0.keys())

    def _make_commands(self, image: ImageMapping) -> Path:
        """A folder with the image's commands, for what looks for them by itself: a shell."""
        folder = self._worker.folder / "work" / self.name / "bin"
        folder.mkdir(parents=True, exist_ok=True)
        for name, argv in image.argv0.items():
            file = folder / name
            file.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "$@"\n', encoding="utf-8")
            file.chmod(0o755)
        return folder

    def _rewriter(self) -> Rewriter:
        worker = self._worker
        return worker.node.runtime.rewriter(worker.mounts(self.spec), worker.around.pod_ip)

    def _command(self, argv: list[str]) -> list[str]:
        worker = self._worker
        return worker.node.runtime.command(worker.folder, worker.pod, self.spec, worker.mounts(self.spec), argv)

    def _argv(self, variables: dict[str, str], rewrite: Rewriter) -> list[str]:
        image = self._worker.node.image(self.spec["image"])
        given = [expand(word, variables) for word in self.spec.get("command") or []]
        arguments = [rewrite(expand(word, variables)) for word in self.spec.get("args") or []]
        if not given:
            entrypoint = list(image.entrypoint) if image else []
            return [*entrypoint, *arguments] or ["(no command specified)"]
        mapped = None
        if image:
            mapped = image.argv0.get(given[0]) or image.argv0.get(os.path.basename(given[0]))
        head = mapped or [rewrite(given[0])]
        return [*head, *(rewrite(word) for word in given[1:]), *arguments]

    def _on_output(self, data: bytes) -> None:
        if self.log:
            self.log.write(data)
        for follower in self.followers:
            follower.set()

    def _end(self, code: int, reason: str, started_at: str, message: str) -> int:
        self.state = _terminated(code, reason, started_at, message, self._id)
        self.process = None
        self.started = False
        self.ready = self.kind == "init" and code == 0
        self._worker.changed()
        for follower in self.followers:
            follower.set()
        return code

    def _last_message(self, log: Path, code: int) -> str:
        """What the container says of its end: the termination log, or the end of its log if it asks for that."""
        written = self._worker.termination_log(self.spec)
        message = written.read_text(errors="replace", encoding="utf-8")[:4096] if written.exists() else ""
        if not message and code and self.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            return last_words(log)
        return message

    # -- restarts -------------------------------------------------------------------------------------------

    async def _back_off(self) -> bool:
        """Waits as a kubelet does before it starts a container again; False when the pod ends first."""
        self.last_state = self.state
        wait = self._backoff(self._crashes - 1) if self._crashes else 0.0
        self._crashes += 1
        if wait:
            meta = self._worker.pod["metadata"]
            where = f"container={self.name} pod={meta['name']}_{meta['namespace']}({meta['uid']})"
            self._wait_for("CrashLoopBackOff", f"back-off {wait:g}s restarting failed {where}")
            words = f"Back-off restarting failed container {self.name} in pod"
            self._event("Warning", "BackOff", f"{words} {meta['name']}_{meta['namespace']}({meta['uid']})")
            await self._pause(wait)
        if self._stopping.is_set():
            # A container that waits when its pod ends is reported as it last was.
            self.state, self.last_state = self.last_state, {}
            return False
        self.restart_count += 1
        return True

    def _backoff(self, attempts: int) -> float:
        return min(self._worker.node.crash_backoff_seconds * 2 ** min(attempts, 16), MAX_BACKOFF_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Waits, unless the pod ends."""
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            pass

    # -- end ------------------------------------------------------------------------------------------------

    async def terminate(self, grace_seconds: float, hooks: bool = True) -> None:
        """Ends the container for good: preStop, SIGTERM, and SIGKILL when the grace period is over."""
        self._stopping.set()
        if self.process:
            self._event("Normal", "Killing", f"Stopping container {self.name}")
            await self._stop_process(grace_seconds, hooks)

    async def _stop_process(self, grace_seconds: float, hooks: bool = True) -> None:
        process = self.process
        if process is None or process.exited.done():
            return
        deadline = time.monotonic() + grace_seconds
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook and hooks and grace_seconds:
            rewrite = self._rewriter()
            env = await self._environment_for_hooks(rewrite)
            try:
                await asyncio.wait_for(self._hook(hook, process, env, rewrite), grace_seconds)
            except TimeoutError:
                pass
        left = deadline - time.monotonic()
        await process.stop(max(left, MINIMUM_GRACE_SECONDS) if grace_seconds else 0.0)

    async def _environment_for_hooks(self, rewrite: Rewriter) -> dict[str, str]:
        variables = await build_environment(self._worker.node.client, self._worker.pod, self.spec, self._worker.around)
        return {"PATH": PATH, **{key: rewrite(value) for key, value in variables.items()}}

    async def _hook(self, hook: Object, process: ContainerProcess, env: dict[str, str], rewrite: Rewriter) -> None:
        """Runs a lifecycle hook, or as much of it as the container outlives."""
        if "sleep" in hook:
            await asyncio.wait([process.exited], timeout=hook["sleep"]["seconds"])
        elif "exec" in hook:
            await self._run_command(hook["exec"]["command"], env, rewrite)
        elif "httpGet" in hook:
            probe = Probe(hook, self._worker.around.pod_ip, self._ports(), self._no_command)
            await probe.once_ignoring_failure()

    def kill_for_memory(self) -> None:
        """What the kernel's OOM killer does."""
        self._out_of_memory = True
        if self.process:
            self._worker.node.kill(self.process)

    # -- probes ---------------------------------------------------------------------------------------------

    def _start_probes(self, env: dict[str, str], rewrite: Rewriter) -> list[asyncio.Task[None]]:
        """The startup probe first; the others start when it has succeeded."""
        tasks: list[asyncio.Task[None]] = []

        def start_others() -> None:
            for name, on_result in (("readiness", self._on_readiness), ("liveness", self._on_liveness)):
                if spec := self.spec.get(f"{name}Probe"):
                    tasks.append(self._probe(name, spec, on_result, env, rewrite))

        def on_startup(success: bool, words: str) -> bool:
            if not success:
                self._restart_soon("startup", words)
                return False
            self.started = True
            self.ready = "readinessProbe" not in self.spec
            self._worker.changed()
            start_others()
            return False

        if self.kind == "init":
            return tasks
        if spec := self.spec.get("startupProbe"):
            tasks.append(self._probe("startup", spec, on_startup, env, rewrite))
        else:
            start_others()
        return tasks

    def _probe(
        self, name: str, spec: Object, on_result: Callable[[bool, str], bool], env: dict[str, str], rewrite: Rewriter
    ) -> asyncio.Task[None]:
        async def run_command(argv: list[str], timeout: float) -> tuple[int, str]:
            return await asyncio.wait_for(self._run_command(argv, env, rewrite), timeout)

        def on_failure(words: str) -> None:
            self._event("Warning", "Unhealthy", f"{name.capitalize()} probe failed: {words}")

        probe = Probe(spec, self._worker.around.pod_ip, self._ports(), run_command, on_failure)
        return asyncio.create_task(probe.watch(on_result), name=f"{name} probe of {self.name}")

    def _on_readiness(self, success: bool, _: str) -> bool:
        if self.ready != success:
            self.ready = success
            self._worker.changed()
        return True

    def _on_liveness(self, success: bool, words: str) -> bool:
        if not success:
            self._restart_soon("liveness", words)
        return success

    def _restart_soon(self, probe: str, _: str) -> None:
        self._event("Normal", "Killing", f"Container {self.name} failed {probe} probe, will be restarted")
        grace = self._worker.grace_seconds()
        self._restarted_by = asyncio.create_task(self._stop_process(grace))

    def _ports(self) -> dict[str, int]:
        return {port["name"]: port["containerPort"] for port in self.spec.get("ports") or [] if "name" in port}

    async def _run_command(self, argv: list[str], env: dict[str, str], rewrite: Rewriter) -> tuple[int, str]:
        """A command inside the container: exec probes and hooks. (exit code, output)."""
        output: list[bytes] = []
        try:
            command = self._command([rewrite(word) for word in argv])
            process = await start(command, env, self._worker.folder, output.append)
        except StartError as error:
            return 126, str(error)
        try:
            code = await asyncio.shield(process.exited)
        except asyncio.CancelledError:
            await process.stop(0)
            raise
        return code, b"".join(output)[:4096].decode(errors="replace")

    async def _no_command(self, _argv: list[str], _timeout: float) -> tuple[int, str]:
        return 0, ""


def _terminated(code: int, reason: str, started_at: str, message: str, container_id: str) -> Object:
    terminated = {"exitCode": code, "reason": reason, "startedAt": started_at, "finishedAt": timestamp()}
    if message:
        terminated["message"] = message
    if container_id:
        terminated["containerID"] = container_id
    return {"terminated": terminated}
