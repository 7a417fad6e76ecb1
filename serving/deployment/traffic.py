"""Moving a deployment's traffic from one generation to another, in order: bring up, switch, remember, drain, rest.
The autoscaler keeps as many pods as the old generation has until the traffic has moved.

What a person decided (a pin, its end) is remembered before the switch: no kill loses it.

A kill between any two of them leaves a server that serves, and the next run goes on from there: the entry says who
is live (record.py), and a kept generation that still runs is scaled down (leftovers.py).
"""

from __future__ import annotations

import time

from serving import names
from serving.clients.kubernetes import Cluster, ConflictError, Object, Subject
from serving.deployment import autoscaling, gateway, replicas
from serving.deployment.job import run_job
from serving.deployment.record import Record, backends, entry, serving_generation
from serving.errors import InconclusiveError, PipelineError, RequestError, ToldToEnd
from serving.log import Say
from serving.rendering import engine, render
from serving.settings import Settings, in_seconds

_SAYS_WHO_IS_LIVE = {"Service": ("selector", ""), "HTTPRoute": ("rules", "group: gateway.networking.k8s.io, ")}
"""Kind of an entry → the field of its spec that is the pipeline's alone, and the group as Argo CD wants it told."""


def move(cluster: Cluster, settings: Settings, record: Record, generation: str, *, run_id: str, say: Say) -> bool:
    """Makes `generation` the one that serves, where `record.live` serves now, by an entry as the settings have it.
    Returns False when all of that was so already.

    Raises RequestError when another field manager owns the entry, InconclusiveError when the generation does not come
    up or somebody else moved the traffic meanwhile.
    """
    before = record.live
    live = cluster.get("Deployment", names.server(before), settings.namespace) if before else None
    # Of one that made room (replacement.py), those that it had.
    as_many = record.down.replicas if record.down else replicas.answering(live)
    wanted = autoscaling.bounded(settings, generation, max(1, as_many))
    if before != generation:
        # It may have rested, or the live one have grown since: no autoscaler takes back what is brought up now.
        autoscaling.put(cluster, settings, generation, run_id, say, pods=wanted)
    bring_up(cluster, settings, generation, wanted, say)
    gateway.wait_for_picker(cluster, settings, generation, say)
    record.write(cluster, settings)
    gateway.follow(cluster, settings, generation, say)
    changed = _switch(cluster, settings, generation, expected=before)
    record.put_live(generation)
    record.serves_again(run_id)
    record.write(cluster, settings)
    if changed:
        instead = f", not to {before}" if before and before != generation else ""
        say(f"{settings.name} sends requests to {generation}{instead}")
    if before != generation or autoscaling.amiss(cluster, settings, generation):
        autoscaling.renew(cluster, settings, generation, run_id, say)
    if before and before != generation:
        try:
            _drain(cluster, settings, before, run_id=run_id, say=say)
        except ToldToEnd:
            # Its pods finish what they still run in the time that they have to end.
            rest(cluster, settings, before)
            raise
        rest(cluster, settings, before)
    return changed


def is_as_wanted(settings: Settings, generation: str, entry: Object | None) -> bool:
    """Whether an entry sends all requests to the generation, and is what promotion makes of the settings now: their
    patches, labels and exposure are part of it."""
    annotations = (entry or {}).get("metadata", {}).get("annotations") or {}
    wanted = render.digest_of([render.entry(settings, generation)])
    return backends(entry) == {generation} and annotations.get(names.SETTINGS) == wanted


def bring_up(cluster: Cluster, settings: Settings, generation: str, wanted: int, say: Say) -> None:
    """Waits until `wanted` pods of the generation are ready, after asking for them if it has fewer.

    Raises RequestError when the generation is not in the cluster, InconclusiveError when it is not ready in time.
    """
    name = names.server(generation)
    deployment = cluster.get("Deployment", name, settings.namespace)
    if deployment is None:
        raise RequestError(
            f"generation {generation} is not in the cluster. See which are: `kubectl -n {settings.namespace} get "
            f"deployments -l {names.selector(settings)}`"
        )
    if replicas.wanted(deployment) < wanted:
        say(f"scaling {name} to {wanted}, as many as serve now")
        replicas.scale(cluster, settings, generation, wanted)
    elif replicas.ready(deployment) >= wanted:
        return
    deadline = time.monotonic() + in_seconds(settings.serving.ready_timeout)
    with cluster.follow(Subject("Deployment", settings.namespace, fields=f"metadata.name={name}")) as changes:
        for change in changes.until(deadline):
            if change and replicas.ready(change[1]) >= wanted:
                return
    raise InconclusiveError(
        f"{name} has fewer than {wanted} ready pods after serving.ready_timeout ({settings.serving.ready_timeout}); "
        f"the traffic stays where it is. See `kubectl -n {settings.namespace} describe deployment {name}`"
    )


def rest(cluster: Cluster, settings: Settings, generation: str) -> None:
    """Scales a generation to zero; its volume and its Deployment stay, ready to come back."""
    if cluster.get("Deployment", names.server(generation), settings.namespace):
        replicas.scale(cluster, settings, generation, 0)
    gateway.scale_picker(cluster, settings, generation, 0)


def _switch(cluster: Cluster, settings: Settings, generation: str, *, expected: str) -> bool:
    """Sends all requests to `generation` if `expected` is still live. Returns False when the entry is as wanted."""
    for _ in range(5):
        body = render.entry(settings, generation)
        digest = render.digest_of([body])
        body["metadata"].setdefault("annotations", {})[names.SETTINGS] = digest
        there = entry(cluster, settings)
        serving = serving_generation(there)
        if is_as_wanted(settings, generation, there):
            return False
        if there and serving not in (expected, generation):
            raise InconclusiveError(
                f"somebody moved the traffic of {settings.namespace}/{settings.name} to {serving or 'no generation'} "
                f"while this run expected {expected or 'none'}. Run again"
            )
        if there:
            body["metadata"]["resourceVersion"] = there["metadata"]["resourceVersion"]
        try:
            cluster.apply(body, force=False)
        except ConflictError as error:
            owners = [c for c in error.details.get("causes") or [] if c.get("reason") == "FieldManagerConflict"]
            if owners:
                raise _owned_by_another(body, owners) from error
            continue  # The entry changed since it was read: look at it again.
        return True
    raise InconclusiveError(f"the {body['kind']} {settings.namespace}/{settings.name} changes all the time. Run again")


def _owned_by_another(entry: Object, causes: list[Object]) -> RequestError:
    said = "; ".join(f"{cause.get('field')}: {cause.get('message')}" for cause in causes)
    kind, name, namespace = entry["kind"], entry["metadata"]["name"], entry["metadata"]["namespace"]
    field, group = _SAYS_WHO_IS_LIVE[kind]
    return RequestError(
        f"the {kind} {namespace}/{name} is also managed by somebody else ({said}), who would move "
        f"the traffic back. Leave its spec.{field} to this pipeline: in Argo CD, `ignoreDifferences: [{{{group}kind: "
        f"{kind}, name: {name}, jsonPointers: [/spec/{field}]}}]` and the sync option RespectIgnoreDifferences=true; "
        "in Flux, annotate it `kustomize.toolkit.fluxcd.io/ssa: IfNotPresent`, or take it out of what Flux applies"
    )


def _drain(cluster: Cluster, settings: Settings, generation: str, *, run_id: str, say: Say) -> None:
    """Lets the old generation finish: until its requests reach zero, or `drain_seconds` pass.

    A Job asks, since only the cluster reaches the pods. When it cannot, the whole time is waited: the traffic has
    moved, and a promotion is not undone for want of a figure.
    """
    pods = cluster.list("Pod", settings.namespace, labels=names.selector(settings, generation))
    addresses = [pod["status"]["podIP"] for pod in pods if pod.get("status", {}).get("podIP")]
    seconds = settings.serving.drain_seconds
    if not addresses or not seconds:
        return
    say(f"draining {generation}: up to {seconds} s for the requests it still runs")
    started = time.monotonic()
    try:
        result = run_job(
            cluster,
            settings,
            step="promote-generation",
            run_id=run_id,
            generation=generation,
            args=["-m", "components.promote_generation", str(seconds), *addresses],
            image=engine.component_image(settings),
            timeout=seconds + 120,
            say=say,
        )
        say(f"drained {generation} in {result['seconds']:.1f} s, {result['running']} requests left")
    except PipelineError as error:
        say(f"cannot see whether {generation} is drained ({error}); waiting drain_seconds instead")
        time.sleep(max(0.0, seconds - (time.monotonic() - started)))
