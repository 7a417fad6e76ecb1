"""Our client of a cluster's API when the connection fails it (TLS that breaks off, a certificate of somebody else), and
when it may not write."""

from __future__ import annotations

import dataclasses
import http.server
import itertools
import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.kubernetes import tls
from google.auth.exceptions import RefreshError, TransportError
from kubernetes.client import ApiClient, Configuration

from serving.clients import google, kubernetes, patience
from serving.clients.kubernetes import ApiError, Cluster, ConflictError, Subject, watch
from serving.clients.patience import Interrupted
from serving.deployment import lease
from serving.errors import AccessError, InconclusiveError, RequestError
from serving.settings import Settings, validated
from tests.contract.test_resolve_model import PARAMETERS, REST

DEPLOYMENT = {**REST, **PARAMETERS}

ANSWER = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"kind": "N"}'


@contextmanager
def server(certificates: Path, breaks: int) -> Iterator[str]:
    """An API server that goes away in the first `breaks` handshakes, and answers then: its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "tls.crt", certificates / "tls.key")
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        left = breaks
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                left -= 1
                if left >= 0:
                    connection.recv(1)
                    continue
                try:
                    with context.wrap_socket(connection, server_side=True) as stream:
                        stream.recv(65536)
                        stream.sendall(ANSWER)
                except OSError:
                    continue  # The client did not like the certificate.

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def cluster(url: str, certificates: Path) -> Cluster:
    configuration = Configuration(host=url)
    configuration.ssl_ca_cert = str(certificates / "ca.crt")
    return Cluster(ApiClient(configuration), "cluster gemma")


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    tls.ensure(tmp_path / "tls")
    return tmp_path / "tls"


def test_an_api_server_that_goes_in_the_middle_of_a_handshake_is_asked_again(certificates: Path) -> None:
    """As one that is restarted, or whose load balancer is: nothing is wrong with its certificate."""
    # More than urllib3 tries by itself.
    with server(certificates, breaks=6) as url:
        found = cluster(url, certificates).get("Namespace", "gemma")
    assert found == {"kind": "N"}


def test_a_certificate_of_somebody_else_is_told_at_once(certificates: Path, tmp_path: Path) -> None:
    tls.ensure(tmp_path / "another")
    with (
        server(certificates, breaks=0) as url,
        pytest.raises(RequestError, match="cluster gemma shows a certificate that its endpoint should not have"),
    ):
        cluster(url, tmp_path / "another").get("Namespace", "gemma")


def test_what_may_not_be_changed_is_not_even_asked_for() -> None:
    nobody_listens = Cluster(ApiClient(Configuration(host="http://127.0.0.1:9")))
    body = {"kind": "Service", "metadata": {"name": "gemma", "namespace": "gemma", "uid": "1"}}
    asked: list[str] = []

    def refuse(kind: str) -> None:
        asked.append(kind)
        raise InconclusiveError("the Lease has run out")

    changes: list[Callable[[], object]] = [
        lambda: nobody_listens.apply(body),
        lambda: nobody_listens.create(body),
        lambda: nobody_listens.replace(body),
        lambda: nobody_listens.patch("Service", "gemma", "gemma", {}),
        lambda: nobody_listens.delete(body),
    ]
    with nobody_listens.changed_only_if(refuse):
        for change in changes:
            with pytest.raises(InconclusiveError, match="the Lease has run out"):
                change()
    assert asked == ["Service"] * len(changes)


# -- an API server that is away, busy, or not heard ---------------------------------------------------------------

LEASE: dict[str, Any] = {
    "apiVersion": "coordination.k8s.io/v1",
    "kind": "Lease",
    "metadata": {"name": "gemma", "namespace": "gemma", "resourceVersion": "7"},
    "spec": {"holderIdentity": "run-1", "renewTime": "2026-11-24T00:00:00.000000Z"},
}
NOT_HEARD = None
"""The request has arrived, and its answer does not."""


@dataclass
class Answer:
    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict)


def refused(status: int, message: str = "no", **headers: str) -> Answer:
    return Answer(status, {"kind": "Status", "message": message, "reason": "Some", "details": {}}, headers)


@dataclass
class ApiServer:
    """Answers as it is told to, the last answer for ever: `requests` are (method, path) as they came."""

    url: str
    answers: list[Answer | None] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)

    def cluster(self, hook: Callable[[Any], None] | None = None) -> Cluster:
        configuration = Configuration(host=self.url)
        configuration.retries = 0
        configuration.api_key["authorization"] = "t"
        configuration.refresh_api_key_hook = hook
        return Cluster(ApiClient(configuration), "cluster gemma", "gemma-pipelines render --access")


@pytest.fixture
def api() -> Iterator[ApiServer]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            api.requests.append((self.command, self.path.partition("?")[0]))
            answer = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
            if answer is NOT_HEARD:
                self.close_connection = True
                return
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in {"Content-Length": str(len(data)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = handle_any

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        api = ApiServer(f"http://127.0.0.1:{server.server_address[1]}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield api
        server.shutdown()


WRITES: list[Any] = [
    pytest.param(lambda cluster: cluster.replace(LEASE), "PUT", id="replace"),
    pytest.param(lambda cluster: cluster.create(LEASE), "POST", id="create"),
    pytest.param(lambda cluster: cluster.apply(LEASE, force=False), "PATCH", id="apply"),
]
WRITTEN = {**LEASE, "metadata": {**LEASE["metadata"], "resourceVersion": "8", "uid": "u", "generation": 2}}
ANOTHERS = {**WRITTEN, "spec": {**LEASE["spec"], "holderIdentity": "run-9"}}


@pytest.mark.parametrize(("write", "method"), WRITES)
@pytest.mark.parametrize("lost", [NOT_HEARD, refused(504, "timed out")], ids=["no answer", "504"])
def test_a_write_whose_answer_was_lost_is_known_again(
    api: ApiServer, write: Callable[[Cluster], Any], method: str, lost: Answer | None
) -> None:
    api.answers = [lost, refused(409, "the object has been modified"), Answer(200, WRITTEN)]
    assert write(api.cluster()) == WRITTEN
    assert [asked for asked, _ in api.requests] == [method, method, "GET"]


@pytest.mark.parametrize(("write", "method"), WRITES)
def test_a_conflict_with_somebody_else_is_one_though_an_answer_was_lost(
    api: ApiServer, write: Callable[[Cluster], Any], method: str
) -> None:
    api.answers = [NOT_HEARD, refused(409, "the object has been modified"), Answer(200, ANOTHERS)]
    with pytest.raises(ConflictError, match="has been modified"):
        write(api.cluster())


@pytest.mark.parametrize(("write", "method"), WRITES)
def test_a_conflict_at_once_is_not_looked_at(api: ApiServer, write: Callable[[Cluster], Any], method: str) -> None:
    api.answers = [refused(409, "already exists"), Answer(200, WRITTEN)]
    with pytest.raises(ConflictError):
        write(api.cluster())
    assert [asked for asked, _ in api.requests] == [method]


def test_the_lease_survives_a_renewal_whose_answer_was_lost(api: ApiServer) -> None:
    read = {**LEASE, "spec": {**LEASE["spec"], "leaseDurationSeconds": 900}}
    api.answers = [Answer(200, read), NOT_HEARD, refused(409), Answer(200, read), Answer(200, read)]
    lease.renew(api.cluster(), validated(Settings, DEPLOYMENT), "run-1")
    # What is there has another time of renewal: read again, and written again.
    assert [asked for asked, _ in api.requests] == ["GET", "PUT", "PUT", "GET", "GET", "PUT"]


@pytest.mark.parametrize(("write", "method"), WRITES)
def test_what_is_no_longer_allowed_is_not_tried_again(
    api: ApiServer, write: Callable[[Cluster], Any], method: str
) -> None:
    """A write that waits for the API server must not land when the Lease has run out meanwhile."""
    api.answers = [refused(503)]
    asked: list[str] = []

    def allowed_once(kind: str) -> None:
        asked.append(kind)
        if len(asked) > 1:
            raise InconclusiveError("the Lease has run out")

    cluster = api.cluster()
    with cluster.changed_only_if(allowed_once), pytest.raises(InconclusiveError, match="the Lease has run out"):
        write(cluster)
    assert [asked for asked, _ in api.requests] == [method]


@pytest.mark.parametrize(
    "passing",
    [
        NOT_HEARD,
        refused(429, "too many requests"),
        refused(500, "etcdserver: leader changed"),
        refused(503, "the server is shutting down"),
        Answer(200, b"<html>a proxy's page</html>"),
        Answer(200, b'{"kind": "Leas'),
        Answer(503, b"not JSON either"),
    ],
)
def test_what_passes_is_waited_for(api: ApiServer, passing: Answer | None) -> None:
    api.answers = [passing, passing, Answer(200, LEASE)]
    assert api.cluster().get("Lease", "gemma", "gemma") == LEASE


def test_a_server_that_asks_to_be_left_alone_is(api: ApiServer) -> None:
    api.answers = [refused(429, "too many requests", **{"Retry-After": "3600"})]
    with pytest.raises(InconclusiveError, match=r"cluster gemma does not answer: too many requests .*asks for 3600 s"):
        api.cluster().get("Lease", "gemma", "gemma")
    assert len(api.requests) == 1


def test_patience_ends_with_the_cause(api: ApiServer) -> None:
    api.answers = [refused(503, "the server is shutting down")]
    with patience.lasting(1), pytest.raises(InconclusiveError, match="does not answer: the server is shutting down"):
        api.cluster().get("Lease", "gemma", "gemma")
    assert len(api.requests) > 1


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (refused(422, "spec.selector: field is immutable"), ApiError, "immutable"),
        (refused(400, "unknown field"), ApiError, "unknown field"),
        (refused(401, "Unauthorized"), AccessError, "gcloud auth application-default login"),
        (refused(403, 'leases is forbidden: User "x" cannot create'), AccessError, "gemma-pipelines render --access"),
        (refused(403, "violates PodSecurity restricted"), AccessError, "violates PodSecurity"),
        (refused(403, "exceeded quota: compute, requested: pods=1"), InconclusiveError, "exceeded quota"),
    ],
)
def test_what_is_final_is_told_at_once(api: ApiServer, answer: Answer, error: type[Exception], words: str) -> None:
    api.answers = [answer]
    with pytest.raises(error, match=words):
        api.cluster().create(LEASE)
    assert len(api.requests) == 1


def test_somebody_who_cannot_wait_asks_once(api: ApiServer) -> None:
    api.answers = [refused(503)]
    with pytest.raises(InconclusiveError):
        api.cluster().impatient().get("Lease", "gemma", "gemma")
    assert len(api.requests) == 1


# -- tokens -------------------------------------------------------------------------------------------------------


class Credentials:
    """A token that cannot be had `failures` times."""

    valid = False
    token = "a-token"

    def __init__(self, *failures: Exception):
        self.failures = list(failures)

    def refresh(self, _request: object) -> None:
        if self.failures:
            raise self.failures.pop(0)


def wrapped(cause: Exception) -> Exception:
    error = RefreshError(cause)
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "passing",
    [
        TransportError("no route"),
        wrapped(TransportError("the metadata server is away")),
        RefreshError("internal_failure", retryable=True),
    ],
    ids=["transport", "metadata server", "busy"],
)
def test_a_token_that_is_not_to_be_had_at_the_moment_is_waited_for(api: ApiServer, passing: Exception) -> None:
    credentials = Credentials(passing, passing)

    def refresh(configuration: Any) -> None:
        configuration.api_key["authorization"] = google.refreshed(credentials)

    api.answers = [Answer(200, LEASE)]
    assert api.cluster(refresh).get("Lease", "gemma", "gemma") == LEASE
    assert credentials.failures == []


def test_credentials_that_are_good_for_nothing_are_told_at_once(api: ApiServer) -> None:
    credentials = Credentials(RefreshError("invalid_grant: Token has been expired or revoked."))
    with pytest.raises(AccessError, match=r"invalid_grant.*gcloud auth application-default login"):
        api.cluster(lambda _: google.refreshed(credentials)).get("Lease", "gemma", "gemma")
    assert api.requests == []


# -- watches ------------------------------------------------------------------------------------------------------

LISTED = Answer(200, {"items": [], "metadata": {"resourceVersion": "7"}})
SUBJECT = Subject("Lease", "gemma")


def event(kind: str, item: Any) -> bytes:
    return json.dumps({"type": kind, "object": item}).encode() + b"\n"


def first_change(cluster: Cluster) -> Any:
    with cluster.follow(SUBJECT) as changes:
        return next(change for change in changes.until(time.monotonic() + 60) if change)


@pytest.mark.parametrize(
    "broken",
    [NOT_HEARD, refused(503), Answer(200, b"<html>"), Answer(200, event("ERROR", {"code": 410}))],
    ids=["no answer", "503", "no JSON", "410"],
)
def test_a_watch_that_breaks_starts_over(api: ApiServer, broken: Answer | None) -> None:
    api.answers = [LISTED, broken, LISTED, Answer(200, event("ADDED", WRITTEN)), LISTED]
    assert first_change(api.cluster()) == ("ADDED", WRITTEN)


@pytest.mark.parametrize("where", ["list", "watch"])
def test_a_watch_outlives_a_token_that_is_not_to_be_had_at_the_moment(api: ApiServer, where: str) -> None:
    failures = [TransportError("no route")] * 2
    asked = itertools.count()

    def refresh(_: Any) -> None:
        if next(asked) >= (0 if where == "list" else 1) and failures:
            raise Interrupted("no token") from failures.pop()

    api.answers = [LISTED] * (1 if where == "list" else 2) + [Answer(200, event("ADDED", WRITTEN)), LISTED]
    assert first_change(api.cluster(refresh)) == ("ADDED", WRITTEN)
    assert failures == []


@pytest.mark.parametrize("error", [AccessError("no more tokens"), RuntimeError("a defect"), KeyError("object")])
def test_what_ends_a_watch_reaches_whoever_waits_for_it(api: ApiServer, error: Exception) -> None:
    """Else it would wait for hours, for what nobody watches any more."""

    def refresh(_: Any) -> None:
        raise error

    with pytest.raises(type(error)) as raised:
        first_change(api.cluster(refresh))
    assert raised.value is error


def test_a_watch_without_a_sign_of_life_is_a_dead_one(monkeypatch: pytest.MonkeyPatch, api: ApiServer) -> None:
    assert 60 < watch._SILENCE_SECONDS <= 90, "bookmarks come once a minute"
    monkeypatch.setattr(watch, "_SILENCE_SECONDS", 0.3)
    silent = Answer(200, b"", {"Content-Length": "1000"})
    api.answers = [LISTED, silent, LISTED, Answer(200, event("ADDED", WRITTEN)), LISTED]
    assert first_change(api.cluster()) == ("ADDED", WRITTEN)


# -- the certificate ----------------------------------------------------------------------------------------------


def test_a_connection_leaves_no_file_behind(
    cloud_environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the process."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    connected = kubernetes.connect(validated(Settings, {**DEPLOYMENT, "endpoint": "ip"}))
    assert connected.get("Namespace", "default")
    assert list(tmp_path.iterdir()) == []


def test_a_server_with_another_certificate_than_the_clusters_is_not_believed(
    cloud_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, certificates: Path
) -> None:
    found = google.cluster_address

    def with_another_authority(*asked: Any) -> Any:
        return dataclasses.replace(found(*asked), ca_certificate=(certificates / "ca.crt").read_bytes())

    monkeypatch.setattr(google, "cluster_address", with_another_authority)
    connected = kubernetes.connect(validated(Settings, {**DEPLOYMENT, "endpoint": "ip"}))
    with pytest.raises(RequestError, match="shows a certificate that its endpoint should not have"):
        connected.get("Namespace", "default")
