"""A cluster's API through the official client's connection: objects are plain dicts, kinds are named by kind.

Every write names this project as its field manager. Transient failures are retried here; what is left is one of our
errors. Waiting is by watch (`Cluster.follow`).
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from components.errors import AccessError, InconclusiveError, PipelineError, RequestError

if TYPE_CHECKING:
    from components.settings import Settings

Object = dict[str, Any]

FIELD_MANAGER = "gemma-gke-pipelines"

_PLURALS = {
    "v1": "Namespace ServiceAccount Service ConfigMap Secret Pod Event Node PersistentVolume PersistentVolumeClaim",
    "apps/v1": "Deployment ReplicaSet",
    "batch/v1": "Job",
    "autoscaling/v2": "HorizontalPodAutoscaler",
    "policy/v1": "PodDisruptionBudget",
    "networking.k8s.io/v1": "NetworkPolicy",
    "rbac.authorization.k8s.io/v1": "Role RoleBinding ClusterRole ClusterRoleBinding",
    "storage.k8s.io/v1": "StorageClass",
    "coordination.k8s.io/v1": "Lease",
    "discovery.k8s.io/v1": "EndpointSlice",
    "monitoring.googleapis.com/v1": "PodMonitoring",
}
_CLUSTER_SCOPED = {
    "Namespace",
    "Node",
    "PersistentVolume",
    "StorageClass",
    "ClusterRole",
    "ClusterRoleBinding",
}


def _plural(kind: str) -> str:
    lower = kind.lower()
    if lower.endswith("y"):
        return lower[:-1] + "ies"
    return lower + ("es" if lower.endswith("s") else "s")


KINDS = {kind: (version, _plural(kind)) for version, kinds in _PLURALS.items() for kind in kinds.split()}
"""Kind → (API version, plural) of everything that the project touches."""


class ApiError(PipelineError):
    """The API server refused a request. `status` is the HTTP code, `reason` the Status object's reason."""

    def __init__(self, message: str, status: int, reason: str, details: Object):
        super().__init__(message)
        self.status, self.reason, self.details = status, reason, details


class ConflictError(ApiError):
    """A precondition did not hold, or another field manager owns what was to be written (409)."""


class Cluster:
    """One cluster. Made by `connect`; tests may give any `kubernetes.client.ApiClient`.

    grant: the command by which an administrator gives the pipeline the rights that it lacks.
    """

    def __init__(self, api_client: Any, name: str = "the cluster", grant: str = ""):
        self._api, self.name, self._grant = api_client, name, grant

    # -- one object -----------------------------------------------------------------------------------------

    def get(self, kind: str, name: str, namespace: str | None = None) -> Object | None:
        """The object, or None when there is none."""
        try:
            return self._call("GET", self._path(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> list[Object]:
        """The objects that the selectors match, in all namespaces when none is named."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        items = self._call("GET", self._path(kind, namespace), query=query)["items"]
        version = KINDS[kind][0]
        # Lists leave the type of their items out.
        return [{"apiVersion": version, "kind": kind, **item} for item in items]

    def apply(self, body: Object, *, force: bool = True) -> Object:
        """Server-side apply. With `force=False` a field that another manager owns raises ConflictError; with
        `metadata.resourceVersion` set, so does any change since."""
        metadata = body["metadata"]
        return self._call(
            "PATCH",
            self._path(body["kind"], metadata.get("namespace"), metadata["name"]),
            query={"fieldManager": FIELD_MANAGER, "force": "true" if force else "false"},
            body=body,
            content_type="application/apply-patch+yaml",
        )

    def create(self, body: Object) -> Object:
        """Raises ConflictError when it exists."""
        path = self._path(body["kind"], body["metadata"].get("namespace"))
        return self._call("POST", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    def replace(self, body: Object) -> Object:
        """Writes the whole object; its resourceVersion is the precondition (ConflictError)."""
        metadata = body["metadata"]
        path = self._path(body["kind"], metadata.get("namespace"), metadata["name"])
        return self._call("PUT", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    def patch(self, kind: str, name: str, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        """JSON merge patch; a `metadata.resourceVersion` in it is a precondition."""
        return self._call(
            "PATCH",
            self._path(kind, namespace, name) + (f"/{subresource}" if subresource else ""),
            query={"fieldManager": FIELD_MANAGER},
            body=body,
            content_type="application/merge-patch+json",
        )

    def delete(self, body: Object) -> bool:
        """Deletes this very object (its uid is a precondition) and what it owns, in the background. False when it was
        gone, or another has taken its name."""
        metadata = body["metadata"]
        options = {"propagationPolicy": "Background", "preconditions": {"uid": metadata["uid"]}}
        try:
            self._call("DELETE", self._path(body["kind"], metadata.get("namespace"), metadata["name"]), body=options)
        except ApiError as error:
            if error.status in (404, 409):
                return False
            raise
        return True

    def serves(self, api_version: str) -> bool:
        """Whether the cluster knows this API group and version: are a CRD's kinds there?"""
        try:
            self._call("GET", f"/apis/{api_version}")
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True

    def log(self, pod: str, namespace: str, *, container: str = "", tail: int = 50, previous: bool = False) -> str:
        """The last `tail` lines of a container's log; empty when it has none (yet)."""
        query = {"tailLines": str(tail), "container": container, "previous": "true" if previous else ""}
        try:
            return self._call("GET", self._path("Pod", namespace, pod) + "/log", query=query, raw=True)
        except ApiError as error:
            if error.status in (400, 404):
                return ""
            raise

    @contextmanager
    def log_followed(self, pod: str, namespace: str, take: Callable[[str], None]) -> Iterator[None]:
        """Hands every line of a pod's log to `take`, in a thread of its own, as it is written, while the block runs.

        When the log has ended, the block's end waits for its last lines; a log that cannot be read is silent.
        """
        follower = _LogFollower(self, self._path("Pod", namespace, pod) + "/log", take)
        follower.start()
        try:
            yield
        finally:
            follower.stop()

    # -- waiting --------------------------------------------------------------------------------------------

    @contextmanager
    def follow(self, *subjects: Subject) -> Iterator[Changes]:
        """Watches several kinds at once: first what is there, then every change, until the block ends."""
        changes = Changes(self, subjects)
        try:
            yield changes
        finally:
            changes.stop()

    # -- the wire -------------------------------------------------------------------------------------------

    @staticmethod
    def _path(kind: str, namespace: str | None, name: str = "") -> str:
        if kind not in KINDS:
            raise RequestError(f"kind {kind} is not one that this project manages")
        version, plural = KINDS[kind]
        root = "/api/v1" if version == "v1" else f"/apis/{version}"
        scope = f"/namespaces/{namespace}" if namespace and kind not in _CLUSTER_SCOPED else ""
        return f"{root}{scope}/{plural}" + (f"/{name}" if name else "")

    def _call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        content_type: str = "application/json",
        raw: bool = False,
    ) -> Any:
        """One request, tried again for half a minute while the API server is away or busy."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        give_up = time.monotonic() + 30
        pause = 0.2
        while True:
            try:
                response = self._send(method, path, query, body, content_type, stream=False)
                return response.data.decode() if raw else json.loads(response.data)
            except ApiException as error:
                if error.status not in (429, 500, 502, 503, 504) or time.monotonic() > give_up:
                    raise self._refused(method, path, error) from error
            except HTTPError as error:
                cause = getattr(error, "reason", error)
                # TLS that breaks off is a server that goes, which is another thing.
                if isinstance(cause.args[0] if cause.args else None, ssl.SSLCertVerificationError):
                    raise RequestError(
                        f"{self.name} shows a certificate that its endpoint should not have ({cause}). See `endpoint` "
                        "in the settings, and whether a proxy opens TLS on the way"
                    ) from error
                if time.monotonic() > give_up:
                    raise InconclusiveError(f"the API server of {self.name} does not answer: {cause}") from error
            time.sleep(pause)  # Nothing to watch: the server itself is away.
            pause = min(pause * 2, 5)

    def _send(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        body: Object | None,
        content_type: str,
        *,
        stream: bool,
    ) -> Any:
        return self._api.call_api(
            path,
            method,
            query_params=[(key, value) for key, value in (query or {}).items() if value],
            header_params={"Accept": "application/json, */*", "Content-Type": content_type},
            body=body,
            auth_settings=["BearerToken"],
            _preload_content=False,
            _return_http_data_only=True,
            _request_timeout=(5, 330 if stream else 30),
        )

    def _refused(self, method: str, path: str, error: Any) -> PipelineError:
        """Our error for an API server's refusal, in its own words."""
        try:
            status = json.loads(error.body)
        except (TypeError, ValueError):
            status = {}
        message = status.get("message") or f"{method} {path}: {error.status} {error.reason}"
        if error.status == 401:
            return AccessError(
                f"{self.name} does not take these credentials ({message}). See `gcloud auth application-default login`"
            )
        if error.status == 403:
            # Admission and quotas refuse with 403 too; what is a missing right names the verb that is.
            cure = f". An administrator grants it: `{self._grant}`" if self._grant and " cannot " in message else ""
            return AccessError(f"{self.name}: {message}{cure}")
        if error.status == 409:
            return ConflictError(message, 409, status.get("reason", ""), status.get("details") or {})
        if error.status >= 500 or error.status == 429:
            return InconclusiveError(f"the API server of {self.name} does not answer: {message}")
        return ApiError(message, error.status, status.get("reason", ""), status.get("details") or {})


class Subject:
    """What to watch: a kind, in a namespace, narrowed by selectors."""

    def __init__(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = ""):
        self.kind, self.namespace, self.labels, self.fields = kind, namespace, labels, fields


class Changes:
    """Changes of several kinds, as they come. One thread watches one subject."""

    def __init__(self, cluster: Cluster, subjects: tuple[Subject, ...]):
        self._cluster = cluster
        self._queue: queue.SimpleQueue[tuple[str, Object] | PipelineError] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._responses: dict[int, Any] = {}
        for number, subject in enumerate(subjects):
            threading.Thread(target=self._watch, args=(number, subject), daemon=True).start()

    def until(self, deadline: float, *, tick: float = 1.0) -> Iterator[tuple[str, Object] | None]:
        """(ADDED | MODIFIED | DELETED, object) as it happens, and None at least every `tick` seconds so that the caller
        can look at its clocks; ends at `deadline` (of time.monotonic). Raises what the watch met."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                change = self._queue.get(timeout=min(tick, left))
            except queue.Empty:
                yield None
                continue
            if isinstance(change, PipelineError):
                raise change
            yield change

    def stop(self) -> None:
        self._stopped.set()
        for response in list(self._responses.values()):
            _wake(response)

    def _watch(self, number: int, subject: Subject) -> None:
        version = ""
        known: dict[str, Object] = {}
        try:
            while not self._stopped.is_set():
                if not version:
                    version = self._start_over(subject, known)
                version = self._read_stream(number, subject, version, known)
        except PipelineError as error:
            if not self._stopped.is_set():
                self._queue.put(error)

    def _start_over(self, subject: Subject, known: dict[str, Object]) -> str:
        """Lists what is there and tells what changed since the last list: returns the version to watch from."""
        query = {"labelSelector": subject.labels, "fieldSelector": subject.fields}
        listed = self._cluster._call("GET", self._cluster._path(subject.kind, subject.namespace), query=query)
        there = {}
        for item in listed["items"]:
            item = {"apiVersion": KINDS[subject.kind][0], "kind": subject.kind, **item}
            there[item["metadata"]["uid"]] = item
        for uid in known.keys() - there.keys():
            self._queue.put(("DELETED", known[uid]))
        for uid, item in there.items():
            before = known.get(uid)
            if before is None or before["metadata"]["resourceVersion"] != item["metadata"]["resourceVersion"]:
                self._queue.put(("MODIFIED" if before else "ADDED", item))
        known.clear()
        known.update(there)
        return listed["metadata"]["resourceVersion"]

    def _read_stream(self, number: int, subject: Subject, version: str, known: dict[str, Object]) -> str:
        """Reads one watch until it ends: returns the version to go on from, or "" to start over."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        query = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": "300",
            "labelSelector": subject.labels,
            "fieldSelector": subject.fields,
        }
        try:
            path = self._cluster._path(subject.kind, subject.namespace)
            response = self._cluster._send("GET", path, query, None, "application/json", stream=True)
            self._responses[number] = response
            if self._stopped.is_set():
                return version
            for line in _lines(response):
                event = json.loads(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    return ""
                version = item["metadata"]["resourceVersion"]
                if event["type"] == "BOOKMARK":
                    continue
                if event["type"] == "DELETED":
                    known.pop(item["metadata"]["uid"], None)
                else:
                    known[item["metadata"]["uid"]] = item
                self._queue.put((event["type"], item))
        except (HTTPError, OSError, ValueError, AttributeError):
            # The connection broke, or stop() closed it under the read; a list tells what was missed.
            self._stopped.wait(0.2)
            return ""
        except ApiException as error:
            if error.status in (401, 403):
                raise self._cluster._refused("GET", path, error) from error
            self._stopped.wait(1)
            return ""
        finally:
            self._responses.pop(number, None)
        return version


class _LogFollower(threading.Thread):
    """Reads a log stream to its end. One that breaks is opened again, and the lines that were handed on are skipped."""

    def __init__(self, cluster: Cluster, path: str, take: Callable[[str], None]):
        super().__init__(daemon=True)
        self._cluster, self._path, self._take = cluster, path, take
        self._stopped = threading.Event()
        self._response: Any = None

    def run(self) -> None:
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        taken = 0
        while not self._stopped.is_set():
            try:
                self._response = self._cluster._send(
                    "GET", self._path, {"follow": "true"}, None, "application/json", stream=True
                )
                for number, line in enumerate(_lines(self._response)):
                    if self._stopped.is_set():
                        return
                    if number >= taken:
                        self._take(line.decode(errors="replace"))
                        taken += 1
                return
            except (HTTPError, OSError, ValueError, AttributeError):
                self._stopped.wait(1)
            except ApiException as error:
                if error.status < 500 and error.status != 429:
                    return
                self._stopped.wait(1)

    def stop(self) -> None:
        self.join(timeout=1)
        self._stopped.set()
        _wake(self._response)


def _wake(response: Any) -> None:
    """Ends a read that another thread waits in: only closing its socket does."""
    connection = getattr(response, "_connection", None)
    sock = getattr(connection, "sock", None)
    if sock is not None:
        try:
            sock.shutdown(2)
        except OSError:
            pass


def _lines(response: Any) -> Iterator[bytes]:
    """The lines of a stream as they arrive."""
    rest = b""
    for data in response.stream(amt=None, decode_content=False):
        *lines, rest = (rest + data).split(b"\n")
        yield from (line for line in lines if line)


def connect(settings: Settings) -> Cluster:
    """The deployment's cluster: project, location and name through the container API, never a kubeconfig."""
    from kubernetes.client import ApiClient, Configuration

    from components.clients import google

    address = google.cluster_address(settings.project, settings.location, settings.cluster, settings.endpoint)
    credentials = google.credentials()
    configuration = Configuration(host=address.url)
    if address.ca_certificate:
        configuration.ssl_ca_cert = _certificate_file(address.ca_certificate)

    def refresh(configuration: Any) -> None:
        from google.auth.transport.requests import Request

        if not credentials.valid:
            credentials.refresh(Request())
        configuration.api_key["authorization"] = credentials.token

    configuration.refresh_api_key_hook = refresh
    configuration.api_key_prefix["authorization"] = "Bearer"
    refresh(configuration)
    # Waiting for a lock of the pool would stall a request behind the open watches.
    configuration.connection_pool_maxsize = 16
    return Cluster(
        ApiClient(configuration),
        f"cluster {settings.cluster} ({settings.location})",
        f"gemma-pipelines render {settings.scenario} -f FILE --access | kubectl apply --server-side -f -",
    )


def _certificate_file(pem: bytes) -> str:
    """urllib3 takes a CA only as a file: one that goes with this process."""
    descriptor, path = tempfile.mkstemp(suffix=".crt")
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    atexit.register(os.unlink, path)
    return path
