"""Conditions, as they are written into the status of Gateways, HTTPRoutes and InferencePools."""

from __future__ import annotations

from collections.abc import Iterable

from emulated_cloud.gateway.resources import CONTROLLER, GATEWAY_API, Listener, Object, Parent, Site, Verdict
from emulated_cloud.kubernetes.client import timestamp


def gateway(current: Object, site: Site, address: str) -> Object:
    """The status of a Gateway that has this address (or none)."""
    before = current.get("status") or {}
    old = {each["name"]: each for each in before.get("listeners") or []}
    return {
        "addresses": [{"type": "IPAddress", "value": address}] if address else [],
        "conditions": conditions(site.verdicts, before.get("conditions"), current),
        "listeners": [_listener(each, old.get(each.name) or {}, current) for each in site.listeners],
    }


def _listener(listener: Listener, before: Object, current: Object) -> Object:
    return {
        "name": listener.name,
        "attachedRoutes": listener.attached,
        "supportedKinds": [{"group": GATEWAY_API, "kind": "HTTPRoute"}],
        "conditions": conditions(listener.verdicts, before.get("conditions"), current),
    }


def parents(current: Object, gateway_key: str, found: Iterable[Parent]) -> list[Object]:
    """`status.parents` of a route or pool: what other Gateways say stays, what this one said is said anew."""
    there = (current.get("status") or {}).get("parents") or []
    mine = [entry for entry in there if _is_of(entry, current, gateway_key)]
    kept = [entry for entry in there if entry not in mine]
    for parent in found:
        old: Object = next((entry for entry in mine if entry["parentRef"] == parent.ref), {})
        kept.append(
            {
                "parentRef": parent.ref,
                "controllerName": CONTROLLER,
                "conditions": conditions(parent.verdicts, old.get("conditions"), current),
            }
        )
    return kept


def _is_of(entry: Object, current: Object, gateway_key: str) -> bool:
    ref = entry["parentRef"]
    namespace = ref.get("namespace", current["metadata"]["namespace"])
    return entry.get("controllerName") == CONTROLLER and f"{namespace}/{ref['name']}" == gateway_key


def conditions(verdicts: Iterable[Verdict], before: list[Object] | None, current: Object) -> list[Object]:
    """As metav1.Condition has them; the time of one that says what it said stays."""
    old = {entry["type"]: entry for entry in before or []}
    return [_condition(verdict, old.get(verdict.type), current) for verdict in verdicts]


def _condition(verdict: Verdict, old: Object | None, current: Object) -> Object:
    status = "True" if verdict.holds else "False"
    same = old is not None and old["status"] == status
    return {
        "type": verdict.type,
        "status": status,
        "reason": verdict.reason,
        "message": verdict.message,
        "observedGeneration": current["metadata"].get("generation", 1),
        "lastTransitionTime": old["lastTransitionTime"] if old and same else timestamp(),
    }
