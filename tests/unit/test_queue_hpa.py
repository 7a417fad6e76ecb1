"""The autoscaler of a generation: what is rendered, how few pods it leaves at which moment, and what it hangs on."""

from __future__ import annotations

from typing import Any

import pytest

from components.deploy_server import step as deploying
from components.ensure_access.step import features
from components.promote_generation import step as promoting
from components.resolve_model.decision import Situation, decide
from serving import names
from serving.clients.google import ClusterTraits
from serving.deployment import autoscaling, record, replicas
from serving.deployment.discarding import discard
from serving.deployment.record import Record
from serving.errors import RequestError, ToldToEnd
from serving.features import queue_hpa
from serving.outcome import Outcome
from serving.rendering import access, generation, render
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment, quick, service
from tests.unit.test_deploy_step import Cluster

HPA = autoscaling.KIND


def scaled(replicas: int = 1, **section: Any) -> Settings:
    values = quick(serving={"replicas": replicas}).model_dump()
    return validated(Settings, {**values, "features": ["queue-hpa"], "queue_hpa": section})


def said(_message: str) -> None:
    pass


def bounds(cluster: MemoryCluster, generation: str) -> tuple[int, int]:
    found = cluster.get(HPA, names.server(generation), "gemma")
    assert found, f"{generation} has no autoscaler"
    return found["spec"]["minReplicas"], found["spec"]["maxReplicas"]


def promote(cluster: MemoryCluster, settings: Settings, **changes: Any) -> None:
    promoting.promote(cluster, settings, RELEASE.model_copy(update=changes), said)  # type: ignore[arg-type]


class Ready(MemoryCluster):
    """Pods are ready as soon as they are wanted."""

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Deployment":
            wanted = body["spec"].get("replicas", 1)
            counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted}
            body["status"] = {"observedGeneration": 1, **counts}
        return super()._store(body)


# -- what is rendered -----------------------------------------------------------------------------------------


def test_scaling_changes_in_place_and_makes_no_other_generation():
    plain, other = quick(), scaled(2, max_replicas=9, target=3, scale_down_window="1m")
    assert generation.name(plain, RELEASE) == generation.name(other, RELEASE)
    assert generation.name(other, RELEASE) == generation.name(scaled(adapter="autoscaling-metric"), RELEASE)
    digests = {render.render(each, RELEASE).digest for each in (plain, other, scaled(), scaled(target=3))}
    assert len(digests) == 4, "and each of them is one to apply"


@pytest.mark.parametrize("adapter", ["stackdriver", "autoscaling-metric"])
def test_the_autoscaler_asks_for_what_somebody_brings(adapter: str):
    objects = {item["kind"]: item for item in render.render(scaled(adapter=adapter), RELEASE).generation}
    metric = objects[HPA]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    if adapter == "stackdriver":
        assert metric == "prometheus.googleapis.com|vllm:num_requests_waiting|gauge"
        assert "AutoscalingMetric" not in objects
        return
    source = objects["AutoscalingMetric"]
    pod = source["spec"]["metrics"][0]["pod"]
    (gauge,) = (entry["gauge"] for entry in pod["containers"][0]["metrics"])
    assert metric == f"autoscaling.gke.io|{source['metadata']['name']}|{gauge['name']}"
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert pod["selector"]["matchLabels"].items() <= labels.items()


def test_what_scales_is_rendered_alike_for_a_generation_whose_release_nobody_knows():
    for adapter in ("stackdriver", "autoscaling-metric"):
        settings = scaled(adapter=adapter, max_replicas=7)
        whole = [item for item in render.generation(settings, RELEASE) if item["kind"] in (HPA, "AutoscalingMetric")]
        assert render.scaling(settings, RELEASE.generation) == whole
    assert render.scaling(quick(), "g1") == []


def test_the_adapter_is_the_administrators_and_no_deployments():
    settings = scaled()
    own = [item for item in render.admin(settings) if item["metadata"].get("namespace") == "custom-metrics"]
    assert {item["kind"] for item in own} == {"ServiceAccount", "Deployment", "Service"}
    for item in own:
        assert names.DEPLOYMENT not in item["metadata"]["labels"]
    patched = scaled().model_copy(
        update={"patches": [{"kind": "Deployment", "spec": {"template": {"spec": {"priorityClassName": "high"}}}}]}
    )
    (adapter,) = (item for item in render.admin(patched) if item["kind"] == "Deployment")
    assert "priorityClassName" not in adapter["spec"]["template"]["spec"], (
        "a patch of the server is none of the adapter"
    )
    assert "custom-metrics" not in render.as_yaml(render.admin(scaled(install_adapter=False)))
    assert "mirror.example/gke-release/custom-metrics" in render.as_yaml(
        render.admin(
            settings.model_copy(update={"images": settings.images.model_copy(update={"registry": "mirror.example"})})
        )
    )


def test_every_deployment_may_take_an_autoscaler_away_and_only_one_that_scales_may_make_it():
    def verbs(settings: Settings) -> set[str]:
        rules = access.rules(settings, [], [])
        return {verb for rule in rules if rule["resources"] == ["horizontalpodautoscalers"] for verb in rule["verbs"]}

    assert verbs(quick()) == {"list", "delete"}
    assert verbs(scaled()) == {"list", "delete", "create", "patch", "watch"}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"max_replicas": 1}, "queue_hpa.max_replicas is 1, and serving.replicas, which is the least, 2"),
        (
            {"verify_requests": 10},
            r"queue_hpa.verify_requests is 10, and more than queue_hpa.target \(10\)",
        ),
        ({"scale_down_window": "2h"}, "'2h' is not whole seconds, at most 3600"),
        ({"scale_up_period": "0.5s"}, "'0.5s' is not whole seconds"),
        ({"scale_up_period": "45m"}, "at most 1800"),
    ],
)
def test_settings_that_kubernetes_does_not_take_are_refused(section: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=words):
        scaled(2, **section)


def test_a_cluster_in_which_nobody_brings_the_metric_is_refused_before_anything_is_spent():
    asked: list[str] = []

    def has_group(group: str) -> bool:
        asked.append(group)
        return False

    with pytest.raises(RequestError, match=r"--access \| kubectl apply.*roles/monitoring.viewer"):
        features.demand(scaled(), "served", has_group)
    with pytest.raises(RequestError, match="does not serve AutoscalingMetric"):
        features.demand(scaled(adapter="autoscaling-metric"), "served", has_group)
    assert asked == ["custom.metrics.k8s.io", "autoscaling.gke.io"]
    features.demand(scaled(), "served", lambda group: True)
    features.demand(quick(), "served", has_group)


def test_gke_that_is_too_old_for_autoscaling_metric_is_refused():
    old = ClusterTraits(name="c", version="1.34.2-gke.1", autopilot=True)
    with pytest.raises(RequestError, match=r"needs 1\.35\.1-gke\.1396000"):
        queue_hpa.suits(scaled(adapter="autoscaling-metric"), lambda: old)
    queue_hpa.suits(scaled(), lambda: old)


# -- how few pods, and when -----------------------------------------------------------------------------------


def test_a_candidate_has_as_many_pods_as_the_live_generation_and_then_the_settings_minimum():
    cluster = Ready(deployment("g1", replicas=3), service("g1"))
    settings = scaled(max_replicas=5)
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    assert bounds(cluster, "g2") == (3, 5)
    found = cluster.get("Deployment", names.server("g2"), "gemma")
    assert found
    assert found["spec"]["replicas"] == 3
    promote(cluster, settings)
    assert bounds(cluster, "g2") == (1, 5)
    live = cluster.get("Deployment", names.server("g2"), "gemma")
    assert live
    assert live["spec"]["replicas"] == 3, "a promotion takes no pod from a busy server"


def test_the_autoscaler_that_serves_is_made_anew_so_that_it_holds_what_it_finds():
    cluster = Ready(deployment("g1", replicas=2), service("g1"))
    settings = scaled()
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    before = cluster.objects[HPA, "gemma", names.server("g2")]["metadata"]["uid"]
    promote(cluster, settings)
    assert cluster.objects[HPA, "gemma", names.server("g2")]["metadata"]["uid"] != before


def test_the_live_generation_may_have_grown_since_the_candidate_came():
    cluster = Ready(deployment("g1", replicas=1), service("g1"))
    settings = scaled()
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    replicas.scale(cluster, settings, "g1", 4)  # type: ignore[arg-type]
    seen: list[tuple[int, int]] = []
    cluster.before_write = lambda verb, kind, name: seen.append(bounds(cluster, "g2")) if verb == "scale" else None
    promote(cluster, settings)
    assert seen[0] == (4, 4), "raised before the pods are asked for"


def test_fewer_pods_at_most_than_serve_is_a_persons_wish():
    cluster = Ready(deployment("g1", replicas=6), service("g1"))
    settings = scaled(max_replicas=2)
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    assert bounds(cluster, "g2") == (2, 2)
    promote(cluster, settings)
    assert bounds(cluster, "g2") == (1, 2)


def test_a_rollback_brings_back_as_many_pods_as_serve_with_an_autoscaler_of_todays_settings():
    cluster = Ready(deployment("g1"), service("g1"))
    promote(cluster, quick(), generation="g1", live="")
    deploying.deploy(cluster, scaled(max_replicas=6), RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    promote(cluster, scaled(max_replicas=6))
    replicas.scale(cluster, scaled(), "g2", 3)  # type: ignore[arg-type]
    promoting.roll_back(cluster, scaled(max_replicas=6), None, said)  # type: ignore[arg-type]
    found = cluster.get("Deployment", names.server("g1"), "gemma")
    assert found
    assert found["spec"]["replicas"] == 3
    assert bounds(cluster, "g1") == (1, 6)


@pytest.mark.parametrize("killed_at", range(12))
def test_killed_anywhere_in_a_promotion_the_next_run_sees_what_is_amiss_and_mends_it(killed_at: int):
    cluster = Ready(deployment("g1", replicas=2), service("g1"))
    settings = scaled()
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    left = [killed_at]

    def killed(verb: str, kind: str, name: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise ToldToEnd("killed")

    cluster.before_write = killed
    try:
        promote(cluster, settings)
    except ToldToEnd:
        pass
    cluster.before_write = lambda verb, kind, name: None
    live = record.read(cluster, settings).live  # type: ignore[arg-type]
    serving = cluster.get("Deployment", names.server(live), "gemma")
    assert serving
    assert serving["spec"]["replicas"] == 2, "never fewer pods than before"
    if live == "g2" and autoscaling.amiss(cluster, settings, "g2"):  # type: ignore[arg-type]
        promote(cluster, settings, live="g2")
    if live == "g2":
        assert autoscaling.amiss(cluster, settings, "g2") == ""  # type: ignore[arg-type]


def test_what_a_dead_run_left_of_the_autoscaler_is_something_to_do():
    settings = scaled()
    healthy: dict[str, Any] = {
        "serving": "g2",
        "entry_as_wanted": True,
        "replicas": 3,
        "settled": True,
        "ready": 3,
        "rolled_out": True,
        "settings_digest": "d",
    }
    release = RELEASE.model_copy(update={"live": "g2"})
    assert decide(settings, release, Record(live="g2"), Situation(**healthy), "d").verdict == "unchanged"
    found = decide(settings, release, Record(live="g2"), Situation(**healthy, autoscaler="its HPA is gone"), "d")
    assert (found.verdict, found.reason) == ("deploy", "g2 is live, but its HPA is gone")


def test_amiss_names_what_is_not_as_the_settings_want_it():
    cluster, settings = MemoryCluster(), scaled(2, max_replicas=5)

    def amiss(wanted: Settings = settings) -> str:
        return autoscaling.amiss(cluster, wanted, "g1")  # type: ignore[arg-type]

    assert amiss() == "its HorizontalPodAutoscaler is gone"
    autoscaling.put(cluster, settings, "g1", "run-1", said, pods=4)  # type: ignore[arg-type]
    assert amiss() == "its autoscaler has minReplicas 4 instead of 2"
    autoscaling.put(cluster, settings, "g1", "run-1", said)  # type: ignore[arg-type]
    assert amiss() == ""
    assert amiss(scaled(2, max_replicas=6)) == "its autoscaler has maxReplicas 5 instead of 6"
    assert amiss(quick()) == "it has a HorizontalPodAutoscaler, and the settings scale nothing"


# -- a feature that is taken away -----------------------------------------------------------------------------


def test_without_the_feature_the_autoscaler_goes_and_the_settings_number_holds_again():
    cluster = Cluster()
    outcome = Outcome("deploy_server", "run-2")
    deploying.deploy(cluster, scaled(adapter="autoscaling-metric"), RELEASE, outcome)  # type: ignore[arg-type]
    assert cluster.names(HPA) == cluster.names("AutoscalingMetric") == {names.server("g2")}
    replicas.scale(cluster, scaled(), "g2", 3)  # type: ignore[arg-type]
    deploying.deploy(cluster, scaled(), RELEASE, outcome)  # type: ignore[arg-type]
    assert (cluster.names(HPA), cluster.names("AutoscalingMetric")) == ({names.server("g2")}, set())
    deploying.deploy(cluster, quick(), RELEASE, outcome)  # type: ignore[arg-type]
    assert cluster.names(HPA) == set()
    found = cluster.get("Deployment", names.server("g2"), "gemma")
    assert found
    assert found["spec"]["replicas"] == 1


def test_a_discarded_generation_leaves_no_autoscaler():
    cluster = Ready(deployment("g1"), service("g1"))
    settings = scaled(adapter="autoscaling-metric")
    deploying.deploy(cluster, settings, RELEASE, Outcome("deploy_server", "run-2"))  # type: ignore[arg-type]
    discard(cluster, settings, RELEASE, ["bad"], said)  # type: ignore[arg-type]
    assert cluster.names(HPA) == cluster.names("AutoscalingMetric") == set()
