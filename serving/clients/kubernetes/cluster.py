"""The verbs of a cluster's API, each for one object or one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from serving.clients.kubernetes import kinds
from serving.clients.kubernetes.connection import Connection
from serving.clients.kubernetes.errors import ApiError
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

    @contextmanager
    def changed_only_if(self, check: Callable[[str], None]) -> Iterator[None]:
        """While the block runs, `check` is called with an object's kind before anything is written: it raises what
        forbids that."""
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
        self._may_change(body["kind"])
        metadata = body["metadata"]
        return self._connection.call(
            "PATCH",
            kinds.path(body["kind"], metadata.get("namespace"), metadata["name"]),
            query={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    def create(self, body: Object) -> Object:
        """Raises ConflictError when it exists."""
        self._may_change(body["kind"])
        path = kinds.path(body["kind"], body["metadata"].get("namespace"))
        return self._connection.call("POST", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    def replace(self, body: Object) -> Object:
        """Writes the whole object; its resourceVersion is the precondition (ConflictError)."""
        self._may_change(body["kind"])
        metadata = body["metadata"]
        path = kinds.path(body["kind"], metadata.get("namespace"), metadata["name"])
        return self._connection.call("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    def patch(self, kind: str, name: str, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        """JSON merge patch; a `metadata.resourceVersion` in it is a precondition."""
        self._may_change(kind)
        return self._connection.call(
            "PATCH",
            kinds.path(kind, namespace, name) + (f"/{subresource}" if subresource else ""),
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type="application/merge-patch+json",
        )

    def delete(self, body: Object) -> bool:
        """Deletes this very object (its uid is a precondition) and what it owns, in the background. False when it was
        gone, or another has taken its name."""
        self._may_change(body["kind"])
        metadata = body["metadata"]
        options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            self._connection.call(
                "DELETE", kinds.path(body["kind"], metadata.get("namespace"), metadata["name"]), body=options
            )
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        return True

    def serves(self, kind: str) -> bool:
        """Whether the cluster knows the kind: is a CRD there? Only an answer that lists others says no."""
        wanted = kinds.find(kind)
        groups = self._connection.call("GET", "/apis")["groups"]
        versions = {version["groupVersion"] for group in groups for version in group["versions"]}
        if wanted.api_version not in versions:
            return False
        resources = self._connection.call("GET", f"/apis/{wanted.api_version}")["resources"]
        return any(resource["kind"] == kind for resource in resources)

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
