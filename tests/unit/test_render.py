"""Rendering: strict placeholders, what a digest covers, whom a patch may reach, and where images come from."""

from __future__ import annotations

import importlib.resources
import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from serving import features, names, scenarios
from serving.errors import RequestError
from serving.rendering import engine, manifests, render
from serving.settings import Settings, validated
from serving.sizing import Sizing
from serving.weights.release import Release

BASE: dict[str, Any] = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
RELEASE = Release(
    run_id="run-1",
    model="google/gemma-3-4b-it",
    commit="c" * 40,
    weights_key="0123456789abcdef",
    weights_uri="gs://demo-bucket/models/google/gemma-3-4b-it/0123456789abcdef",
    generation="g0123456789",
)


def settings(**changes: Any) -> Settings:
    return validated(Settings, {**BASE, **changes})


def rendered(**changes: Any) -> dict[str, dict[str, Any]]:
    """The objects of a generation by kind."""
    return {item["kind"]: item for item in render.render(settings(**changes), RELEASE).generation}


def pod(**changes: Any) -> dict[str, Any]:
    return rendered(**changes)["Deployment"]["spec"]["template"]["spec"]


# -- placeholders -------------------------------------------------------------------------------------------


def test_a_placeholder_that_stands_alone_keeps_its_type():
    template = {"a": "${number}", "b": "${list}", "c": ["x", "${list}", "${number}"], "${text}": "in ${text}-${number}"}
    filled = manifests.fill(template, {"number": 3, "list": [1, {"y": 2}], "text": "t"}, "f.yaml")
    assert filled == {"a": 3, "b": [1, {"y": 2}], "c": ["x", 1, {"y": 2}, 3], "t": "in t-3"}


def test_a_value_cannot_break_out_of_its_place():
    nasty = 'x"\n- {evil: true} # ${other}'
    assert manifests.fill({"a": "${v}", "b": "<${v}>"}, {"v": nasty}, "f.yaml") == {"a": nasty, "b": f"<{nasty}>"}


@pytest.mark.parametrize("text", ["${nobody}", "a-${nobody}", "${ name }", "${}"])
def test_a_placeholder_without_a_value_is_named_with_its_file(text: str):
    with pytest.raises(RequestError, match=r"manifests/f\.yaml: no value for the placeholder \$\{"):
        manifests.fill({"a": [text]}, {"name": "x"}, "f.yaml")


@pytest.mark.parametrize("value", [[1], {"a": 1}, True, None])
def test_a_value_that_is_no_text_has_to_stand_alone(value: Any):
    with pytest.raises(RequestError, match="has to stand alone"):
        manifests.fill({"a": "x-${v}"}, {"v": value}, "f.yaml")


def test_a_filled_manifest_shares_nothing_with_the_next():
    values = {"list": [{"a": 1}]}
    first, second = (manifests.fill({"x": "${list}"}, values, "f.yaml") for _ in range(2))
    first["x"][0]["a"] = 2
    assert second == {"x": [{"a": 1}]}


def test_every_value_is_used_by_some_manifest_and_no_file_lies_where_nobody_looks():
    folder = Path(str(importlib.resources.files("manifests")))
    found = {
        path: manifest
        for feature in (manifests.BASE, *scenarios.all_features())
        for scope in get_args(manifests.Scope)
        for path, manifest in manifests.of_any_variant(feature, scope).items()
    }
    there = {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}
    assert there == {*found, "catalog.yaml"}
    placeholders = {
        name
        for path, manifest in found.items()
        if "base/admin/" not in path
        for name in re.findall(r"\$\{(\w+)\}", json.dumps(manifest))
    }
    every = [
        *(settings(scenario=row.name) for row in scenarios.SCENARIOS),
        settings(gcs_fuse={"profile": "manual"}),
        settings(scenario="hyperdisk-ml", hyperdisk_ml={"method": "populator"}),
        settings(features=["streamed"]),
        settings(scenario="inference-gateway", inference_gateway={"objectives": {"batch": -1}}),
    ]
    changes = {"zones": ["us-central1-a"], "proxy_ranges": ["10.129.0.0/23"], "beside": Sizing()}
    release = RELEASE.model_copy(update=changes)
    values = {name for config in every for name in render._values(config, release)}
    for config in every:
        values |= {name for _, own in features.answers(config, "entered", "g1") for name in own}
        copies = (each for _, own in features.answers(config, "each") for found in own.values() for each in found)
        values |= {name for own in copies for name in own}
    assert placeholders == values


# -- the digest ---------------------------------------------------------------------------------------------


def test_the_digest_leaves_the_run_out_and_is_written_on_the_deployment():
    first, second = (
        render.render(settings(), RELEASE.model_copy(update={"run_id": run, "commit": "d" * 40})) for run in "ab"
    )
    assert first.digest == second.digest
    for result, run in ((first, "a"), (second, "b")):
        deployment = result.generation[-1]
        assert deployment["metadata"]["annotations"][names.SETTINGS] == first.digest
        assert {item["metadata"]["labels"][names.RUN] for item in result.generation} == {run}
        assert all(names.RUN not in item["metadata"]["labels"] for item in result.shared)
        assert names.RUN not in json.dumps(deployment["spec"]), "the run in the template would roll the pods"


@pytest.mark.parametrize(
    "changes",
    [
        {"serving": {"replicas": 2}},
        {"serving": {"client_namespaces": ["web"]}},
        {"labels": {"team": "a"}},
        {"patches": [{"kind": "Deployment", "spec": {"minReadySeconds": 5}}]},
    ],
)
def test_the_digest_changes_with_what_is_applied(changes: dict[str, Any]):
    assert render.render(settings(**changes), RELEASE).digest != render.render(settings(), RELEASE).digest


def test_what_is_not_applied_by_deploy_does_not_change_the_digest():
    changes: dict[str, Any] = {"validation": {"max_tokens": 5}, "keep_previous": 2, "serving": {"drain_seconds": 5}}
    assert render.render(settings(**changes), RELEASE).digest == render.render(settings(), RELEASE).digest


# -- objects ------------------------------------------------------------------------------------------------


def test_a_generation_has_a_volume_handle_of_its_own_on_its_weights_alone():
    volume = rendered()["PersistentVolume"]
    assert volume["spec"]["csi"]["volumeHandle"] == "demo-bucket:g0123456789"
    assert "only-dir:models/google/gemma-3-4b-it/0123456789abcdef" in volume["spec"]["mountOptions"]
    claim = rendered()["PersistentVolumeClaim"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"]


def test_weights_in_another_bucket_than_the_mounted_one_are_refused():
    with pytest.raises(RequestError, match="gs://elsewhere/x"):
        render.render(settings(), RELEASE.model_copy(update={"weights_uri": "gs://elsewhere/x"}))


def test_what_a_pod_needs_is_applied_before_it():
    order = [item["kind"] for item in render.render(settings(), RELEASE).generation]
    assert order == ["PersistentVolume", "PersistentVolumeClaim", "Service", "PodDisruptionBudget", "Deployment"]


def test_the_stable_service_is_no_generations_own():
    service = render.entry(settings(), {"g1": 100})
    assert service["spec"]["selector"] == {names.DEPLOYMENT: "gemma", names.GENERATION: "g1"}
    assert names.GENERATION not in service["metadata"]["labels"], "or it would be swept away with the generation"


def test_the_api_key_comes_from_a_secret_of_the_cluster():
    (container,) = pod(engine={"api_key_secret": "projects/p/secrets/s/versions/1"})["containers"]
    (key,) = (entry for entry in container["env"] if entry["name"] == "VLLM_API_KEY")
    assert key["valueFrom"] == {"secretKeyRef": {"name": "gemma-api-key", "key": "key"}}
    assert "VLLM_API_KEY" not in json.dumps(pod())


def test_spot_nodes_are_asked_for_and_tolerated():
    spec = pod(capacity="spot")
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert {"cloud.google.com/gke-spot", "nvidia.com/gpu"} == {entry["key"] for entry in spec["tolerations"]}


def test_the_gke_name_of_a_card_is_the_selectors():
    assert (
        pod(accelerator={"type": "nvidia-a100-40gb"})["nodeSelector"]["cloud.google.com/gke-accelerator"]
        == "nvidia-tesla-a100"
    )


def test_settings_replace_what_the_catalog_says_of_the_host():
    (container,) = pod(accelerator={"cpu": "7", "memory": "30Gi"})["containers"]
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"] == {
        "cpu": "7",
        "memory": "30Gi",
        "ephemeral-storage": "10Gi",
        "nvidia.com/gpu": "1",
    }


def test_several_cards_make_tensor_parallel():
    flags = engine.engine_flags(settings(model="google/gemma-3-12b-it", accelerator={"count": 2}), RELEASE)
    assert flags[flags.index("--tensor-parallel-size") + 1] == "2"
    assert "--tensor-parallel-size" not in engine.engine_flags(settings(), RELEASE)


def test_the_startup_probe_has_the_whole_time_out():
    (container,) = pod(serving={"ready_timeout": "10m"})["containers"]
    probe = container["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == 600


@pytest.mark.parametrize(("replicas", "available"), [(1, 1), (2, 1), (3, 2)])
def test_a_lone_server_is_not_evicted_and_of_several_one_at_a_time(replicas: int, available: int):
    assert rendered(serving={"replicas": replicas})["PodDisruptionBudget"]["spec"]["minAvailable"] == available


def test_labels_and_annotations_of_the_house_are_on_objects_and_pods():
    objects = rendered(labels={"team": "a"}, annotations={"example.com/owner": "b"})
    for item in objects.values():
        assert item["metadata"]["labels"]["team"] == "a"
        assert item["metadata"]["annotations"]["example.com/owner"] == "b"
    template = objects["Deployment"]["spec"]["template"]["metadata"]
    assert template["labels"]["team"] == "a"
    assert template["annotations"]["example.com/owner"] == "b"
    assert template["annotations"]["gke-gcsfuse/volumes"] == "true"


# -- images -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "mirrored"),
    [
        ("vllm/vllm-openai:v0.33.0", "eu.example.com/mirror/vllm/vllm-openai:v0.33.0"),
        ("ghcr.io/llm-d/router:v1", "eu.example.com/mirror/llm-d/router:v1"),
        ("localhost/x:1", "eu.example.com/mirror/x:1"),
        ("registry:5000/a/b@sha256:00", "eu.example.com/mirror/a/b@sha256:00"),
        ("ubuntu", "eu.example.com/mirror/ubuntu"),
    ],
)
def test_every_image_comes_from_the_mirror(image: str, mirrored: str):
    assert engine.mirrored(settings(images={"registry": "eu.example.com/mirror"}), image) == mirrored
    assert engine.mirrored(settings(), image) == image


# -- patches ------------------------------------------------------------------------------------------------


def patched(*patches: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return rendered(patches=list(patches))


def test_no_patch_opens_the_engines_port_to_the_world():
    balanced = {"kind": "Service", "spec": {"type": "LoadBalancer"}}
    with pytest.raises(RequestError, match=r"Service opens the engine's port to anybody, whose key guards /v1 alone"):
        patched(balanced)
    inside = {"metadata": {"annotations": {"networking.gke.io/load-balancer-type": "Internal"}}}
    assert patched(balanced | inside)["Service"]["spec"]["type"] == "LoadBalancer"


def test_a_part_of_another_shape_is_no_traceback():
    with pytest.raises(RequestError, match="has no mapping for it"):
        patched({"kind": "Deployment", "spec": {"template": []}})
    assert patched({"kind": "Service", "spec": {"template": "x"}})["Service"]["spec"]["template"] == "x"


def test_a_patch_reaches_the_objects_of_its_kind_or_only_the_one_it_names():
    both = settings(patches=[{"kind": "Service", "metadata": {"annotations": {"a": "b"}}}])
    one = settings(patches=[{"kind": "Service", "metadata": {"name": "gemma", "annotations": {"a": "b"}}}])
    for config, own in ((both, True), (one, False)):
        generation = {item["kind"]: item for item in render.render(config, RELEASE).generation}
        assert ("a" in generation["Service"]["metadata"].get("annotations", {})) is own
        assert render.entry(config, {"g1": 100})["metadata"]["annotations"] == {"a": "b"}


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"kind": "DaemonSet", "spec": {}}, "DaemonSet matches no object. There are: PersistentVolume gemma.gemma.g0"),
        ({"kind": "Service", "metadata": {"name": "x"}, "spec": {}}, "Service x matches no object"),
        ({"kind": "Deployment", "metadata": {"labels": {names.GENERATION: "g9"}}}, "which are the project's"),
        ({"kind": "Deployment", "metadata": {"labels": None}}, "which are the project's"),
        ({"kind": "Deployment", "metadata": {"namespace": "x"}}, "changes metadata.namespace"),
        ({"kind": "Deployment", "spec": {"replicas": 3}}, "set serving.replicas instead"),
        (
            {"kind": "Deployment", "spec": {"template": {"metadata": {"labels": {names.DEPLOYMENT: None}}}}},
            "which are the project's",
        ),
    ],
)
def test_a_patch_that_would_do_harm_or_nothing_is_refused(patch: dict[str, Any], words: str):
    with pytest.raises(RequestError) as caught:
        patched(patch)
    assert words in str(caught.value)


def test_rendered_for_is_yaml_that_kubectl_reads():
    kinds = [item["kind"] for item in yaml.safe_load_all(render.rendered_for(settings(), RELEASE))]
    assert kinds[:2] == ["Namespace", "ServiceAccount"]
    assert kinds[-1] == "Deployment"
