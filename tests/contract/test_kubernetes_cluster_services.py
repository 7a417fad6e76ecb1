"""Services: endpoints, the way in from this machine, load balancers, cluster names for pods; budgets, namespaces."""

from __future__ import annotations

import http.client
import json
import socket
from typing import Any

import pytest
from kubernetes import client

from tests.contract.kubernetes_cluster import (
    Cluster,
    Kube,
    cluster,
    deployment,
    exists,
    get,
    kube,
    pod_manifest,
    wait_for,
)

__all__ = ["cluster", "kube"]


def _service(name: str, selector: dict[str, str], **spec: Any) -> dict[str, Any]:
    ports = [{"name": "http", "port": 80, "targetPort": "http"}]
    return {"metadata": {"name": name}, "spec": {"selector": selector, "ports": ports, **spec}}


def _ready(kube: Kube, *names: str) -> None:
    for name in names:
        kube.kubectl("rollout", "status", f"deployment/{name}", "--timeout=120s")


def test_a_service_through_its_listener_while_its_selector_switches(cluster: Cluster) -> None:
    kube = Kube(cluster, "exposed")
    kube.core.create_namespace({"metadata": {"name": kube.namespace}})
    for generation in ("one", "two"):
        kube.apps.create_namespaced_deployment(kube.namespace, deployment(generation, generation))
    kube.core.create_namespaced_service(kube.namespace, _service("web", {"app": "one"}))
    _ready(kube, "one", "two")
    url = wait_for(lambda: (cluster.folder / "endpoint").exists() and (cluster.folder / "endpoint").read_text().strip())
    assert get(url) == "one"
    host, port = url.removeprefix("http://").split(":")
    kept = http.client.HTTPConnection(host, int(port), timeout=60)
    kept.request("GET", "/")
    assert kept.getresponse().read() == b"one"
    service = kube.core.read_namespaced_service("web", kube.namespace)
    patch = {
        "metadata": {"resourceVersion": service.metadata.resource_version},
        "spec": {"selector": {"app": "two"}},
    }
    kube.core.patch_namespaced_service("web", kube.namespace, patch)
    answers = []

    def switched() -> bool:
        answers.append(get(url))
        return answers[-1] == "two"

    wait_for(switched, what=lambda: answers)
    assert set(answers[:-1]) <= {"one"}, "every request is answered meanwhile"
    kept.request("GET", "/")
    assert kept.getresponse().read() == b"one", "an open connection stays with its pod"
    kept.close()
    kube.core.patch_namespaced_service("web", kube.namespace, {"spec": {"selector": {"app": "none"}}})

    def refused() -> bool:
        try:
            get(url)
        except (ConnectionError, http.client.RemoteDisconnected):
            return True
        except OSError:
            return True
        return False

    wait_for(refused)
    kube.core.delete_namespace(kube.namespace)


def test_endpoints_follow_readiness_and_deletion(kube: Kube) -> None:
    discovery = client.DiscoveryV1Api(kube.raw)
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "x", 2))
    kube.core.create_namespaced_service(kube.namespace, _service("web", {"app": "web"}))
    _ready(kube, "web")

    def slices() -> list[Any]:
        return discovery.list_namespaced_endpoint_slice(
            kube.namespace, label_selector="kubernetes.io/service-name=web"
        ).items

    def addresses(condition: str) -> set[str]:
        return {
            entry.addresses[0]
            for item in slices()
            for entry in item.endpoints or []
            if getattr(entry.conditions, condition)
        }

    pods = kube.pods("app=web")
    wait_for(lambda: addresses("ready") == {pod.status.pod_ip for pod in pods})
    [item] = slices()
    assert [(port.name, port.port) for port in item.ports] == [("http", 8000)]
    assert {entry.target_ref.name for entry in item.endpoints} == {pod.metadata.name for pod in pods}
    assert {entry.zone for entry in item.endpoints} <= {"us-central1-a", "us-central1-b"}
    endpoints = kube.core.read_namespaced_endpoints("web", kube.namespace)
    assert {entry.ip for entry in endpoints.subsets[0].addresses} == addresses("ready")
    kube.kubectl("scale", "deployment/web", "--replicas=1")
    wait_for(lambda: len(kube.pods("app=web")) == 1)
    wait_for(lambda: addresses("ready") == {pod.status.pod_ip for pod in kube.pods("app=web")})
    kube.core.delete_namespaced_service("web", kube.namespace)
    wait_for(lambda: not slices())
    wait_for(lambda: not kube.core.list_namespaced_endpoints(kube.namespace).items)


def test_pods_reach_services_by_their_cluster_names(kube: Kube) -> None:
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "found"))
    service = kube.core.create_namespaced_service(kube.namespace, _service("web", {"app": "web"}))
    _ready(kube, "web")
    code = """
import json, sys, urllib.error, urllib.request
answers = {}
for url in sys.argv[1:]:
    try:
        answers[url] = urllib.request.urlopen(url, timeout=60).read().decode()
    except urllib.error.HTTPError as error:
        answers[url] = f"{error.code} {error.read().decode()}"
print(json.dumps(answers))
"""
    names = ["web", f"web.{kube.namespace}", f"web.{kube.namespace}.svc.cluster.local", service.spec.cluster_ip]
    urls = [f"http://{name}/" for name in names]
    kube.core.create_namespaced_pod(
        kube.namespace, pod_manifest("asks", ["python", "-c", code, *urls, "http://nobody/", "http://web.other/"])
    )
    kube.wait_phase("asks", "Succeeded")
    answers = json.loads(kube.log("asks"))
    assert [answers[url] for url in urls] == ["found"] * 4
    assert answers["http://nobody/"] == (
        f"502 no such host: there is no Service nobody in namespace {kube.namespace}\n"
    )
    assert answers["http://web.other/"] == "502 no such host: there is no Service web in namespace other\n"


def test_service_links_are_given_and_can_be_turned_off(kube: Kube) -> None:
    service = kube.core.create_namespaced_service(kube.namespace, _service("vllm", {"app": "none"}))
    code = "import os; print(os.environ.get('VLLM_PORT'))"
    # The kubelet's copy of Services follows the watch.
    kube.create_pod("with", ["python", "-c", f"import time; time.sleep(0.1); {code}"])
    kube.create_pod("without", ["python", "-c", code], enableServiceLinks=False)
    kube.wait_phase("with", "Succeeded")
    kube.wait_phase("without", "Succeeded")
    assert kube.log("with") == f"tcp://{service.spec.cluster_ip}:80\n"
    assert kube.log("without") == "None\n"


def _address(kube: Kube, name: str) -> str | None:
    status = kube.core.read_namespaced_service(name, kube.namespace).status.load_balancer
    return status.ingress and status.ingress[0].ip


def test_a_load_balancer_gets_an_address(kube: Kube) -> None:
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "balanced"))
    # A port that an ordinary user of this machine has too.
    ports = [{"port": 8080, "targetPort": "http"}]
    balanced = _service("web", {"app": "web"}, type="LoadBalancer", ports=ports)
    kube.core.create_namespaced_service(kube.namespace, balanced)
    _ready(kube, "web")
    ip = wait_for(lambda: _address(kube, "web"))
    assert wait_for(lambda: get(f"http://{ip}:8080/")) == "balanced"
    kube.core.delete_namespaced_service("web", kube.namespace)

    def closed() -> bool:
        try:
            get(f"http://{ip}:8080/")
        except OSError:
            return True
        return False

    wait_for(closed)


def test_a_load_balancers_port_that_is_taken_is_told_in_an_event_until_it_is_free(kube: Kube) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        ports = [{"port": port, "targetPort": "http"}]
        kube.core.create_namespaced_service(kube.namespace, _service("web", {}, type="LoadBalancer", ports=ports))
        kube.wait_event("web", "SyncLoadBalancerFailed", f":{port}: Address already in use")
        assert _address(kube, "web") is None
    assert wait_for(lambda: _address(kube, "web"))


def test_a_budget_counts_what_may_be_disrupted(kube: Kube) -> None:
    policy = client.PolicyV1Api(kube.raw)
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "x", 2))
    budget = {"metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}
    policy.create_namespaced_pod_disruption_budget(kube.namespace, budget)
    _ready(kube, "web")

    def allowed() -> int:
        return policy.read_namespaced_pod_disruption_budget("web", kube.namespace).status.disruptions_allowed

    wait_for(lambda: allowed() == 1)
    kube.kubectl("scale", "deployment/web", "--replicas=1")
    wait_for(lambda: allowed() == 0)

    def counts() -> tuple[int, int, int]:
        status = policy.read_namespaced_pod_disruption_budget("web", kube.namespace).status
        return status.current_healthy, status.desired_healthy, status.expected_pods

    wait_for(lambda: counts() == (1, 1, 1), what=counts)


def test_a_namespace_goes_with_all_that_is_in_it(kube: Kube) -> None:
    name = kube.namespace + "-gone"
    gone = Kube(kube.cluster, name)
    gone.core.create_namespace({"metadata": {"name": name}})
    wait_for(lambda: exists(lambda: gone.core.read_namespaced_service_account("default", name)))
    wait_for(lambda: exists(lambda: gone.core.read_namespaced_config_map("kube-root-ca.crt", name)))
    gone.apps.create_namespaced_deployment(name, deployment("web", "x"))
    gone.core.create_namespaced_service(name, _service("web", {"app": "web"}))
    gone.core.create_namespaced_secret(name, {"metadata": {"name": "s"}, "stringData": {"a": "b"}})
    _ready(gone, "web")
    [pod] = gone.pods()
    gone.core.delete_namespace(name)
    assert gone.core.read_namespace(name).status.phase == "Terminating"
    wait_for(
        lambda: not exists(lambda: gone.core.read_namespace(name)), what=lambda: gone.core.read_namespace(name).status
    )
    with pytest.raises(OSError, match="refused"):
        get(f"http://{pod.status.pod_ip}:8000/")
    gone.core.create_namespace({"metadata": {"name": name}})
    assert not gone.core.list_namespaced_secret(name).items
    gone.core.delete_namespace(name)


def test_owners_take_their_dependents_along_or_leave_them(kube: Kube) -> None:
    owner = kube.core.create_namespaced_config_map(kube.namespace, {"metadata": {"name": "owner"}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.metadata.uid}

    def dependent(name: str, **changes: Any) -> None:
        meta = {"name": name, "ownerReferences": [{**reference, **changes}]}
        kube.core.create_namespaced_config_map(kube.namespace, {"metadata": meta})

    def names() -> set[str]:
        items = kube.core.list_namespaced_config_map(kube.namespace).items
        return {item.metadata.name for item in items} - {"kube-root-ca.crt"}

    dependent("one")
    dependent("stray", uid="00000000-0000-0000-0000-000000000000")
    wait_for(lambda: names() == {"owner", "one"})
    kube.core.delete_namespaced_config_map("owner", kube.namespace, propagation_policy="Orphan")
    wait_for(lambda: names() == {"one"})
    assert not kube.core.read_namespaced_config_map("one", kube.namespace).metadata.owner_references
    kube.core.delete_namespaced_config_map("one", kube.namespace)
    owner = kube.core.create_namespaced_config_map(kube.namespace, {"metadata": {"name": "owner"}})
    dependent("two", uid=owner.metadata.uid)
    kube.core.delete_namespaced_config_map("owner", kube.namespace)
    wait_for(lambda: names() == set())
