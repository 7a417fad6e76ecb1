"""Our own client of Google's APIs: what passes is waited for, what is final is told at once, and nothing is a
traceback."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, RefreshError, TransportError

from serving.clients import google, patience
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

CLUSTER = {"name": "gemma", "controlPlaneEndpointsConfig": {"dnsEndpointConfig": {"endpoint": "gke.example.com"}}}
ASKED: list[Any] = [
    pytest.param(lambda: google.cluster_address("p", "us-central1", "gemma", "dns"), id="cluster"),
    pytest.param(lambda: google.secret("projects/p/secrets/s/versions/latest"), id="secret"),
    pytest.param(lambda: google.project_number("p"), id="project"),
]
ANSWER = {**CLUSTER, "payload": {"data": ""}}
"""Each of the three takes what it knows of it; a project's name, which is a cluster's too, is its number."""


def said(status: int, message: str) -> tuple[int, Any]:
    return status, {"error": {"code": status, "message": message}}


class Google:
    """Answers as it is told to, the last answer for ever."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any] | None] = []
        self.asked = 0


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            api.asked += 1
            answer = api.answers.pop(0) if len(api.answers) > 1 else api.answers[0]
            if answer is None:
                return  # Closed without a word.
            data = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    api = Google()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(google.API_ENDPOINT, f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setattr(google, "credentials", AnonymousCredentials)
        yield api
        server.shutdown()


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(
    "passing", [None, said(503, "later"), said(500, "broken"), said(429, "too many requests")], ids=str
)
def test_what_passes_is_waited_for(api: Google, ask: Callable[[], Any], passing: Any) -> None:
    api.answers = [passing, passing, (200, ANSWER)]
    ask()
    assert api.asked >= 3, "a connection that is closed without a word may be tried again below"


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(("status", "error"), [(403, AccessError), (404, PipelineError), (400, RequestError)])
def test_what_is_final_is_told_at_once(
    api: Google, ask: Callable[[], Any], status: int, error: type[PipelineError]
) -> None:
    api.answers = [said(status, "no way")]
    with pytest.raises(error) as raised:
        ask()
    assert raised.value.final
    assert api.asked == 1


@pytest.mark.parametrize("ask", ASKED)
def test_who_stays_away_is_inconclusive(api: Google, ask: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(google.API_ENDPOINT, "http://127.0.0.1:9")
    with patience.lasting(0), pytest.raises(InconclusiveError, match="no answer"):
        ask()


class Credentials(AnonymousCredentials):
    def __init__(self, failure: Exception):
        self.failure = failure

    def before_request(self, *_: object) -> None:
        raise self.failure


@pytest.mark.parametrize("ask", ASKED)
@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (TransportError("the metadata server is away"), InconclusiveError),
        (RefreshError("invalid_grant"), AccessError),
    ],
)
def test_credentials_without_a_token_are_one_line(
    api: Google,
    ask: Callable[[], Any],
    failure: Exception,
    error: type[PipelineError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(google, "credentials", lambda: Credentials(failure))
    with patience.lasting(0), pytest.raises(error):
        ask()
    assert api.asked == 0


@pytest.mark.parametrize("host", ["", "127.0.0.1:1"])
def test_without_credentials_a_metadata_server_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch, host: str):
    def none(**_: object) -> None:
        raise DefaultCredentialsError("none")

    monkeypatch.setattr("google.auth.default", none)
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with pytest.raises(AccessError, match="gcloud auth application-default login") as caught:
        google.credentials()
    assert ("GCE_METADATA_HOST is 127.0.0.1:1, where nobody answers" in str(caught.value)) == bool(host)
