"""Our client of a cluster's API when the connection fails it (TLS that breaks off, a certificate of somebody else), and
when it may not write."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from emulated_cloud.kubernetes import tls
from kubernetes.client import ApiClient, Configuration

from serving.clients.kubernetes import Cluster
from serving.errors import InconclusiveError, RequestError

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
