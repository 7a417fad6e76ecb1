"""Validation of admission policies and their bindings. Expressions are not compiled: nothing here reads CEL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emulated_cloud.kubernetes.apiserver.errors import (
    Cause,
    duplicate,
    forbidden_value,
    invalid_value,
    not_supported,
    required,
)

Object = dict[str, Any]

_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_REASONS = ("Forbidden", "Invalid", "RequestEntityTooLarge")


def policy(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = _choice(spec, "failurePolicy", ("Fail", "Ignore"), "spec")
    if kind := spec.get("paramKind"):
        found += [required(f"spec.paramKind.{name}") for name in ("apiVersion", "kind") if not kind.get(name)]
    if "matchConstraints" not in spec:
        found.append(required("spec.matchConstraints"))
    else:
        rules = spec["matchConstraints"].get("resourceRules", [])
        if not rules:
            found.append(required("spec.matchConstraints.resourceRules"))
        found += _match(spec["matchConstraints"], "spec.matchConstraints")
    if not spec.get("validations") and not spec.get("auditAnnotations"):
        words = "validations or auditAnnotations must contain at least one item"
        found += [required("spec.validations", words), required("spec.auditAnnotations", words)]
    for index, validation in enumerate(spec.get("validations", [])):
        path = f"spec.validations[{index}]"
        if not validation.get("expression"):
            found.append(required(f"{path}.expression", "expression is not specified"))
        found += _choice(validation, "reason", _REASONS, path)
    for index, variable in enumerate(spec.get("variables", [])):
        if not variable.get("expression"):
            found.append(required(f"spec.variables[{index}].expression", "expression is not specified"))
    for index, condition in enumerate(spec.get("matchConditions", [])):
        path = f"spec.matchConditions[{index}]"
        found += [required(f"{path}.{name}") for name in ("name", "expression") if not condition.get(name)]
    return found


def binding(item: Object) -> list[Cause]:
    spec = item["spec"]
    found = [] if spec.get("policyName") else [required("spec.policyName")]
    if parameter := spec.get("paramRef"):
        found += _parameter(parameter, "spec.paramRef")
    if "matchResources" in spec:
        found += _match(spec["matchResources"], "spec.matchResources")
    path, actions = "spec.validationActions", spec.get("validationActions", [])
    if not actions:
        found.append(required(path, "at least one validation action is required"))
    for index, action in enumerate(actions):
        if action not in ("Audit", "Deny", "Warn"):
            found.append(not_supported(f"{path}[{index}]", action, ("Audit", "Deny", "Warn")))
        elif action in actions[:index]:
            found.append(duplicate(f"{path}[{index}]", action))
    if {"Deny", "Warn"} <= set(actions):
        words = "must not contain both Deny and Warn (repeating the same validation failure information in the API "
        found.append(invalid_value(path, actions, words + "response and headers serves no purpose)"))
    return found


def _parameter(reference: Object, path: str) -> list[Cause]:
    found = []
    if "name" in reference and "selector" in reference:
        words = "name and selector are mutually exclusive"
        found += [forbidden_value(f"{path}.{name}", words) for name in ("name", "selector")]
    elif "name" not in reference and "selector" not in reference:
        found.append(required(path, "one of name or selector must be specified"))
    if "parameterNotFoundAction" not in reference:
        found.append(required(f"{path}.parameterNotFoundAction"))
    return found + _choice(reference, "parameterNotFoundAction", ("Allow", "Deny"), path)


def _match(match: Object, path: str) -> list[Cause]:
    found = _choice(match, "matchPolicy", ("Equivalent", "Exact"), path)
    for name in ("resourceRules", "excludeResourceRules"):
        for index, rule in enumerate(match.get(name, [])):
            found += _rule(rule, f"{path}.{name}[{index}]")
    return found


def _rule(rule: Object, path: str) -> list[Cause]:
    parts = ("apiGroups", "apiVersions", "resources", "operations")
    found = [required(f"{path}.{part}") for part in parts if not rule.get(part)]
    operations = rule.get("operations", [])
    if "*" in operations and len(operations) > 1:
        words = "if '*' is present, must not specify other operations"
        found.append(invalid_value(f"{path}.operations", operations, words))
    for index, operation in enumerate(operations):
        if operation not in _OPERATIONS:
            found.append(not_supported(f"{path}.operations[{index}]", operation, _OPERATIONS))
    return found + _choice(rule, "scope", ("*", "Cluster", "Namespaced"), path)


def _choice(item: Object, name: str, choices: Sequence[str], path: str) -> list[Cause]:
    value = item.get(name)
    return [not_supported(f"{path}.{name}", value, choices)] if value is not None and value not in choices else []
