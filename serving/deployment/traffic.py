"""Moving a deployment's traffic from one generation to another, in order: bring up, switch, remember, drain, rest.
The autoscaler keeps as many pods as the old generation has until the traffic has moved.

What a person decided (a pin, its end) is remembered before the switch: no kill loses it.

A kill between any two of them leaves a server that serves, and the next run goes on from there: the entry says who
is live (record.py), and a kept generation that still runs is scaled down (leftovers.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import autoscaling, canary, draining, entrance, gateway, replicas
from serving.deployment.record import Record, entry, serving_generation
from serving.errors import InconclusiveError, RequestError, ToldToEnd
from serving.log import Say
from serving.settings import Settings, in_seconds

Gradually = Callable[[str, str], None]
"""Takes the requests from one generation (the first) to another in steps, up to the last one. Raises ReleaseError or
InconclusiveError when they are the first one's again."""


def move(
    cluster: Cluster,
    settings: Settings,
    record: Record,
    generation: str,
    *,
    run_id: str,
    say: Say,
    gradually: Gradually | None = None,
) -> bool:
    """Makes `generation` the one that serves, where `record.live` serves now, by an entry as the settings have it:
    `gradually`, where there is one that can be. Returns False when all of that was so already.

    Raises RequestError when another field manager owns the entry or the generation cannot be behind it,
    InconclusiveError when the generation does not come up or somebody else moved the traffic meanwhile.
    """
    before = record.live
    if settings.has_gateway and not entrance.has_backend(cluster, settings, generation):
        raise RequestError(
            f"{generation} cannot be behind the Gateway {settings.namespace}/{settings.name}: it was made when the "
            "deployment had another entry, and requests would reach nobody. A run brings its release behind this one: "
            "`gemma-pipelines submit SCENARIO -f FILE` with its commit as revision"
        )
    live = cluster.get("Deployment", names.server(before), settings.namespace) if before else None
    # Of one that made room (replacement.py), those that it had.
    as_many = record.down.replicas if record.down else replicas.answering(live)
    wanted = autoscaling.bounded(settings, generation, max(1, as_many))
    if before != generation:
        # It may have rested, or the live one have grown since: no autoscaler takes back what is brought up now.
        autoscaling.put(cluster, settings, generation, run_id, say, pods=wanted)
    bring_up(cluster, settings, generation, wanted, say)
    record.write(cluster, settings)
    there = canary.going_on(cluster, settings)
    if there and there.candidate != generation:
        canary.put_back(cluster, settings, run_id=run_id, say=say)
    replaced = before if before != generation else ""
    # Who has no ready pod has no requests to share.
    if gradually and replaced and settings.has_gateway and replicas.answering(live):
        gradually(before, generation)
    gateway.follow(cluster, settings, generation, say)
    shares = {generation: 100}
    if replaced and settings.has_gateway and entry(cluster, settings):
        shares = {before: 0, generation: 100}  # Its requests are to end before a load balancer forgets it.
    changed = entrance.send(cluster, settings, shares, _still(settings, before, generation))
    try:
        record.put_live(generation)
        record.serves_again(run_id)
        record.write(cluster, settings)
        if changed:
            instead = f", not to {replaced}" if replaced else ""
            say(f"{settings.name} sends requests to {generation}{instead}")
        if before != generation or autoscaling.amiss(cluster, settings, generation):
            autoscaling.renew(cluster, settings, generation, run_id, say)
        if replaced:
            draining.drain(cluster, settings, before, run_id=run_id, say=say)
            if settings.has_gateway:
                canary.take_out(cluster, settings, generation)
    except ToldToEnd:
        if replaced:
            # Its pods finish what they still run in the time that they have to end.
            rest(cluster, settings, before)
        raise
    if replaced:
        rest(cluster, settings, before)
    return changed


def bring_up(cluster: Cluster, settings: Settings, generation: str, wanted: int, say: Say) -> None:
    """Waits until `wanted` pods of the generation are ready, and its endpoint picker where it has one, after asking for
    them if it has fewer.

    Raises RequestError when the generation is not in the cluster, InconclusiveError when it is not ready in time.
    """
    gateway.scale_picker(cluster, settings, generation)
    _bring_up_servers(cluster, settings, generation, wanted, say)
    gateway.wait_for_picker(cluster, settings, generation, say)


def _bring_up_servers(cluster: Cluster, settings: Settings, generation: str, wanted: int, say: Say) -> None:
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


def _still(settings: Settings, before: str, generation: str) -> Callable[[Object | None], None]:
    """Raises InconclusiveError when the entry says that another generation is live than the two that are expected."""

    def check(there: Object | None) -> None:
        serving = serving_generation(there)
        if serving not in (before, generation):
            raise InconclusiveError(
                f"somebody moved the traffic of {settings.namespace}/{settings.name} to {serving or 'no generation'} "
                f"while this run expected {before or 'none'}. Run again"
            )

    return check
