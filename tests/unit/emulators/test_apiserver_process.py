"""The emulated API server as a process: what outlives it, who may ask, what it writes down, scripted faults."""

from __future__ import annotations

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud import process
from emulated_cloud.kubernetes import tls

Object = dict[str, Any]


@dataclass
class Server:
    """A running API server and a way to ask it."""

    folder: Path
    process: process.Process

    def ask(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        token: str | None = "admin-token",
        content_type: str = "application/json",
    ) -> tuple[int, Any]:
        request = urllib.request.Request(self.process.url + path, method=method)
        request.add_header("User-Agent", "tests/1")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        if body is not None:
            request.add_header("Content-Type", content_type)
            request.data = json.dumps(body).encode()
        context = ssl.create_default_context(cafile=str(self.folder / "data" / "tls" / "ca.crt"))
        try:
            with urllib.request.urlopen(request, context=context, timeout=60) as response:
                return response.status, _read(response.read())
        except urllib.error.HTTPError as error:
            with error:
                return error.code, _read(error.read())

    @property
    def requests(self) -> list[Object]:
        return [json.loads(line) for line in (self.folder / "requests").read_text().splitlines()]


def _read(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return data.decode()


def start(folder: Path) -> Server:
    tokens = folder / "tokens.csv"
    tokens.write_text('admin-token,admin,1,"system:masters"\npipeline-token,pipeline,2,"builders,readers"\n')
    started = process.start(
        "emulated_cloud.kubernetes.apiserver",
        "--data",
        str(folder / "data"),
        "--tokens",
        str(tokens),
        "--request-log",
        str(folder / "requests"),
        log=folder / "log",
    )
    return Server(folder, started)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    made = start(tmp_path)
    yield made
    made.process.stop()
    assert (tmp_path / "log").read_text() == ""


MAPS = "/api/v1/namespaces/default/configmaps"


def config_map(name: str, **data: str) -> Object:
    return {"metadata": {"name": name}, "data": data}


# -- what outlives it -------------------------------------------------------------------------------------------


def test_a_cluster_survives_a_kill(tmp_path: Path) -> None:
    first = start(tmp_path)
    made = first.ask("POST", MAPS, config_map("a", n="1"))[1]
    gone = first.ask("POST", MAPS, config_map("b"))[1]
    first.ask("DELETE", f"{MAPS}/b")
    account = first.ask("POST", "/api/v1/namespaces/default/serviceaccounts", {"metadata": {"name": "default"}})[1]
    assert account["kind"] == "ServiceAccount"
    token = first.ask("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", {"spec": {}})[1]
    first.process.popen.send_signal(signal.SIGKILL)
    first.process.stop()
    authority = (tmp_path / "data" / "tls" / "ca.crt").read_bytes()

    second = start(tmp_path)
    try:
        assert second.ask("GET", f"{MAPS}/a")[1] == made
        assert second.ask("GET", f"{MAPS}/b")[0] == 404
        later = second.ask("POST", MAPS, config_map("c"))[1]
        # The deletion of b took a version too, and so did what came after it.
        assert int(later["metadata"]["resourceVersion"]) > int(gone["metadata"]["resourceVersion"]) + 1
        assert second.ask("GET", MAPS, token=token["status"]["token"])[0] == 200
        assert (tmp_path / "data" / "tls" / "ca.crt").read_bytes() == authority
        status, answer = second.ask("GET", "/apis/monitoring.googleapis.com/v1/podmonitorings")
        assert (status, answer["kind"]) == (200, "PodMonitoringList")
    finally:
        second.process.stop()


def test_a_watch_from_before_a_restart_is_too_old(tmp_path: Path) -> None:
    first = start(tmp_path)
    version = first.ask("POST", MAPS, config_map("a"))[1]["metadata"]["resourceVersion"]
    first.ask("POST", MAPS, config_map("b"))
    first.process.stop()
    second = start(tmp_path)
    try:
        event = second.ask("GET", f"{MAPS}?watch=true&resourceVersion={version}&timeoutSeconds=60")[1]
    finally:
        second.process.stop()

    assert event["type"] == "ERROR"
    assert (event["object"]["code"], event["object"]["reason"]) == (410, "Expired")


def test_it_starts_with_little_and_ends_with_its_parent(server: Server) -> None:
    popen = server.process.popen
    ticks = Path(f"/proc/{popen.pid}/stat").read_text().rpartition(")")[2].split()
    # Time on the processor, which other work on the machine does not stretch.
    assert (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK") < 1.5
    assert popen.stdin is not None
    popen.stdin.close()

    assert popen.wait(120) == 0


def test_a_token_file_that_is_none_is_told(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.csv"
    tokens.write_text("only-a-token\n")
    command = [sys.executable, "-m", "emulated_cloud.kubernetes.apiserver", "--data", str(tmp_path / "data")]
    done = subprocess.run([*command, "--tokens", str(tokens)], capture_output=True, text=True, stdin=subprocess.DEVNULL)

    assert done.returncode == 1
    assert "tokens.csv:1: a token file needs token, user name and uid, found 1 columns" in done.stderr
    assert "Traceback" not in done.stderr


# -- who may ask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "wrong", "a.b.c"])
def test_who_is_not_known_is_not_answered(server: Server, token: str | None) -> None:
    status, answer = server.ask("GET", "/api/v1/pods", token=token)
    assert (status, answer["reason"], answer["message"]) == (401, "Unauthorized", "Unauthorized")
    assert server.requests[-1]["user"] == ""


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz", "/version"])
def test_anybody_may_ask_whether_it_is_there(server: Server, path: str) -> None:
    assert server.ask("GET", path, token=None)[0] == 200


def test_a_token_dies_with_its_account(server: Server) -> None:
    accounts = "/api/v1/namespaces/default/serviceaccounts"
    server.ask("POST", accounts, {"metadata": {"name": "worker"}})
    token = server.ask("POST", f"{accounts}/worker/token", {"spec": {}})[1]["status"]["token"]
    assert server.ask("GET", MAPS, token=token)[0] == 200
    assert server.requests[-1]["user"] == "system:serviceaccount:default:worker"
    server.ask("DELETE", f"{accounts}/worker")
    server.ask("POST", accounts, {"metadata": {"name": "worker"}})

    assert server.ask("GET", MAPS, token=token)[0] == 401


def test_keys_are_their_owners(server: Server) -> None:
    for path in (server.folder / "data" / "tls" / "tls.key", server.folder / "data" / "service-account.key"):
        assert os.stat(path).st_mode & 0o077 == 0


def test_certificates_are_made_where_they_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed meanwhile leaves no key in a temporary folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    tls.ensure(tmp_path / "tls", ["127.0.0.1"])
    assert {path.name for path in (tmp_path / "tls").iterdir()} == {"ca.crt", "ca.key", "tls.crt", "tls.key"}


# -- what it writes down ----------------------------------------------------------------------------------------


def test_every_request_is_written_down_with_who_and_what(server: Server) -> None:
    server.ask("POST", MAPS, config_map("a"), token="pipeline-token")
    server.ask("GET", f"{MAPS}/a", token="pipeline-token")
    server.ask("GET", MAPS)
    server.ask("GET", f"{MAPS}?watch=1&timeoutSeconds=1")
    server.ask("PATCH", f"{MAPS}/a", {"data": {"n": "1"}}, content_type="application/merge-patch+json")
    server.ask("PATCH", f"{MAPS}/none", {}, content_type="application/merge-patch+json")
    server.ask("DELETE", f"{MAPS}/a")
    server.ask("DELETE", MAPS)
    server.ask("GET", "/apis/apps/v1/namespaces/default/deployments/x/status")
    server.ask("GET", "/version")

    seen = [(each["user"], each["verb"], each["resource"], each["status"]) for each in server.requests]
    assert seen == [
        ("pipeline", "create", "configmaps", 201),
        ("pipeline", "get", "configmaps", 200),
        ("admin", "list", "configmaps", 200),
        ("admin", "watch", "configmaps", 200),
        ("admin", "patch", "configmaps", 200),
        ("admin", "patch", "configmaps", 404),
        ("admin", "delete", "configmaps", 200),
        ("admin", "deletecollection", "configmaps", 200),
        ("admin", "get", "deployments/status", 404),
        ("admin", "get", "", 200),
    ]
    first = server.requests[0]
    assert (first["method"], first["path"], first["user_agent"]) == ("POST", MAPS, "tests/1")
    assert first["bytes_in"] > 0
    assert server.ask("GET", "/_emulator/requests", token=None)[1] == server.requests


# -- scripted faults --------------------------------------------------------------------------------------------


def script(server: Server, *faults: Object) -> None:
    status, _ = server.ask("POST", "/_emulator/faults", list(faults), token=None)  # type: ignore[arg-type]
    assert status == 200


def consumed(server: Server) -> list[int]:
    return [fault["consumed"] for fault in server.ask("GET", "/_emulator/faults", token=None)[1]]


def test_a_scripted_status_never_reaches_the_objects(server: Server) -> None:
    script(server, {"action": "status", "method": "POST", "status": 503, "body": "etcd is away"})
    status, answer = server.ask("POST", MAPS, config_map("a"))
    assert (status, answer["message"]) == (503, "etcd is away")
    assert server.ask("GET", f"{MAPS}/a")[0] == 404
    assert server.ask("POST", MAPS, config_map("a"))[0] == 201
    assert consumed(server) == [1]


def test_an_answer_can_be_lost_after_the_deed(server: Server) -> None:
    script(server, {"action": "reset", "method": "POST"})
    with pytest.raises((ConnectionError, urllib.error.URLError, http.client.HTTPException)):
        server.ask("POST", MAPS, config_map("a"))
    assert server.ask("GET", f"{MAPS}/a")[0] == 200
    assert consumed(server) == [1]


def test_a_watch_can_be_cut(server: Server) -> None:
    for name in ("a", "b"):
        server.ask("POST", MAPS, config_map(name))
    script(server, {"action": "truncate", "method": "GET", "path": "watch=1", "after_bytes": 100})
    with pytest.raises((ConnectionError, http.client.HTTPException)):
        server.ask("GET", f"{MAPS}?watch=1&timeoutSeconds=60")
    assert consumed(server) == [1]
