"""Is it coming, has it failed, and why: what Deployment, ReplicaSets, Pods and Events say, told as they change.

`Diagnosis` is a state machine without a clock or a client of its own: it is shown objects with the time at which they
were seen (seconds, any clock that only goes forward) and asked for its verdict. What a cluster does on its way to a
ready server is not a failure: no node yet, a scale-up under way, an image on its way. What lasts although nothing is on
its way is one, and patience says for how long.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.deploy_server.words import killed
from serving import names
from serving.clients.kubernetes.errors import may_pass
from serving.deployment import pods, replicas
from serving.errors import AccessError, InconclusiveError, PipelineError, ReleaseError, RequestError
from serving.features import Explanation, Symptom

Object = dict[str, Any]


_NO_PODS = "waiting for the pods"
_NOT_IN_THE_IMAGE = re.compile(r'exec: "(?!runc|[^"]*nvidia)[^"]+": |exec format error|no command specified')
"""What a runtime says of an image without its command. (It runs programs of the node's, too.)"""


@dataclass(frozen=True)
class Patience:
    """How long a state may last before it counts as a failure, seconds. What is not a setting is Kubernetes' nature."""

    capacity: float
    """Without a node: serving.capacity_timeout."""
    ready: float
    """With a node, until ready: serving.ready_timeout."""
    declined: float = 180
    """The autoscaler says that no node would help; it looks again as node pools and quotas change."""
    failed: float = 90
    """A scale-up failed; the autoscaler tries other zones by itself."""
    pull: float = 120
    """An image that cannot be pulled: registries stumble."""
    mount: float = 300
    """A volume that cannot be mounted, or a bucket that GKE cannot look at: a new IAM binding takes minutes."""
    create: float = 30
    """Pods, or their containers, that cannot be made: a Secret or a webhook may be a moment late."""


@dataclass(frozen=True)
class Problem:
    """Why the generation will not become ready."""

    error: type[PipelineError]
    """With a pod, ReleaseError is a suspicion: the log has the last word."""
    message: str
    pod: str = ""
    """The pod whose log says more; empty when none does."""
    container: str = names.SERVER_CONTAINER
    """The container whose log that is."""


@dataclass(frozen=True, order=True)
class _Event:
    """What an event said. Events tell the time by the second: of two at once the one seen later is the newer."""

    when: str = ""
    order: int = 0
    reason: str = ""
    message: str = ""


@dataclass
class _Pod:
    """A pod as it was seen last, and since when it has been as it is."""

    body: Object
    seen: float
    failed_before: bool = False
    """It had failed before anybody looked: an evicted pod lies about for long."""
    scheduled: float | None = None
    since: dict[str, float] = field(default_factory=dict)
    """State → when it was first seen; gone when the state is."""
    events: dict[str, _Event] = field(default_factory=dict)
    """Event reason → the newest of it."""

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    def latest(self, *reasons: str) -> _Event:
        """The newest of these events; an empty one when there was none."""
        return max((self.events[reason] for reason in reasons if reason in self.events), default=_Event())


class Diagnosis:
    """One generation's way to readiness. `observe` what changes, then ask `ready`, `problem` and `progress`."""

    def __init__(
        self,
        deployment: str,
        namespace: str,
        patience: Patience,
        now: float,
        explain: Callable[[Symptom], Explanation | None] = lambda symptom: None,
    ):
        """explain: what the deployment's features know of a symptom."""
        self._name, self._namespace, self._patience, self._explain = deployment, namespace, patience, explain
        self._started = now
        self._deployment: Object = {}
        self._replica_sets: dict[str, Object] = {}
        self._pods: dict[str, _Pod] = {}
        self._early_events: dict[str, dict[str, _Event]] = {}
        self._events_seen = 0
        self._refused: tuple[float, str] | None = None
        self._disrupted = ""

    # -- what is seen ---------------------------------------------------------------------------------------

    def observe(self, change: str, item: Object, now: float) -> None:
        """An object of the generation, or an event of the namespace, was ADDED, MODIFIED or DELETED."""
        kind, uid = item["kind"], item["metadata"].get("uid", "")
        if kind == "Event":
            self._observe_event(item)
        elif kind == "Deployment":
            self._deployment = {} if change == "DELETED" else item
        elif kind == "ReplicaSet":
            self._replica_sets[uid] = item
            if change == "DELETED":
                del self._replica_sets[uid]
            self._observe_refusal(now)
        elif change == "DELETED":
            self._pods.pop(uid, None)
        else:
            self._observe_pod(uid, item, now)

    def _observe_event(self, event: Object) -> None:
        about = event.get("involvedObject") or event.get("regarding") or {}
        if about.get("kind") != "Pod":
            return
        when = max(
            str((event.get("series") or {}).get("lastObservedTime") or ""),
            str(
                event.get("lastTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp") or ""
            ),
        )
        self._events_seen += 1
        uid, reason = about.get("uid", ""), event.get("reason", "")
        message = event.get("message") or event.get("note") or ""
        events = self._pods[uid].events if uid in self._pods else self._early_events.setdefault(uid, {})
        events[reason] = max(events.get(reason, _Event()), _Event(when, self._events_seen, reason, message))

    def _observe_refusal(self, now: float) -> None:
        """Pods that the API server does not let the ReplicaSet make."""
        words = next(
            (
                condition.get("message", "")
                for replica_set in self._replica_sets.values()
                for condition in (replica_set.get("status") or {}).get("conditions") or []
                if condition["type"] == "ReplicaFailure" and condition["status"] == "True"
            ),
            "",
        )
        if not words:
            self._refused = None
        elif self._refused is None or self._refused[1] != words:
            self._refused = (self._refused[0] if self._refused else now, words)

    def _observe_pod(self, uid: str, item: Object, now: float) -> None:
        pod = self._pods.get(uid)
        if pod is None:
            failed_before = _phase(item) == "Failed"
            pod = self._pods[uid] = _Pod(item, now, failed_before, events=self._early_events.pop(uid, {}))
        pod.body = item
        if item["spec"].get("nodeName") and pod.scheduled is None:
            pod.scheduled = now
        disruption = _condition(item, "DisruptionTarget")
        evicted = _phase(item) == "Failed" and not pod.failed_before
        if disruption.get("status") == "True" or evicted:
            status = item["status"]
            reason = disruption.get("reason") or status.get("reason") or "Failed"
            words = disruption.get("message") or status.get("message") or ""
            self._disrupted = f"{pod.name} was taken away ({reason}{': ' if words else ''}{words})"

    # -- what it means --------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """All replicas of the present template are ready."""
        return bool(self._deployment) and replicas.rolled_out(self._deployment)

    def problem(self, now: float) -> Problem | None:
        """Why it will not become ready; None while it may."""
        if self._disrupted:
            return Problem(InconclusiveError, f"{self._disrupted}. Run again")
        if self._refused and now - self._refused[0] > self._patience.create:
            return self._refusal(self._refused[1])
        for pod in self._coming():
            found = self._problem_of(pod, now)
            if found:
                return found
        if not self._pods and now - self._started > self._patience.capacity:
            return Problem(
                InconclusiveError,
                f"no pod of {self._name} appeared within serving.capacity_timeout. See `kubectl -n {self._namespace} "
                "get events`",
            )
        return None

    def progress(self, now: float) -> str:
        """What is being waited for, for a reader."""
        if self._refused:
            return f"waiting: {self._refused[1]}"
        coming = self._coming()
        if not coming:
            return "the pods are ready" if any(pods.is_ready(pod.body) for pod in self._pods.values()) else _NO_PODS
        stages = [self._stage(pod, now) for pod in coming]
        more = f" ({len(coming)} pods are coming)" if len(coming) > 1 else ""
        return min(stages, key=lambda stage: stage[0])[1] + more

    def _coming(self) -> list[_Pod]:
        """Pods that are not ready, not going and not left from before."""
        return [
            pod
            for pod in self._pods.values()
            if not pod.failed_before
            and not pod.body["metadata"].get("deletionTimestamp")
            and not pods.is_ready(pod.body)
        ]

    def _problem_of(self, pod: _Pod, now: float) -> Problem | None:
        if pod.scheduled is None:
            return self._without_node(pod, now)
        for container in _containers(pod.body):
            found = self._in_container(pod, container, now)
            if found:
                return found
        if not _started(pod.body):
            found = self._in_mount(pod, now)
            if found:
                return found
        if now - pod.scheduled > self._patience.ready:
            return self._too_slow(pod)
        return None

    # -- no node --------------------------------------------------------------------------------------------

    def _without_node(self, pod: _Pod, now: float) -> Problem | None:
        scheduled = _condition(pod.body, "PodScheduled")
        if _lasts(pod, "gated", scheduled.get("reason") == "SchedulingGated", now, self._patience.mount):
            if known := self._explain(Symptom("gated", pod.name)):
                return Problem(known.error, known.message)
            return Problem(InconclusiveError, f"{pod.name} is held back by {_gates(pod)}, which nobody has opened")
        event = pod.latest("TriggeredScaleUp", "NotTriggerScaleUp", "FailedScaleUp")
        for its, patience in (("NotTriggerScaleUp", self._patience.declined), ("FailedScaleUp", self._patience.failed)):
            if _lasts(pod, its, event.reason == its, now, patience):
                return self._no_capacity(pod, event.message)
        if now - pod.seen > self._patience.capacity:
            waited = f"no node within serving.capacity_timeout ({self._patience.capacity:.0f} s)"
            return self._no_capacity(
                pod, "; ".join(filter(None, [waited, event.message, scheduled.get("message", "")]))
            )
        return None

    def _no_capacity(self, pod: _Pod, words: str) -> Problem:
        if known := self._explain(Symptom("no-node", pod.name, words)):
            return Problem(known.error, known.message)
        return Problem(
            InconclusiveError,
            f"no capacity for {pod.name}: {words}. Try another accelerator or location, ask for quota "
            f"(`gcloud compute regions describe REGION`), or wait longer (serving.capacity_timeout)",
        )

    # -- with a node ----------------------------------------------------------------------------------------

    def _in_container(self, pod: _Pod, container: Object, now: float) -> Problem | None:
        name, state = container["name"], container.get("state") or {}
        waiting, ended = state.get("waiting") or {}, state.get("terminated") or {}
        last = ended or (container.get("lastState") or {}).get("terminated") or {}
        if found := self._in_pull(pod, container, waiting, now) or self._in_making(pod, name, waiting, now):
            return found
        if last.get("reason") == "OOMKilled":
            return self._out_of_memory(pod, name)
        if not ended and waiting.get("reason") != "CrashLoopBackOff":
            return None
        # The first end may be an accident: the kubelet starts it again at once. The second is a loop.
        restarted = container.get("restartCount", 0) >= 1
        if last.get("reason") in ("StartError", "ContainerCannotRun"):
            return self._cannot_start(pod, name, last.get("message", last["reason"]), again=restarted)
        return self._keeps_ending(pod, name, last) if restarted and last.get("exitCode") else None

    def _in_making(self, pod: _Pod, name: str, waiting: Object, now: float) -> Problem | None:
        """A container that the kubelet or its runtime does not get to run."""
        reason = waiting.get("reason", "")
        stuck = reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
        lasts = _lasts(pod, f"{name}: making", stuck, now, self._patience.create)
        if not stuck:
            return None
        words = waiting.get("message") or reason
        known = self._explain(Symptom("words", pod.name, words))
        if known and (known.at_once or lasts):
            return Problem(known.error, f"{known.message}: {words}", pod.name)
        if reason == "CreateContainerConfigError":
            return Problem(RequestError, f"container {name} of {pod.name} cannot be made: {words}") if lasts else None
        return self._cannot_start(pod, name, words, again=lasts)

    def _cannot_start(self, pod: _Pod, name: str, words: str, *, again: bool) -> Problem | None:
        """What the runtime said of a container's start. Its image is the release's; all else is the node's, and may
        pass when it is tried again."""
        described = f"container {name} of {pod.name} cannot be started: {words}"
        if name in names.SERVER_CONTAINERS and _NOT_IN_THE_IMAGE.search(words):
            return Problem(ReleaseError, described)
        if not again:
            return None
        if known := self._explain(Symptom("words", pod.name, words)):
            return Problem(known.error, f"{known.message}: {described}")
        return Problem(InconclusiveError, f"{described}. Run again; another node may do it")

    def _keeps_ending(self, pod: _Pod, name: str, last: Object) -> Problem:
        code = last["exitCode"]
        if name not in names.SERVER_CONTAINERS:
            said = (last.get("message") or "").strip() or f"exit code {code}"
            message = f"container {name} of {pod.name} keeps ending: {said}"
            if known := self._explain(Symptom("words", pod.name, said, name)):
                return Problem(known.error, f"{known.message}: {message}", pod.name, name)
            return Problem(InconclusiveError, message, pod.name, name)
        node = pod.body["spec"].get("nodeName", "its node")
        if by := killed(code, limit=_memory_limit(pod, name), node=node):
            message = f"the engine of {pod.name} keeps being killed (exit code {code}): {by}"
            return Problem(InconclusiveError, message, pod.name, name)
        return Problem(ReleaseError, f"the engine ends with exit code {code}", pod.name, name)

    def _in_pull(self, pod: _Pod, container: Object, waiting: Object, now: float) -> Problem | None:
        reason, image, name = waiting.get("reason", ""), container.get("image", ""), container["name"]
        if reason == "InvalidImageName":
            return Problem(RequestError, f"{image!r} is not an image's name: {waiting.get('message', '')}")
        pulling = reason in ("ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "ImageInspectError")
        lasts = _lasts(pod, f"{name}: pull", pulling, now, self._patience.pull)
        if not pulling:
            return None
        # "Back-off pulling image" alone says nothing; the event or the state before it had the registry's words.
        failed = pod.latest("Failed").message
        said = failed if failed.startswith("Failed to pull") else waiting.get("message", "")
        if re.search(r"not found|manifest unknown|does not exist|name unknown", said, re.IGNORECASE):
            setting = "engine.image" if name == names.SERVER_CONTAINER else "images.components"
            return Problem(RequestError, f"the image {image} does not exist: {said}. Set {setting}, or images.registry")
        if not lasts:
            return None
        if re.search(r"denied|unauthorized|forbidden|\b40[13]\b", said, re.IGNORECASE):
            return Problem(
                AccessError,
                f"the nodes may not pull {image}: {said}. Grant their service account roles/artifactregistry.reader",
            )
        return Problem(InconclusiveError, f"{image} could not be pulled for {self._patience.pull:.0f} s: {said}")

    def _in_mount(self, pod: _Pod, now: float) -> Problem | None:
        words = pod.latest("FailedMount", "FailedAttachVolume").message
        account = pod.body["spec"].get("serviceAccountName", "default")
        known = self._explain(Symptom("mount", pod.name, words, service_account=account)) if words else None
        lasts = _lasts(pod, "mount", bool(words), now, self._patience.mount)
        if known and (known.at_once or lasts):
            return Problem(known.error, known.message)
        return Problem(InconclusiveError, f"{pod.name} cannot mount its volume: {words}") if lasts else None

    def _out_of_memory(self, pod: _Pod, container: str) -> Problem:
        """How large the pod is, the settings say and not the release: so it is not held guilty."""
        limit = f"container {container} of {pod.name} was killed for want of memory (OOMKilled): its limit is "
        if known := self._explain(Symptom("out-of-memory", pod.name, container=container)):
            cure = known.message
        elif container in names.SERVER_CONTAINERS:
            cure = (
                "accelerator.memory sets it (engine.gpu_memory_utilization and engine.max_model_len are about the "
                "card's memory, not this)"
            )
        else:
            cure = "`patches` in the settings can raise it"
        return Problem(InconclusiveError, f"{limit}{_memory_limit(pod, container)}, and {cure}", pod.name, container)

    def _too_slow(self, pod: _Pod) -> Problem:
        limit = f"serving.ready_timeout ({self._patience.ready:.0f} s)"
        if _running(pod.body):
            if known := self._explain(Symptom("slow", pod.name)):
                message = f"{known.message}: the engine did not become ready within {limit}"
                return Problem(known.error, message, pod.name)
            return Problem(ReleaseError, f"the engine did not become ready within {limit}", pod.name)
        stage = self._stage(pod, 0)[1]
        return Problem(InconclusiveError, f"{pod.name} did not start its engine within {limit}: {stage}")

    def _refusal(self, words: str) -> Problem:
        described = f"the cluster does not let pods of {self._name} be made: {words}"
        if may_pass(words):
            return Problem(InconclusiveError, described)
        if known := self._explain(Symptom("refused", self._name, words)):
            return Problem(known.error, f"{known.message}: {described}")
        return Problem(
            RequestError, f"{described}. `patches`, `labels` and `annotations` in the settings can meet its rules"
        )

    # -- for a reader ---------------------------------------------------------------------------------------

    def _stage(self, pod: _Pod, now: float) -> tuple[int, str]:
        """(how far, what is being waited for)."""
        if pod.scheduled is None:
            scheduled = _condition(pod.body, "PodScheduled")
            if scheduled.get("reason") == "SchedulingGated":
                return 0, f"held back by {_gates(pod)}"
            event = pod.latest("TriggeredScaleUp", "NotTriggerScaleUp", "FailedScaleUp")
            if event.reason == "TriggeredScaleUp":
                return 1, "waiting for a node (scale-up announced)"
            return 0, f"waiting for a node{': ' if event.message else ''}{event.message}"
        running = _running(pod.body)
        if running:
            return 4, f"loading the model, {max(0, now - pod.since.setdefault('running', now)):.0f} s"
        pod.since.pop("running", None)
        if "terminated" in (_server(pod.body).get("state") or {}):
            return 4, "the engine has ended; Kubernetes starts it once more"
        if name := _initializing(pod.body):
            return 3, f"container {name} prepares the engine's start"
        if words := pod.latest("FailedMount", "FailedAttachVolume").message:
            return 2, f"mounting the volume: {words}"
        pull = pod.latest("Pulling", "Pulled").reason
        if pull == "Pulling":
            return 3, f"pulling the image, {now - pod.scheduled:.0f} s"
        if pull == "Pulled":
            return 3, "the image is there, the container is about to start"
        return 2, "the pod has a node, its volumes are being mounted"


def _lasts(pod: _Pod, state: str, holds: bool, now: float, patience: float) -> bool:
    """Whether the pod has been in a state for longer than patience; forgets it when the state is over."""
    if not holds:
        pod.since.pop(state, None)
        return False
    return now - pod.since.setdefault(state, now) > patience


def _memory_limit(pod: _Pod, container: str) -> str:
    containers = [*pod.body["spec"].get("containers", []), *pod.body["spec"].get("initContainers", [])]
    spec: Object = next((entry for entry in containers if entry["name"] == container), {})
    return str(((spec.get("resources") or {}).get("limits") or {}).get("memory", "what the node has"))


def _gates(pod: _Pod) -> str:
    gates = [gate["name"] for gate in pod.body["spec"].get("schedulingGates") or []]
    return f"the scheduling gate {', '.join(gates)}" if gates else "a scheduling gate"


def _phase(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase", ""))


def _condition(item: Object, kind: str) -> Object:
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((condition for condition in conditions if condition["type"] == kind), {})


def _containers(pod: Object) -> list[Object]:
    """Statuses of all containers, sidecars (which are init containers) first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _started(pod: Object) -> bool:
    """Whether the engine's container has run: its volumes are there then."""
    server = _server(pod)
    return _running(pod) or bool(server.get("lastState") or server.get("restartCount"))


def _running(pod: Object) -> bool:
    return "running" in (_server(pod).get("state") or {})


def _initializing(pod: Object) -> str:
    """The init container that runs now; empty without one. A sidecar is none: it does not end."""
    sidecars = {spec["name"] for spec in pod["spec"].get("initContainers", []) if spec.get("restartPolicy") == "Always"}
    statuses = (pod.get("status") or {}).get("initContainerStatuses") or []
    running = [status["name"] for status in statuses if "running" in (status.get("state") or {})]
    return next((name for name in running if name not in sidecars), "")


def _server(pod: Object) -> Object:
    """The status of the engine's container; empty before there is one."""
    return next((container for container in _containers(pod) if container["name"] == names.SERVER_CONTAINER), {})
