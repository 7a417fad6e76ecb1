"""`python -m emulated_cloud.real.control_plane --data DIR --tokens FILE`: a real control plane as one process.

etcd, kube-apiserver, kube-controller-manager, kube-scheduler and the snapshot controller that GKE has in every cluster,
supervised: when one ends, all end, and the log has its last words. DIR holds the cluster (`etcd/`), `tls/` (`ca.crt` is
what clients trust) and the key of service-account tokens, in the places where the emulated API server keeps its own.
FILE is kube-apiserver's token file. It runs in the cluster's own network (namespace.py), since pods and nodes have
addresses there that nobody else has.

The request log is the API server's audit log (level Metadata), in the form that every emulator writes.
"""

from __future__ import annotations

import argparse
import json
import secrets
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from emulated_cloud.kubernetes import tls
from emulated_cloud.kubernetes.apiserver.tokens import ISSUER, read_token_file, signing_key
from emulated_cloud.process import announce, arguments, dies_with_its_parent, how_it_ended, when_told_to_end
from emulated_cloud.real.namespace import NODE_ADDRESS, SERVICE_NETWORK
from emulated_cloud.real.parts import PARTS

CRDS = Path(__file__).parent.parent / "kubernetes" / "crds"
CONFIG = Path(__file__).parent / "config"
START_SECONDS = 180.0
STOP_SECONDS = 10.0
# Looks every 15 s by default, which makes the wait for one long.
PERIOD = "2s"

OWN_USERS = {
    "kube-controller-manager": ("system:kube-controller-manager", ""),
    "kube-scheduler": ("system:kube-scheduler", ""),
    "snapshot-controller": ("system:snapshot-controller", ""),
    "installer": ("system:installer", "system:masters"),
}
"""Users of this process itself, beside those of the token file: name, groups."""

_METHODS = {
    "list": "GET",
    "watch": "GET",
    "create": "POST",
    "update": "PUT",
    "deletecollection": "DELETE",
}


class ControlPlaneError(Exception):
    """A component did not come up, or ended: which, its last words."""


class Component:
    """One binary; its stderr is its log."""

    def __init__(self, name: str, logs: Path, argv: Iterable[str], stdout: int | None = None):
        self.name, self.log = name, logs / f"{name}.log"
        binary = PARTS.get(name, PARTS["control-plane"]).folder / name
        with open(self.log, "a", encoding="utf-8") as log:
            self.popen = subprocess.Popen(
                [str(binary), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout or log,
                stderr=log,
                start_new_session=True,
                preexec_fn=dies_with_its_parent,
            )

    def check(self) -> None:
        """Raises ControlPlaneError when it has ended."""
        code = self.popen.poll()
        if code is not None:
            words = self.log.read_text(errors="replace", encoding="utf-8").strip().splitlines()[-1:]
            raise ControlPlaneError(f"{how_it_ended(self.name, code, ''.join(words))} (its log is {self.log})")

    def stop(self) -> None:
        if self.popen.poll() is None:
            self.popen.terminate()
            try:
                self.popen.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.popen.kill()
        self.popen.wait()


class ControlPlane:
    """All of them. `start` returns when the API server is ready and the CRDs are in; `stop` ends the clients first."""

    def __init__(self, options: argparse.Namespace):
        self.data, self.port = options.data.absolute(), options.port or _free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._request_log, self._given = options.request_log, options.tokens
        self._objects, self._bare = options.objects, options.bare
        self._run = self.data / "run"
        self._components: list[Component] = []
        self._own = {name: secrets.token_urlsafe(24) for name in OWN_USERS}

    def start(self, told: threading.Event) -> None:
        """Raises ControlPlaneError; returns early when told to end."""
        self._run.mkdir(parents=True, exist_ok=True, mode=0o700)
        tls.ensure(self.data / "tls")
        key = self.data / "service-account.pem"
        signing_key(key)
        etcd = self._start_etcd()
        self._start_apiserver(etcd, key)
        self._wait("kube-apiserver", "/readyz", told)
        if not self._bare:
            self._start_controllers(key)
        self._install(told)
        if not self._bare and not told.is_set():
            # It ends where its definitions are missing.
            self._start_snapshot_controller()

    def _start_controllers(self, key: Path) -> None:
        kubeconfigs = {name: self._kubeconfig(name) for name in ("kube-controller-manager", "kube-scheduler")}
        common = ("--leader-elect=false", "--secure-port=0", "--profiling=false")
        self._start(
            "kube-controller-manager",
            *common,
            f"--kubeconfig={kubeconfigs['kube-controller-manager']}",
            "--use-service-account-credentials",
            f"--service-account-private-key-file={key}",
            f"--root-ca-file={self.data / 'tls' / 'ca.crt'}",
            f"--horizontal-pod-autoscaler-sync-period={PERIOD}",
            f"--pvclaimbinder-sync-period={PERIOD}",
        )
        self._start("kube-scheduler", *common, f"--kubeconfig={kubeconfigs['kube-scheduler']}")

    def _start_snapshot_controller(self) -> None:
        kubeconfig = self._kubeconfig("snapshot-controller")
        self._start(
            "snapshot-controller",
            f"--kubeconfig={kubeconfig}",
            "--leader-election=false",
            # It would look 30 s for what GKE does not have.
            "--feature-gates=CSIVolumeGroupSnapshot=false",
            f"--retry-interval-max={PERIOD}",
        )

    def watch(self, told: threading.Event) -> None:
        """Returns when told to end. Raises ControlPlaneError when a component ends before that."""
        while not told.wait(0.2):
            for component in self._components:
                component.check()

    def stop(self) -> None:
        for component in reversed(self._components):
            component.stop()
        for path in self._run.glob("*"):
            path.unlink()

    # -- components -----------------------------------------------------------------------------------------

    def _start(self, name: str, *argv: str, stdout: int | None = None) -> Component:
        component = Component(name, self._run.parent, argv, stdout)
        self._components.append(component)
        return component

    def _start_etcd(self) -> str:
        # The customary ports: nobody else is in this network.
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._start(
            "etcd",
            f"--data-dir={self.data / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            # What a laptop loses with its power it makes again.
            "--unsafe-no-fsync",
            "--log-level=warn",
        )
        return client

    def _start_apiserver(self, etcd: str, key: Path) -> None:
        certificates = self.data / "tls"
        component = self._start(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            f"--secure-port={self.port}",
            "--bind-address=0.0.0.0",
            f"--advertise-address={NODE_ADDRESS}",
            f"--tls-cert-file={certificates / 'tls.crt'}",
            f"--tls-private-key-file={certificates / 'tls.key'}",
            f"--cert-dir={self._run}",
            f"--token-auth-file={self._token_file()}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            "--authorization-mode=Node,RBAC",
            f"--service-cluster-ip-range={SERVICE_NETWORK}",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged=true",
            # Servers of API groups of their own are reached by their pods' addresses: no kube-proxy is here.
            "--enable-aggregator-routing=true",
            "--profiling=false",
            "--shutdown-delay-duration=0s",
            f"--audit-policy-file={CONFIG / 'audit-policy.yaml'}",
            "--audit-log-path=-",
            stdout=subprocess.PIPE,
        )
        assert component.popen.stdout
        threading.Thread(
            target=write_request_log, args=(component.popen.stdout, self._request_log), daemon=True
        ).start()

    def _token_file(self) -> Path:
        path = self._run / "tokens.csv"
        own = [f'{self._own[key]},{user},{key},"{groups}"' for key, (user, groups) in OWN_USERS.items()]
        given = [line for line in self._given.read_text(encoding="utf-8").splitlines() if line.strip()]
        tls.write_private(path, "\n".join([*given, *own, ""]).encode())
        return path

    def _kubeconfig(self, name: str) -> Path:
        cluster = {"server": self.url, "certificate-authority": str(self.data / "tls" / "ca.crt")}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "default",
            "clusters": [{"name": "default", "cluster": cluster}],
            "users": [{"name": name, "user": {"token": self._own[name]}}],
            "contexts": [{"name": "default", "context": {"cluster": "default", "user": name}}],
        }
        path = self._run / f"{name}.kubeconfig"
        tls.write_private(path, json.dumps(content).encode())
        return path

    # -- what is asked of the API server ------------------------------------------------------------------------

    def _wait(self, what: str, path: str, told: threading.Event) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not told.wait(0.05):
            for component in self._components:
                component.check()
            try:
                self._call("GET", path)
                return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise ControlPlaneError(f"{what} did not become ready in {START_SECONDS:g} s: {error}") from error

    def _install(self, told: threading.Event) -> None:
        """GKE's custom resources and roles, then what the caller wants in the cluster from the start."""
        roles = (CONFIG / "gke.yaml", CONFIG / "snapshot-controller.yaml")
        for path in [*sorted(CRDS.glob("*.yaml")), *roles, *self._objects]:
            for item in _documents(path):
                name = item["metadata"]["name"]
                try:
                    self._call("PATCH", f"{self._path(item)}?fieldManager=gke&force=true", item)
                except urllib.error.HTTPError as error:
                    words = json.loads(error.read())["message"]
                    raise ControlPlaneError(f"{path}: {item['kind']} {name}: {words}") from error
                if item["kind"] == "CustomResourceDefinition":
                    version = next(entry["name"] for entry in item["spec"]["versions"] if entry["served"])
                    plural = item["spec"]["names"]["plural"]
                    self._wait(name, f"/apis/{item['spec']['group']}/{version}/{plural}?limit=1", told)

    def _path(self, item: dict[str, Any]) -> str:
        """Where an object lies, as the API server's own discovery says."""
        version, kind = item["apiVersion"], item["kind"]
        base = f"/apis/{version}" if "/" in version else f"/api/{version}"
        # Subresources are in the list too, under the same kind.
        served = (each for each in self._call("GET", base)["resources"] if "/" not in each["name"])
        entry = next((each for each in served if each["kind"] == kind), None)
        if entry is None:
            raise ControlPlaneError(f"{item['metadata']['name']}: {version} has no {kind}")
        where = f"/namespaces/{item['metadata'].get('namespace', 'default')}" if entry["namespaced"] else ""
        return f"{base}{where}/{entry['name']}/{item['metadata']['name']}"

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self._own['installer']}"}
        data = json.dumps(body).encode() if body else None
        if data:
            # Not without a body: discovery refuses what it does not consume. JSON is YAML.
            headers["Content-Type"] = "application/apply-patch+yaml"
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310
        context = ssl.create_default_context(cafile=str(self.data / "tls" / "ca.crt"))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=10) as answer:
            text = answer.read()
            return json.loads(text) if answer.headers.get_content_type() == "application/json" else None


def _documents(path: Path) -> Iterator[dict[str, Any]]:
    import yaml

    with open(path, encoding="utf-8") as file:
        yield from filter(None, yaml.safe_load_all(file))


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


# -- the request log ------------------------------------------------------------------------------------------


def write_request_log(audit: IO[bytes], path: Path | None) -> None:
    """Turns audit events, one a line, into the lines of an emulator's request log (emulated_cloud/http.py)."""
    # Without a log it still reads: a full pipe would hold the API server up.
    log = open(path, "a", encoding="utf-8", buffering=1) if path else None  # noqa: SIM115
    for line in audit:
        entry = request_entry(json.loads(line))
        if log and entry:
            log.write(json.dumps(entry) + "\n")


def request_entry(event: dict[str, Any]) -> dict[str, Any] | None:
    """The log's entry for an audit event; None for the end of a watch, which was logged when it began."""
    reference, verb = event.get("objectRef") or {}, event["verb"]
    started = event["stage"] == "ResponseStarted"
    if (verb == "watch") != started and event["stage"] != "Panic":
        return None
    resource = "/".join(filter(None, (reference.get("resource"), reference.get("subresource"))))
    return {
        "time": datetime.fromisoformat(event["requestReceivedTimestamp"]).timestamp(),
        "method": _METHODS.get(verb, verb.upper()),
        "path": event["requestURI"],
        "status": (event.get("responseStatus") or {}).get("code", 0),
        "user": event["user"].get("username", ""),
        "user_agent": event.get("userAgent", ""),
        "verb": verb,
        "resource": resource,
        "bytes_in": 0,
        "bytes_out": 0,
    }


def main() -> None:
    parser = arguments("A real control plane.")
    parser.add_argument("--data", type=Path, required=True, help="folder that the cluster is kept in")
    parser.add_argument("--tokens", type=Path, required=True, help='token,user,uid,"group1,group2" a line')
    parser.add_argument(
        "--objects",
        type=Path,
        action="append",
        default=[],
        help="YAML of what is in the cluster from the start (roles)",
    )
    parser.add_argument("--bare", action="store_true", help="the API server alone: no controllers, no scheduler")
    options = parser.parse_args()
    try:
        read_token_file(options.tokens)
    except (OSError, ValueError) as error:
        sys.exit(f"cannot read the token file: {error}")
    plane = ControlPlane(options)
    told = threading.Event()
    when_told_to_end(told.set)
    try:
        plane.start(told)
        if not told.is_set():
            announce(plane.url)
        plane.watch(told)
    except ControlPlaneError as error:
        sys.exit(str(error))
    finally:
        plane.stop()


if __name__ == "__main__":
    main()
