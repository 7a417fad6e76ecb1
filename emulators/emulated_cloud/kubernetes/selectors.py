"""Label selectors, node selectors and tolerations, matched as the API's documentation says."""

from __future__ import annotations

from typing import Any

Labels = dict[str, str]


def matches(selector: dict[str, Any] | None, labels: Labels | None) -> bool:
    """A LabelSelector: None selects nothing, an empty one everything."""
    if selector is None:
        return False
    labels = labels or {}
    if any(labels.get(key) != value for key, value in (selector.get("matchLabels") or {}).items()):
        return False
    return all(_requirement(rule, labels) for rule in selector.get("matchExpressions") or [])


def selected(selector: Labels | None, labels: Labels | None) -> bool:
    """A Service's selector: equality only; an empty one selects nothing."""
    return bool(selector) and all((labels or {}).get(key) == value for key, value in (selector or {}).items())


def node_selector_matches(selector: dict[str, Any] | None, node: dict[str, Any]) -> bool:
    """A NodeSelector: any of its terms, each all of its expressions. None matches every node."""
    if selector is None:
        return True
    meta = node["metadata"]
    fields = {"metadata.name": meta["name"]}
    for term in selector.get("nodeSelectorTerms") or []:
        expressions, on_fields = term.get("matchExpressions") or [], term.get("matchFields") or []
        if not expressions and not on_fields:
            continue
        if all(_requirement(rule, meta.get("labels") or {}) for rule in expressions) and all(
            _requirement(rule, fields) for rule in on_fields
        ):
            return True
    return False


def _requirement(rule: dict[str, Any], labels: Labels) -> bool:
    value, values = labels.get(rule["key"]), rule.get("values") or []
    match rule["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt":
            return value is not None and value.isdigit() and int(value) > int(values[0])
        case "Lt":
            return value is not None and value.isdigit() and int(value) < int(values[0])
    return False


def tolerates(tolerations: list[dict[str, Any]] | None, taint: dict[str, Any]) -> bool:
    return any(_tolerates(toleration, taint) for toleration in tolerations or [])


def _tolerates(toleration: dict[str, Any], taint: dict[str, Any]) -> bool:
    if toleration.get("effect") and toleration["effect"] != taint["effect"]:
        return False
    if toleration.get("key") and toleration["key"] != taint["key"]:
        return False
    if toleration.get("operator", "Equal") == "Exists":
        return True
    return bool(toleration.get("key")) and toleration.get("value", "") == taint.get("value", "")
