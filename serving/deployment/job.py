"""Running a step's work inside the cluster: a Job from the component image, and the JSON document that it ends with.

A pipeline reaches the cluster's API and nothing else, so what must touch a server is done by `python -m
components.<step>` in a Job. Its log is progress, a line at a time; the last line is one JSON object, the result. A
verdict of "failed" is a result; a Job that crashes has taught nothing about the release.
"""

from __future__ import annotations

import json
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict, Unpack

from pydantic import BaseModel

from serving import names
from serving.clients.kubernetes import Cluster, ConflictError, Object, Subject
from serving.deployment import objects
from serving.errors import InconclusiveError, PipelineError, RequestError, ToldToEnd
from serving.log import Say
from serving.rendering import patches, render
from serving.settings import Settings

CONTAINER = "step"
USER = 65532
"""The numeric user of the component image (images/components/Dockerfile)."""
PYTHON = ("python",)
SMALL = {"cpu": "250m", "memory": "256Mi"}

_KEPT_SECONDS = 3600
"""How long the cluster keeps a finished Job that nobody has deleted: time enough to look at one that failed."""
_GRACE_SECONDS = 60
"""How long the cluster may take to end a Job whose deadline has passed."""
_TAIL = 40
"""Lines that are read back. The result may be 300 KB: the kubelet's files hold it in pieces of 16 KiB, and a log's tail
counts the pieces."""
_WITHOUT_A_VOLUME = ("FailedMount", "FailedAttachVolume")
_CANNOT_START = {
    "ImagePullBackOff": "image",
    "ErrImageNeverPull": "image",
    "InvalidImageName": "image",
    "CreateContainerConfigError": "configuration",
    "CreateContainerError": "configuration",
}
"""Reasons of a waiting container that do not go away by waiting. (A first ErrImagePull may.)"""


@dataclass(frozen=True)
class Work:
    """What one Job does: `python ARGS…`, unless it is told to start another program."""

    args: list[str]
    """No secret is in them."""
    part: str = ""
    """Tells the Jobs of one step apart: a zone, say."""
    pod: Object = field(default_factory=dict)
    """What its pod needs beyond other Jobs' pods: a strategic merge patch of the pod's spec."""


class Terms(TypedDict):
    """What is said of a step's Jobs, whatever each of them does."""

    step: str
    run_id: str
    generation: str
    image: str
    timeout: float
    """Seconds, waiting for a node included."""
    say: Say
    env: NotRequired[list[Object]]
    """Kubernetes EnvVars, which may refer to a secret."""
    resources: NotRequired[dict[str, str]]
    """What the pod requests."""
    program: NotRequired[Sequence[str]]
    """What is started with the arguments, nothing for the image's own entrypoint."""


def run_job(
    cluster: Cluster,
    settings: Settings,
    *,
    args: list[str],
    pod: Object | None = None,
    part: str = "",
    capacity: float = math.inf,
    **terms: Unpack[Terms],
) -> dict[str, Any]:
    """Runs one Job and returns the JSON object on its log's last line. The arguments are those of `run_jobs`.

    Raises RequestError when the pod can never start (its image, its configuration), InconclusiveError for everything
    else that ends it without a result: a crash (with the log's last lines), eviction, preemption, a lost node, time.
    """
    (end,) = run_jobs(cluster, settings, [Work(args, part, pod=pod or {})], capacity=capacity, **terms)
    if isinstance(end, PipelineError):
        raise end
    return end


def run_jobs(
    cluster: Cluster, settings: Settings, works: Sequence[Work], *, capacity: float = math.inf, **terms: Unpack[Terms]
) -> list[dict[str, Any] | PipelineError]:
    """Runs a Job for each work, all at once, to the end of the last. Returns of each the JSON object on its log's last
    line, or the error that `run_job` raises.

    A Job of the same step, part and run that is there already is taken over: the step was retried. `capacity`: seconds
    that a pod may wait for a node. When this step is told to end, so are the Jobs.
    """
    say = terms["say"]
    bodies = [manifest(settings, work, **terms) for work in works]
    try:
        watches = [
            Watch(cluster, _create_or_take_over(cluster, body, say), _saying(say, work.part), capacity)
            for work, body in zip(works, bodies, strict=True)
        ]
        return _ends(cluster, watches, terms["timeout"] + _GRACE_SECONDS)
    except ToldToEnd:
        for body in bodies:
            _delete_by_name(cluster, body, say)
        raise


@contextmanager
def running_job(
    cluster: Cluster, settings: Settings, *, args: list[str], part: str = "", **terms: Unpack[Terms]
) -> Iterator[Watch]:
    """A Job that works while the block runs, and is gone after it, however that ends. The block follows it: it shows
    the Job every change of its `subjects`, and looks whether it has come to an `end`."""
    body, say = manifest(settings, Work(args, part), **terms), terms["say"]
    try:
        watch = Watch(cluster, _create_or_take_over(cluster, body, say), say, math.inf)
        with watch.log:
            yield watch
    finally:
        _delete_by_name(cluster, body, say)


def _saying(say: Say, part: str) -> Say:
    return (lambda line: say(f"{part}: {line}")) if part else say


def argument(plan: BaseModel) -> str:
    """What a Job is asked to do, as an argument of its program. Kubernetes expands $(NAME) in arguments; in JSON a
    dollar can be written so that it does not."""
    return plan.model_dump_json().replace("$", "\\u0024")


def manifest(settings: Settings, work: Work, **terms: Unpack[Terms]) -> Object:
    """The Job. Its pod carries neither the deployment's label nor the generation's: Services and budgets select by
    those, and it is not a server. The settings' patches for kind Job are merged in, after the work's own."""
    step, run_id, generation, image = terms["step"], terms["run_id"], terms["generation"], terms["image"]
    resources, program = terms.get("resources", SMALL), terms.get("program", PYTHON)
    labels = {
        **settings.labels,
        "app.kubernetes.io/managed-by": "gemma-gke-pipelines",
        "app.kubernetes.io/component": step.replace("_", "-"),
        names.RUN: run_id,
    }
    body: Object = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": names.job(step, run_id, work.part),
            "namespace": settings.namespace,
            "labels": {**labels, names.DEPLOYMENT: settings.name, names.GENERATION: generation},
            "annotations": dict(settings.annotations),
        },
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": math.ceil(terms["timeout"]),
            "ttlSecondsAfterFinished": _KEPT_SECONDS,
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        **settings.annotations,
                        # A node that is scaled down would take the measurement with it.
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                    },
                },
                "spec": {
                    "restartPolicy": "Never",
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "runAsGroup": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "containers": [
                        {
                            "name": CONTAINER,
                            "image": image,
                            **({"command": list(program)} if program else {}),
                            "args": work.args,
                            "env": [{"name": "HOME", "value": "/tmp"}, *terms.get("env", [])],  # noqa: S108
                            "resources": {"requests": resources, "limits": {"memory": resources["memory"]}},
                            "securityContext": {
                                "allowPrivilegeEscalation": False,
                                "readOnlyRootFilesystem": True,
                                "capabilities": {"drop": ["ALL"]},
                            },
                            # What a pod said last outlives its log.
                            "terminationMessagePolicy": "FallbackToLogsOnError",
                            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                        }
                    ],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            },
        },
    }
    return render.patched(settings, patches.apply(body, {"spec": {"template": {"spec": work.pod}}}))


def _create_or_take_over(cluster: Cluster, body: Object, say: Say) -> Object:
    """The Job as the cluster has it. One that failed, or is being deleted, makes room for a new attempt first."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    give_up = time.monotonic() + 30
    while True:
        there = cluster.get("Job", name, namespace)
        if there and not there["metadata"].get("deletionTimestamp") and not _condition(there, "Failed"):
            say(f"Job {namespace}/{name} is there already: reading its result")
            return there
        if there:
            cluster.delete(there)
            if not objects.is_gone(cluster, there, give_up):
                raise InconclusiveError(
                    f"Job {namespace}/{name} is being deleted and does not go. See `kubectl -n {namespace} get job "
                    f"{name} -o yaml` (its finalizers), then run again"
                )
        try:
            return cluster.create(body)
        except ConflictError:
            if time.monotonic() > give_up:
                raise


def _delete_by_name(cluster: Cluster, body: Object, say: Say) -> None:
    """Ends the run's Job, if there is one: this step may not have heard yet that it was made. Never raises."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    try:
        there = cluster.get("Job", name, namespace)
        if there:
            cluster.delete(there)
    except PipelineError as error:
        say(f"could not delete Job {namespace}/{name} ({error}); the next run will")


def _ends(cluster: Cluster, watches: list[Watch], timeout: float) -> list[dict[str, Any] | PipelineError]:
    """How each Job ended, all of them followed at once."""
    namespace = watches[0].namespace
    subjects = [Subject("Event", namespace), *(subject for watch in watches for subject in watch.subjects)]
    with ExitStack() as logs, cluster.follow(*subjects) as changes:
        for watch in watches:
            logs.enter_context(watch.log)
        for change in changes.until(time.monotonic() + timeout):
            for watch in watches:
                watch.look(change)
            if all(watch.end is not None for watch in watches):
                break
    return [watch.end if watch.end is not None else watch.unended() for watch in watches]


class Watch:
    """One Job and its pod, followed to the end."""

    def __init__(self, cluster: Cluster, job: Object, say: Say, capacity: float):
        self._cluster, self._job, self._say, self._capacity = cluster, job, say, capacity
        self._name, self.namespace, self._uid = (job["metadata"][key] for key in ("name", "namespace", "uid"))
        self._pods = f"batch.kubernetes.io/job-name={self._name}"
        self._pod: Object | None = None
        self._said: deque[str] = deque(maxlen=_TAIL)
        self._waits_for = ""
        self._no_volume: dict[str, str] = {}
        """Pod, by uid → why it has no volume yet."""
        self._started_at = time.monotonic()
        self.log = ExitStack()
        """What follows the pod's log."""
        self.end: dict[str, Any] | PipelineError | None = None
        """The Job's result, or why it has none."""
        self.subjects = (
            Subject("Job", self.namespace, fields=f"metadata.name={self._name}"),
            Subject("Pod", self.namespace, labels=self._pods),
        )

    def look(self, change: tuple[str, Object] | None) -> None:
        """At a change, which may be another Job's, or at the clock."""
        if self.end is not None:
            return
        try:
            self.end = self._after(*change) if change else None
            has_node = self._pod is not None and self._pod["spec"].get("nodeName")
            if self.end is None and not has_node and time.monotonic() - self._started_at > self._capacity:
                self.end = InconclusiveError(f"{self._what} got no node: {self._state()}")
                self._cluster.delete(self._job)
        except PipelineError as error:
            self.end = error

    @property
    def began(self) -> bool:
        """Whether its pod has started."""
        return self._started()

    def unended(self) -> PipelineError:
        """Of a Job that has not ended in time."""
        return InconclusiveError(f"{self._what} has not ended: {self._state()}")

    def _after(self, event: str, item: Object) -> dict[str, Any] | None:
        """The Job's result, once a change says that it has ended well."""
        if item["kind"] == "Event":
            self._hear(item)
        elif item["kind"] == "Pod" and self._owns(item):
            follow_log = not self._started()
            self._pod = item
            self._check_start(item)
            if follow_log and self._started():
                name = item["metadata"]["name"]
                self.log.enter_context(self._cluster.log_followed(name, self.namespace, self._take))
        elif item["metadata"]["uid"] == self._uid:
            ended = _condition(item, "Complete") or _condition(item, "Failed")
            if event == "DELETED":
                raise InconclusiveError(f"{self._what} was deleted by somebody else while it ran. Run again")
            if ended:
                self.log.close()
                self._look_again()
                if ended["type"] == "Complete":
                    result = self._result()
                    self._cluster.delete(self._job)
                    return result
                raise self._failure(ended)
        return None

    @property
    def _what(self) -> str:
        return f"Job {self.namespace}/{self._name}"

    def _owns(self, pod: Object) -> bool:
        owners = pod["metadata"].get("ownerReferences") or []
        return any(owner["uid"] == self._uid for owner in owners)

    def _started(self) -> bool:
        return self._pod is not None and bool(_state(self._pod).keys() & {"running", "terminated"})

    def _look_again(self) -> None:
        """The pod as it is now: the Job's last change may have come before its pod's."""
        for pod in self._cluster.list("Pod", self.namespace, labels=self._pods):
            if self._owns(pod):
                self._pod = pod
                self._check_start(pod)

    def _take(self, line: str) -> None:
        self._said.append(line)
        if not line.startswith("{"):
            self._say(line)

    def _hear(self, event: Object) -> None:
        """Of a pod that may not be made, for want of quota or by a policy, and of one without its volume, events alone
        tell."""
        about, reason, message = event["involvedObject"], event.get("reason"), event.get("message", "")
        if about.get("uid") == self._uid and reason == "FailedCreate":
            self._wait_for(f"leave to be made ({message})")
        elif reason in _WITHOUT_A_VOLUME:
            self._no_volume[about.get("uid", "")] = message
            if self._pod:
                self._check_start(self._pod)

    def _wait_for(self, what: str) -> None:
        # What the scheduler counts in brackets changes with every node.
        if what and what.partition(" (")[0] != self._waits_for.partition(" (")[0]:
            self._say(f"the pod of {self._what} waits for {what}")
        self._waits_for = what

    def _check_start(self, pod: Object) -> None:
        """Notes what a pod waits for. Raises RequestError when waiting cannot help."""
        waiting = _state(pod).get("waiting") or {}
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        container = pod["spec"]["containers"][0]
        setting = "images.components (or `compile --image`)" if "command" in container else "validation.jobs"
        if _CANNOT_START.get(reason) == "image":
            raise RequestError(
                f"{self._what} cannot start, {reason}: {message}. Is {container['image']} pushed, and may the "
                f"cluster's nodes pull it? Another is named with {setting} in the settings"
            )
        if reason in _CANNOT_START:
            raise RequestError(f"{self._what} cannot start, {reason}: {message}")
        no_volume = self._no_volume.get(pod["metadata"]["uid"])
        if unscheduled := _condition(pod, "PodScheduled", "False"):
            self._wait_for(f"a node ({unscheduled.get('message', '')})")
        else:
            self._wait_for(f"its volume ({no_volume})" if no_volume and not self._started() else "")

    def _state(self) -> str:
        """How far the pod is, for an error."""
        if self._waits_for:
            return f"its pod still waits for {self._waits_for}"
        if self._pod is None:
            return f"it has no pod; see `kubectl -n {self.namespace} describe job {self._name}`"
        return f"its pod is {self._pod['status'].get('phase', 'Pending')}{self._last_lines()}"

    def _result(self) -> dict[str, Any]:
        lines = self._log()
        try:
            result = json.loads(lines[-1])
            if isinstance(result, dict):
                return result
        except (IndexError, ValueError):
            pass
        raise InconclusiveError(f"{self._what} left no result{self._last_lines()}")

    def _failure(self, condition: Object) -> PipelineError:
        """Why the Job failed, in the words of whoever ended it."""
        if condition.get("reason") == "DeadlineExceeded":
            return InconclusiveError(f"{self._what} ran out of time: {self._state()}")
        pod = self._pod
        if pod is None:
            return InconclusiveError(f"{self._what} failed: {condition.get('message') or condition.get('reason')}")
        status = pod.get("status") or {}
        disrupted = _condition(pod, "DisruptionTarget")
        if disrupted or status.get("reason"):
            cause = disrupted or status
            return InconclusiveError(
                f"the pod of {self._what} was taken away, {cause.get('reason')}: {cause.get('message')}. Run again"
            )
        ended = _state(pod).get("terminated")
        if ended is None:
            return InconclusiveError(f"the pod of {self._what} was deleted while it ran. Run again")
        if ended.get("reason") == "OOMKilled":
            limit = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
            return InconclusiveError(f"{self._what} needed more than its {limit} of memory{self._last_lines()}")
        return InconclusiveError(f"{self._what} crashed with exit code {ended['exitCode']}{self._last_lines()}")

    def _log(self) -> list[str]:
        """The end of the pod's log: as the cluster has it, else what was heard of it, else its last message."""
        pod = self._pod
        text = ""
        if pod:
            text = self._cluster.log(pod["metadata"]["name"], self.namespace, tail=_TAIL)
            text = text or "\n".join(self._said) or (_state(pod).get("terminated") or {}).get("message", "")
        # Not splitlines(): a line of a log ends in \n, and a result may hold U+2028.
        return [line for line in text.split("\n") if line.strip()]

    def _last_lines(self, count: int = 10) -> str:
        lines = [line[:500] for line in self._log()[-count:]]
        return "; its log ends:\n" + "\n".join(lines) if lines else "; it logged nothing"


def _state(pod: Object) -> Object:
    """The state of the pod's container."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        return status.get("state") or {}
    return {}


def _condition(item: Object, kind: str, status: str = "True") -> Object | None:
    """The object's condition of this type, if it has this status."""
    for condition in (item.get("status") or {}).get("conditions") or []:
        if condition["type"] == kind and condition["status"] == status:
            found: Object = condition
            return found
    return None
