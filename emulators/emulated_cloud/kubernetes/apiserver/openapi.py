"""/openapi/v3 (a document a group version) and /openapi/v2 (one for all), made from the definitions on demand.

kubectl reads from them whether the server validates fields itself (`fieldValidation` on PATCH), how lists merge, and
what `explain` prints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from emulated_cloud.kubernetes.apiserver.discovery import VERSION
from emulated_cloud.kubernetes.apiserver.resources import Resource, Resources
from emulated_cloud.kubernetes.apiserver.schema import definitions

_META = "io.k8s.apimachinery.pkg.apis.meta.v1."

_WRITE_PARAMETERS = ("dryRun", "fieldManager", "fieldValidation")
_METHODS = {
    "get": ("get", "get"),
    "list": ("get", "list"),
    "create": ("post", "post"),
    "update": ("put", "put"),
    "patch": ("patch", "patch"),
    "delete": ("delete", "delete"),
    "deletecollection": ("delete", "deletecollection"),
}
_PATCH_TYPES = (
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
)


def _base(group: str, version: str) -> str:
    return f"apis/{group}/{version}" if group else f"api/{version}"


def index(resources: Resources) -> dict[str, Any]:
    """/openapi/v3: where the document of each group version is; its hash changes when the document does."""
    paths = {}
    for group, versions in resources.group_versions().items():
        for version in versions:
            kinds = [repr(made) for made in resources if (made.group, made.version) == (group, version)]
            tag = hashlib.sha256(f"{VERSION['gitVersion']}{resources.generation}{kinds}".encode()).hexdigest()
            base = _base(group, version)
            paths[base] = {"serverRelativeURL": f"/openapi/v3/{base}?hash={tag[:32].upper()}"}
    return {"paths": paths}


def document_v3(resources: Resources, base: str) -> dict[str, Any] | None:
    """/openapi/v3/BASE; None for a group version that is not served."""
    found = [made for made in resources if _base(made.group, made.version) == base]
    if not found:
        return None
    prefix = "#/components/schemas/"
    schemas = _closed({_definition_name(made): _definition(made) for made in found}, prefix)
    return {
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": {path: item for made in found for path, item in _paths(made, prefix, version=3)},
        "components": {"schemas": schemas},
    }


def document_v2(resources: Resources) -> dict[str, Any]:
    """/openapi/v2"""
    prefix = "#/definitions/"
    roots = {_definition_name(made): _definition(made) for made in resources}
    return {
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": VERSION["gitVersion"]},
        "paths": {path: item for made in resources for path, item in _paths(made, prefix, version=2)},
        "definitions": _closed(roots, prefix),
    }


def _definition_name(made: Resource) -> str:
    return made.definition or ".".join([*reversed(made.group.split(".")), made.version, made.kind])


def _definition(made: Resource) -> dict[str, Any]:
    gvk = [{"group": made.group, "version": made.version, "kind": made.kind}]
    if made.crd is None:
        return definitions()[made.definition]
    return {**made.schema.raw, "x-kubernetes-group-version-kind": gvk}


def _closed(roots: dict[str, dict[str, Any]], prefix: str) -> dict[str, Any]:
    """`roots` with all that they refer to."""
    done: dict[str, Any] = {}
    waiting = {**roots, f"{_META}DeleteOptions": definitions()[f"{_META}DeleteOptions"]}
    while waiting:
        name, raw = waiting.popitem()
        needed: set[str] = set()
        done[name] = _translated(raw, prefix, needed)
        waiting.update({each: definitions()[each] for each in needed if each not in done})
    return done


def _translated(raw: Any, prefix: str, needed: set[str]) -> Any:
    """A definition as OpenAPI writes it: references to their place, `type` a single word."""
    if isinstance(raw, list):
        return [_translated(item, prefix, needed) for item in raw]
    if not isinstance(raw, dict):
        return raw
    out: dict[str, Any] = {}
    for key, value in raw.items():
        if key == "$ref":
            name = value.rpartition("/")[2]
            needed.add(name)
            reference = {"$ref": prefix + name}
            beside = {other for other in raw if other != "$ref"}
            # Nothing may stand beside a reference, so it is wrapped where something does.
            out |= {"allOf": [reference]} if beside and prefix != "#/definitions/" else reference
        elif key == "type" and isinstance(value, list):
            out["type"] = next(name for name in value if name != "null")
        elif key == "properties":
            out[key] = {name: _translated(child, prefix, needed) for name, child in value.items()}
        elif key == "additionalProperties" and value is False:
            continue
        else:
            out[key] = _translated(value, prefix, needed)
    return out


def _paths(made: Resource, prefix: str, version: int) -> Iterator[tuple[str, Any]]:
    root = "/" + _base(made.group, made.version)
    collection = f"{root}/namespaces/{{namespace}}/{made.plural}" if made.namespaced else f"{root}/{made.plural}"
    for path, verbs in (
        (collection, ("list", "create", "deletecollection")),
        (f"{collection}/{{name}}", ("get", "update", "patch", "delete")),
    ):
        item = {}
        for verb in verbs:
            if verb in made.verbs:
                method, action = _METHODS[verb]
                item[method] = _operation(made, verb, action, prefix, version)
        if item:
            yield path, item


def _operation(made: Resource, verb: str, action: str, prefix: str, version: int) -> dict[str, Any]:
    gvk = {"group": made.group, "version": made.version, "kind": made.kind}
    names = list(_WRITE_PARAMETERS) if verb in ("create", "update", "patch") else []
    if verb == "patch":
        names.append("force")
    schema = {"$ref": prefix + _definition_name(made)}
    operation: dict[str, Any] = {
        "operationId": f"{verb}{made.group.title().replace('.', '')}{made.version.title()}{made.kind}",
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk,
        "parameters": [_parameter(name, version) for name in names],
    }
    if version == 3:
        operation["responses"] = {"200": {"description": "OK", "content": {"application/json": {"schema": schema}}}}
        if verb in ("create", "update"):
            operation["requestBody"] = {"required": True, "content": {"*/*": {"schema": schema}}}
        if verb == "patch":
            types = [name for name in _PATCH_TYPES if made.crd is None or "strategic" not in name]
            operation["requestBody"] = {"required": True, "content": {name: {"schema": {}} for name in types}}
        return operation
    operation["responses"] = {"200": {"description": "OK", "schema": schema}}
    operation["produces"] = ["application/json"]
    operation["consumes"] = list(_PATCH_TYPES) if verb == "patch" else ["*/*"]
    if verb in ("create", "update", "patch"):
        operation["parameters"].append({"name": "body", "in": "body", "required": True, "schema": schema})
    return operation


def _parameter(name: str, version: int) -> dict[str, Any]:
    kind = {"type": "boolean" if name == "force" else "string"}
    parameter: dict[str, Any] = {"name": name, "in": "query"}
    return {**parameter, "schema": kind} if version == 3 else {**parameter, **kind}
