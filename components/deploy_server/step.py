"""The step that puts a generation's objects into the cluster and waits until its server is ready or has failed."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import Any

from components.deploy_server import warming, words
from components.deploy_server.diagnosis import Diagnosis, Patience, Problem
from serving import features, names
from serving.clients import google
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import adapters, autoscaling, gateway, objects, record, replacement, replicas
from serving.errors import InconclusiveError, PipelineError, ReleaseError, RequestError
from serving.features import Explanation, Symptom, inference_gateway
from serving.outcome import Outcome
from serving.rendering import render
from serving.settings import Settings, in_seconds
from serving.step import opened
from serving.weights.release import Release

LOG_LINES = 400
"""Enough of an engine's log: a traceback of the front end, some 40 lines, follows the cause."""
_SAY_EVERY_SECONDS = 5
_NODES_GO_SECONDS = 900
"""Where one generation makes room for another that its nodes do not suit (another disk image, say), the accelerators
are free when GKE has taken the idle nodes away, ten minutes later."""


def run(settings: dict[str, Any], release: dict[str, Any], passed: bool, reasons: list[str]) -> tuple[bool, list[str]]:
    """Deploys the release's generation. Returns the verdict so far with its reasons: handed on as it is when the
    release has failed already, (False, the cause) when it fails here."""
    with opened("deploy_server", settings, release) as step:
        if not passed:
            step.outcome.skipped("nothing is deployed: the release has failed already")
            return passed, reasons
        with step.cluster() as cluster:
            try:
                deploy(cluster, step.settings, step.release, step.outcome)
            except ReleaseError as error:
                step.outcome.failed(error)
                return False, [str(error)]
    return True, reasons


def deploy(
    cluster: Cluster, settings: Settings, release: Release, outcome: Outcome, patience: Patience | None = None
) -> None:
    """Applies what the generation needs, scales it and waits for it; says `skipped` when all of it is there and ready.

    Raises ReleaseError when the server cannot become ready, InconclusiveError when that teaches nothing about the
    release, RequestError and AccessError for what a person has to change.
    """
    rendered = render.render(settings, release)
    name = names.server(release.generation)
    there = cluster.get("Deployment", name, settings.namespace)
    _refuse_another_deployments(there, settings)
    warming.warm(cluster, settings, release, outcome)
    outcome.details |= {"generation": release.generation, "deployment": name}
    current = (there or {}).get("metadata", {}).get("annotations", {}).get(names.SETTINGS) == rendered.digest
    settled = there is not None and replicas.settled(settings, there)
    least = autoscaling.least(cluster, settings, release.live, release.generation)
    patience = patience or patience_of(settings)
    picked = gateway.picker_is_ready(cluster, settings, release.generation)
    changed = adapters.amiss(cluster, settings, release) if there else ""
    if there and current and settled and replicas.rolled_out(there) and picked and not changed:
        # Another attempt of a step that waited for the load balancer in vain must not pass for it.
        gateway.wait_until_well(cluster, settings, (), outcome.say)
        features.demand(settings, "arrived", release)
        _wait_for_adapters(cluster, settings, release, patience, outcome)
        outcome.skipped(f"{name} is there and ready")
        return
    features.demand(settings, "prepared", release, functools.partial(google.cluster_traits, settings))
    autoscaling.withdraw(cluster, settings, release.generation, outcome.say)
    for item in [*rendered.shared, *rendered.generation]:
        if item["metadata"]["name"] == name and item["kind"] == "Deployment" and settings.rollout == "replace":
            make_room(cluster, settings, release, item, outcome)
        objects.put(cluster, autoscaling.keeping(item, least), outcome.say)
    if not settled:
        replicas.scale(cluster, settings, release.generation, max(settings.serving.replicas, least))
    gateway.scale_picker(cluster, settings, release.generation)
    seconds = wait_until_ready(cluster, settings, name, outcome, patience)
    wait_for_picker(cluster, settings, release.generation, outcome, patience)
    # The load balancer is made meanwhile; what it says of the route is there after the first promotion.
    gateway.wait_until_well(cluster, settings, (), outcome.say)
    features.demand(settings, "arrived", release)
    _wait_for_adapters(cluster, settings, release, patience, outcome)
    outcome.succeeded(f"{name} is ready after {seconds:.0f} s")


def _wait_for_adapters(
    cluster: Cluster, settings: Settings, release: Release, patience: Patience, outcome: Outcome
) -> None:
    if settings.has_live_adapters:
        adapters.wait(cluster, settings, release, patience.ready, outcome.say)


def make_room(cluster: Cluster, settings: Settings, release: Release, server: Object, outcome: Outcome) -> None:
    """With accelerators for one generation: has the live one go before the server's first pod comes.

    Raises RequestError for a server that the cluster refuses, before anything is taken down for it.
    """
    known = record.read(cluster, settings)
    if release.generation == known.live:
        outcome.say("rollout: replace: pods that change in place go before their successors come")
        return
    objects.would_take(cluster, server)
    replacement.make_room(cluster, settings, known, release.generation, run_id=release.run_id, say=outcome.say)


def patience_of(settings: Settings) -> Patience:
    """The settings' two time-outs, and for the rest what Kubernetes needs."""
    serving = settings.serving
    patience = Patience(capacity=in_seconds(serving.capacity_timeout), ready=in_seconds(serving.ready_timeout))
    if settings.rollout == "beside":
        return patience
    return dataclasses.replace(patience, declined=_NODES_GO_SECONDS, failed=_NODES_GO_SECONDS)


def explain(settings: Settings, symptom: Symptom) -> Explanation | None:
    """What a symptom means: as the deployment's features know it, else as it is anywhere."""
    if symptom.pod.startswith(names.picker("")):
        return inference_gateway.explain(settings, symptom) or words.explain(symptom)
    return features.explain(settings, symptom) or words.explain(symptom)


def wait_for_picker(
    cluster: Cluster, settings: Settings, generation: str, outcome: Outcome, patience: Patience
) -> None:
    """Waits until the generation's endpoint picker is ready, where it has one. Whatever keeps it from that, the release
    is not why: raises InconclusiveError, RequestError or AccessError."""
    if not gateway.has_picker(settings) or gateway.picker_is_ready(cluster, settings, generation):
        return
    name, selector = names.picker(generation), names.picker_selector(settings, generation)
    patience = dataclasses.replace(patience, ready=in_seconds(settings.section("gateway").timeout))
    try:
        wait_until_ready(cluster, settings, name, outcome, patience, selector)
    except ReleaseError as error:
        raise InconclusiveError(f"the endpoint picker {name} does not become ready: {error}") from error


def wait_until_ready(
    cluster: Cluster, settings: Settings, name: str, outcome: Outcome, patience: Patience, selector: str = ""
) -> float:
    """Watches a Deployment until it is ready: returns the seconds it took. Raises what `deploy` says.

    selector: of its pods, if they are not a generation's servers.
    """
    started = time.monotonic()

    diagnosis = Diagnosis(name, settings.namespace, patience, started, functools.partial(explain, settings))
    selector = selector or names.selector(settings, names.generation_of(name))
    subjects = (
        Subject("Deployment", settings.namespace, fields=f"metadata.name={name}"),
        Subject("ReplicaSet", settings.namespace, labels=selector),
        Subject("Pod", settings.namespace, labels=selector),
        Subject("Event", settings.namespace),
    )
    said, said_at = "", 0.0
    # The diagnosis ends every wait by itself; this end is for a pod that comes and goes for ever.
    limit = started + 3 * (patience.capacity + patience.ready)
    with cluster.follow(*subjects) as changes:
        for change in changes.until(limit):
            now = time.monotonic()
            if change:
                diagnosis.observe(*change, now)
            if diagnosis.ready:
                return now - started
            if problem := diagnosis.problem(now):
                raise _explained(cluster, settings, problem, outcome)
            progress = diagnosis.progress(now)
            # The words before the first comma are the stage, the rest counts seconds.
            changed = progress.partition(",")[0] != said.partition(",")[0]
            if changed or now - said_at >= _SAY_EVERY_SECONDS:
                outcome.say(progress)
                said, said_at = progress, now
    raise InconclusiveError(f"{name} was never ready, though its pods came and went. Run again")


def _explained(cluster: Cluster, settings: Settings, problem: Problem, outcome: Outcome) -> PipelineError:
    """The problem as an error, with the container's own words where a pod has any. The end of its log goes into the
    outcome: the pod does not outlive the run."""
    if not problem.pod:
        return problem.error(problem.message)
    for previous in (False, True):
        log = cluster.log(
            problem.pod, settings.namespace, container=problem.container, tail=LOG_LINES, previous=previous
        )
        if words.cause(log):
            break
    error, message, said = problem.error, problem.message, words.cause(log)
    if error is ReleaseError:
        if known := explain(settings, Symptom("words", problem.pod, log)):
            error, message = known.error, f"{known.message}: {message}"
        elif not words.accuse(log):
            error, message = InconclusiveError, f"{message}, and its log does not say that the release is why"
    if not said:
        return error(message)
    outcome.details["log"] = words.lines(log)[-60:]
    return error(f"{message}: {said}. The run's report has the end of its log")


def _refuse_another_deployments(there: Object | None, settings: Settings) -> None:
    """Two deployments in one namespace may come to the same generation; its objects can belong to one alone."""
    owner = ((there or {}).get("metadata", {}).get("labels") or {}).get(names.DEPLOYMENT, settings.name)
    if owner != settings.name:
        raise RequestError(
            f"the deployment {owner} in namespace {settings.namespace} serves the same generation already. Call its "
            f"Service, or give this deployment a namespace of its own"
        )
