"""Label and field selectors of lists and watches."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import bad_request, quoted
from emulated_cloud.kubernetes.apiserver.names import qualified_name

Matches = Callable[[dict[str, Any]], bool]

_SET_BASED = re.compile(r"^(?P<key>[^\s=!,()]+)\s+(?P<how>in|notin)\s*\((?P<values>[^()]*)\)$")
_EQUALITY = re.compile(r"^(?P<key>[^\s=!,()]+)\s*(?P<how>==|!=|=)\s*(?P<value>[^\s=!,()]*)$")
_NUMERIC = re.compile(r"^(?P<key>[^\s=!,()<>]+)\s*(?P<how>[<>])\s*(?P<value>-?\d+)$")
_EXISTS = re.compile(r"^(?P<how>!?)\s*(?P<key>[^\s=!,()]+)$")

# Fields that can be selected on, by group and plural, besides metadata.name and metadata.namespace.
_FIELDS: dict[tuple[str, str], tuple[str, ...]] = {
    ("", "pods"): (
        "spec.nodeName",
        "spec.restartPolicy",
        "spec.schedulerName",
        "spec.serviceAccountName",
        "spec.hostNetwork",
        "status.phase",
        "status.podIP",
        "status.podIPs",
        "status.nominatedNodeName",
    ),
    ("", "events"): (
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ),
    ("", "namespaces"): ("status.phase",),
    ("", "nodes"): ("spec.unschedulable",),
    ("", "secrets"): ("type",),
    ("", "services"): ("spec.clusterIP", "spec.type"),
    ("", "replicationcontrollers"): ("status.replicas",),
    ("batch", "jobs"): ("status.successful",),
}
# events.k8s.io names the fields of the same stored objects differently.
_ALIASES = {"regarding": "involvedObject", "reportingController": "reportingComponent"}


def _split(text: str) -> list[str]:
    """The comma-separated parts; commas in parentheses separate values."""
    parts = re.findall(r"(?:[^,(]|\([^)]*\))+", text)
    return [part.strip() for part in parts if part.strip()]


def label_selector(text: str) -> Matches:
    """Equality-based and set-based requirements, all of which must hold. Raises ApiError 400."""
    if re.search(r"^\s*,|,\s*,", text):
        raise bad_request("found ',', expected: !, identifier, or 'end of string'")
    checks = [_requirement(part, text) for part in _split(text)]

    def matches(item: dict[str, Any]) -> bool:
        labels = item["metadata"].get("labels") or {}
        return all(check(labels) for check in checks)

    return matches


def _judge_key(key: str) -> None:
    if problems := qualified_name(key):
        raise bad_request(f"unable to parse requirement: <nil>: Invalid value: {quoted(key)}: {problems[0]}")


def _requirement(part: str, whole: str) -> Callable[[dict[str, str]], bool]:
    if found := _SET_BASED.match(part):
        _judge_key(found["key"])
        key, values = found["key"], {value.strip() for value in found["values"].split(",")}
        if found["how"] == "in":
            return lambda labels: key in labels and labels[key] in values
        return lambda labels: labels.get(key) not in values
    if found := _EQUALITY.match(part):
        _judge_key(found["key"])
        key, value = found["key"], found["value"]
        if found["how"] == "!=":
            return lambda labels: labels.get(key) != value
        return lambda labels: labels.get(key) == value
    if found := _NUMERIC.match(part):
        key, bound, above = found["key"], int(found["value"]), found["how"] == ">"

        def compares(labels: dict[str, str]) -> bool:
            if not re.fullmatch(r"-?\d+", labels.get(key, "")):
                return False
            return int(labels[key]) > bound if above else int(labels[key]) < bound

        return compares
    if found := _EXISTS.match(part):
        key = found["key"]
        _judge_key(key)
        if found["how"]:
            return lambda labels: key not in labels
        return lambda labels: key in labels
    raise bad_request(f'unable to parse requirement: found {part!r} in the label selector "{whole}"')


def field_value(item: dict[str, Any], path: str) -> str:
    """A selectable field as text; what is absent is the empty string."""
    if path == "source":
        return (item.get("source") or {}).get("component") or item.get("reportingComponent") or ""
    if path == "status.successful":
        path = "status.succeeded"
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return (
            {"status.replicas": "0", "status.succeeded": "0"}.get(path, "") if path != "spec.unschedulable" else "false"
        )
    return str(value).lower() if isinstance(value, bool) else str(value)


def field_selector(text: str, storage_key: tuple[str, str], selectable: tuple[str, ...] | None = None) -> Matches:
    """Requirements on fields; `selectable` are those of a custom resource.

    Raises ApiError 400 for a field that the kind does not select on.
    """
    requirements = []
    general = ("metadata.name", "metadata.namespace")
    supported = (*general, *_FIELDS.get(storage_key, ()), *(selectable or ()))
    for part in [part for part in re.split(r"(?<!\\),", text) if part]:
        found = re.match(r"^([^=!]+)(==|!=|=)(.*)$", part)
        if not found:
            raise bad_request(f"invalid selector: '{text}'; can't understand '{part}'")
        path, how, value = found.groups()
        value = re.sub(r"\\([,=\\])", r"\1", value)
        first, dot, rest = path.partition(".")
        path = _ALIASES.get(first, first) + dot + rest
        if path not in supported and storage_key not in _FIELDS and selectable is None:
            known = ", ".join(quoted(each) for each in general)
            raise bad_request(f"{quoted(path)} is not a known field selector: only {known}")
        if path not in supported:
            raise bad_request(f"field label not supported: {path}")
        requirements.append((path, how != "!=", value))

    def matches(item: dict[str, Any]) -> bool:
        return all((field_value(item, path) == value) == equal for path, equal, value in requirements)

    return matches


def selector_text(selector: dict[str, Any]) -> str:
    """A LabelSelector object as the query parameter writes it."""
    parts = [f"{name}={value}" for name, value in sorted(selector.get("matchLabels", {}).items())]
    words = {"In": "{0} in ({1})", "NotIn": "{0} notin ({1})", "Exists": "{0}", "DoesNotExist": "!{0}"}
    for each in selector.get("matchExpressions", []):
        parts.append(words[each["operator"]].format(each["key"], ",".join(sorted(each.get("values", [])))))
    return ",".join(parts)
