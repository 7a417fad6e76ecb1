"""Settings of Gateways and endpoint pickers, what is refused, and what a cluster, network or project lacks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.deploy_server import step as deploy
from pipelines.compile import specification
from pipelines.local import cloud
from serving import scenarios
from serving.clients import google, proxies
from serving.clients.compute import Compute, ProxySubnet, TakenError
from serving.errors import InconclusiveError, ReleaseError, RequestError
from serving.features import Symptom, gateway, inference_gateway
from serving.installation import bootstrap, roles
from serving.rendering import render
from serving.settings import Settings, validated
from tests.unit.deployment import RELEASE

KEY = "projects/demo-project/secrets/key/versions/latest"
NETWORK = "projects/host-project/global/networks/shared"
PUBLIC: dict[str, Any] = {
    "serving": {"exposure": "public"},
    "engine": {"api_key_secret": KEY},
    "gateway": {"certificate": "demo"},
}


def settings(scenario: str = "inference-gateway", **values: Any) -> Settings:
    return validated(Settings, {"scenario": scenario, "project": "demo-project", "bucket": "demo-bucket", **values})


# -- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", [each.name for each in scenarios.SCENARIOS])
def test_what_is_public_comes_in_by_a_gateway_in_every_scenario(scenario: str):
    config = settings(scenario, **PUBLIC)
    assert config.has_gateway
    assert "service" not in config.chosen_features
    again = validated(Settings, config.as_struct())
    assert again == config, "as a step reads it"
    compiled = specification(scenarios.find(scenario), "an/image", config.features)
    assert "gateway" in str(compiled), "as it is compiled"


def test_a_gateway_in_the_vpc_is_to_be_had_too():
    config = settings("gcs-fuse", features=["gateway"])
    assert (config.has_gateway, config.serving.exposure) == (True, "internal")
    assert not settings("gcs-fuse").has_gateway


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"engine": {}}, "needs a key that clients have to show: set engine.api_key_secret"),
        ({"gateway": {}}, "without a certificate .*set gateway.certificate .*`gcloud compute ssl-certificates create"),
        ({"gateway": {"certificate": "a/b"}}, "gateway.certificate: .*is not the name of something in Compute Engine"),
        ({"gateway": {"host": "10.0.0.1"}}, "gateway.host: '10.0.0.1' is not the name of a host"),
        ({"gateway": {"host": "https://gemma.example.com"}}, "gateway.host: .*is not the name of a host"),
        ({"gateway": {"host": "*.example.com"}}, "gateway.host: .*is not the name of a host"),
        ({"gateway": {"authority": "ca.pem"}}, "gateway.authority: is not certificates as PEM"),
        ({"gateway": {"authority": "-----BEGIN PRIVATE KEY-----"}}, "gateway.authority: holds a private key"),
        ({"gateway": {"authority": "-" * 20_000}}, "gateway.authority: has more than 16384 characters"),
        ({"gateway": {"proxy_ranges": ["10.0.0.1/23"]}}, "gateway.proxy_ranges.*is not a range of addresses"),
        ({"gateway": {"proxy_ranges": ["0.0.0.0/0"]}}, "is no range of a subnet"),
        ({"gateway": {"proxy_subnet_range": "10.0.0.0"}}, "is no range of a subnet"),
    ],
)
def test_what_would_be_open_to_anybody_is_refused(values: dict[str, Any], said: str):
    with pytest.raises(RequestError, match=said):
        settings("gcs-fuse", **{**PUBLIC, **values})


def test_plain_http_is_a_word_that_somebody_has_to_say():
    config = settings("gcs-fuse", **{**PUBLIC, "gateway": {"plain_http": True}})
    (listener,) = one(render.shared(config), "Gateway")["spec"]["listeners"]
    assert (listener["protocol"], listener["port"]) == ("HTTP", 80)


def test_a_section_of_a_gateway_is_refused_without_one():
    with pytest.raises(RequestError, match="gateway: this deployment has no feature gateway"):
        settings("gcs-fuse", gateway={"certificate": "demo"})
    with pytest.raises(RequestError, match="has no feature inference-gateway"):
        settings("gcs-fuse", features=["gateway"], inference_gateway={"picker_replicas": 1})


# -- what is rendered, patches included ---------------------------------------------------------------------


def one(items: list[dict[str, Any]], kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (item for item in items if item["kind"] == kind and name in ("", item["metadata"]["name"]))
    return found


def rendered(**values: Any) -> list[dict[str, Any]]:
    config = settings(**{"gateway": {"proxy_ranges": ["10.129.0.0/23"]}, **values})
    return render.render(config, RELEASE).generation


@pytest.mark.parametrize(("request_timeout", "timeout", "draining"), [("10m", 600, 600), ("2h", 7200, 3600)])
def test_an_answer_may_take_its_time_at_a_pod_that_goes_too(request_timeout: str, timeout: int, draining: int):
    """As long as the pod itself waits for it, whatever a promotion's drain_seconds are; at most what the API takes."""
    serving = {"request_timeout": request_timeout, "drain_seconds": 5}
    policy = one(rendered(serving=serving), "GCPBackendPolicy")["spec"]["default"]
    assert (policy["timeoutSec"], policy["connectionDraining"]["drainingTimeoutSec"]) == (timeout, draining)


def test_a_patch_of_deployments_is_the_server_s_and_the_picker_s_is_named():
    high = {"template": {"spec": {"priorityClassName": "high"}}}
    low = {"template": {"spec": {"priorityClassName": "low"}}}
    patches = [
        {"kind": "Deployment", "spec": high},
        {"kind": "Deployment", "metadata": {"name": "epp"}, "spec": low},
        {"kind": "ConfigMap", "metadata": {"name": "epp"}, "data": {"epp.yaml": "kind: EndpointPickerConfig"}},
    ]
    items = rendered(patches=patches)
    server, picker = (one(items, "Deployment", f"{kind}-{RELEASE.generation}") for kind in ("vllm", "epp"))
    assert server["spec"]["template"]["spec"]["priorityClassName"] == "high"
    assert picker["spec"]["template"]["spec"]["priorityClassName"] == "low"
    assert one(items, "ConfigMap", f"epp-{RELEASE.generation}")["data"]["epp.yaml"] == "kind: EndpointPickerConfig"


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"kind": "HTTPRoute", "spec": {"rules": []}}, "changes spec.rules, which say who is live"),
        (
            {"kind": "Service", "metadata": {"name": "epp"}, "spec": {"type": "LoadBalancer"}},
            "opens the engine's port to anybody",
        ),
        ({"kind": "Deployment", "metadata": {"name": "epq"}, "spec": {}, "x": 1}, "matches no object"),
    ],
)
def test_a_patch_that_moves_the_traffic_or_opens_a_port_is_refused(patch: dict[str, Any], said: str):
    with pytest.raises(RequestError, match=said):
        rendered(patches=[patch])


def test_a_route_is_patched_beside_its_rules():
    config = settings(patches=[{"kind": "HTTPRoute", "spec": {"hostnames": ["chat.example.com"]}}])
    assert render.entry(config, {"g1": 100})["spec"]["hostnames"] == ["chat.example.com"]


# -- what the cluster lacks ---------------------------------------------------------------------------------


def lacking(config: Settings, *groups: str) -> str:
    there = {gateway.GROUP, inference_gateway.POOLS, inference_gateway.OBJECTIVES} - set(groups)
    said = []
    for module in (gateway, inference_gateway):
        try:
            module.served(config, there.__contains__)
        except RequestError as error:
            said.append(str(error))
    return "; ".join(said)


def test_kinds_that_the_cluster_lacks_are_named_with_the_command_that_brings_them():
    config = settings(inference_gateway={"objectives": {"batch": -1}})
    assert lacking(config) == ""
    assert "`gcloud container clusters update gemma " in lacking(config, gateway.GROUP)
    assert "--gateway-api=standard`" in lacking(config, gateway.GROUP)
    pools = lacking(config, inference_gateway.POOLS)
    for words in ("InferencePool", "1.34.0-gke.1626000", "`kubectl apply --server-side -f https://"):
        assert words in pools
    assert "llm-d.ai_inferenceobjectives.yaml`" in lacking(config, inference_gateway.OBJECTIVES)
    assert lacking(settings(), inference_gateway.OBJECTIVES) == "", "who has no objectives needs no kind of them"


# -- why a picker does not start ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symptom", "error", "said"),
    [
        (
            Symptom("words", "epp-g1-x", 'pods is forbidden: User "system:serviceaccount:gemma:gemma-epp"'),
            RequestError,
            "render inference-gateway -f FILE --access",
        ),
        (
            Symptom("refused", "epp-g1", 'error looking up service account: serviceaccount "gemma-epp" not found'),
            RequestError,
            "service account gemma-epp is missing",
        ),
        (Symptom("words", "epp-g1-x", 'no matches for kind "InferencePool"'), RequestError, "kubectl get crd"),
        (Symptom("out-of-memory", "epp-g1-x"), InconclusiveError, "picker_memory"),
        (Symptom("no-node", "epp-g1-x", "Insufficient cpu"), InconclusiveError, "nodes without accelerators"),
        (Symptom("slow", "epp-g1-x"), InconclusiveError, "kubectl -n gemma logs epp-g1-x"),
    ],
)
def test_why_a_picker_does_not_start_is_said_in_its_own_words(symptom: Symptom, error: type[Exception], said: str):
    found = deploy.explain(settings(), symptom)
    assert found is not None
    assert issubclass(found.error, error)
    assert said in found.message


def test_another_refusal_is_not_the_account_s():
    words = 'pods "epp-g1-x" is forbidden: exceeded quota: pods'
    assert deploy.explain(settings(), Symptom("refused", "epp-g1", words)) is None


def test_a_server_s_symptoms_are_not_the_picker_s():
    assert inference_gateway.explain(settings(), Symptom("slow", "vllm-g1-x")) is None


def test_a_picker_that_fails_does_not_accuse_the_release(monkeypatch: pytest.MonkeyPatch):
    def fails(*_: Any) -> float:
        raise ReleaseError("its container ends")

    monkeypatch.setattr(deploy, "wait_until_ready", fails)
    monkeypatch.setattr(deploy.gateway, "picker_is_ready", lambda *_: False)
    config = settings()
    with pytest.raises(InconclusiveError, match="endpoint picker epp-g1 does not become ready: its container ends"):
        deploy.wait_for_picker(None, config, "g1", None, deploy.patience_of(config))  # type: ignore[arg-type]


# -- the proxy-only subnet ----------------------------------------------------------------------------------


@pytest.fixture
def subnets(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[ProxySubnet]]:
    """The proxy-only subnets by project, of the one network there is; what is made joins them."""
    there: dict[str, list[ProxySubnet]] = {}

    class Made:
        was_over = False

        def wait(self, seconds: float) -> None:
            pass

    def make(self: Compute, region: str, network: str, subnet: ProxySubnet, request_id: str) -> Made:
        assert (region, network) == ("us-central1", NETWORK)
        there.setdefault(self.project, []).append(subnet)
        return Made()

    traits = google.ClusterTraits("c", True, "1.35.3-gke.1389000", (), ("us-central1-a",), NETWORK)
    monkeypatch.setattr(google, "cluster_traits", lambda settings: traits)
    monkeypatch.setattr(Compute, "proxy_subnets", lambda self, region, network: list(there.get(self.project, [])))
    monkeypatch.setattr(Compute, "make_proxy_subnet", make)
    return there


def test_the_range_is_read_from_the_network_s_own_project(subnets: dict[str, list[ProxySubnet]]):
    subnets["host-project"] = [ProxySubnet("theirs", "10.1.0.0/24")]
    assert proxies.ranges(settings()) == ["10.1.0.0/24"]
    assert proxies.ranges(settings("gcs-fuse")) == []
    assert proxies.ranges(settings(gateway={"proxy_ranges": ["10.9.0.0/24"]})) == ["10.9.0.0/24"]
    assert proxies.ensure(settings(gateway={"proxy_subnet_range": "10.2.0.0/24"}), print) == [], "there is one"


def test_without_a_subnet_the_command_that_makes_one_is_told(subnets: dict[str, list[ProxySubnet]]):
    command = (
        "gcloud compute networks subnets create gemma-proxies --project=host-project --region=us-central1 "
        f"--network={NETWORK} --range={{}} --purpose=REGIONAL_MANAGED_PROXY --role=ACTIVE"
    )
    with pytest.raises(RequestError) as caught:
        proxies.ranges(settings())
    assert f"its range is yours to choose: `{command.format('RANGE')}`" in str(caught.value)
    checked = settings(access="check", gateway={"proxy_subnet_range": "10.2.0.0/24"})
    with pytest.raises(RequestError) as caught:
        proxies.ranges(checked)
    assert f"access: check leaves it to you: `{command.format('10.2.0.0/24')}`" in str(caught.value)
    assert proxies.ensure(checked, print) == []
    assert subnets == {}


def test_a_subnet_whose_range_is_given_is_made_once(subnets: dict[str, list[ProxySubnet]]):
    config, said = settings(gateway={"proxy_subnet_range": "10.2.0.0/24"}), list[str]()
    assert proxies.ranges(config) == ["10.2.0.0/24"], "as it is going to be"
    assert proxies.ensure(config, said.append) == ["subnet gemma-proxies"]
    assert subnets == {"host-project": [ProxySubnet("gemma-proxies", "10.2.0.0/24")]}
    assert said == [f"made the proxy-only subnet gemma-proxies (10.2.0.0/24) in us-central1 of {NETWORK}"]
    assert proxies.ensure(config, said.append) == []


def test_another_subnet_of_that_name_is_told(subnets: dict[str, list[ProxySubnet]], monkeypatch: pytest.MonkeyPatch):
    def taken(*_: Any) -> Any:
        raise TakenError("the resource already exists")

    monkeypatch.setattr(Compute, "make_proxy_subnet", taken)
    with pytest.raises(RequestError, match="Another subnet has that name: make one by hand, `gcloud compute networks"):
        proxies.ensure(settings(gateway={"proxy_subnet_range": "10.2.0.0/24"}), print)


def test_a_release_that_does_not_know_the_range_is_not_rendered():
    with pytest.raises(RequestError, match=r"name the ranges .* in gateway\.proxy_ranges"):
        render.render(settings(), RELEASE)


# -- roles and APIs -----------------------------------------------------------------------------------------


def test_the_project_gets_what_a_gateway_needs_and_no_more():
    def given(config: Settings) -> set[str]:
        return {grant.role.rpartition("/")[2] for grant in roles.grants(config)}

    read, make = roles.PROXIES.id, roles.PROXY_SUBNET.id
    assert {read, make} & given(settings("gcs-fuse")) == set()
    assert {read, make} & given(settings()) == {read}
    assert {read, make} & given(settings(gateway={"proxy_ranges": ["10.1.0.0/24"]})) == set()
    assert {read, make} & given(settings(gateway={"proxy_subnet_range": "10.1.0.0/24"})) == {read, make}
    assert {read, make} & given(settings(access="check", gateway={"proxy_subnet_range": "10.1.0.0/24"})) == {read}
    assert "networkservices.googleapis.com" in bootstrap.apis(settings())
    assert "networkservices.googleapis.com" not in bootstrap.apis(settings("gcs-fuse"))


def test_the_pipeline_s_rights_in_the_cluster_follow_from_the_folders():
    config = settings(inference_gateway={"objectives": {"batch": -1}})
    (role,) = (i for i in render.admin(config) if i["kind"] == "Role" and i["metadata"]["name"] != "gemma-epp")

    def verbs(resource: str, name: str = "") -> set[str]:
        rules = [r for r in role["rules"] if resource in r["resources"] and r.get("resourceNames", [""]) == [name]]
        return {verb for rule in rules for verb in rule["verbs"]}

    assert verbs("httproutes") | verbs("httproutes", "gemma") >= {"get", "create", "patch"}
    assert verbs("inferencepools") == {"get", "list", "create", "patch", "delete"}
    assert verbs("gateways") == {"get", "list", "watch", "create"}
    assert verbs("gateways", "gemma") == {"patch"}
    assert verbs("inferenceobjectives") == {"list", "create", "patch", "delete"}
    assert verbs("inferenceobjectives", "batch") == {"get"}


def test_a_certificate_is_refused_where_a_real_controller_would_not_answer(tmp_path: Path):
    up = cloud.up(settings("gcs-fuse", **PUBLIC), tmp_path, None, ["gateway"], print, {})
    with pytest.raises(RequestError, match=r"gateway\.certificate does not answer with --real gateway"), up:
        pass
    assert list(tmp_path.iterdir()) == []
