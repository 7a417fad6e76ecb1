"""What the statuses of Gateways, HTTPRoutes and InferencePools say: as Istio's controller judged the same manifests.

And what the API server refuses before that, by the rules of the kinds' definitions.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trustme
from kubernetes.client.exceptions import ApiException

from tests.contract.apiserver_process import start_emulator, write_kubeconfig
from tests.contract.gateway_site import GATEWAY_API, GKE, INFERENCE, Site, pool_ref, refusal, service_ref
from tests.contract.kubernetes_cluster import Cluster, Kube, cluster, kube, wait_for

__all__ = ["cluster", "kube"]

RESOLVED = ("True", "ResolvedRefs")
ACCEPTED = ("True", "Accepted")


@pytest.fixture
def site(kube: Kube) -> Site:
    return Site(kube)


def test_all_is_well(site: Site) -> None:
    site.service("epp-old", 9002, 9002)
    site.pool("old")
    site.gateway()
    site.route(pool_ref("old"))
    site.wait_conditions(
        "gateways", "front", Accepted=ACCEPTED, ResolvedRefs=RESOLVED, Programmed=("True", "Programmed")
    )
    site.wait_conditions("httproutes", "front", Accepted=ACCEPTED, ResolvedRefs=RESOLVED)
    site.wait_conditions("inferencepools", "old", INFERENCE, Accepted=ACCEPTED, ResolvedRefs=RESOLVED)
    (listener,) = site.read(GATEWAY_API, "gateways", "front")["status"]["listeners"]
    assert (listener["name"], listener["attachedRoutes"]) == ("http", 1)
    (parent,) = site.read(INFERENCE, "inferencepools", "old")["status"]["parents"]
    assert (parent["parentRef"]["name"], parent["controllerName"]) == ("front", "networking.gke.io/gateway")


@pytest.mark.parametrize(
    ("case", "ref", "verdict"),
    [
        ("absent", pool_ref("nobody"), "BackendNotFound"),
        ("group", {"kind": "InferencePool", "name": "old", "port": 8000}, "InvalidKind"),
        ("old-group", pool_ref("old", group="inference.networking.x-k8s.io"), "InvalidKind"),
        ("foreign", pool_ref("old", namespace="default"), "RefNotPermitted"),
        ("service", service_ref("nobody", 80), "BackendNotFound"),
    ],
)
def test_a_backend_that_is_not_right(cluster: Cluster, case: str, ref: Any, verdict: str) -> None:
    kube = Kube(cluster, f"backend-{case}")
    kube.core.create_namespace({"metadata": {"name": kube.namespace}})
    site = Site(kube)
    site.pool("old")
    site.gateway()
    site.route(ref)
    site.wait_conditions("httproutes", "front", Accepted=ACCEPTED, ResolvedRefs=("False", verdict))
    assert site.ask().status_code == 500
    kube.core.delete_namespace(kube.namespace)


def test_a_picker_without_a_service_shows_in_the_pool_alone(site: Site) -> None:
    site.pool("old")
    site.gateway()
    site.route(pool_ref("old"))
    site.wait_conditions(
        "inferencepools", "old", INFERENCE, Accepted=ACCEPTED, ResolvedRefs=("False", "InvalidExtensionRef")
    )
    site.wait_conditions("httproutes", "front", Accepted=ACCEPTED, ResolvedRefs=RESOLVED)
    site.service("epp-old", 9002, 9002)
    site.wait_conditions("inferencepools", "old", INFERENCE, ResolvedRefs=RESOLVED)


def test_a_route_to_a_gateway_of_another_name_is_nobodys(site: Site) -> None:
    site.pool("old")
    site.gateway()
    site.route(pool_ref("old"), name="right")
    site.route(pool_ref("old"), name="wrong", parent="other")
    site.wait_conditions("httproutes", "right", Accepted=ACCEPTED)
    assert not site.read(GATEWAY_API, "httproutes", "wrong").get("status", {}).get("parents")


def test_routes_that_a_gateway_does_not_take(site: Site) -> None:
    site.service("old", 80, 8000)
    site.gateway(hostname="models.example.com")
    body: Any = {"apiVersion": "/".join(GATEWAY_API), "kind": "HTTPRoute"}
    for name, spec, reason in (
        ("section", {"parentRefs": [{"name": "front", "sectionName": "tls"}]}, "NoMatchingParent"),
        ("host", {"parentRefs": [{"name": "front"}], "hostnames": ["other.example.com"]}, "NoMatchingListenerHostname"),
    ):
        spec["rules"] = [{"backendRefs": [service_ref("old", 80)]}]
        site.create(GATEWAY_API, "httproutes", {**body, "metadata": {"name": name}, "spec": spec})
        site.wait_conditions("httproutes", name, Accepted=("False", reason))
    foreign = {"parentRefs": [{"name": "front", "namespace": site.namespace}], "rules": [{}]}
    site.create(GATEWAY_API, "httproutes", {**body, "metadata": {"name": "foreign"}, "spec": foreign}, "default")

    def verdicts() -> Any:
        found = site._custom.get_namespaced_custom_object(*GATEWAY_API, "default", "httproutes", "foreign")
        return [each["reason"] for each in (found.get("status") or {}).get("parents", [{}])[0].get("conditions", [])]

    try:
        wait_for(lambda: "NotAllowedByListeners" in verdicts(), what=verdicts)
    finally:
        site._custom.delete_namespaced_custom_object(*GATEWAY_API, "default", "httproutes", "foreign")


def test_what_the_emulated_load_balancer_does_not_do_is_not_accepted(site: Site) -> None:
    site.service("old", 80, 8000)
    site.gateway()
    rules: dict[str, Any] = {
        "no filters": {"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a.example.com"}}]},
        "no timeouts of a rule": {"timeouts": {"request": "10s"}},
        "no match by regular expression": {"matches": [{"path": {"type": "RegularExpression", "value": "/v1.*"}}]},
    }
    for number, (words, rule) in enumerate(rules.items()):
        name = f"route-{number}"
        site.route(service_ref("old", 80), name=name, **rule)
        site.wait_conditions("httproutes", name, Accepted=("False", "UnsupportedValue"))
        (parent,) = site.read(GATEWAY_API, "httproutes", name)["status"]["parents"]
        (said,) = [each["message"] for each in parent["conditions"] if each["type"] == "Accepted"]
        assert words in said


def test_a_listener_without_its_certificate(site: Site) -> None:
    site.service("old", 80, 8000)
    tls = {"mode": "Terminate", "certificateRefs": [{"name": "mine"}]}
    site.gateway(port=443, protocol="HTTPS", tls=tls)
    site.wait_conditions("gateways", "front", ResolvedRefs=("False", "InvalidCertificateRef"))
    made = trustme.CA().issue_cert("models.example.com")
    data = {"tls.crt": made.cert_chain_pems[0].bytes(), "tls.key": made.private_key_pem.bytes()}
    encoded = {key: base64.b64encode(value).decode() for key, value in data.items()}
    site.kube.core.create_namespaced_secret(site.namespace, {"metadata": {"name": "mine"}, "data": encoded})
    site.wait_conditions("gateways", "front", ResolvedRefs=RESOLVED, Programmed=("True", "Programmed"))


def test_a_gateway_that_is_never_programmed(site: Site, cluster: Cluster) -> None:
    words = "error ensuring load balancer: An active proxy-only subnetwork is required"
    cluster.configure(gateway_faults={"not_programmed": {"front": words}})
    try:
        site.gateway()
        site.wait_conditions("gateways", "front", Accepted=ACCEPTED, Programmed=("False", "Invalid"))
        found = site.read(GATEWAY_API, "gateways", "front")["status"]
        assert [each["message"] for each in found["conditions"] if each["type"] == "Programmed"] == [words]
        assert not found.get("addresses")
        assert cluster.consumed("gateways-consumed")["not_programmed"]["front"] > 0
        site.kube.wait_event("front", "SYNC", words)
    finally:
        cluster.configure(gateway_faults={})
    site.wait_conditions("gateways", "front", Programmed=("True", "Programmed"))


# -- before anybody judges ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "words"),
    [
        ({"requestPath": "/health", "port": 8000}, "no such key: portSpecification"),
        ({"requestPath": "/health"}, "no such key: portSpecification"),
        ({"portSpecification": "USE_FIXED_PORT"}, "port must be set and portName must be unset"),
        ({"portSpecification": "USE_SERVING_PORT", "port": 8000}, "USE_SERVING_PORT"),
    ],
)
def test_a_health_check_as_googles_samples_have_it_is_refused(cluster: Cluster, check: Any, words: str) -> None:
    site = Site(Kube(cluster, "default"))
    with pytest.raises(ApiException) as error:
        site.create(GKE, "healthcheckpolicies", _policy("old", check))
    assert error.value.status == 422
    assert words in refusal(error.value)


def test_a_health_check_that_is_right(site: Site) -> None:
    right = {"requestPath": "/health", "portSpecification": "USE_FIXED_PORT", "port": 8000}
    site.create(GKE, "healthcheckpolicies", _policy("fixed", right))
    site.create(GKE, "healthcheckpolicies", _policy("serving", {"portSpecification": "USE_SERVING_PORT"}))


def test_a_picker_without_a_port_is_refused(site: Site) -> None:
    spec = {"selector": {"matchLabels": {"app": "old"}}, "targetPorts": [{"number": 8000}]}
    body = {"apiVersion": "/".join(INFERENCE), "kind": "InferencePool", "metadata": {"name": "old"}}
    with pytest.raises(ApiException, match="port is required when kind is 'Service'"):
        site.create(INFERENCE, "inferencepools", {**body, "spec": {**spec, "endpointPickerRef": {"name": "epp"}}})


def test_a_cluster_without_the_kinds(tmp_path: Any) -> None:
    from kubernetes import client
    from kubernetes.config import new_client_from_config

    server = start_emulator(tmp_path, "--absent", "httproutes.gateway.networking.k8s.io")
    try:
        api = new_client_from_config(str(write_kubeconfig(tmp_path, server.url)))
        custom = client.CustomObjectsApi(api)
        assert custom.list_cluster_custom_object(*GATEWAY_API, "gateways")["items"] == []
        with pytest.raises(ApiException) as error:
            custom.list_cluster_custom_object(*GATEWAY_API, "httproutes")
        assert error.value.status == 404
    finally:
        server.stop()


def _policy(name: str, check: Any) -> Any:
    target = {"group": INFERENCE[0], "kind": "InferencePool", "name": name}
    spec = {"default": {"config": {"type": "HTTP", "httpHealthCheck": check}}, "targetRef": target}
    return {"apiVersion": "/".join(GKE), "kind": "HealthCheckPolicy", "metadata": {"name": name}, "spec": spec}
