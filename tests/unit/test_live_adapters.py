"""Adapters that change in place: what names a generation and what does not, what pods say, and what is taken back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from emulated_cloud.engine import args as engine

from components.resolve_model.decision import Situation, decide
from components.validate_server.step import GENERATION_HEADER, way_through
from serving import names
from serving.clients.kubernetes import Object
from serving.deployment import adapters, discarding, gateway
from serving.deployment.record import Known, Record
from serving.errors import InconclusiveError, RejectedBeforeError, ReleaseError, RequestError
from serving.features import live_adapters
from serving.rendering import generation, render
from serving.rendering.engine import engine_flags
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, SETTINGS

OLD, NEW = "a" * 16, "b" * 16
LIVE = RELEASE.model_copy(update={"live": "g2", "adapters_key": NEW})
GATEWAY = {"gateway": {"proxy_ranges": ["10.129.0.0/23"], "timeout": "1s"}}


def settings(*adapters: str, **changes: Any) -> Settings:
    named = {name: {"model": f"someone/{name}"} for name in adapters}
    base = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket", "features": ["live-adapters"]}
    return validated(Settings, {**base, "adapters": named, **changes})


# -- a generation is what has room for them -----------------------------------------------------------------


def test_the_set_of_adapters_names_no_generation_and_their_room_does():
    found = {
        generation.name(settings(*some), RELEASE.model_copy(update={"adapters_key": key}))
        for some, key in (((), ""), (("ko",), OLD), (("ko", "legal"), NEW))
    }
    assert len(found) == 1
    for room in ({"max_rank": 8}, {"at_once": 2}):
        assert generation.name(settings("ko", live_adapters=room), RELEASE) not in found
    assert generation.name(settings(features=[]), RELEASE) not in found


def test_the_digest_of_what_is_rendered_changes_with_the_set_and_the_pods_do_not():
    def rendered(key: str) -> tuple[str, Object]:
        found = render.render(settings("ko"), RELEASE.model_copy(update={"adapters_key": key}))
        return found.digest, next(i for i in found.generation if i["kind"] == "Deployment")["spec"]["template"]

    (one, pods), (other, same) = rendered(OLD), rendered(NEW)
    assert one != other
    assert pods == same


def test_the_engine_takes_the_flags():
    parsed = engine.parse(
        ["/model", *engine_flags(settings("ko", live_adapters={"max_rank": 16, "at_once": 3}), RELEASE)]
    )
    assert (parsed.enable_lora, parsed.max_lora_rank, parsed.max_loras, parsed.max_cpu_loras) == (True, 16, 3, 32)
    assert parsed.middleware == ["gemma_adapters.OwnPodAlone"]
    assert not parsed.lora_modules


def test_an_adapter_that_has_no_room_is_told_with_the_room_that_it_needs():
    assert live_adapters.room(settings(), 0) == live_adapters.room(settings(), 64) == 64
    with pytest.raises(RequestError, match=r"has the rank 65.*room for 64: set live_adapters.max_rank: 128"):
        live_adapters.room(settings(), 65)
    with pytest.raises(RequestError, match="7 is none of 1, 8, 16"):
        settings(live_adapters={"max_rank": 7})


# -- what pods say ------------------------------------------------------------------------------------------


class Pods(MemoryCluster):
    """A cluster whose pods have said these lines; each look takes the next, and the last one stays."""

    def __init__(self, *logs: list[str], told: str = OLD, pods: int = 1):
        super().__init__(config_map(told), *(pod(number) for number in range(pods)))
        self.logs = list(logs)

    def log(self, pod: str, namespace: str, *, container: str = "", tail: int = 50, previous: bool = False) -> str:
        assert container == "adapters"
        return "\n".join(self.logs.pop(0) if len(self.logs) > 1 else self.logs[0])


def config_map(key: str) -> Object:
    uri = f"gs://demo-bucket/models/google/gemma-3-4b-it/{key}" if key else ""
    metadata = {"name": names.adapters("g2"), "namespace": SETTINGS.namespace, "labels": {}}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": {"wanted.json": live_adapters.wanted(uri)},
    }


def pod(number: int) -> Object:
    labels = {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: "g2"}
    metadata = {"name": f"pod-{number}", "namespace": SETTINGS.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"initContainers": [{"name": "adapters"}]}}


def state(key: str, *served: str, waits: str = "", **refused: str) -> str:
    return json.dumps({"adapters": key, "served": served, "refused": refused, "waits": waits})


def wait(cluster: MemoryCluster, *adapters_: str, seconds: float = 120) -> list[str]:
    lines: list[str] = []
    adapters.wait(cluster, settings(*adapters_), LIVE, seconds, lines.append)  # type: ignore[arg-type]
    return lines


def test_every_pod_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapters, "_EVERY_SECONDS", 0)
    before, after = [state(OLD, "ko"), "4/4 files"], [state(OLD, "ko"), state(NEW, "ko", "legal"), "not JSON {"]
    lines = wait(Pods(before, before, after, before, after, pods=2), "ko", "legal")
    assert lines[-1] == "every pod serves the adapters ko, legal"
    assert "not yet told of them" in lines[0]


def test_a_pod_that_was_evicted_is_not_waited_for():
    cluster = Pods([state(NEW, "ko")], pods=2)
    cluster.objects["Pod", SETTINGS.namespace, "pod-0"]["status"] = {"phase": "Failed", "reason": "Evicted"}
    asked: list[str] = []
    log = cluster.log
    cluster.log = lambda pod, *a, **k: asked.append(pod) or log(pod, *a, **k)  # type: ignore[method-assign,func-returns-value]
    assert wait(cluster, "ko")[-1] == "every pod serves the adapters ko"
    assert asked == ["pod-1"]


def test_an_adapter_that_an_engine_refuses_is_the_releases_fault():
    with pytest.raises(ReleaseError, match="the adapter legal: has shape"):
        wait(Pods([state(NEW, "ko", legal="has shape [1]")]), "ko", "legal")


def test_what_it_refused_of_another_set_is_not():
    with pytest.raises(InconclusiveError, match="not yet told of them"):
        wait(Pods([state(OLD, "ko", legal="has shape [1]")]), "ko", "legal", seconds=0)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ([state("", waits="the bucket is away")], "pod-0: the bucket is away"),
        ([state(NEW, waits="/v1/models: ConnectError")], "pod-0: /v1/models: ConnectError"),
        (["{", "[]", '{"adapters": 1}'], "pod-0: not yet told of them"),
        ([], "pod-0: not yet told of them"),
    ],
)
def test_pods_that_do_not_come_to_it_teach_nothing(log: list[str], words: str):
    with pytest.raises(InconclusiveError) as caught:
        wait(Pods(log), "ko", seconds=0)
    assert words in str(caught.value)


# -- what is to be done -------------------------------------------------------------------------------------


def test_a_set_that_is_not_the_wanted_one_is_a_reason_to_deploy():
    cluster = Pods([])
    words = f"it serves the adapters of the set {OLD}, and the settings ask for ko"
    assert adapters.amiss(cluster, settings("ko"), LIVE) == words  # type: ignore[arg-type]
    assert adapters.amiss(cluster, settings("ko"), LIVE.model_copy(update={"adapters_key": OLD})) == ""  # type: ignore[arg-type]
    assert adapters.amiss(cluster, settings(features=[]), LIVE) == ""  # type: ignore[arg-type]
    told_of_it = LIVE.model_copy(update={"adapters_key": OLD})
    # A run was killed between telling the pods and validating.
    for record, words in ((known(OLD), ""), (known(NEW), f"nobody has validated the adapters {OLD} that it serves")):
        assert adapters.amiss(cluster, settings("ko"), told_of_it, record) == words  # type: ignore[arg-type]
    healthy = Situation(
        serving="g2", entry_as_wanted=True, replicas=1, settled=True, ready=1, rolled_out=True, settings_digest="d"
    )
    live = Record(live="g2")
    assert decide(settings("ko"), LIVE, live, healthy, "d").verdict == "unchanged"
    changed = Situation(**{**healthy.__dict__, "adapters": "it serves others"})
    found = decide(settings("ko"), LIVE, live, changed, "d")
    assert (found.verdict, found.reason) == ("deploy", "g2 is live, but it serves others")


def test_a_set_that_was_rejected_is_not_tried_again_by_itself():
    known = Record(live="g2")
    known.reject_adapters(LIVE, ["legal: has shape"])
    changed = Situation(serving="g2", entry_as_wanted=True, settings_digest="d", adapters="it serves others")
    with pytest.raises(RejectedBeforeError, match=f"the adapters {NEW} were rejected .* legal: has shape"):
        decide(settings("ko"), LIVE, known, changed, "d")
    assert decide(settings("ko", retry=True), LIVE, known, changed, "d").verdict == "deploy"
    other = LIVE.model_copy(update={"adapters_key": "c" * 16})
    assert decide(settings("ko"), other, known, changed, "d").verdict == "deploy"


def test_a_candidate_that_was_rejected_with_other_adapters_is_tried_with_these():
    known = Record(live="g1")
    known.reject(LIVE.model_copy(update={"live": "g1"}), ["legal: has shape"])
    candidate = LIVE.model_copy(update={"live": "g1", "adapters_key": "c" * 16})
    assert decide(settings("ko"), candidate, known, Situation(), "d").verdict == "deploy"
    with pytest.raises(RejectedBeforeError, match=r"g2 .* was rejected"):
        decide(settings("ko"), candidate.model_copy(update={"adapters_key": NEW}), known, Situation(), "d")


# -- taken back ---------------------------------------------------------------------------------------------


def known(key: str) -> Record:
    origin = Known.model_validate({**RELEASE.model_dump(include=set(Known.model_fields)), "adapters_key": key})
    return Record(live="g2", generations={"g2": origin})


@pytest.mark.parametrize("before", [OLD, ""])
def test_the_set_that_was_validated_last_is_served_again(before: str):
    cluster = Pods([], told=NEW)
    lines: list[str] = []
    assert adapters.take_back(cluster, settings("ko"), known(before), lines.append)  # type: ignore[arg-type]
    there = cluster.get("ConfigMap", names.adapters("g2"), SETTINGS.namespace)
    assert there == cluster.get("ConfigMap", "adapters-g2", SETTINGS.namespace)
    assert json.loads(there["data"]["wanted.json"])["weights_uri"].rpartition("/")[2] == before  # type: ignore[index]
    assert not adapters.take_back(cluster, settings("ko"), known(before), lines.append)  # type: ignore[arg-type]
    assert len(lines) == 1


def test_what_is_as_it_should_be_or_not_known_stays():
    for cluster, record in ((Pods([], told=OLD), known(OLD)), (Pods([], told=NEW), Record(live="g2"))):
        assert not adapters.take_back(cluster, settings("ko"), record, lambda line: None)  # type: ignore[arg-type]
        assert cluster.calls == []


def test_discarding_leaves_the_live_generation_with_the_adapters_that_it_had(monkeypatch: pytest.MonkeyPatch):
    cluster, record = Pods([], told=NEW), known(OLD)
    written: list[set[str]] = []
    monkeypatch.setattr(discarding.record, "read", lambda *_: record)
    monkeypatch.setattr(Record, "write", lambda self, *_: written.append({*self.rejected}))
    said = discarding.discard(cluster, settings("ko"), LIVE, ["bad"], lambda line: None)  # type: ignore[arg-type]
    assert said == "g2 is live and stays, with the adapters that it had: the new ones are rejected"
    assert written == [{NEW}]
    assert record.live == "g2"
    assert record.weights_in_use == {RELEASE.weights_key, OLD}


# -- asked through a load balancer --------------------------------------------------------------------------


def load_balancer(*, programmed: bool = True) -> Object:
    conditions = [{"type": kind, "status": str(programmed)} for kind in ("Accepted", "Programmed")]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": {"name": SETTINGS.name, "namespace": SETTINGS.namespace},
        "spec": {"listeners": [{"protocol": "HTTP", "port": 80}]},
        "status": {"addresses": [{"value": "10.0.0.7"}], "conditions": conditions},
    }


def with_gateway(**changes: Any) -> Settings:
    base = {"scenario": "inference-gateway", "project": "demo-project", "bucket": "demo-bucket"}
    return validated(Settings, {**base, **GATEWAY, **changes})


def test_a_candidate_is_asked_by_a_route_of_its_own_that_goes_whatever_happens():
    cluster = MemoryCluster(load_balancer())

    def asked() -> None:
        with way_through(cluster, with_gateway(), RELEASE, lambda line: None) as way:  # type: ignore[arg-type]
            assert way
            assert (way.url, way.headers) == ("http://10.0.0.7", {GENERATION_HEADER: "g2"})
            (route,) = cluster.list("HTTPRoute", SETTINGS.namespace)
            assert route["metadata"]["name"] == "validate-g2"
            assert route["metadata"]["labels"][names.RUN] == RELEASE.run_id
            (rule,) = route["spec"]["rules"]
            assert rule["matches"][0]["headers"] == [{"type": "Exact", "name": GENERATION_HEADER, "value": "g2"}]
            entry = render.entry(with_gateway(), {"g2": 100})
            assert rule["backendRefs"] == entry["spec"]["rules"][0]["backendRefs"]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asked()
    assert cluster.list("HTTPRoute", SETTINGS.namespace) == []


OBJECTIVES = {"batch": -1, "chat": 10}


def test_a_candidate_has_the_objectives_in_its_own_pool_as_long_as_it_is_asked():
    cluster = MemoryCluster(load_balancer(), server_pod("10.1.0.4"), server_pod("10.1.0.5", ready=False))
    config = with_gateway(inference_gateway={"objectives": OBJECTIVES})
    with way_through(cluster, config, RELEASE, lambda line: None) as way:  # type: ignore[arg-type]
        assert way
        assert way.shedding
        assert {each.name: (each.header, each.priority) for each in way.shedding.objectives} == {
            "batch": ("validate-g2-batch", -1),
            "chat": ("validate-g2-chat", 10),
        }
        assert way.shedding.pods == ["10.1.0.4"], "the picker knows those that are ready"
        there = cluster.list("InferenceObjective", SETTINGS.namespace)
        assert {item["metadata"]["name"]: item["spec"]["priority"] for item in there} == {
            "validate-g2-batch": -1,
            "validate-g2-chat": 10,
        }
        assert {item["spec"]["poolRef"]["name"] for item in there} == {"vllm-g2"}
        no_longer = gateway._no_longer_wanted(cluster, config, [])  # type: ignore[arg-type]
        assert no_longer == [], "they do not follow the live generation"
    assert cluster.list("InferenceObjective", SETTINGS.namespace) == []


@pytest.mark.parametrize(
    ("changes", "live", "said"),
    [
        ({}, "", "no objective has a priority below 0"),
        ({"inference_gateway": {"objectives": {"chat": 10}}}, "", "no objective has a priority below 0"),
        ({"inference_gateway": {"objectives": OBJECTIVES}}, "g2", "it serves already"),
        ({"features": ["gateway"]}, "", "there is no endpoint picker"),
    ],
)
def test_why_nothing_of_priorities_is_shown_is_said(
    changes: dict[str, Any], live: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(gateway, "wait_until_well", lambda *_: None)
    release = RELEASE.model_copy(update={"live": live})
    cluster = MemoryCluster(load_balancer())
    with way_through(cluster, with_gateway(**changes), release, lambda line: None) as way:  # type: ignore[arg-type]
        assert way
        assert way.shedding is None
        assert said in way.not_shown


def server_pod(address: str, *, ready: bool = True) -> Object:
    labels = {names.DEPLOYMENT: SETTINGS.name, names.GENERATION: "g2"}
    conditions = [{"type": "Ready", "status": str(ready)}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"vllm-{address}", "namespace": SETTINGS.namespace, "labels": labels},
        "status": {"podIP": address, "conditions": conditions},
    }


@pytest.mark.parametrize(("host", "trusted"), [("", False), ("gemma.example.com", True)])
def test_over_https_it_is_trusted_by_the_name_that_clients_call(host: str, trusted: bool):
    balancer = load_balancer()
    balancer["spec"]["listeners"] = [{"protocol": "HTTPS", "port": 443}]
    config = with_gateway(gateway={**GATEWAY["gateway"], "certificate": "demo", "host": host})
    cluster = MemoryCluster(balancer)
    with way_through(cluster, config, RELEASE, lambda line: None) as way:  # type: ignore[arg-type]
        assert way
        assert (way.url, way.host, way.trusted) == ("https://10.0.0.7", host, trusted)
        (route,) = cluster.list("HTTPRoute", SETTINGS.namespace)
        assert route["spec"]["hostnames"] == ([host] if host else [])


def test_a_load_balancer_that_is_not_made_says_nothing_about_a_release(monkeypatch: pytest.MonkeyPatch):
    cluster = MemoryCluster(load_balancer(programmed=False))
    with pytest.raises(InconclusiveError, match="is not Accepted"):
        way_through(cluster, with_gateway(), RELEASE, lambda line: None).__enter__()  # type: ignore[arg-type]
    assert cluster.list("HTTPRoute", SETTINGS.namespace) == []


def test_without_a_load_balancer_there_is_no_way_through():
    with way_through(MemoryCluster(), SETTINGS, RELEASE, lambda line: None) as way:  # type: ignore[arg-type]
        assert way is None
