"""TPUs: what a pod asks for, which settings go together, and what an engine's words mean."""

from __future__ import annotations

from typing import Any

import pytest

from serving import catalog, sizing
from serving.errors import InconclusiveError, ReleaseError, RequestError
from serving.features import Explanation, Symptom, explain, nodes
from serving.rendering import engine, render
from serving.settings import Settings, validated
from tests.unit.deployment import RELEASE
from tests.unit.oversight import traits

SPOT = "cloud.google.com/gke-spot"
WHERE = "cloud.google.com/gke-tpu-"


def settings(**values: Any) -> Settings:
    return validated(Settings, {"scenario": "tpu", "project": "demo-project", "bucket": "demo-bucket", **values})


def pod(**values: Any) -> dict[str, Any]:
    items = render.render(settings(**values), RELEASE).generation
    found: dict[str, Any] = next(item for item in items if item["kind"] == "Deployment")["spec"]["template"]["spec"]
    return found


def flags(**values: Any) -> list[str]:
    config = settings(**values)
    model = sizing.of_catalog(config.model)
    found = {"sizing": sizing.judged(model, config.wish()), "architecture": model.architecture.name}
    return engine.engine_flags(config, RELEASE.model_copy(update=found))


@pytest.mark.parametrize(
    ("kind", "count", "topology", "cores"),
    [
        ("tpu-v6e-slice", 1, "1x1", None),
        ("tpu-v6e-slice", 4, "2x2", "4"),
        ("tpu-v6e-slice", 8, "2x4", "8"),
        ("tpu7x", 1, "1x1x1", "2"),
        ("tpu7x", 4, "2x2x1", "8"),
    ],
)
def test_a_pod_asks_for_the_chips_of_a_whole_node_and_the_model_is_split_over_their_cores(
    kind: str, count: int, topology: str, cores: str | None
):
    asked = {"model": "google/gemma-4-26B-A4B-it" if count * 2 > 2 or kind == "tpu7x" else "google/gemma-3-4b-it"}
    spec = pod(**asked, accelerator={"type": kind, "count": count})
    assert spec["nodeSelector"] == {f"{WHERE}accelerator": kind, f"{WHERE}topology": topology}
    assert spec["tolerations"] == [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    (container,) = spec["containers"]
    for amounts in container["resources"].values():
        assert amounts["google.com/tpu"] == str(count)
        assert "nvidia.com/gpu" not in amounts
    said = flags(**asked, accelerator={"type": kind, "count": count})
    assert (said[said.index("--tensor-parallel-size") + 1] if "--tensor-parallel-size" in said else None) == cores


def test_a_tpu_server_is_the_image_for_tpus_with_room_for_what_xla_compiles():
    spec = pod()
    (container,) = spec["containers"]
    image = catalog.kind("tpu").image
    assert container["image"] == image
    assert image.startswith("vllm/vllm-tpu:v")
    assert catalog.supported_architectures(image), "its version is known"
    env = {each["name"]: each.get("value") for each in container["env"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    assert env["VLLM_XLA_CACHE_PATH"].startswith("/cache/")
    assert volumes[mounts["/cache"]]["emptyDir"] == {}
    assert volumes[mounts["/dev/shm"]]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert "LD_LIBRARY_PATH" not in env, "that is CUDA's"


def test_the_time_to_become_ready_is_the_accelerators_unless_somebody_says_it():
    def budget(**values: Any) -> int:
        probe = pod(**values)["containers"][0]["startupProbe"]
        return int(probe["periodSeconds"] * probe["failureThreshold"])

    assert (budget(), budget(serving={"ready_timeout": "10m"})) == (3600, 600)
    assert budget(features=["gpu"]) == 1800
    assert settings(**settings().as_struct()) == settings(), "steps read it again as it is"


@pytest.mark.parametrize(
    ("model", "text_only", "whole"),
    [
        ("google/gemma-4-E4B-it", False, True),
        ("google/gemma-3-4b-it", False, True),
        ("google/gemma-4-E4B-it", True, False),
        ("google/gemma-3-1b-it", False, False),
    ],
)
def test_an_image_of_a_prompt_is_never_cut_in_two(model: str, text_only: bool, whole: bool):
    said = flags(model=model, engine={"text_only": text_only})
    assert ("--disable-chunked-mm-input" in said) == whole
    gpu = flags(model=model, engine={"text_only": text_only}, features=["gpu"])
    assert "--disable-chunked-mm-input" not in gpu


def test_the_context_is_the_one_that_is_served_there():
    said = flags(model="google/gemma-3-27b-it", accelerator={"count": 8})
    assert said[said.index("--max-model-len") + 1] == "16384"
    unlisted = flags()
    assert unlisted[unlisted.index("--max-model-len") + 1] == "4096"


# -- capacity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feature", ["gpu", "tpu"])
def test_capacity_is_asked_of_the_nodes_whatever_they_have(feature: str):
    spot = pod(features=[feature], capacity="spot")
    assert spot["nodeSelector"][SPOT] == "true"
    assert SPOT in {toleration["key"] for toleration in spot["tolerations"]}
    reservation = {"name": "ours", "project": "shared-chips"}
    reserved = pod(features=[feature], capacity="reservation", reservation=reservation)
    assert SPOT not in reserved["nodeSelector"]
    labels = {key: value for key, value in reserved["nodeSelector"].items() if "reservation" in key}
    assert labels == {
        "cloud.google.com/reservation-name": "ours",
        "cloud.google.com/reservation-affinity": "specific",
        "cloud.google.com/reservation-project": "shared-chips",
    }
    any_of_them = pod(features=[feature], capacity="reservation")["nodeSelector"]
    assert any_of_them["cloud.google.com/reservation-affinity"] == "any"
    plain = pod(features=[feature])["nodeSelector"]
    assert not [key for key in plain if "reservation" in key or key == SPOT]


def test_any_reservation_is_a_standard_clusters():
    for feature in ("gpu", "tpu"):
        config = settings(features=[feature], capacity="reservation")
        with pytest.raises(RequestError, match=r"Set reservation\.name"):
            nodes.suits(config, lambda: traits(autopilot=True))
        nodes.suits(config, lambda: traits(autopilot=False))
    named = settings(capacity="reservation", reservation={"name": "ours"})
    nodes.suits(named, pytest.fail)  # Nobody need be asked.


def test_a_class_and_a_node_pool_ask_for_the_same():
    plain = settings(accelerator={"count": 4})
    assert nodes.class_rule(plain) == {
        "tpu": {"type": "tpu-v6e-slice", "count": 4, "topology": "2x2"},
        "spot": False,
    }
    assert nodes.pool_flags(plain) == "--machine-type ct6e-standard-4t --tpu-topology 2x2"
    spot = settings(capacity="spot")
    assert nodes.class_rule(spot)["spot"] is True
    assert nodes.pool_flags(spot).endswith(" --spot")
    shared = settings(capacity="reservation", reservation={"name": "ours", "project": "shared-chips"})
    assert nodes.class_rule(shared)["reservations"] == {
        "affinity": "Specific",
        "specific": [{"name": "ours", "project": "shared-chips"}],
    }
    assert nodes.pool_flags(shared).endswith(
        " --reservation-affinity specific --reservation projects/shared-chips/reservations/ours"
    )
    assert nodes.pool_flags(settings(capacity="reservation")).endswith(" --reservation-affinity any")
    assert nodes.class_rule(settings(capacity="reservation"))["reservations"] == {"affinity": "AnyBestEffort"}


# -- what goes wrong ------------------------------------------------------------------------------------------


def explained(words: str, kind: Any = "words", **values: Any) -> Explanation:
    found = explain(settings(**values), Symptom(kind, "p1", words))
    assert found, words
    return found


@pytest.mark.parametrize(
    ("words", "means"),
    [
        (
            "RuntimeError: Unable to initialize backend 'tpu': ABORTED: The TPU is already in use by process with pid "
            "10. Not attempting to load libtpu.so in this process.",
            "in use by another process",
        ),
        (
            "RuntimeError: Unable to initialize backend 'tpu': UNKNOWN: TPU initialization failed: open(/dev/vfio/1): "
            "Device or resource busy: Device or resource busy; Couldn't open iommu group /dev/vfio/1",
            "in use by another process",
        ),
        (
            "UNKNOWN: TPU initialization failed: open(/dev/vfio/0): Permission denied: Permission denied",
            "let the server be root, `patches: [{kind: Deployment",
        ),
        (
            "E tpu.cc] Couldn't open device: /dev/accel0 (Operation not permitted); Unable to create Node",
            "let the server be root",
        ),
        ("RuntimeError: Bad StatusOr access: UNKNOWN: Failed to get global TPU topology.", "gke-tpu-topology"),
        ("RuntimeError: Unable to initialize backend 'tpu': NOT_FOUND: No TPU device was found", "sees no TPU"),
        ("UNKNOWN: TPU initialization failed: Invalid fd: -1", "sees no TPU on its node"),
        (
            "(EngineCore pid=7) INFO 11-24 03:42:19 [compilation_manager.py:91] Precompile backbone --> {'num_tokens': "
            "256}\n",
            "XLA still compiled in p1 when its time was over: raise serving.ready_timeout",
        ),
    ],
)
def test_what_nodes_and_chips_do_is_not_the_releases_doing(words: str, means: str):
    found = explained(words)
    assert found.error is InconclusiveError
    assert means in found.message


def test_a_model_that_does_not_fit_into_the_chips_is_the_releases_doing():
    found = explained(
        "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
        "space hbm. Used 33.07G of 31.25G hbm. Exceeded hbm capacity by 1.83G."
    )
    assert found.error is ReleaseError
    assert "accelerator.count" in found.message


def test_an_error_after_compiling_is_no_want_of_time():
    log = "INFO Precompile backbone --> {'num_tokens': 16}\nAttributeError: 'Tensor' object has no attribute '_elem'\n"
    assert explain(settings(), Symptom("words", "p1", log)) is None


def test_no_node_is_told_with_the_machine_that_is_looked_for():
    found = explained(
        "pod didn't trigger scale-up: 4 node(s) didn't match Pod's node affinity/selector",
        "no-node",
        accelerator={"count": 8},
    )
    assert found.error is InconclusiveError
    assert "8 × tpu-v6e-slice in the topology 2x4, which is a ct6e-standard-8t" in found.message
    assert explain(settings(), Symptom("no-node", "p1", "GCE quota exceeded")) is None


@pytest.mark.parametrize("feature", ["gpu", "tpu"])
def test_no_node_out_of_a_reservation_is_told_with_the_reservation(feature: str):
    reservation = {"name": "ours", "project": "shared-chips"}
    words = "Node scale up in zones us-central1-a associated with this pod failed: GCE out of resources."
    found = explained(words, "no-node", features=[feature], capacity="reservation", reservation=reservation)
    assert found.error is InconclusiveError
    assert "`gcloud compute reservations list --project shared-chips --filter name=ours`" in found.message
    assert explain(settings(features=[feature]), Symptom("no-node", "p1", words)) is None


@pytest.mark.parametrize("features", [["secondary-boot-disk"], ["hyperdisk-ml"]])
def test_tpus_go_with_the_other_columns(features: list[str]):
    assert settings(features=features).chosen_features[1] == "tpu"
