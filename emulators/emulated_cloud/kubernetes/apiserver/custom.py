"""Custom resources: serving what a CustomResourceDefinition declares, and holding objects to its schema.

The schema is judged by jsonschema after two translations (`nullable`, `x-kubernetes-int-or-string`), and its verdicts
are worded as the real server words them. Rules (`x-kubernetes-validations`, cel.py) are judged where the rest is right.
"""

from __future__ import annotations

import json
from typing import Any

from emulated_cloud.kubernetes.apiserver import cel, errors
from emulated_cloud.kubernetes.apiserver.errors import Cause
from emulated_cloud.kubernetes.apiserver.fieldsets import item_element
from emulated_cloud.kubernetes.apiserver.resources import Resource, Resources
from emulated_cloud.kubernetes.apiserver.schema import Schema, copied
from emulated_cloud.kubernetes.apiserver.store import Store

Object = dict[str, Any]

_KEY = ("apiextensions.k8s.io", "customresourcedefinitions")


def resources_of(definition: Object) -> list[Resource]:
    """The resources that a definition declares, one for each served version, the preferred one first."""
    spec = definition["spec"]
    names = spec["names"]
    stored = next(version["name"] for version in spec["versions"] if version.get("storage"))
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            plural=names["plural"],
            kind=names["kind"],
            namespaced=spec["scope"] == "Namespaced",
            short_names=tuple(names.get("shortNames", [])),
            categories=tuple(names.get("categories", [])),
            subresources=tuple(sorted(version.get("subresources", {}))),
            singular=names.get("singular", ""),
            stored_as=(spec["group"], stored),
            crd=version,
        )
        for version in sorted(spec["versions"], key=lambda version: _priority(version["name"]))
        if version.get("served")
    ]


def _priority(version: str) -> tuple[int, int, int, str]:
    """Sort key of versions: stable ones first, then beta, alpha, each newest first; then any other name."""
    import re

    found = re.fullmatch(r"v(\d+)(?:(alpha|beta)(\d+))?", version)
    if not found:
        return (3, 0, 0, version)
    stage = {None: 0, "beta": 1, "alpha": 2}[found[2]]
    return (stage, -int(found[1]), -int(found[3] or 0), version)


def serve(definition: Object, resources: Resources) -> None:
    """Adds what a definition declares to the table of kinds."""
    spec = definition["spec"]
    resources.replace_custom(spec["group"], spec["names"]["plural"], resources_of(definition))


def establish(definition: Object, store: Store, resources: Resources) -> Object:
    """Serves a definition that was created or changed, and says so in its status."""
    serve(definition, resources)
    names = definition["spec"]["names"]
    stored = next(version["name"] for version in definition["spec"]["versions"] if version.get("storage"))
    before = definition.get("status", {})
    moment = definition["metadata"]["creationTimestamp"]
    conditions = before.get("conditions") or [
        {
            "type": "NamesAccepted",
            "status": "True",
            "lastTransitionTime": moment,
            "reason": "NoConflicts",
            "message": "no conflicts found",
        },
        {
            "type": "Established",
            "status": "True",
            "lastTransitionTime": moment,
            "reason": "InitialNamesAccepted",
            "message": "the initial names have been accepted",
        },
    ]
    versions = list(dict.fromkeys([*before.get("storedVersions", []), stored]))
    status = {"conditions": conditions, "acceptedNames": names, "storedVersions": versions}
    if status == before:
        return definition
    return store.put(_KEY, {**definition, "metadata": dict(definition["metadata"]), "status": status})


def withdraw(definition: Object, store: Store, resources: Resources) -> None:
    """Stops serving a definition that is deleted; its objects go with it."""
    spec = definition["spec"]
    for item in store.list((spec["group"], spec["names"]["plural"])):
        store.delete((spec["group"], spec["names"]["plural"]), item)
    resources.replace_custom(spec["group"], spec["names"]["plural"], [])


def apply_defaults(schema: Schema, value: Any) -> None:
    """Fills in the schema's `default`s, in place."""
    if isinstance(value, dict):
        for name, field in schema.fields.items():
            if name not in value and "default" in field.raw:
                value[name] = copied(field.raw["default"])
        for name, item in value.items():
            if item is None and "default" in schema.of(name).raw and not schema.of(name).raw.get("nullable"):
                value[name] = copied(schema.of(name).raw["default"])
            apply_defaults(schema.of(name), value[name])
    elif isinstance(value, list) and schema.kind == "list":
        for item in value:
            apply_defaults(schema.element, item)


_JSON_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}


def _type_cause(path: str, value: Any, types: list[str]) -> Cause:
    got = _JSON_TYPES.get(type(value), "null")
    shown = value if not isinstance(value, (dict, list)) else got
    detail = f'{path} in body must be of type {types[0]}: "{got}"'
    return Cause(
        "FieldValueTypeInvalid", f"Invalid value: {errors.quoted(shown if shown is None else got)}: {detail}", path
    )


_translated: dict[int, tuple[Object, Any]] = {}


def _validator(resource: Resource) -> Any:
    """A jsonschema validator of the resource's own schema, made once for each definition."""
    from jsonschema import Draft4Validator  # type: ignore[import-untyped]

    assert resource.crd is not None
    found = _translated.get(id(resource.crd))
    if found is None:
        raw = resource.crd.get("schema", {}).get("openAPIV3Schema", {})
        found = _translated[id(resource.crd)] = (resource.crd, Draft4Validator(_json_schema(raw)))
    return found[1]


def _json_schema(raw: Any) -> Any:
    """A structural schema as JSON Schema has it."""
    if isinstance(raw, list):
        return [_json_schema(item) for item in raw]
    if not isinstance(raw, dict):
        return raw
    schema: Object = {}
    for name, value in raw.items():
        if name in ("properties", "patternProperties"):
            schema[name] = {key: _json_schema(child) for key, child in value.items()}
        elif name in ("default", "enum", "example", "description", "required") or name.startswith("x-kubernetes"):
            schema[name] = value
        else:
            schema[name] = _json_schema(value)
    if raw.get("x-kubernetes-int-or-string"):
        schema["type"] = ["integer", "string"]
    if raw.get("nullable") and "type" in schema:
        schema["type"] = [schema["type"], "null"]
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
    return schema


def causes(resource: Resource, item: Object, live: Object | None = None) -> list[Cause]:
    """What an object breaks of its schema, and as a change of `live`."""
    found = sorted(
        _validator(resource).iter_errors(item), key=lambda error: [str(part) for part in error.absolute_path]
    )
    broken = [cause for error in found for cause in _cause(error)]
    broken += _duplicates(resource.schema, item, "")
    return broken or _broken_rules(resource.schema, item, live, "")


def _broken_rules(schema: Schema, value: Any, old: Any, path: str) -> list[Cause]:
    """Rules that a value breaks, at it and below. One that speaks of the value before is for changes alone; one that
    cel.py does not know is not judged (tests/unit/emulators/test_cel.py: it knows all of crds/)."""
    found = []
    for rule in schema.raw.get("x-kubernetes-validations", []):
        if "oldSelf" not in rule["rule"] or old is not None:
            found += _judge(rule, schema, value, old, path)
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name, item in value.items():
            if path or name != "metadata":
                found += _broken_rules(schema.of(name), item, before.get(name), f"{path}.{name}" if path else name)
    elif isinstance(value, list) and schema.kind == "list":
        for index, item in enumerate(value):
            # What an item was before can be told for keyed lists alone; no rule of GKE's kinds asks.
            found += _broken_rules(schema.element, item, None, f"{path}[{index}]")
    return found


def _judge(rule: Object, schema: Schema, value: Any, old: Any, path: str) -> list[Cause]:
    said = rule.get("message") or f"failed rule: {rule['rule']}"
    try:
        if cel.holds(rule["rule"], value, old):
            return []
        words = said
    except cel.CelError as error:
        words = f"{error} evaluating rule: {rule.get('message') or rule['rule']}"
    except cel.UnknownRule:
        return []
    kind = (schema.types or ["object"])[0]
    return [Cause("FieldValueInvalid", f"Invalid value: {errors.quoted(kind)}: {words}", path or "<nil>")]


def _duplicates(schema: Schema, value: Any, path: str) -> list[Cause]:
    """Items of sets and keyed lists that are there twice."""
    found = []
    if isinstance(value, dict):
        for name, item in value.items():
            if path or name != "metadata":
                found += _duplicates(schema.of(name), item, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and schema.kind == "list":
        seen = set()
        for index, item in enumerate(value):
            found += _duplicates(schema.element, item, f"{path}[{index}]")
            element = "" if schema.atomic else item_element(schema, item)
            if element and element in seen:
                found.append(errors.duplicate(f"{path}[{index}]", json.loads(element.partition(":")[2])))
            seen.add(element)
    return found


def _cause(error: Any) -> list[Cause]:
    path = ""
    for part in error.absolute_path:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    rule, value, limit = error.validator, error.instance, error.validator_value
    where = path or "<nil>"
    if rule == "required":
        lacking = [name for name in limit if isinstance(value, dict) and name not in value]
        return [errors.required(f"{path}.{name}" if path else name) for name in lacking if repr(name) in error.message]
    if rule == "type":
        return [_type_cause(where, value, limit if isinstance(limit, list) else [limit])]
    if rule == "enum":
        choices = ", ".join(errors.quoted(str(choice)) for choice in limit if choice is not None)
        message = f"Unsupported value: {errors.quoted(value)}: supported values: {choices}"
        return [Cause("FieldValueNotSupported", message, where)]
    details = {
        "minimum": f"should be greater than or equal to {limit}",
        "maximum": f"should be less than or equal to {limit}",
        "minLength": f"should be at least {limit} chars long",
        "maxLength": f"may not be more than {limit} bytes",
        "minItems": f"should have at least {limit} items",
        "maxItems": f"must have at most {limit} items",
        "pattern": f"should match '{limit}'",
        "uniqueItems": "shouldn't contain duplicates",
        "minProperties": f"should have at least {limit} properties",
        "maxProperties": f"must have at most {limit} items",
        "multipleOf": f"should be a multiple of {limit}",
        "oneOf": "must validate one and only one schema (oneOf)",
        "anyOf": "must validate at least one schema (anyOf)",
        "allOf": "must validate all the schemas (allOf)",
        "not": "must not validate the schema (not)",
    }
    if rule == "maxLength":
        return [errors.too_long(where, limit)]
    if rule == "maxItems":
        message = f"Too many: {len(value)}: must have at most {limit} items"
        return [Cause("FieldValueTooMany", message, where)]
    detail = details.get(rule, error.message)
    return [errors.invalid_value(where, value, f"{path} in body {detail}")]
