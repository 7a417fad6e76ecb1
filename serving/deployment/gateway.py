"""The Gateway that clients come in by, as the cluster says it is: its address, what its controller says of it, its
generations' endpoint pickers, and what follows the live generation.

A missing picker shows in the status of its InferencePool alone: route and Gateway say that all is well.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from serving import names
from serving.clients.kubernetes import Cluster, Object, Subject
from serving.deployment import objects, replicas
from serving.errors import InconclusiveError
from serving.log import Say
from serving.rendering import render
from serving.settings import Settings, in_seconds

_PICKED = "inference-gateway"
_OBJECTIVE = "InferenceObjective"
_SAY_EVERY_SECONDS = 30
_CURES = {
    "InvalidKind": ": the cluster does not take such a backend; see `kubectl api-resources --api-group "
    "inference.networking.k8s.io`",
    "BackendNotFound": ": somebody took the generation away; run again",
    "InvalidExtensionRef": ": the Service of its endpoint picker is missing; run again",
}
"""Reason of a condition → what it means here and what helps."""


def has_picker(settings: Settings) -> bool:
    """Whether the deployment's generations have endpoint pickers."""
    return _PICKED in settings.chosen_features


# -- what its controller says -------------------------------------------------------------------------------


def problems(cluster: Cluster, settings: Settings, generations: Collection[str] = ()) -> list[str]:
    """What keeps requests from `generations` (those that the route gives weight) by the statuses of Gateway, route and
    InferencePools, a line each with the controller's own words; empty when all is well, and without a Gateway.

    A route that is not there yet, before the first promotion, is no problem.
    """
    if not settings.has_gateway:
        return []
    found = list(_of_gateway(settings, cluster.get("Gateway", settings.name, settings.namespace)))
    if route := cluster.get("HTTPRoute", settings.name, settings.namespace):
        found += _of_parents(settings, route)
    if has_picker(settings):
        for generation in generations:
            name = names.server(generation)
            pool = cluster.get("InferencePool", name, settings.namespace)
            found += _of_parents(settings, pool) if pool else [f"InferencePool {name} is not there: run again"]
    return found


def of_route(cluster: Cluster, settings: Settings, name: str) -> list[str]:
    """What the Gateway's controller has against a route, a line each."""
    route = next(iter(cluster.list("HTTPRoute", settings.namespace, fields=f"metadata.name={name}")), None)
    return list(_of_parents(settings, route)) if route else [f"HTTPRoute {name} is not there"]


def address(cluster: Cluster, settings: Settings) -> str:
    """Where the Gateway is, `http://ADDRESS` or `https://ADDRESS`; empty while it has no address."""
    gateway = cluster.get("Gateway", settings.name, settings.namespace) if settings.has_gateway else None
    addresses = _status(gateway).get("addresses") or []
    if not addresses:
        return ""
    listener = (gateway or {})["spec"]["listeners"][0]
    scheme, usual = ("https", 443) if listener["protocol"] == "HTTPS" else ("http", 80)
    port = "" if listener["port"] == usual else f":{listener['port']}"
    return f"{scheme}://{addresses[0]['value']}{port}"


def called(cluster: Cluster, settings: Settings) -> str:
    """What clients call: the Gateway's `address`, or by the name that the settings have for it; empty while it has no
    address."""
    found, host = address(cluster, settings), settings.section("gateway").host if settings.has_gateway else ""
    scheme, slashes, place = found.partition("//")
    _, colon, port = place.partition(":")
    return f"{scheme}{slashes}{host}{colon}{port}" if found and host else found


def wait_until_well(cluster: Cluster, settings: Settings, generations: Collection[str], say: Say) -> None:
    """Waits until the statuses say that requests reach `generations`. Raises InconclusiveError with what they say after
    gateway.timeout: a load balancer that is not made says nothing about a release."""
    if not settings.has_gateway:
        return
    subjects = [Subject("Gateway", settings.namespace, fields=f"metadata.name={settings.name}")]
    timeout = settings.section("gateway").timeout
    left = problems(cluster, settings, generations)
    said_at = 0.0
    if left:
        with cluster.follow(*subjects) as changes:
            for _ in changes.until(time.monotonic() + in_seconds(timeout)):
                if not (left := problems(cluster, settings, generations)):
                    break
                if time.monotonic() - said_at > _SAY_EVERY_SECONDS:
                    say(f"waiting for the load balancer: {left[0]}")
                    said_at = time.monotonic()
    if left:
        raise InconclusiveError(
            f"the Gateway {settings.namespace}/{settings.name} lets no requests through after gateway.timeout "
            f"({timeout}): {'; '.join(left)}. See `kubectl -n {settings.namespace} describe gateway {settings.name}`"
        )


def _of_gateway(settings: Settings, gateway: Object | None) -> Iterator[str]:
    if gateway is None:
        yield f"Gateway {settings.name} is not there: run again"
        return
    found = list(_untrue(gateway, _status(gateway).get("conditions") or [], ("Accepted", "Programmed")))
    yield from found
    if not found and not _status(gateway).get("addresses"):
        yield f"Gateway {settings.name} has no address"


def _of_parents(settings: Settings, item: Object) -> Iterator[str]:
    """What the controllers of the item's Gateways say of it."""
    parents = [
        parent for parent in _status(item).get("parents") or [] if parent["parentRef"].get("name") == settings.name
    ]
    if not parents:
        yield (
            f"{_called(item)} has no status: the Gateway {settings.name} has not taken it, or there is none of its "
            "class"
        )
    for parent in parents:
        yield from _untrue(item, parent.get("conditions") or [], ("Accepted", "ResolvedRefs"))


def _untrue(item: Object, conditions: Iterable[Object], wanted: tuple[str, ...]) -> Iterator[str]:
    """Those conditions that do not hold of the item as it is now."""
    known = {condition["type"]: condition for condition in conditions}
    now = item["metadata"].get("generation", 0)
    for kind in wanted:
        condition = known.get(kind)
        if condition is None or condition.get("observedGeneration", now) < now:
            yield f"{_called(item)}: nobody has said yet whether it is {kind}"
        elif condition["status"] != "True":
            reason, words = condition.get("reason", ""), condition.get("message", "").rstrip(".")
            said = f"{reason}{': ' if words else ''}{words}"
            yield f"{_called(item)} is not {kind} ({said}){_CURES.get(reason, '')}"


def _called(item: Object) -> str:
    return f"{item['kind']} {item['metadata']['name']}"


def _status(item: Object | None) -> dict[str, Any]:
    return (item or {}).get("status") or {}


# -- endpoint pickers ---------------------------------------------------------------------------------------


def scale_picker(cluster: Cluster, settings: Settings, generation: str, pods: int | None = None) -> None:
    """Sets how many endpoint pickers a generation has; left out, as many as the settings say. Does nothing where it has
    none."""
    if not has_picker(settings) or not (there := _picker(cluster, settings, generation)):
        return
    wanted = _wanted_pickers(settings) if pods is None else pods
    if replicas.wanted(there) != wanted or "replicas" not in there["spec"]:
        body = {"spec": {"replicas": wanted}}
        cluster.patch("Deployment", names.picker(generation), settings.namespace, body, subresource="scale")


def picker_is_ready(cluster: Cluster, settings: Settings, generation: str) -> bool:
    """Whether a generation has as many endpoint pickers as it is to have, ready; so where it needs none."""
    if not has_picker(settings):
        return True
    there = _picker(cluster, settings, generation)
    return there is not None and replicas.rolled_out(there) and replicas.wanted(there) == _wanted_pickers(settings)


def wait_for_picker(cluster: Cluster, settings: Settings, generation: str, say: Say) -> None:
    """Brings a generation's endpoint pickers up, one that has rested say, and waits until they are ready. Raises
    InconclusiveError after gateway.timeout."""
    if picker_is_ready(cluster, settings, generation):
        return
    scale_picker(cluster, settings, generation)
    name, timeout = names.picker(generation), settings.section("gateway").timeout
    say(f"waiting for the endpoint picker {name}")
    subject = Subject("Deployment", settings.namespace, fields=f"metadata.name={name}")
    with cluster.follow(subject) as changes:
        for change in changes.until(time.monotonic() + in_seconds(timeout)):
            if change and picker_is_ready(cluster, settings, generation):
                return
    raise InconclusiveError(
        f"the endpoint picker {name} is not ready after gateway.timeout ({timeout}), and without it no request is "
        f"answered. See `kubectl -n {settings.namespace} describe deployment {name}`"
    )


def _picker(cluster: Cluster, settings: Settings, generation: str) -> Object | None:
    return cluster.get("Deployment", names.picker(generation), settings.namespace)


def _wanted_pickers(settings: Settings) -> int:
    return int(settings.section(_PICKED).picker_replicas)


# -- what follows the live generation -----------------------------------------------------------------------


def follow(cluster: Cluster, settings: Settings, generation: str, say: Say) -> None:
    """Has what clients know by a name that stays be of this generation: to be called before the route gives it all
    requests. Takes away what the settings have no more."""
    wanted = render.followers(settings, generation)
    for item in wanted:
        if _differs(cluster, item):
            objects.put(cluster, item, say)
    for item in _no_longer_wanted(cluster, settings, wanted):
        if cluster.delete(item):
            say(f"deleted {item['kind']}/{item['metadata']['name']}")


def amiss(cluster: Cluster, settings: Settings, generation: str) -> str:
    """In what pickers and followers of a generation that serves are not as the settings have them; empty when they
    are."""
    if not picker_is_ready(cluster, settings, generation):
        return f"its endpoint picker {names.picker(generation)} is not ready"
    wanted = render.followers(settings, generation)
    changed = [item for item in wanted if _differs(cluster, item)] + _no_longer_wanted(cluster, settings, wanted)
    return f"{_called(changed[0])} is not as the settings have it" if changed else ""


def _differs(cluster: Cluster, item: Object) -> bool:
    there = cluster.get(item["kind"], item["metadata"]["name"], item["metadata"]["namespace"])
    return there is None or there["spec"] != item["spec"]


def _no_longer_wanted(cluster: Cluster, settings: Settings, wanted: list[Object]) -> list[Object]:
    if not has_picker(settings) or not cluster.serves(_OBJECTIVE):
        return []
    kept = {item["metadata"]["name"] for item in wanted}
    there = cluster.list(_OBJECTIVE, settings.namespace, labels=names.selector(settings))
    # A generation's own are there while it is validated.
    of_all = [item for item in there if names.GENERATION not in (item["metadata"].get("labels") or {})]
    return [item for item in of_all if item["metadata"]["name"] not in kept]
