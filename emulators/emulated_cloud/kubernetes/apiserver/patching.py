"""PATCH: the four patch types on an object, its status or its scale, and bodies as they come in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from emulated_cloud.kubernetes.apiserver import apply, errors, protobuf, scale
from emulated_cloud.kubernetes.apiserver.conversion import kept, served
from emulated_cloud.kubernetes.apiserver.errors import ApiError
from emulated_cloud.kubernetes.apiserver.fieldsets import repeated_items
from emulated_cloud.kubernetes.apiserver.patch_types import json_patch, merge_patch, strategic_merge
from emulated_cloud.kubernetes.apiserver.reading import truth
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.schema import WrongType, copied, decode, json_type
from emulated_cloud.kubernetes.apiserver.storage import Options, Storage

Object = dict[str, Any]

JSON, MERGE = "application/json-patch+json", "application/merge-patch+json"
STRATEGIC, APPLY = "application/strategic-merge-patch+json", "application/apply-patch+yaml"
BODIES = ("application/json", "application/yaml", protobuf.CONTENT_TYPE, "*/*")
"""Content types of whole objects."""


def parse(body: bytes, content_type: str, kind: str) -> Any:
    """An object's body (of `kind`, for messages): JSON, YAML or protobuf. Raises ApiError 400 and 415."""
    if content_type == protobuf.CONTENT_TYPE:
        return protobuf.decode(body)
    if content_type not in ("", *BODIES):
        raise errors.unsupported_media_type(["application/json", "application/yaml", protobuf.CONTENT_TYPE])
    if content_type == "application/yaml":
        return _yaml(body)
    try:
        return json.loads(body)
    except ValueError as error:
        raise errors.bad_request(
            f"the object provided is unrecognized (must be of type {kind}): couldn't get version/kind; json parse "
            f"error: {error} ({body[:50].decode(errors='replace') or '<empty>'})"
        ) from error


def _yaml(body: bytes) -> Any:
    import yaml

    try:
        return json.loads(body)
    except ValueError:
        pass
    try:
        # YAML's dates are plain text to Kubernetes; BaseLoader would make numbers text too.
        return json.loads(json.dumps(yaml.load(body, Loader=_plain_dates())))  # noqa: S506
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise errors.bad_request(f"error decoding YAML: {error}") from error


def _plain_dates() -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        pass

    Loader.yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader


def patch(
    storage: Storage,
    resource: Resource,
    namespace: str,
    name: str,
    subresource: str,
    body: bytes,
    content_type: str,
    query: Mapping[str, str],
    options: Options,
) -> tuple[Object, bool]:
    """The patched object (or Scale) and whether it is new. Raises ApiError."""
    supported = [JSON, MERGE, APPLY] if resource.crd is not None else [JSON, MERGE, STRATEGIC, APPLY]
    if content_type not in supported:
        if resource.crd is not None:
            raise errors.unsupported_media_type(supported)
        raise ApiError(415, "UnsupportedMediaType", "415: Unsupported Media Type", {})
    if content_type == APPLY:
        return _apply(storage, resource, namespace, name, subresource, _yaml(body), query, options)
    if "force" in query:
        cause = errors.forbidden_value("force", "may not be specified for non-apply patch")
        raise errors.invalid("meta.k8s.io", "PatchOptions", "", [cause])
    try:
        changes = json.loads(body)
    except ValueError as error:
        raise errors.bad_request(f"error decoding patch: {error}") from error
    live = storage.live(resource, namespace, name)
    kind = scale.SCALE if subresource == "scale" else resource
    target = scale.shown(resource, live) if kind is scale.SCALE else served(resource, live)
    if content_type == JSON:
        patched = json_patch(target, changes)
    elif not isinstance(changes, dict):
        raise errors.bad_request(f"error decoding patch: json: cannot unmarshal {json_type(changes)} into Go value")
    elif content_type == STRATEGIC:
        patched = strategic_merge(kind.schema, copied(target), changes)
    else:
        patched = merge_patch(copied(target), changes)
    _keep_identity(patched, kind, namespace, name)
    item = _decoded(storage, kind, patched, changes, options)
    if kind is scale.SCALE:
        return scale.update(storage, resource, live, item, options), False
    return storage.replace(resource, live, item, options, subresource, is_patch=True), False


def _keep_identity(patched: Any, resource: Resource, namespace: str, name: str) -> None:
    if not isinstance(patched, dict) or not isinstance(patched.get("metadata"), dict):
        raise errors.bad_request(f"the patched object is no {resource.kind}")
    given = patched["metadata"].get("name")
    if given != name:
        raise errors.bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")
    if resource.namespaced and patched["metadata"].get("namespace") != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )


def _decoded(storage: Storage, resource: Resource, patched: Object, changes: Any, options: Options) -> Object:
    """The patched object; what cannot be decoded can only be the patch's, and the real server words it so."""
    try:
        return storage.decoded(resource, patched, options)
    except ApiError as error:
        if error.code != 400 or resource.crd is not None:
            raise
        words = error.message.rpartition(f"cannot be handled as a {resource.kind}: ")[2]
        raise errors.invalid("", "", "", [errors.invalid_value("patch", _go_text(changes), words)]) from error


def _go_text(value: Any) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, dict):
        return "map[" + " ".join(f"{key}:{_go_text(item)}" for key, item in sorted(value.items())) + "]"
    if isinstance(value, list):
        return "[" + " ".join(_go_text(item) for item in value) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    return "<nil>" if value is None else str(value)


def _apply(
    storage: Storage,
    resource: Resource,
    namespace: str,
    name: str,
    subresource: str,
    body: Any,
    query: Mapping[str, str],
    options: Options,
) -> tuple[Object, bool]:
    if not query.get("fieldManager"):
        cause = errors.required("fieldManager", "is required for apply patch")
        raise errors.invalid("meta.k8s.io", "PatchOptions", "", [cause])
    force = truth(query, "force")
    if subresource == "scale":
        live, wanted = storage.live(resource, namespace, name), _typed(storage, scale.SCALE, namespace, name, body)
        return scale.applied(storage, resource, live, wanted, options, force), False
    applied = _typed(storage, resource, namespace, name, body)
    schema, writer = storage.stored_schema(resource), storage.writer(resource, options, subresource)
    found = storage.store.get(resource.storage_key, applied["metadata"].get("namespace", ""), name)
    if found is None:
        if subresource:
            raise errors.not_found(resource.group, resource.plural, name)
        empty = {"apiVersion": resource.storage_version, "kind": resource.kind, "metadata": {}}
        made = decode(schema, apply.apply(schema, empty, applied, writer, force), [], check_types=resource.crd is None)
        return storage.insert(resource, copied(made), lambda new: None, options), True
    merged = decode(schema, apply.apply(schema, found, applied, writer, force), [], check_types=resource.crd is None)
    return storage.replace(
        resource, found, copied(merged), options, subresource, own=lambda new: None, is_patch=True
    ), False


def _typed(storage: Storage, resource: Resource, namespace: str, name: str, body: Any) -> Object:
    """An applied configuration in the stored version. Raises ApiError for what does not fit the schema."""
    if not isinstance(body, dict):
        raise errors.bad_request("error decoding YAML: the patch is no object")
    version, kind = str(body.get("apiVersion") or ""), body.get("kind") or ""
    group, _, number = version.rpartition("/")
    if (group, kind) != (resource.group, resource.kind):
        raise errors.bad_request(f"invalid object type: {group}/{number}, Kind={kind}")
    if version != resource.api_version:
        raise errors.bad_request(
            f"Incorrect version specified in apply patch. Specified patch version: {version}, expected: "
            f"{resource.api_version}"
        )
    metadata = dict(body.get("metadata") or {})
    if metadata.setdefault("name", name) != name:
        raise errors.bad_request(
            f"the name of the object ({metadata['name']}) does not match the name on the URL ({name})"
        )
    if resource.namespaced and metadata.setdefault("namespace", namespace) != namespace:
        raise errors.bad_request(
            "the namespace of the provided object does not match the namespace sent on the request"
        )
    given = (body.get("metadata") or {}).get("namespace") or ""
    where = f"{given}/{name}; {resource.group}/{resource.version}, Kind={resource.kind}"
    unknown: list[str] = []
    problems: list[str] = []
    try:
        item: Object = decode(resource.schema, {**body, "metadata": metadata}, unknown, keep_empty=True)
    except WrongType as wrong:
        item = {}
        wanted = {"integer": "numeric (int or float)", "number": "numeric (int or float)", "object": "map"}
        problems.append(
            f".{wrong.path}: expected {wanted.get(wrong.types[0], wrong.types[0])}, got {json_type(wrong.value)}"
        )
    problems += repeated_items(resource.schema, item)
    problems += [f".{path}: field not declared in schema" for path in unknown]
    if problems:
        raise ApiError(500, "", f"failed to create typed patch object ({where}): {problems[0]}")
    return kept(resource, item)
