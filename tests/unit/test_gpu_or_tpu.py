"""Settings of gpu-or-tpu, what its pods are, where they may live; what a node pool lacks, and what mends it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from components.ensure_access import step as ensure_access
from components.ensure_cluster import step
from components.resolve_model.step import Found, sizes
from pipelines.local import cloud
from pipelines.oversight import needs
from serving import features, names, sizing
from serving.clients.google import ClusterTraits
from serving.errors import InconclusiveError, RequestError
from serving.features import Symptom, gpu_or_tpu
from serving.rendering import generation, render
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment

Object = dict[str, Any]
BASE = {"scenario": "07", "project": "demo-project", "bucket": "demo-bucket"}
CLASS = "cloud.google.com/compute-class"


def settings(**changes: Any) -> Settings:
    return validated(Settings, {**BASE, **changes})


SETTINGS = settings()
OWN = names.pool_class(SETTINGS)
POOLS = SETTINGS.section("gpu-or-tpu").pools
BESIDE = RELEASE.model_copy(update={"beside": sizing.Sizing(max_model_len=4096)})


def pools(**machines: str) -> list[Object]:
    """The pools of the default, those of one kind on other machines."""
    return [pool.model_dump() | {"machine_type": machines.get(pool.accelerator, pool.machine_type)} for pool in POOLS]


FOUR_CHIPS = settings(gpu_or_tpu={"tpu_chips": 4, "pools": pools(tpu="ct6e-standard-4t")})


def pods_of(config: Settings) -> Object:
    (server,) = (item for item in render.generation(config, BESIDE) if item["kind"] == "Deployment")
    found: Object = server["spec"]["template"]["spec"]
    return found


# -- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"capacity": "spot"}, "with gpu-or-tpu each node pool of gpu_or_tpu.pools says whether"),
        ({"accelerator": {"type": "tpu-v6e-slice"}}, "tpu-v6e-slice is none of the feature gpu"),
        ({"features": ["secondary-boot-disk"]}, "do not go together"),
        ({"gpu_or_tpu": {"pools": [pool.model_dump() for pool in POOLS[:2]]}}, "none has accelerator: tpu"),
        ({"gpu_or_tpu": {"pools": [pool.model_dump() for pool in (*POOLS, POOLS[0])]}}, "l4-spot is there twice"),
        ({"gpu_or_tpu": {"tpu_chips": 2}}, "gpu_or_tpu.tpu_chips"),
        ({"gpu_or_tpu": {"tpu_chips": 4}}, "v6e-1 is of ct6e-standard-1t; gpu_or_tpu.tpu_chips is 4, which is a ct6e-"),
        ({"gpu_or_tpu": {"pools": pools(gpu="n1-standard-8")}}, "nvidia-l4 is in machines of the family g2 alone"),
        ({"gpu_or_tpu": {"pools": pools(tpu="ct6e-standard-8t")}}, "tpu_chips is 1, which is a ct6e-standard-1t"),
        ({"gpu_or_tpu": {"pools": pools(gpu="g2-standard-4")}}, "l4-spot: a pod asks for 2 processors and 20Gi of"),
        ({"accelerator": {"cpu": "7950m"}}, "l4-spot: a pod asks for 7950m processors and 20Gi of memory, and GKE"),
        (
            {"accelerator": {"memory": "170Gi"}, "gpu_or_tpu": {"pools": pools(gpu="g2-standard-96")}},
            "v6e-1: a pod asks for 2 processors and 170Gi of memory, and GKE leaves pods 43.8 and 165Gi on ct6e-stand",
        ),
        ({"model": "google/gemma-4-31B-it", "accelerator": {"count": 8}}, "on 1 × tpu-v6e-slice cannot start"),
    ],
)
def test_what_cannot_be_served_on_either_is_refused(changes: Object, words: str):
    with pytest.raises(RequestError) as caught:
        settings(**changes)
    assert words in str(caught.value)


def test_a_machine_that_the_catalog_does_not_know_is_left_to_the_scheduler():
    settings(gpu_or_tpu={"pools": pools(gpu="g2-custom-6-30720")}, accelerator={"memory": "28Gi"})


def test_the_order_of_the_pools_is_the_order_of_the_class_and_changes_in_place():
    turned = settings(gpu_or_tpu={"pools": [pool.model_dump() for pool in reversed(POOLS)]})

    def priorities(config: Settings) -> list[str]:
        (made,) = (item for item in render.shared(config) if item["kind"] == "ComputeClass")
        assert made["metadata"]["name"] == OWN
        assert made["metadata"]["labels"]["gemma-pipelines/namespace"] == "gemma"
        return [rule["nodepools"] for rule in made["spec"]["priorities"]]

    assert priorities(SETTINGS) == [["l4-spot"], ["l4"], ["v6e-1"]]
    assert priorities(turned) == [["v6e-1"], ["l4"], ["l4-spot"]]
    assert generation.name(SETTINGS, BESIDE) == generation.name(turned, BESIDE)
    assert render.render(SETTINGS, BESIDE).digest != render.render(turned, BESIDE).digest


def test_other_chips_another_image_of_theirs_and_another_entrypoint_are_other_servers(monkeypatch: pytest.MonkeyPatch):
    found = {
        generation.name(config, BESIDE)
        for config in (SETTINGS, FOUR_CHIPS, settings(gpu_or_tpu={"tpu_image": "me/tpu:1"}))
    }
    assert len(found) == 3
    monkeypatch.setattr(gpu_or_tpu, "entrypoint", lambda: 'exec "$@"')
    assert generation.name(SETTINGS, BESIDE) not in found


def test_a_start_may_take_as_long_as_the_slower_kind_takes():
    assert SETTINGS.serving.ready_timeout == settings(features=["tpu"]).serving.ready_timeout
    assert SETTINGS.serving.ready_timeout != settings(features=["gpu"]).serving.ready_timeout


def test_both_have_one_context_the_smaller_of_theirs():
    found = Found("c" * 40, "0" * 16, "Gemma3ForConditionalGeneration", model=sizing.of_catalog(SETTINGS.model))
    cards, chips = sizes(SETTINGS, found)
    alone, _ = sizes(settings(features=["gpu"]), found)
    assert chips is not None
    assert cards.max_model_len == chips.max_model_len
    assert cards.max_model_len < (alone.max_model_len or 0)
    short, _ = sizes(settings(engine={"max_model_len": 2048}), found)
    assert short.max_model_len == 2048
    assert sizes(settings(features=["gpu"]), found)[1] is None


def test_a_model_that_the_catalog_does_not_know_is_held_against_the_machines_when_its_size_is():
    """As large as Gemma 3 12B: 4 processors and 32Gi, of which a g2-standard-8 has not enough."""
    large = {"model": "acme/tuned", "engine": {"quantization": "fp8", "max_model_len": 2048}}
    found = Found(
        "c" * 40, "0" * 16, "Gemma3ForConditionalGeneration", model=sizing.of_catalog("google/gemma-3-12b-it")
    )
    with pytest.raises(
        RequestError, match=r"l4-spot: a pod asks for 4 processors and 32Gi of memory, .* g2-standard-8"
    ):
        sizes(settings(**large), found)
    sizes(settings(**large, gpu_or_tpu={"pools": pools(gpu="g2-standard-12")}), found)


# -- pods ---------------------------------------------------------------------------------------------------


def test_each_container_waits_for_its_own_device_and_serves_by_its_own_image():
    cards, chips = pods_of(SETTINGS)["containers"]
    assert [cards["name"], chips["name"]] == ["vllm", "vllm-tpu"]
    assert cards["command"][:2] == chips["command"][:2] == ["sh", "-c"]
    assert cards["command"][3:] == ["serve-on", "/host/dev/nvidia0", "vllm", "serve"]
    assert chips["command"][3:] == ["serve-on", "/host/dev/vfio/0", "vllm", "serve"]
    assert ("vllm-openai" in cards["image"], "vllm-tpu" in chips["image"]) == (True, True)
    assert chips["args"][:5] == cards["args"][:5] == ["/model", "--host", "0.0.0.0", "--port", "8000"]
    assert chips["args"][chips["args"].index("--max-model-len") + 1] == "4096"
    # Whoever serves answers for both.
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        by_name = chips[probe]["httpGet"].pop("port"), cards[probe]["httpGet"].pop("port")
        assert by_name == ("http-tpu", "http")
        assert cards[probe] == chips[probe]
    # They are one port, of which the queue is read once: PodMonitoring reads all ports of its name.
    ports = [(port["name"], port["containerPort"]) for port in (*cards["ports"], *chips["ports"])]
    assert ports == [("http", 8000), ("http-tpu", 8000)]
    (monitored,) = (item for item in render.shared(SETTINGS) if item["kind"] == "PodMonitoring")
    assert [endpoint["port"] for endpoint in monitored["spec"]["endpoints"]] == ["http"]
    environment = {entry["name"]: entry.get("value") for entry in chips["env"]}
    assert (environment["TPU_ACCELERATOR_TYPE"], environment["TPU_TOPOLOGY"]) == ("v6e-1", "1x1")


def test_a_patch_of_ones_own_reaches_either_container():
    patch = {
        "kind": "Deployment",
        "spec": {"template": {"spec": {"containers": [{"name": "vllm-tpu", "env": [{"name": "A", "value": "b"}]}]}}},
    }
    cards, chips = pods_of(settings(patches=[patch]))["containers"]
    assert {"name": "A", "value": "b"} in chips["env"]
    assert {"name": "A", "value": "b"} not in cards["env"]


def test_chips_of_a_whole_host():
    _, chips = pods_of(settings(gpu_or_tpu={"tpu_chips": 8, "pools": pools(tpu="ct6e-standard-8t")}))["containers"]
    environment = {entry["name"]: entry.get("value") for entry in chips["env"]}
    assert environment["TPU_ACCELERATOR_TYPE"] == "v6e-8"
    assert environment["TPU_CHIPS_PER_HOST_BOUNDS"] == "2,4,1"
    assert chips["args"][chips["args"].index("--tensor-parallel-size") + 1] == "8"


def test_the_pipeline_may_write_its_class_and_look_at_nodes():
    (role,) = (item for item in render.admin(SETTINGS) if item["kind"] == "ClusterRole")
    verbs = {resource: set(rule["verbs"]) for rule in role["rules"] for resource in rule["resources"]}
    assert verbs["computeclasses"] >= {"create", "patch", "list", "delete"}
    assert verbs["nodes"] == {"get"}
    for item in render.admin(SETTINGS):
        assert item["kind"] != "Role" or "computeclasses" not in str(item["rules"])


def test_no_node_in_any_pool_is_told_with_the_order_and_the_words():
    found = features.explain(SETTINGS, Symptom("no-node", "pod-1", "3 in backoff after failed scale-up"))
    assert found is not None
    assert found.error is InconclusiveError
    assert "(l4-spot, then l4, then v6e-1): 3 in backoff after failed scale-up" in found.message
    said = features.explain(SETTINGS, Symptom("words", "pod-1", "NCCL error"))
    assert said is not None
    assert said.error is InconclusiveError


def test_plan_counts_no_quota_against_a_pod_that_has_a_choice():
    lines = needs.of_accelerators(needs.Needs("demo-project"), settings(serving={"replicas": 2}), None, serves=False)  # type: ignore[arg-type]
    assert lines[0] == "2 pods serve, each on 1 × nvidia-l4 or 1 × tpu-v6e-slice: 48 node-hours a day"
    assert any(line.startswith("warning: ") and "tpu-v6e-slice" in line for line in lines)


def test_a_real_control_plane_is_refused_before_anything_is_made(tmp_path: Path):
    up = cloud.up(SETTINGS, tmp_path, None, ["control-plane"], print, {})
    with pytest.raises(RequestError, match="gpu-or-tpu does not run with --real control-plane"), up:
        pass
    assert list(tmp_path.iterdir()) == []


# -- where it may live --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        (ClusterTraits("c", True, "1.35.3-gke.1"), "is an Autopilot cluster"),
        (ClusterTraits("c", False, "1.31.4-gke.1255999"), "TPU v6e needs 1.31.4-gke.1256000"),
        (ClusterTraits("c", False, "1.31.4-gke.1256000"), ""),
    ],
)
def test_a_cluster_of_another_kind_is_refused(traits: ClusterTraits, words: str):
    if not words:
        return gpu_or_tpu.suits(SETTINGS, lambda: traits)
    with pytest.raises(RequestError, match=words):
        gpu_or_tpu.suits(SETTINGS, lambda: traits)
    return None


def namespace(level: str | None) -> Object:
    labels = {} if level is None else {gpu_or_tpu.ENFORCED: level}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "gemma", "labels": labels}}


@pytest.mark.parametrize(
    ("there", "words"),
    [
        (None, "the namespace gemma is not there"),
        (namespace(None), "the namespace gemma is not labelled so"),
        (namespace("restricted"), "the namespace gemma is labelled restricted"),
    ],
)
def test_a_namespace_is_an_administrators_to_open(there: Object | None, words: str):
    with pytest.raises(RequestError, match=words) as caught:
        gpu_or_tpu.houses(SETTINGS, there, list)
    assert "kubectl label namespace gemma pod-security.kubernetes.io/enforce=privileged" in str(caught.value)


def test_nobody_else_lives_in_it():
    other = deployment("g7")
    other["metadata"]["labels"] |= {names.DEPLOYMENT: "chat"}
    cluster = MemoryCluster(namespace("privileged"), deployment("g1"), other)

    def others() -> list[str]:
        return ensure_access.other_deployments(cluster, SETTINGS)  # type: ignore[arg-type]

    assert others() == ["chat"]
    with pytest.raises(RequestError, match="chat is deployed there too"):
        gpu_or_tpu.houses(SETTINGS, namespace("privileged"), others)
    cluster.delete(other | {"metadata": cluster.get("Deployment", other["metadata"]["name"], "gemma")["metadata"]})  # type: ignore[index]
    gpu_or_tpu.houses(SETTINGS, namespace("privileged"), others)


# -- node pools ---------------------------------------------------------------------------------------------


def made(number: int) -> Object:
    return copy.deepcopy({**step.wanted(SETTINGS, POOLS[number]), "status": "RUNNING"})


@pytest.mark.parametrize("number", range(3))
def test_a_pool_that_create_makes_lacks_nothing(number: int):
    assert list(step.lacking(SETTINGS, POOLS[number], made(number))) == []


def change(pool: Object, path: str, value: Any) -> Object:
    *parents, last = path.split(".")
    inner = pool
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return pool


UPDATE = "gcloud container node-pools update l4 --cluster gemma --location us-central1 --project demo-project"


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("config.labels", {"team": "a"}, f"`{UPDATE} --node-labels=team=a,{CLASS}={OWN}`"),
        ("config.labels", {CLASS: "another"}, f"`{UPDATE} --node-labels={CLASS}={OWN}`"),
        ("config.taints", [], f"`{UPDATE} --node-taints={CLASS}={OWN}:NoSchedule`"),
        (
            "config.taints",
            [{"key": "a", "value": "b", "effect": "NO_EXECUTE"}, {"key": CLASS, "value": OWN, "effect": "NO_EXECUTE"}],
            f"`{UPDATE} --node-taints={CLASS}={OWN}:NoSchedule,a=b:NoExecute`",
        ),
        ("autoscaling", {}, f"`{UPDATE} --enable-autoscaling --total-min-nodes 0 --total-max-nodes 3`"),
        ("config.machineType", "g2-standard-4", "its machines are g2-standard-4, not g2-standard-8"),
        ("config.spot", True, "its nodes are Spot nodes: set spot: true"),
        ("config.accelerators", [], "its nodes have no cards, not 1 × nvidia-l4"),
        ("status", "ERROR", "it is ERROR: `gcloud container node-pools delete l4"),
        ("status", "PROVISIONING", "it is PROVISIONING: wait until it is made"),
    ],
)
def test_what_a_pool_lacks_is_told_with_the_command_that_mends_it(path: str, value: Any, words: str):
    (said,) = step.lacking(SETTINGS, POOLS[1], change(made(1), path, value))
    assert words in said


def test_a_pool_that_is_not_there_is_told_as_a_command():
    (said,) = step.lacking(SETTINGS, POOLS[0], None)
    assert (
        "`gcloud container node-pools create l4-spot --cluster gemma --location us-central1 --project demo-project "
        "--machine-type g2-standard-8 --accelerator type=nvidia-l4,count=1,gpu-driver-version=latest --spot "
        f"--node-labels={CLASS}={OWN} --node-taints={CLASS}={OWN}:NoSchedule "
    ) in said
    (said,) = step.lacking(SETTINGS, POOLS[2], None)
    assert "--machine-type ct6e-standard-1t --node-labels" in said


def test_the_kind_of_the_class_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(step, "_LOOK_SECONDS", 0.0)
    answers = iter([False, False, True])

    class Late:
        def serves(self, kind: str) -> bool:
            assert kind == "ComputeClass"
            return next(answers)

    said: list[str] = []
    step.wait_for_the_kind(Late(), SETTINGS, said.append)  # type: ignore[arg-type]
    assert next(answers, None) is None
    assert len(said) == 1
    never = settings(gpu_or_tpu={"timeout": "0.01s"})
    with pytest.raises(InconclusiveError, match="does not know the kind ComputeClass"):
        step.wait_for_the_kind(type("Never", (), {"serves": lambda *_: False})(), never, said.append)
