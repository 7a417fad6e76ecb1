"""The step that sees a new generation get pods under load and give them back: queue, metric, adapter, autoscaler, node.

Most of what can go wrong there is nobody's release: a metric that does not arrive, a node that does not come. The
release is guilty only of an engine that does not say how many requests wait.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from components.verify_autoscaling.load import Plan
from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import autoscaling, pods, record, replicas
from serving.deployment.job import Watch, argument, running_job
from serving.deployment.record import Record, Scaled
from serving.errors import InconclusiveError, ReleaseError, RequestError
from serving.features import queue_hpa
from serving.log import Say
from serving.outcome import Outcome
from serving.rendering import engine
from serving.settings import Settings, in_seconds
from serving.step import opened
from serving.weights.release import Release

ONE_CORE = {"cpu": "1", "memory": "1Gi"}
"""What the load generator needs: on Autopilot a request is a limit too."""
_SAY_EVERY_SECONDS = 15
_LAG_SECONDS = 300
"""How long the end of the load may take to be seen: requests to end, a scrape, Cloud Monitoring, the autoscaler."""


def run(settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]) -> tuple[bool, list[str]]:
    """Verifies the autoscaling of the release's generation. Returns the verdict so far and its reasons."""
    with opened("verify_autoscaling", settings, release) as step:
        outcome, config, target = step.outcome, step.settings, step.release
        if not passed:
            outcome.skipped("nothing is loaded: the release has failed already")
            return False, reasons
        with step.cluster() as cluster:
            known = record.read(cluster, config)
            if why := needless(config, target, known):
                outcome.skipped(why)
                return passed, reasons
            step.bring_up_again(cluster)
            reasons = verify(cluster, config, target, outcome)
            if not reasons and outcome.status == "succeeded":
                known.scaled = Scaled(
                    generation=target.generation,
                    at=record.now(),
                    run_id=target.run_id,
                    settings=subject_of(config, target),
                )
                known.write(cluster, config)
            if reasons:
                outcome.failed(ReleaseError("; ".join(reasons)))
    return not reasons, reasons


def needless(settings: Settings, release: Release, known: Record) -> str:
    """Why nothing is to be verified, in words; empty when it is."""
    section = settings.section("queue-hpa")
    if not section.verify:
        return "nothing is loaded: queue_hpa.verify is false"
    if release.generation == release.live:
        return f"nothing is loaded: {release.generation} serves already"
    if section.max_replicas == settings.serving.replicas:
        return f"nothing is loaded: there are always {section.max_replicas} pods"
    seen = known.scaled
    if seen and seen.settings == subject_of(settings, release):
        return (
            f"nothing is loaded: {seen.generation} was seen to scale at {seen.at} (run {seen.run_id}) with these "
            "settings, flags and accelerators"
        )
    return ""


def subject_of(settings: Settings, release: Release) -> str:
    """Digest of all that autoscaling hangs on: how the deployment scales, the engine's flags, the accelerator."""
    subject = {
        "scaling": settings.section("queue-hpa").model_dump(),
        "least": settings.serving.replicas,
        "image": engine.pod_image(settings, release),
        "flags": engine.engine_flags(settings, release),
        "accelerator": engine.accelerator(settings, release),
    }
    return hashlib.sha256(json.dumps(subject, sort_keys=True).encode()).hexdigest()[:16]


@dataclass
class Seen:
    """A generation's autoscaler and its pods, as the watch tells them."""

    server: str
    autoscaler: Object = field(default_factory=dict)
    deployment: Object = field(default_factory=dict)
    pods: dict[str, Object] = field(default_factory=dict)

    def take(self, change: tuple[str, Object] | None) -> None:
        """Notes a change, of whatever object."""
        event, item = change or ("", {"kind": ""})
        kind = item["kind"]
        if kind == "Pod" and item["metadata"]["labels"].get(names.GENERATION) == names.generation_of(self.server):
            self.pods[item["metadata"]["name"]] = item
            if event == "DELETED":
                del self.pods[item["metadata"]["name"]]
        elif kind in (autoscaling.KIND, "Deployment") and item["metadata"]["name"] == self.server:
            if kind == "Deployment":
                self.deployment = item
            else:
                self.autoscaler = {} if event == "DELETED" else item

    @property
    def wanted(self) -> int:
        """The pods that there are to be."""
        return replicas.wanted(self.deployment) if self.deployment else 0

    @property
    def ready(self) -> int:
        return replicas.answering(self.deployment)

    @property
    def there(self) -> int:
        """The pods that there are, ready or not, and do not go yet."""
        return int((self.deployment.get("status") or {}).get("replicas", 0))

    @property
    def knows_the_metric(self) -> bool:
        return self._condition("ScalingActive").get("status") == "True"

    @property
    def words(self) -> str:
        """What the autoscaler says of itself."""
        said = [self._condition(kind) for kind in ("AbleToScale", "ScalingActive", "ScalingLimited")]
        return "; ".join(f"{each['reason']}: {each.get('message', '')}" for each in said if each.get("reason")) or (
            "nothing yet" if self.autoscaler else "it is not there"
        )

    @property
    def waits_for(self) -> str:
        """Why a pod has no node, or no server yet; empty when nobody says."""
        for pod in self.pods.values():
            for condition in (pod.get("status") or {}).get("conditions") or []:
                if condition["type"] == "PodScheduled" and condition["status"] != "True":
                    return f"{pod['metadata']['name']} has no node ({condition.get('message', '')})"
        return ""

    def _condition(self, kind: str) -> Object:
        found = [c for c in (self.autoscaler.get("status") or {}).get("conditions") or [] if c["type"] == kind]
        return found[0] if found else {}


def verify(cluster: Cluster, settings: Settings, release: Release, outcome: Outcome) -> list[str]:
    """Why the release cannot be scaled; nothing when it was seen to be, or could not grow because it has all its pods.

    Raises InconclusiveError when metric, autoscaler or node did not do their part, RequestError for settings under
    which no queue comes about.
    """
    seen = Seen(names.server(release.generation))
    wait_for_metric(cluster, settings, seen, outcome.say)
    before = seen.wanted
    if before >= settings.section("queue-hpa").max_replicas:
        outcome.skipped(f"nothing is loaded: all {before} pods that may be are there, as many as serve now")
        return []
    with loading(cluster, settings, release, seen, outcome.say) as job:
        try:
            grown = wait_for_growth(cluster, settings, job, seen, outcome.say)
        except ReleaseError as error:
            return [str(error)]
    outcome.details["autoscaling"] = grown
    gone = wait_for_fewer(cluster, settings, seen, before, outcome.say)
    outcome.details["autoscaling"] |= {"back_to": before, "gone_seconds": gone}
    pods = f"{grown['from']} pod{'' if grown['from'] == 1 else 's'} became {grown['to']}"
    outcome.succeeded(
        f"{pods}: asked for {grown['asked_seconds']:.0f} s after the load began, ready after "
        f"{grown['ready_seconds']:.0f} s; back to {before} {gone:.0f} s after it ended"
    )
    return []


def wait_for_metric(cluster: Cluster, settings: Settings, seen: Seen, say: Say) -> None:
    """Until the autoscaler knows the queue. Raises InconclusiveError when it does not in time."""
    section = settings.section("queue-hpa")
    metric = queue_hpa.metric_name(settings, seen.server)
    deadline = time.monotonic() + in_seconds(section.metric_timeout)
    tell = _every(
        say,
        lambda: (
            f"the autoscaler does not know {metric} yet: after a first pod, that can take ten minutes ({seen.words})"
        ),
    )
    with cluster.follow(*_subjects(settings, seen.server)) as changes:
        for change in changes.until(deadline):
            seen.take(change)
            if seen.knows_the_metric and seen.deployment:
                return
            tell()
    raise InconclusiveError(
        f"the autoscaler {seen.server} did not learn of {metric} within queue_hpa.metric_timeout "
        f"({section.metric_timeout}): {seen.words}. {_who_brings_it(settings)}"
    )


def loading(cluster: Cluster, settings: Settings, release: Release, seen: Seen, say: Say) -> Any:
    """The Job that lets the queue grow, for as long as the block runs."""
    section = settings.section("queue-hpa")
    addresses = pods.addresses(cluster, settings, release.generation)
    if not addresses:
        raise InconclusiveError(f"{seen.server} has no pod to be loaded. Run again")
    plan = Plan(
        url=names.server_url(settings, release.generation),
        model=settings.model,
        addresses=addresses,
        # Well above the target, so that no tolerance hides it.
        waiting=2 * section.target * len(addresses),
        requests=section.verify_requests,
        request_seconds=in_seconds(settings.serving.request_timeout),
    )
    say(f"loading {seen.server} until more than {section.target} requests wait for each pod")
    return running_job(
        cluster,
        settings,
        step="verify-autoscaling",
        run_id=release.run_id,
        generation=release.generation,
        args=["-m", "components.verify_autoscaling", argument(plan)],
        image=engine.component_image(settings),
        timeout=_load_seconds(settings),
        say=say,
        env=engine.api_key(settings),
        resources=ONE_CORE,
    )


def wait_for_growth(cluster: Cluster, settings: Settings, job: Watch, seen: Seen, say: Say) -> dict[str, Any]:
    """Until the autoscaler has asked for more pods, and one more is ready. Returns `{"from", "to", "asked_seconds",
    "ready_seconds"}`, seconds since the load began.

    Raises ReleaseError for an engine that does not say how many requests wait, RequestError when none do,
    InconclusiveError when no pod is asked for in time, or none comes.
    """
    serving, patience = settings.serving, in_seconds(settings.section("queue-hpa").growth_timeout)
    capacity = in_seconds(serving.capacity_timeout)
    wanted, ready = seen.wanted, seen.ready
    loaded_at = asked_at = 0.0
    deadline = time.monotonic() + capacity
    tell = _every(say, lambda: f"{seen.ready} of {seen.wanted} pods are ready; {seen.waits_for or seen.words}")
    with cluster.follow(*job.subjects, *_subjects(settings, seen.server)) as changes:
        for change in changes.until(time.monotonic() + _load_seconds(settings)):
            now = time.monotonic()
            seen.take(change)
            job.look(change)
            if job.end is not None:
                _judge_end(settings, job)
            if not loaded_at and job.began:
                loaded_at, deadline = now, now + patience
            if loaded_at and not asked_at and seen.wanted > wanted:
                asked_at, deadline = now, now + capacity + in_seconds(serving.ready_timeout)
                say(f"the autoscaler asks for {seen.wanted} pods instead of {wanted}")
            if asked_at and seen.ready > ready:
                return {
                    "from": wanted,
                    "to": seen.wanted,
                    "asked_seconds": round(asked_at - loaded_at, 1),
                    "ready_seconds": round(now - loaded_at, 1),
                }
            if now > deadline:
                break
            tell()
    if asked_at:
        raise InconclusiveError(
            f"the autoscaler asked for {seen.wanted} pods, and {seen.ready} were ready in time "
            f"(serving.capacity_timeout, serving.ready_timeout): {seen.waits_for or 'nobody says why'}. Run again "
            "when there is capacity, or lower queue_hpa.max_replicas to what there is"
        )
    if not loaded_at:
        raise InconclusiveError(f"the load did not begin: {job.unended()}")
    raise InconclusiveError(
        f"requests waited, and the autoscaler {seen.server} asked for no more than {wanted} pods within "
        f"queue_hpa.growth_timeout: {seen.words}. {_who_brings_it(settings)}"
    )


def wait_for_fewer(cluster: Cluster, settings: Settings, seen: Seen, least: int, say: Say) -> float:
    """Until the pods that came have gone: the seconds that it took. Raises InconclusiveError when they do not go."""
    section, started = settings.section("queue-hpa"), time.monotonic()
    rounds = -(-max(0, seen.wanted - least) // section.scale_down_pods)
    patience = in_seconds(section.scale_down_window) + rounds * in_seconds(section.scale_down_period) + 2 * _LAG_SECONDS
    tell = _every(say, lambda: f"the load has ended; {seen.there} pods, to be {least}")
    with cluster.follow(*_subjects(settings, seen.server)) as changes:
        for change in changes.until(started + patience):
            seen.take(change)
            if seen.wanted <= least and seen.there <= least:
                return round(time.monotonic() - started, 1)
            tell()
    raise InconclusiveError(
        f"{seen.server} still has {seen.wanted} pods {patience:.0f} s after the load ended, instead of {least}: "
        f"{seen.words}. See `kubectl -n {settings.namespace} describe hpa {seen.server}`"
    )


def _judge_end(settings: Settings, job: Watch) -> None:
    """Raises what it means that the load ended by itself."""
    end = job.end
    if isinstance(end, Exception):
        raise end
    if end and "silent" in end:
        raise ReleaseError(f"the engine does not say how many requests wait, which scaling goes by: {end['silent']}")
    if end and "requests" in end:
        raise RequestError(
            f"with {end['requests']} requests at once at most {end['waiting']} wait, too few for the autoscaler to act "
            "on. Raise queue_hpa.verify_requests, or have the engine run fewer at once (max_num_seqs in "
            "engine.extra_args); queue_hpa.verify: false leaves it unseen"
        )
    raise InconclusiveError("the Job that loads the server was told to end by somebody else. Run again")


def _subjects(settings: Settings, server: str) -> tuple[Subject, ...]:
    pods = names.selector(settings, names.generation_of(server))
    return (
        Subject(autoscaling.KIND, settings.namespace, fields=f"metadata.name={server}"),
        Subject("Deployment", settings.namespace, fields=f"metadata.name={server}"),
        Subject("Pod", settings.namespace, labels=pods),
    )


def _load_seconds(settings: Settings) -> float:
    """The longest that the load may take: two waits for nodes, a start, and the autoscaler's own time."""
    serving = settings.serving
    return (
        2 * in_seconds(serving.capacity_timeout)
        + in_seconds(serving.ready_timeout)
        + in_seconds(settings.section("queue-hpa").growth_timeout)
    )


def _who_brings_it(settings: Settings) -> str:
    """Who is to be looked at when a metric does not arrive."""
    namespace, account = queue_hpa.ADAPTER
    describe = f"`kubectl -n {settings.namespace} describe hpa`"
    if settings.section("queue-hpa").adapter == "autoscaling-metric":
        return f"See {describe} and `kubectl -n {settings.namespace} get autoscalingmetrics -o yaml`, then run again"
    return (
        f"See {describe}, `kubectl -n {namespace} logs deployment/{account}`, and whether that has "
        "roles/monitoring.viewer (`gemma-pipelines bootstrap -f FILE` gives it); then run again"
    )


def _every(say: Say, words: Callable[[], str]) -> Callable[[], None]:
    """Says the words as they are then, now and again."""
    said_at = time.monotonic()

    def tell() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _SAY_EVERY_SECONDS:
            said_at = time.monotonic()
            say(words())

    return tell
