"""Metadata: names, labels, annotations, finalizers, owner references."""

from __future__ import annotations

import re
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors
from emulated_cloud.kubernetes.apiserver.errors import Cause, invalid_value
from emulated_cloud.kubernetes.apiserver.resources import Resource

Object = dict[str, Any]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = _LABEL + r"(\." + _LABEL + ")*"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_LABEL_VALUE = "(" + _QUALIFIED + ")?"
_DNS_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"

_SUBDOMAIN_WORDS = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start "
    f"and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_LABEL_WORDS = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end "
    f"with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_DNS_1035_WORDS = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is "
    f"'{_DNS_1035}')"
)
_QUALIFIED_WORDS = (
    "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric "
    "character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '" + _QUALIFIED + "')"
)
_KEY_WORDS = (
    _QUALIFIED_WORDS.replace("name part must", "a valid label key must")
    + " with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
)
_LABEL_VALUE_WORDS = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and "
    "end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '"
    + _LABEL_VALUE
    + "')"
)
_CONFIG_KEY_WORDS = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  "
    "or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)

# Kinds whose names are labels, not subdomains.
_LABEL_NAMED = {"Namespace"}
_PATH_NAMED = {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}

_STANDARD_FINALIZERS = {"foregroundDeletion", "kubernetes", "orphan"}
ANNOTATIONS_LIMIT = 256 * 1024


def dns_label(name: str) -> list[str]:
    problems = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return problems if re.fullmatch(_LABEL, name) else [*problems, _LABEL_WORDS]


def dns_1035_label(name: str) -> list[str]:
    problems = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return problems if re.fullmatch(_DNS_1035, name) else [*problems, _DNS_1035_WORDS]


def dns_subdomain(name: str) -> list[str]:
    problems = [] if len(name) <= 253 else ["must be no more than 253 characters"]
    return problems if re.fullmatch(_SUBDOMAIN, name) else [*problems, _SUBDOMAIN_WORDS]


def path_segment(name: str) -> list[str]:
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{part}'" for part in ("/", "%") if part in name]


def qualified_name(name: str) -> list[str]:
    if name.count("/") > 1:
        return [_KEY_WORDS]
    prefix, slash, last = name.rpartition("/")
    problems = []
    if slash:
        if not prefix:
            problems.append("prefix part must be non-empty")
        else:
            problems += ["prefix part " + words for words in dns_subdomain(prefix)]
    if not last:
        problems.append("name part must be non-empty")
    elif len(last) > 63:
        problems.append("name part must be no more than 63 bytes")
    if not re.fullmatch(_QUALIFIED, last):
        problems.append(_QUALIFIED_WORDS)
    return problems


def label_value(value: str) -> list[str]:
    problems = [] if len(value) <= 63 else ["must be no more than 63 bytes"]
    return problems if re.fullmatch(_LABEL_VALUE, value) else [*problems, _LABEL_VALUE_WORDS]


def config_key(key: str) -> list[str]:
    problems = [] if len(key) <= 253 else ["must be no more than 253 characters"]
    if not re.fullmatch("[-._a-zA-Z0-9]+", key):
        problems.append(_CONFIG_KEY_WORDS)
    if key in (".", ".."):
        problems.append(f"must not be '{key}'")
    elif key.startswith(".."):
        problems.append("must not start with '..'")
    return problems


def port_name(name: str) -> list[str]:
    """IANA service names: what names of ports must be (apimachinery util/validation.IsValidPortName)."""
    problems = []
    if len(name) > 15:
        problems.append("must be no more than 15 characters")
    if not re.fullmatch("[-a-z0-9]+", name):
        problems.append("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
    if not re.search("[a-z]", name):
        problems.append("must contain at least one letter (a-z)")
    if "--" in name:
        problems.append("must not contain consecutive hyphens")
    if name.startswith("-") or name.endswith("-"):
        problems.append("must not begin or end with a hyphen")
    return problems


def label_causes(labels: dict[str, str], field: str) -> list[Cause]:
    found = []
    for name, value in sorted(labels.items()):
        found += [invalid_value(field, name, words) for words in qualified_name(name)]
        found += [invalid_value(field, value, words) for words in label_value(value)]
    return found


def _name_problems(resource: Resource, name: str) -> list[str]:
    if resource.kind in _LABEL_NAMED:
        return ["must not contain dots"] if "." in name else dns_label(name)
    if resource.kind in _PATH_NAMED:
        return path_segment(name)
    if (resource.group, resource.kind) == ("", "Service"):
        return dns_1035_label(name)
    return dns_subdomain(name)


def metadata_causes(resource: Resource, item: Object, live: Object | None) -> list[Cause]:
    """What is wrong with an object's metadata, or with its change from `live`'s."""
    metadata = item["metadata"]
    found = []
    if live is None:
        found += [
            invalid_value("metadata.name", metadata["name"], words)
            for words in _name_problems(resource, metadata["name"])
        ]
    found += label_causes(metadata.get("labels", {}), "metadata.labels")
    annotations = metadata.get("annotations", {})
    for name in sorted(annotations):
        found += [invalid_value("metadata.annotations", name, words) for words in qualified_name(name.lower())]
    if sum(len(name.encode()) + len(value.encode()) for name, value in annotations.items()) > ANNOTATIONS_LIMIT:
        found.append(errors.too_long("metadata.annotations", ANNOTATIONS_LIMIT))
    for index, name in enumerate(metadata.get("finalizers", [])):
        field = f"metadata.finalizers[{index}]"
        found += [invalid_value(field, name, words) for words in qualified_name(name)]
        if resource.crd is None and "/" not in name and name not in _STANDARD_FINALIZERS:
            words = "name is neither a standard finalizer name nor is it fully qualified"
            found.append(invalid_value(field, name, words))
    found += _owner_causes(metadata.get("ownerReferences", []))
    if live is not None and live["metadata"].get("deletionTimestamp"):
        added = sorted(set(metadata.get("finalizers", [])) - set(live["metadata"].get("finalizers", [])))
        if added:
            detail = (
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{"
                + ", ".join(errors.quoted(name) for name in added)
                + "}"
            )
            found.append(errors.forbidden_value("metadata.finalizers", detail))
    return found


def _owner_causes(references: list[Object]) -> list[Cause]:
    found = []
    controllers = [each for each in references if each.get("controller")]
    for reference in references:
        for name in ("apiVersion", "kind", "name", "uid"):
            if not reference.get(name):
                detail = "must not be empty"
                found.append(invalid_value(f"metadata.ownerReferences.{name}", "", detail))
    if len(controllers) > 1:
        detail = (
            'Only one reference can have Controller set to true. Found "true" in references for '
            f"{controllers[0]['kind']}/{controllers[0]['name']} and {controllers[1]['kind']}/{controllers[1]['name']}"
        )
        found.append(invalid_value("metadata.ownerReferences", len(references), detail))
    return found
