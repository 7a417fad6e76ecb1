"""Traffic through emulated Gateways: real Envoy, real bytes, pods and pickers that are small."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.gateway_site import (
    GATEWAY_API,
    GKE,
    INFERENCE,
    Site,
    Traffic,
    pool_ref,
    service_ref,
)
from tests.contract.kubernetes_cluster import Cluster, Kube, cluster, exists, kube, wait_for

__all__ = ["cluster", "kube"]


@pytest.fixture
def site(kube: Kube) -> Site:
    return Site(kube)


def test_a_pool_is_served_by_its_picker(site: Site) -> None:
    site.served("old")
    answer = site.post()
    assert (answer.status_code, answer.text, answer.headers["x-picked-by"]) == (200, "old", "old")
    site.server("old2", app="old", HEALTH="/health")
    site.wait_ready("old2")
    where = f"{site.kube.pod('old2').status.pod_ip}:8000"
    wait_for(lambda: {site.ask(x_want=where).text for _ in range(8)} == {"old2"})
    # Where a picker leads that is no endpoint of the pool, nothing leads.
    assert site.ask(x_want="127.0.0.1:1").text in ("old", "old2")


def test_a_picker_with_a_certificate_of_its_own(site: Site) -> None:
    site.server("old")
    site.picker("old", plaintext=False)
    site.pool("old")
    site.gateway()
    site.route(pool_ref("old"))
    site.wait_answer("old")
    assert site.post().headers["x-picked-by"] == "old"


def test_weights_are_kept_and_each_pool_has_its_own_picker(site: Site) -> None:
    site.served("old", "new")
    assert site.shares(60) == {"old": 60}
    site.move(pool_ref("old", 80), pool_ref("new", 20))
    wait_for(lambda: "new" in site.shares(10))
    seen = site.shares(200)
    # Five standard deviations of what 200 throws of such a die give.
    assert seen["old"] + seen["new"] == 200
    assert abs(seen["new"] - 40) < 29, seen
    for _ in range(20):
        answer = site.post()
        assert answer.headers["x-picked-by"] == answer.text
    site.move(pool_ref("old", 0), pool_ref("new", 100))
    wait_for(lambda: site.shares(20) == {"new": 20})
    assert site.shares(60) == {"new": 60}


def test_streams_pass_as_they_come(site: Site) -> None:
    site.served("old")
    with site.stream("old") as (first, rest):  # There is a first line before the server has sent the second.
        assert [first, *rest()] == [f"old {number}" for number in range(4)]


def test_traffic_moves_without_a_failure_and_streams_end_whole(site: Site) -> None:
    site.served("old", "new")
    with Traffic(site) as traffic, site.stream("old") as (first, rest):
        traffic.wait_for("old")
        site.move(pool_ref("old", 0), pool_ref("new", 100))
        traffic.wait_for("new")
        site.move(pool_ref("new", 100))
        wait_for(site.is_observed)
        assert [first, *rest()] == [f"old {number}" for number in range(4)]
        traffic.wait_for("new")
    assert traffic.failures == []


def test_a_pod_that_goes_gets_nothing_more(site: Site) -> None:
    site.served("old")
    site.server("old2", app="old", HEALTH="/health")
    site.wait_ready("old2")
    wait_for(lambda: "old2" in site.shares(10))
    with Traffic(site) as traffic:
        traffic.wait_for("old", "old2")
        # As a Deployment's pod goes: first it is not ready any more, then it ends.
        site.kube.core.patch_namespaced_pod("old2", site.namespace, {"metadata": {"labels": {"app": "gone"}}})
        traffic.wait_for("old")
        site.kube.core.delete_namespaced_pod("old2", site.namespace)
        wait_for(lambda: not exists(lambda: site.kube.pod("old2")))
        traffic.wait_for("old")
    assert traffic.failures == []


def test_services_behind_a_prefix_and_nothing_beside_it(site: Site) -> None:
    site.server("old", HEALTH="/health")
    site.service("old", 80, 8000)
    site.health_check("old", "/health", group="", kind="Service")
    site.gateway()
    site.route(service_ref("old", 80), matches=[{"path": {"type": "PathPrefix", "value": "/v1"}}])
    site.wait_answer("old")
    assert site.ask("/v1").text == site.ask("/v1/models").text == "old"
    for path in ("/", "/health", "/v1x", "/invocations"):
        answer = site.ask(path)
        assert (answer.status_code, answer.text) == (404, "fault filter abort"), path


def test_matches_by_header_and_path_are_weighed_as_the_gateway_api_says(site: Site) -> None:
    for name in ("plain", "longer", "header"):
        site.server(name, HEALTH="/health")
        site.service(name, 80, 8000)
        site.health_check(name, "/health", group="", kind="Service")
    site.gateway()
    site.route(service_ref("plain", 80))
    site.route(
        service_ref("longer", 80), name="longer", matches=[{"path": {"type": "PathPrefix", "value": "/v1/models"}}]
    )
    header = {"headers": [{"name": "X-Try", "value": "yes"}]}
    site.route(service_ref("header", 80), name="header", matches=[header])
    for path, text in (("/v1/x", "plain"), ("/v1/models", "longer")):
        site.wait_answer(text, path)
    wait_for(lambda: site.ask("/v1/x", x_try="yes").text == "header")
    assert site.ask("/v1/models", x_try="yes").text == "longer"


def test_what_answers_the_probe_badly_gets_no_traffic(site: Site) -> None:
    # Without a policy a Service is probed on `/`, where this one has nothing.
    site.server("old", HEALTH="/health")
    site.service("old", 80, 8000)
    site.gateway()
    site.route(service_ref("old", 80))
    site.wait_conditions("httproutes", "front", ResolvedRefs=("True", "ResolvedRefs"))
    wait_for(lambda: site.ask().status_code == 503)
    time.sleep(1.5)
    assert site.ask().text == "no healthy upstream"
    site.health_check("old", "/health", group="", kind="Service")
    site.wait_answer("old")
    site.ask("/sick")
    wait_for(lambda: site.ask().status_code == 503)


def test_a_backend_policy_says_how_long_an_answer_may_take(site: Site) -> None:
    site.served("old")
    site.backend_policy("old", timeoutSec=1, connectionDraining={"drainingTimeoutSec": 60})
    wait_for(lambda: site.post(seconds=2).status_code == 504)
    site.merge(GKE, "gcpbackendpolicies", "old", {"spec": {"default": {"timeoutSec": 60}}})
    wait_for(lambda: site.post(seconds=2).text == "old")


def test_a_picker_that_is_down(site: Site) -> None:
    site.served("old")
    site.kube.core.delete_namespaced_pod("epp-old", site.namespace, grace_period_seconds=0)
    wait_for(lambda: site.ask().status_code == 500)
    assert site.post().status_code == 500
    site.merge(INFERENCE, "inferencepools", "old", {"spec": {"endpointPickerRef": {"failureMode": "FailOpen"}}})
    wait_for(lambda: site.ask().status_code == 200)
    # For POST that is a race: Envoy keeps no copy of a body that streams both ways, and what a picker was sent is lost.
    assert site.post().status_code in (200, 500)


def test_a_picker_that_is_frozen(site: Site) -> None:
    site.served("old")
    address = f"{site.kube.pod('epp-old').status.pod_ip}:9002"
    os.kill(_listening(address), signal.SIGSTOP)
    for ask in (site.ask, site.post):
        assert ask().status_code == 500


def test_an_envoy_that_is_killed_comes_back(site: Site) -> None:
    site.served("old")
    folder = site.envoys_folder
    before = _envoy(folder)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: _envoy(folder) not in (0, before))
    site.wait_answer("old")
    site.wait_conditions("gateways", "front", Programmed=("True", "Programmed"))


def test_a_damaged_configuration_changes_nothing(site: Site, cluster: Cluster) -> None:
    site.served("old", "new")
    cluster.configure(gateway_faults={"broken": {"front": True}})
    try:
        site.move(pool_ref("old", 0), pool_ref("new", 100))
        site.wait_conditions("gateways", "front", Programmed=("False", "Invalid"))
        assert site.shares(20) == {"old": 20}
        assert cluster.consumed("gateways-consumed")["broken"]["front"] > 0
    finally:
        cluster.configure(gateway_faults={})
    site.wait_conditions("gateways", "front", Programmed=("True", "Programmed"))
    assert site.shares(20) == {"new": 20}


def test_a_gateway_that_goes_lets_what_is_in_flight_finish(site: Site) -> None:
    site.served("old")
    running = _envoy(site.envoys_folder)
    with site.stream("old") as (first, rest):
        site.delete(GATEWAY_API, "gateways", "front")
        # Its controller lets go of the routes, and then of Envoy.
        wait_for(lambda: not (site.read(GATEWAY_API, "httproutes", "front").get("status") or {}).get("parents"))
        assert [first, *rest()] == [f"old {number}" for number in range(4)]
    wait_for(lambda: not Path(f"/proc/{running}").exists())


def test_pods_reach_a_gateway_whatever_its_port_is_opened_as(site: Site) -> None:
    site.server("old")
    site.service("old", 80, 8000)
    with socket.socket() as somebody:
        port = _taken(somebody)
        listeners = [{"name": f"p{each}", "port": each, "protocol": "HTTP"} for each in (80, port)]
        site.gateway(listeners=listeners)
        site.route(service_ref("old", 80))
        site.wait_answer("old")
        code = (
            "import sys, urllib.request as r; print(*[r.urlopen(u, timeout=60).read().decode() for u in sys.argv[1:]])"
        )
        urls = [f"{site.url}:{each['port']}/v1/x" for each in listeners]
        site.kube.create_pod("asks", ["python", "-c", code, *urls])
        site.kube.wait_phase("asks", "Succeeded")
        assert site.kube.log("asks").split() == ["old", "old"]
        assert site.session.get(f"{site.url}:{port + 10000}/v1/x", timeout=60).text == "old"


def test_https_with_a_certificate_of_the_clouds_own_authority(site: Site, cluster: Cluster) -> None:
    site.server("old")
    site.service("old", 80, 8000)
    options = {"networking.gke.io/pre-shared-certs": "mine"}
    site.gateway(name="front", port=443, protocol="HTTPS", tls={"mode": "Terminate", "options": options})
    site.route(service_ref("old", 80))
    url = site.url.replace("http:", "https:") + "/v1/x"
    authority = str(cluster.folder / "apiserver" / "tls" / "ca.crt")

    def answer() -> Any:
        try:
            return site.session.get(url, verify=authority, timeout=60).text
        except requests.ConnectionError:
            return None

    wait_for(lambda: answer() == "old")


def test_cluster_answers_at_the_exposed_address(site: Site, cluster: Cluster) -> None:
    """The rest of it is one Gateway, exposed from the start of the cluster: see kubernetes_cluster.py."""
    endpoint = cluster.folder / "gateway-endpoint"
    assert not endpoint.exists()
    kube = Kube(cluster, "exposed-gateway")
    kube.core.create_namespace({"metadata": {"name": "exposed-gateway"}})
    exposed = Site(kube)
    exposed.served("old")
    wait_for(endpoint.exists)
    url = endpoint.read_text().strip()
    assert exposed.session.get(f"{url}/v1/x", timeout=60).text == "old"
    kube.core.delete_namespace("exposed-gateway")


def _envoy(folder: Path) -> int:
    """The process of an Envoy that is configured from a folder; 0 if there is none."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/bootstrap.json".encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                return int(entry.name)
        except OSError:
            continue
    return 0


def _listening(address: str) -> int:
    """The process of the pod that has a picker's program and this address."""
    wanted = f"FROM_IMAGE=pod at {address.rpartition(':')[0]}".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables:
            return int(entry.name)
    raise LookupError(address)


def _taken(somebody: socket.socket) -> int:
    """A port of all addresses that nobody else can have now."""
    for port in range(21000, 22000):
        try:
            somebody.bind(("0.0.0.0", port))
        except OSError:
            continue
        return port
    raise LookupError("no port is free")


def test_nothing_of_a_request_is_left_in_a_file(site: Site) -> None:
    site.served("old")
    site.session.get(site.url + "/v1/x", headers={"Authorization": "Bearer very-secret"}, timeout=60)
    folder = site.envoys_folder
    assert not [each.name for each in folder.iterdir() if each.is_file() and "very-secret" in each.read_text()]
    assert json.loads((folder / "routes-80.json").read_text())["resources"]
