"""The verbs of a cluster's API, each for one object or one kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from serving.clients.kubernetes import kinds
from serving.clients.kubernetes.connection import Connection
from serving.clients.kubernetes.errors import ApiError, ConflictError
from serving.clients.kubernetes.kinds import Object
from serving.clients.kubernetes.logs import LogFollower
from serving.clients.kubernetes.watch import Changes, Subject

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

FIELD_MANAGER = "gemma-gke-pipelines"


class Cluster:
    """One cluster. Made by `connect`; tests may give any client.

    grant: the command by which an administrator gives the pipeline the rights that it lacks.
    """

    def __init__(self, api_client: ApiClient, name: str = "the cluster", grant: str = ""):
        self.name = name
        self._connection = Connection(api_client, name, grant)
        self._may_change: Callable[[str], None] = lambda kind: None

    def impatient(self) -> Cluster:
        """The same cluster for somebody who cannot wait: no request is tried again, and no check forbids one."""
        other = copy.copy(self)
        other._connection, other._may_change = self._connection.impatient(), lambda kind: None
        return other

    @contextmanager
    def changed_only_if(self, check: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, `check` is called with an object's kind before anything is written, and again before
        each further try of it: it raises what forbids that."""
        before, self._may_change = self._may_change, check
        try:
            yield
        finally:
            self._may_change = before

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none."""
        try:
            return self._connection.call("GET", kinds.path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        """The objects that the selectors match, in all namespaces when none is named."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        items = self._connection.call("GET", kinds.path(kind, namespace), query=query)["items"]
        return [kinds.typed(kind, item) for item in items]

    def apply(self, body: Object, *, force: bool = True) -> Object:
        """Server-side apply. With `force=False` a field that another manager owns raises ConflictError; with
        `metadata.resourceVersion` set, so does any change since."""
        return self._write(
            "PATCH",
            _place(body),
            body,
            query={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
            content_type="application/apply-patch+yaml",
        )

    def would_be(self, body: Object) -> Object:
        """What `apply` would make of it, whoever owns its fields. Writes nothing."""
        found: Object = self._connection.call(
            "PATCH",
            kinds.path(*_place(body)),
            query={"fieldManager": FIELD_MANAGER, "force": "true", "dryRun": "All"},
            body=body,
            content_type="application/apply-patch+yaml",
        )
        return found

    def create(self, body: Object) -> Object:
        """Raises ConflictError when it exists."""
        kind, namespace, name = _place(body)
        return self._write("POST", (kind, namespace, name), body, path=kinds.path(kind, namespace))

    def replace(self, body: Object) -> Object:
        """Writes the whole object; its resourceVersion is the precondition (ConflictError)."""
        return self._write("PUT", _place(body), body)

    def patch(self, kind: str, name: str, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        """JSON merge patch; a `metadata.resourceVersion` in it is a precondition."""
        path = kinds.path(kind, namespace, name) + (f"/{subresource}" if subresource else "")
        return self._write(
            "PATCH", (kind, namespace, name), body, path=path, content_type="application/merge-patch+json"
        )

    def delete(self, body: Object) -> bool:
        """Deletes this very object (its uid is a precondition) and what it owns, in the background. False when it was
        gone, or another has taken its name."""
        options = {"propagationPolicy": "Background", "preconditions": {"uid": body["metadata"]["uid"]}}
        try:
            self._connection.call(
                "DELETE",
                kinds.path(*_place(body)),
                body=options,
                allowed=lambda: self._may_change(body["kind"]),
            )
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        return True

    def _write(
        self,
        method: str,
        place: tuple[str, str | None, str],
        body: Object,
        *,
        path: str = "",
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        """One write. Where the answer to an earlier try was lost, a conflict may be of our own making: the object says
        whether it is what was to be written."""
        try:
            written: Object = self._connection.call(
                method,
                path or kinds.path(*place),
                query=query or {"fieldManager": FIELD_MANAGER},
                body=body,
                content_type=content_type,
                allowed=lambda: self._may_change(place[0]),
            )
        except ConflictError as error:
            kind, namespace, name = place
            there = self.get(kind, name, namespace) if error.may_be_own else None
            if there is None or not _says(there, body):
                raise
            return there
        return written

    def allows(self, user: str, namespace: str, name: str, *, group: str, resource: str, verb: str) -> bool:
        """Whether a user may do something with the objects of a resource, or with the one of that name; in the whole
        cluster without a namespace. Raises AccessError when we may not ask."""
        attributes = {"namespace": namespace, "name": name, "group": group, "resource": resource, "verb": verb}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": {key: value for key, value in attributes.items() if value}},
        }
        answer = self._connection.call("POST", "/apis/authorization.k8s.io/v1/subjectaccessreviews", body=body)
        return bool(answer["status"]["allowed"])

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows the kind: is a CRD there? Only an answer that lists others says no."""
        wanted = kinds.find(kind)
        groups = self._connection.call("GET", "/apis")["groups"]
        versions = {version["groupVersion"] for group in groups for version in group["versions"]}
        if wanted.api_version not in versions:
            return False
        resources = self._connection.call("GET", f"/apis/{wanted.api_version}")["resources"]
        return any(resource["kind"] == kind for resource in resources)

    def has_group(self, group: str) -> bool:
        """Whether the cluster's API has a group, of whoever serves it."""
        return any(each["name"] == group for each in self._connection.call("GET", "/apis")["groups"])

    def everything_in(self, namespace: str) -> Sequence[Object]:
        """All objects of a namespace, of whatever kind, but for those that every namespace has."""
        found: dict[str, Object] = {}
        for version in ["v1", *self._preferred_versions()]:
            root = f"/apis/{version}" if "/" in version else f"/api/{version}"
            for resource in self._connection.call("GET", root)["resources"]:
                if not resource["namespaced"] or "list" not in resource["verbs"] or "/" in resource["name"]:
                    continue
                items = self._connection.call("GET", f"{root}/namespaces/{namespace}/{resource['name']}")["items"]
                for item in items:
                    if not _is_in_every_namespace(resource["kind"], item["metadata"]["name"]):
                        # A kind of two groups is one object.
                        found[item["metadata"]["uid"]] = {"kind": resource["kind"], **item}
        return [*found.values()]

    def _preferred_versions(self) -> Sequence[str]:
        """Of all groups but those of figures, which are nobody's objects."""
        groups = self._connection.call("GET", "/apis")["groups"]
        return [
            group["preferredVersion"]["groupVersion"]
            for group in groups
            if not group["name"].endswith("metrics.k8s.io")
        ]

    def log(self, pod: str, namespace: str, *, container: str = "", tail: int = 50, previous: bool = False) -> str:
        """The last `tail` lines of a container's log; empty when it has none (yet)."""
        query = {"tailLines": str(tail), "container": container, "previous": "true" if previous else ""}
        try:
            return self._connection.call("GET", kinds.path("Pod", namespace, pod) + "/log", query=query, raw=True)
        except ApiError as error:
            if error.status in (400, 404):
                return ""
            raise

    @contextmanager
    def log_followed(self, pod: str, namespace: str, take: Callable[[str], None]) -> Iterator[None]:
        """Hands every line of a pod's log to `take`, in a thread of its own, as it is written, while the block runs.

        When the log has ended, the block's end waits for its last lines; a log that cannot be read is silent.
        """
        follower = LogFollower(self._connection, kinds.path("Pod", namespace, pod) + "/log", take)
        follower.start()
        try:
            yield
        finally:
            follower.stop()

    @contextmanager
    def follow(self, *subjects: Subject) -> Iterator[Changes]:
        """Watches several kinds at once: first what is there, then every change, until the block ends."""
        changes = Changes(self._connection, subjects)
        try:
            yield changes
        finally:
            changes.stop()


def _is_in_every_namespace(kind: str, name: str) -> bool:
    return kind == "Event" or (kind, name) in (("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default"))


def _place(body: Object) -> tuple[str, str | None, str]:
    """(kind, namespace, name)"""
    return body["kind"], body["metadata"].get("namespace"), body["metadata"]["name"]


def _says(there: Any, written: Any, *, path: tuple[str, ...] = ()) -> bool:
    """Whether an object says all that was to be written, beside what the server adds."""
    if path == ("metadata", "resourceVersion"):
        return True  # What it had before.
    if isinstance(written, dict) and isinstance(there, dict):
        return all(_says(there.get(key), value, path=(*path, key)) for key, value in written.items())
    if isinstance(written, list) and isinstance(there, list):
        return len(written) == len(there) and all(
            _says(one, other, path=(*path, "")) for one, other in zip(there, written, strict=True)
        )
    return bool(there == written)
