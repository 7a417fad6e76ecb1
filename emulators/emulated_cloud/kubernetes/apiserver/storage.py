"""Create, update and delete of any kind: what the generic registry of the real server does with an object.

Objects come in as JSON, are decoded against their schema, defaulted, given their managedFields, validated and stored.
Everything here is synchronous, so one request is one atomic step.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from emulated_cloud.kubernetes.apiserver import creation, custom, deletion, errors, names, pod_security, validation
from emulated_cloud.kubernetes.apiserver.apply import Writer, record_update
from emulated_cloud.kubernetes.apiserver.conversion import kept, served
from emulated_cloud.kubernetes.apiserver.defaults import apply_defaults
from emulated_cloud.kubernetes.apiserver.errors import ApiError
from emulated_cloud.kubernetes.apiserver.resources import Resource, Resources
from emulated_cloud.kubernetes.apiserver.schema import Schema, Undecodable, WrongType, copied, decode, fill_required
from emulated_cloud.kubernetes.apiserver.store import Store

Object = dict[str, Any]

# Kinds whose updates must say which version they are of (AllowUnconditionalUpdate is false).
_CONDITIONAL = {
    "APIService",
    "CSIDriver",
    "CSINode",
    "CustomResourceDefinition",
    "Lease",
    "PodDisruptionBudget",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
    "VolumeAttachment",
}
# Kinds that a PUT creates (AllowCreateOnUpdate).
_CREATED_BY_UPDATE = {"Endpoints", "Event", "Lease", "LimitRange"}


@dataclass
class Options:
    """How one write is to be done, and the warnings that it earned."""

    manager: str
    """Field manager: the parameter, else the first word of the user agent."""
    dry_run: bool = False
    field_validation: str = "Warn"
    warnings: list[str] = field(default_factory=list)


def now() -> str:
    """The time as Kubernetes writes it: UTC, whole seconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Storage:
    """The kinds and their objects."""

    def __init__(self, store: Store, resources: Resources):
        self.store, self.resources = store, resources

    # -- reading --------------------------------------------------------------------------------------------

    def live(self, resource: Resource, namespace: str, name: str) -> Object:
        """The stored object, not to be changed. Raises ApiError 404."""
        found = self.store.get(resource.storage_key, namespace if resource.namespaced else "", name)
        if found is None:
            raise errors.not_found(resource.group, resource.plural, name)
        return found

    def get(self, resource: Resource, namespace: str, name: str) -> Object:
        return served(resource, self.live(resource, namespace, name))

    # -- creating -------------------------------------------------------------------------------------------

    def create(self, resource: Resource, namespace: str, body: Any, options: Options) -> Object:
        """The object as it was stored. Raises ApiError."""
        item = self.decoded(resource, body, options)
        if item["metadata"].get("resourceVersion"):
            raise ApiError(500, "", "resourceVersion should not be set on objects to be created")
        self._place(resource, namespace, item)
        self._name(resource, item)
        return self.insert(resource, item, lambda new: self.own(resource, None, new, options), options)

    def insert(self, resource: Resource, item: Object, own: Callable[[Object], None], options: Options) -> Object:
        """Stores a decoded, named object that is new; `own` writes its managedFields."""
        metadata = item["metadata"]
        namespace, name = metadata.get("namespace", ""), metadata["name"]
        if resource.namespaced:
            self._require_namespace(resource, namespace, name)
        for given in ("deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "generation"):
            metadata.pop(given, None)
        moment = now()
        metadata["uid"], metadata["creationTimestamp"] = str(uuid.uuid4()), moment
        self._complete(resource, item)
        if resource.crd is not None and "status" in resource.subresources:
            item.pop("status", None)
        own(item)
        if resource.crd is not None:
            metadata["generation"] = 1
        else:
            creation.prepare(resource.kind, item, self.store, moment)
        item = self._encoded(resource, item)
        self._refuse_invalid(resource, item, None)
        self._admit(resource, item, options)
        if self.store.get(resource.storage_key, namespace, name) is not None:
            raise errors.already_exists(resource.group, resource.plural, name)
        if options.dry_run:
            return served(resource, item)
        stored = self.store.put(resource.storage_key, item)
        if resource.kind == "CustomResourceDefinition":
            custom.establish(stored, self.store, self.resources)
        return served(resource, stored)

    def decoded(self, resource: Resource, body: Any, options: Options) -> Object:
        """A request's object in the stored version, without what its schema does not have. Raises ApiError."""
        if not isinstance(body, dict):
            raise errors.bad_request(f"the object provided is unrecognized (must be of type {resource.kind})")
        if resource.crd is not None and not body.get("kind"):
            text = f"the object provided is unrecognized (must be of type {resource.kind}): Object 'Kind' is missing"
            raise errors.bad_request(text)
        kind, version = body.get("kind") or resource.kind, body.get("apiVersion") or resource.api_version
        if (kind, version) != (resource.kind, resource.api_version):
            raise self._mistaken(resource, str(kind), str(version))
        body = {**body, "kind": kind, "apiVersion": version, "metadata": body.get("metadata") or {}}
        unknown: list[str] = []
        try:
            item = decode(resource.schema, body, unknown, check_types=resource.crd is None)
        except (WrongType, Undecodable) as wrong:
            raise wrong.as_bad_request(resource.kind, resource.version) from wrong
        self.judge_unknown(resource, unknown, options)
        return kept(resource, item)

    def _mistaken(self, resource: Resource, kind: str, version: str) -> ApiError:
        """What is said to an object of another kind or version than the path's."""
        if resource.crd is not None:
            if kind == resource.kind:
                text = f"the API version in the data ({version}) does not match the expected API version "
                return errors.bad_request(text + f"({resource.api_version})")
            text = f"the kind in the data ({kind}) does not match the expected kind ({resource.kind})"
            return errors.bad_request(text)
        group, _, number = version.rpartition("/")
        if any((made.group, made.version, made.kind) == (group, number, kind) for made in self.resources):
            home = resource.group.partition(".")[0] or "core"
            why = f"converting ({number}.{kind}) to ({home}.{resource.kind}): unknown conversion"
        else:
            why = f'no kind "{kind}" is registered for version "{version}" in scheme "pkg/runtime/scheme.go:111"'
        return errors.bad_request(f'{kind} in version "{number}" cannot be handled as a {resource.kind}: {why}')

    def judge_unknown(self, resource: Resource, unknown: list[str], options: Options) -> None:
        """Refuses unknown fields, or warns of them, as `fieldValidation` says."""
        if not unknown or options.field_validation == "Ignore":
            return
        complaints = [f'unknown field "{path}"' for path in unknown]
        if options.field_validation == "Warn":
            options.warnings += complaints
            return
        text = f'{resource.kind} in version "{resource.version}" cannot be handled as a {resource.kind}: '
        raise errors.bad_request(text + "strict decoding error: " + ", ".join(complaints))

    def _place(self, resource: Resource, namespace: str, item: Object) -> None:
        metadata = item["metadata"]
        if not resource.namespaced:
            metadata.pop("namespace", None)
            return
        if metadata.setdefault("namespace", namespace) != namespace:
            raise errors.bad_request(
                "the namespace of the provided object does not match the namespace sent on the request"
            )

    def _name(self, resource: Resource, item: Object) -> None:
        metadata = item["metadata"]
        if metadata.get("name"):
            return
        if not metadata.get("generateName"):
            cause = errors.required("metadata.name", "name or generateName is required")
            raise errors.invalid(resource.group, resource.kind, "", [cause])
        # The real server cuts the stem so that five characters still fit into 63.
        metadata["name"] = metadata["generateName"][:58] + creation.random_suffix()

    def _require_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        found = self.store.get(("", "namespaces"), "", namespace)
        if found is None:
            raise errors.not_found("", "namespaces", namespace)
        if found["metadata"].get("deletionTimestamp"):
            why = f"unable to create new content in namespace {namespace} because it is being terminated"
            cause = errors.Cause(
                "NamespaceTerminating", f"namespace {namespace} is being terminated", "metadata.namespace"
            )
            raise errors.forbidden(resource.group, resource.plural, name, why, [cause])

    # -- updating -------------------------------------------------------------------------------------------

    def update(
        self, resource: Resource, namespace: str, name: str, body: Any, options: Options, subresource: str = ""
    ) -> tuple[Object, bool]:
        """Replaces an object, or its status; the result and whether it was created. Raises ApiError."""
        item = self.decoded(resource, body, options)
        self.check_name(item, name)
        self._place(resource, namespace, item)
        found = self.store.get(resource.storage_key, item["metadata"].get("namespace", ""), name)
        if found is None and not subresource and resource.kind in _CREATED_BY_UPDATE:
            return self.create(resource, namespace, body, options), True
        live = self.live(resource, namespace, name)
        if not item["metadata"].get("resourceVersion") and (resource.crd is not None or resource.kind in _CONDITIONAL):
            cause = errors.invalid_value("metadata.resourceVersion", 0, "must be specified for an update")
            raise errors.invalid(resource.group, resource.plural, name, [cause])
        return self.replace(resource, live, item, options, subresource), False

    def check_name(self, item: Object, name: str) -> None:
        """Raises ApiError 400 for an object that is not called as its path says."""
        given = item["metadata"].get("name")
        if not given:
            text = f"the name of the object ({name} based on URL) was undeterminable: name must be provided"
            raise errors.bad_request(text)
        if given != name:
            raise errors.bad_request(f"the name of the object ({given}) does not match the name on the URL ({name})")

    def replace(
        self,
        resource: Resource,
        live: Object,
        item: Object,
        options: Options,
        subresource: str = "",
        own: Callable[[Object], None] | None = None,
        is_patch: bool = False,
    ) -> Object:
        """Stores `item` (decoded) in the place of `live`; `own` writes its managedFields (default: an Update's)."""
        self._check_preconditions(resource, live, item, is_patch)
        item = self._isolated(resource, live, item, subresource)
        before, metadata = live["metadata"], item["metadata"]
        for fixed in ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"):
            metadata.pop(fixed, None)
            if fixed in before:
                metadata[fixed] = before[fixed]
        self._complete(resource, item)
        if own:
            own(item)
        else:
            self.own(resource, live, item, options, subresource)
        if resource.kind == "Service" and resource.crd is None and not subresource:
            creation.allocate_service(item, live, self.store)
        if resource.kind == "Pod" and resource.crd is None and not subresource:
            creation.tolerate_unready_nodes(item["spec"])
        item = self._encoded(resource, item)
        if subresource != "status" and "generation" in before and _wanted(resource, item) != _wanted(resource, live):
            metadata["generation"] = before["generation"] + 1
        self._refuse_invalid(resource, item, live, subresource)
        if resource.kind != "Pod" and not subresource:
            self._admit(resource, item, options)
        metadata["resourceVersion"] = before["resourceVersion"]
        if _without_times(item) == _without_times(live):
            # Nothing changes, so nothing is written: the resourceVersion stays, and no watch hears of it.
            return served(resource, live)
        if options.dry_run:
            return served(resource, item)
        if deletion.is_finished(item):
            return served(resource, self.remove(resource, item))
        stored = self.store.put(resource.storage_key, item)
        if resource.kind == "CustomResourceDefinition" and not subresource:
            custom.establish(stored, self.store, self.resources)
        return served(resource, stored)

    def write_status(self, resource: Resource, live: Object, status: Object) -> Object:
        """Stores a status that the server itself determines."""
        return self.store.put(resource.storage_key, {**live, "metadata": dict(live["metadata"]), "status": status})

    def remove(self, resource: Resource, item: Object) -> Object:
        """Takes an object out of the store, at once."""
        if resource.kind == "CustomResourceDefinition":
            custom.withdraw(item, self.store, self.resources)
        return self.store.delete(resource.storage_key, item)

    def _check_preconditions(self, resource: Resource, live: Object, item: Object, is_patch: bool) -> None:
        before, metadata = live["metadata"], item["metadata"]
        name = before["name"]
        if metadata.get("uid") not in (None, "", before["uid"]):
            if is_patch:
                cause = errors.invalid_value("metadata.uid", metadata["uid"], "field is immutable")
                raise errors.invalid(resource.group, resource.kind, name, [cause])
            key = "/".join(filter(None, ("/registry", *resource.storage_key, before.get("namespace"), name)))
            raise errors.conflict(
                resource.group,
                resource.plural,
                name,
                f"StorageError: invalid object, Code: 4, Key: {key}, ResourceVersion: 0, AdditionalErrorMsg: "
                f"Precondition failed: UID in precondition: {metadata['uid']}, UID in object meta: {before['uid']}",
            )
        version = metadata.get("resourceVersion") or "0"
        if not version.isdigit():
            raise ApiError(500, "", f'strconv.ParseUint: parsing "{version}": invalid syntax')
        if version not in ("0", before["resourceVersion"]):
            raise errors.conflict(resource.group, resource.plural, name, errors.MODIFIED)

    def _isolated(self, resource: Resource, live: Object, item: Object, subresource: str) -> Object:
        """`item` with those parts of `live` that this endpoint does not write."""
        if subresource == "status":
            metadata = dict(item["metadata"])
            if resource.crd is not None:
                metadata = {**live["metadata"], "managedFields": item["metadata"].get("managedFields")}
                metadata = {name: value for name, value in metadata.items() if value is not None}
            else:
                kept_name = {"Deployment": "labels", "Pod": "ownerReferences"}.get(resource.kind, "")
                metadata.pop(kept_name, None)
                if kept_name in live["metadata"]:
                    metadata[kept_name] = copied(live["metadata"][kept_name])
            whole = copied({name: value for name, value in live.items() if name not in ("metadata", "status")})
            whole = {**whole, "metadata": metadata}
            return {**whole, "status": item["status"]} if "status" in item else whole
        if subresource == "finalize":
            finalizers = item.get("spec", {}).get("finalizers", [])
            return {**copied(live), "spec": {"finalizers": finalizers} if finalizers else {}}
        item = {**item, "metadata": dict(item["metadata"])}
        if "status" in resource.subresources:
            item.pop("status", None)
            if "status" in live:
                item["status"] = copied(live["status"])
        if resource.kind == "Namespace":
            item["spec"] = copied(live.get("spec", {}))
        return item

    # -- deleting -------------------------------------------------------------------------------------------

    def delete(self, resource: Resource, live: Object, wish: deletion.Wish, dry_run: bool) -> tuple[Object, bool]:
        """Deletes an object or marks it for deletion; it, and whether it is gone. Raises ApiError 409."""
        deletion.refuse_immortal(resource, live["metadata"]["name"])
        deletion.check_preconditions(resource, live, wish)
        marked = deletion.marked(resource, live, wish, datetime.now(UTC))
        if marked is None:
            return served(resource, live), False
        gone = deletion.is_finished(marked)
        if gone and resource.kind != "Pod":
            # What goes at once never carries the marks of a deletion.
            marked = live
        if dry_run:
            return served(resource, marked), gone
        if gone:
            return served(resource, self.remove(resource, marked)), True
        return served(resource, self.store.put(resource.storage_key, marked)), False

    # -- what create and update share -----------------------------------------------------------------------

    def stored_schema(self, resource: Resource) -> Schema:
        """The schema of the version in which `resource` is kept."""
        if resource.crd is not None or resource.api_version == resource.storage_version:
            return resource.schema
        home = self.resources.find(*resource.stored_as, resource.plural)
        assert home is not None
        return home.schema

    def _complete(self, resource: Resource, item: Object) -> None:
        if resource.crd is not None:
            custom.apply_defaults(resource.schema, item)
        else:
            apply_defaults(resource.kind, item)

    def _encoded(self, resource: Resource, item: Object) -> Object:
        """As Go encodes a built-in kind: required scalars are there even when nobody set them."""
        if resource.crd is not None:
            return item
        if resource.kind == "Event":
            absent = {"source": {}, "reportingComponent": "", "reportingInstance": ""}
            return {**absent, "eventTime": None, "firstTimestamp": None, "lastTimestamp": None, **item}
        if "status" not in item:
            return item
        status: Object = fill_required(self.stored_schema(resource).of("status"), item["status"])
        return {**item, "status": status}

    def writer(self, resource: Resource, options: Options, subresource: str = "") -> Writer:
        ignored: tuple[str, ...] = ()
        if subresource == "status":
            ignored = ("spec", "metadata") if resource.crd is not None else ("spec",)
        elif "status" in resource.subresources:
            ignored = ("status",)
        return Writer(
            options.manager, resource.storage_version, subresource, now(), ignored, custom=resource.crd is not None
        )

    def own(
        self, resource: Resource, live: Object | None, item: Object, options: Options, subresource: str = ""
    ) -> None:
        record_update(self.stored_schema(resource), live, item, self.writer(resource, options, subresource))

    def _admit(self, resource: Resource, item: Object, options: Options) -> None:
        if resource.crd is None and resource.namespaced:
            namespace = self.store.get(("", "namespaces"), "", item["metadata"]["namespace"]) or {"metadata": {}}
            pod_security.admit(resource.kind, item, namespace["metadata"].get("labels", {}), options.warnings)

    def _refuse_invalid(self, resource: Resource, item: Object, live: Object | None, subresource: str = "") -> None:
        if resource.crd is not None:
            before = served(resource, live) if live else None
            causes = names.metadata_causes(resource, item, live)
            causes += custom.causes(resource, served(resource, item), before)
        else:
            causes = validation.causes(resource, item, live, subresource)
        if causes:
            raise errors.invalid(resource.group, resource.kind, item["metadata"]["name"], causes)


def _wanted(resource: Resource, item: Object) -> Any:
    """The part of an object whose change makes a new generation."""
    if resource.kind == "Deployment":
        return item.get("spec"), item["metadata"].get("annotations")
    if resource.crd is not None or "spec" not in item:
        ignored = ("metadata", "status") if "status" in resource.subresources else ("metadata",)
        return {name: value for name, value in item.items() if name not in ignored}
    return item.get("spec")


def _without_times(item: Object) -> Object:
    """An object without the times of its managedFields, which alone are no change."""
    metadata = item["metadata"]
    entries = [{**entry, "time": None} for entry in metadata.get("managedFields", [])]
    return {**item, "metadata": {**metadata, "managedFields": entries}}
