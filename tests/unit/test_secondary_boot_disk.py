"""The feature secondary-boot-disk: what it renders in each form, what it asks of a cluster, and what it refuses."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest

from serving.clients import registry
from serving.clients.google import ClusterTraits, NodePool
from serving.clients.registry import Layer, ResolvedImage
from serving.errors import InconclusiveError, RequestError
from serving.features import Symptom, secondary_boot_disk
from serving.rendering import access, engine, generation, render
from serving.settings import Settings, validated
from tests.unit.deployment import RELEASE

DIGEST = "sha256:" + "d" * 64
IMAGE = "gp-0123456789abcdef"
LABEL = f"cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-{IMAGE}"
BAKED = RELEASE.model_copy(update={"image_digest": DIGEST, "disk_image": IMAGE})
FORMS = ("autopilot", "node-pool", "compute-class")


def settings(**section: Any) -> Settings:
    values = {"scenario": "02", "project": "demo-project", "bucket": "demo-bucket", "secondary_boot_disk": section}
    return validated(Settings, values)


def rendered(config: Settings) -> dict[str, Any]:
    return {item["kind"]: item for item in render.generation(config, BAKED)}


def pod(config: Settings) -> dict[str, Any]:
    spec: dict[str, Any] = rendered(config)["Deployment"]["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("form", FORMS)
def test_pods_pull_the_engine_by_digest(form: str):
    (container,) = pod(settings(form=form))["containers"]
    assert container["image"] == f"vllm/vllm-openai@{DIGEST}"


@pytest.mark.parametrize(
    ("image", "pulled"),
    [
        ("vllm/vllm-openai:v0.33.0", f"vllm/vllm-openai@{DIGEST}"),
        ("localhost:5000/vllm:v1", f"localhost:5000/vllm@{DIGEST}"),
        ("vllm", f"vllm@{DIGEST}"),
        (f"eu-docker.pkg.dev/p/r/vllm:v1@sha256:{'a' * 64}", f"eu-docker.pkg.dev/p/r/vllm@{DIGEST}"),
    ],
)
def test_a_digest_takes_the_place_of_tag_and_digest(image: str, pulled: str):
    config = validated(
        Settings,
        {"scenario": "02", "project": "demo-project", "bucket": "demo-bucket", "engine": {"image": image}},
    )
    assert engine.pod_image(config, BAKED) == pulled
    assert engine.pod_image(config, RELEASE) == image


def test_autopilot_lets_nodes_have_exactly_this_image():
    found = rendered(settings())
    (pattern,) = found["GCPResourceAllowlist"]["spec"]["allowedResourcePatterns"]
    assert pattern == f"projects/demo-project/global/images/{IMAGE}$"
    assert re.match(pattern, f"projects/demo-project/global/images/{IMAGE}")
    assert not re.match(pattern, f"projects/demo-project/global/images/{IMAGE}-of-another")
    assert found["Deployment"]["spec"]["template"]["spec"]["nodeSelector"] == {
        "cloud.google.com/gke-accelerator": "nvidia-l4",
        "cloud.google.com/gke-gpu-driver-version": "latest",
        LABEL: "CONTAINER_IMAGE_CACHE.demo-project",
    }
    assert "ComputeClass" not in found


def test_a_node_label_is_one_that_kubernetes_takes():
    longest = LABEL.rpartition("/")[2].removesuffix(IMAGE) + "x" * 39
    assert len(longest) == 63


def test_a_class_has_the_disk_and_streams_images_and_its_pods_tolerate_it():
    config = settings(form="compute-class")
    found = rendered(config)
    made = found["ComputeClass"]
    name = made["metadata"]["name"]
    assert len(name) <= 63
    assert made["spec"]["priorities"] == [
        {
            "gpu": {"type": "nvidia-l4", "count": 1, "driverVersion": "latest"},
            "spot": False,
            "storage": {
                "secondaryBootDisks": [
                    {"diskImageName": IMAGE, "project": "demo-project", "mode": "CONTAINER_IMAGE_CACHE"}
                ]
            },
        }
    ]
    assert made["spec"]["nodePoolConfig"] == {"imageStreaming": {"enabled": True}}
    assert pod(config)["nodeSelector"]["cloud.google.com/compute-class"] == name
    assert LABEL not in pod(config)["nodeSelector"]
    assert {entry["key"] for entry in pod(config)["tolerations"]} == {
        "nvidia.com/gpu",
        "cloud.google.com/compute-class",
    }
    assert "GCPResourceAllowlist" not in found


def test_a_class_is_named_after_its_deployment_too():
    config = settings(form="compute-class")
    other = config.model_copy(update={"namespace": "another"})
    assert rendered(config)["ComputeClass"]["metadata"]["name"] != rendered(other)["ComputeClass"]["metadata"]["name"]


def test_pods_of_node_pools_select_the_disk_and_nothing_else_is_made():
    found = rendered(settings(form="node-pool"))
    assert LABEL in found["Deployment"]["spec"]["template"]["spec"]["nodeSelector"]
    assert not {"GCPResourceAllowlist", "ComputeClass"} & found.keys()


def test_streaming_needs_no_disk_and_no_nodes_of_its_own():
    found = rendered(settings(image="streaming"))
    spec = found["Deployment"]["spec"]["template"]["spec"]
    assert set(spec["nodeSelector"]) == {
        "cloud.google.com/gke-accelerator",
        "cloud.google.com/gke-gpu-driver-version",
    }
    assert not {"GCPResourceAllowlist", "ComputeClass"} & found.keys()


def test_another_image_or_form_is_another_generation_and_without_the_feature_it_is_what_it_was():
    made = {
        generation.name(settings(form=form), release)
        for form in FORMS
        for release in (
            BAKED,
            BAKED.model_copy(update={"image_digest": "sha256:" + "e" * 64}),
            BAKED.model_copy(update={"disk_image": "gp-fedcba9876543210"}),
        )
    }
    assert len(made) == 9


@pytest.mark.parametrize("form", FORMS)
def test_rights_are_for_what_the_form_makes_and_for_taking_away_what_another_made(form: str):
    config = settings(form=form)
    rules = access.cluster_rules(config, render.shared(config))
    verbs = {resource: set(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    made = {"autopilot": "gcpresourceallowlists", "compute-class": "computeclasses"}.get(form)
    for resource in ("gcpresourceallowlists", "computeclasses"):
        expected = {"list", "delete"} | ({"create", "patch"} if resource == made else set())
        assert verbs[resource] == expected, resource


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "words"),
    [
        (
            {"machine_type": "c4a-standard-8"},
            "machine_type c4a-standard-8 is arm64, and the images are to be for amd64",
        ),
        ({"machine_type": "n2"}, "is not a machine type, like n2-standard-8"),
        ({"architecture": "arm64"}, "machine_type n2-standard-8 is amd64, and the images are to be for arm64"),
        ({"zones": ["us-central1"]}, "'us-central1' is not a zone"),
        ({"kms_key": "my-key"}, "'my-key' is not a Cloud KMS key"),
        ({"network": "default"}, "'default' is not a network"),
        ({"subnetwork": "projects/p/global/networks/n"}, "is not a subnetwork"),
        ({"disk_size_gb": 5}, "disk_size_gb"),
        ({"threshold": 101.0}, "threshold"),
    ],
)
def test_settings_that_cannot_be_are_refused(section: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=re.escape(words)):
        settings(**section)


def test_a_shared_network_is_taken_whole():
    link = "https://www.googleapis.com/compute/v1/projects/host/global/networks/shared"
    assert settings(network=link).section("secondary-boot-disk").network == link


# -- the engine's image -----------------------------------------------------------------------------------------------


def image(name: str) -> ResolvedImage:
    layers = (Layer("sha256:" + "1" * 64, 10, "application/vnd.oci.image.layer.v1.tar+gzip"),)
    digest = "sha256:" + f"{len(name):x}".rjust(64, "0")
    repository = name.partition(":")[0]
    return ResolvedImage(
        f"docker.io/{repository}@{digest}", "https://r", repository, digest, (digest,), layers, "anonymous"
    )


def test_the_image_and_what_is_beside_it_make_the_disk(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def resolve(name: str, platform: str) -> ResolvedImage:
        asked.append((name, platform))
        return image(name)

    monkeypatch.setattr(registry, "resolve", resolve)
    plain, more = settings(), settings(further_images=["busybox:1"])
    alone = secondary_boot_disk.resolved(plain, "vllm/vllm-openai:v1")
    beside = secondary_boot_disk.resolved(more, "vllm/vllm-openai:v1")
    assert alone["image_digest"] == beside["image_digest"] == image("vllm/vllm-openai:v1").digest
    assert alone["disk_image"] != beside["disk_image"]
    assert asked[1:] == [("vllm/vllm-openai:v1", "linux/amd64"), ("busybox:1", "linux/amd64")]


def test_streaming_is_for_artifact_registry_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(registry, "resolve", lambda name, platform: image(name))
    config = settings(image="streaming")
    with pytest.raises(RequestError, match=r"vllm/vllm-openai:v1 is not in Artifact Registry.*images\.registry"):
        secondary_boot_disk.resolved(config, "vllm/vllm-openai:v1")
    found = secondary_boot_disk.resolved(config, "us-docker.pkg.dev/p/mirror/vllm/vllm-openai:v1")
    assert found.keys() == {"image_digest"}


# -- the cluster ------------------------------------------------------------------------------------------------------


def cluster(**traits: Any) -> ClusterTraits:
    return ClusterTraits(**{"name": "c", "autopilot": True, "version": "1.35.3-gke.1389000", **traits})


@pytest.mark.parametrize(
    ("form", "traits", "words"),
    [
        ("autopilot", {"autopilot": False}, "compute-class, or to node-pool"),
        ("node-pool", {}, "form to autopilot or compute-class"),
        ("autopilot", {"version": "1.30.1-gke.1000000"}, "secondary boot disks need 1.30.1-gke.1329000"),
        ("node-pool", {"autopilot": False, "version": "1.28.3-gke.1"}, "need 1.28.3-gke.1067000"),
    ],
)
def test_a_cluster_that_cannot_have_the_disk_is_refused(form: str, traits: dict[str, Any], words: str):
    with pytest.raises(RequestError, match=re.escape(words)):
        secondary_boot_disk.suits(settings(form=form), lambda: cluster(**traits))


def test_a_cluster_that_can_is_not_and_streaming_asks_nothing():
    secondary_boot_disk.suits(settings(), lambda: cluster())
    secondary_boot_disk.suits(settings(form="node-pool"), lambda: cluster(autopilot=False))
    secondary_boot_disk.suits(settings(form="compute-class"), lambda: cluster(autopilot=False))

    def never() -> ClusterTraits:
        raise AssertionError

    secondary_boot_disk.suits(settings(image="streaming"), never)
    secondary_boot_disk.prepared(settings(), BAKED, never)


@pytest.mark.parametrize(
    ("status", "words"),
    [("READY", ""), ("DELETING", f"its disk image {IMAGE} is gone"), (None, f"its disk image {IMAGE} is gone")],
)
def test_a_disk_image_that_is_gone_is_missed(status: str | None, words: str, monkeypatch: pytest.MonkeyPatch):
    def image(compute: Any, name: str) -> Any:
        assert (compute.project, name) == ("demo-project", IMAGE)
        return SimpleNamespace(status=status) if status else None

    monkeypatch.setattr(secondary_boot_disk.Compute, "image", image)
    assert secondary_boot_disk.missing(settings(), BAKED) == words
    assert secondary_boot_disk.missing(settings(image="streaming"), BAKED) == ""


def test_without_a_node_pool_the_command_that_makes_one_is_told():
    config = settings(form="node-pool")
    with pytest.raises(RequestError) as refusal:
        secondary_boot_disk.prepared(config, BAKED, lambda: cluster(autopilot=False))
    message = str(refusal.value)
    assert f"gcloud container node-pools create {IMAGE} --cluster gemma --location us-central1" in message
    assert f"disk-image=projects/demo-project/global/images/{IMAGE},mode=CONTAINER_IMAGE_CACHE" in message
    assert "--enable-image-streaming" in message
    assert "type=nvidia-l4,count=1" in message

    path = f"https://www.googleapis.com/compute/v1/projects/demo-project/global/images/{IMAGE}"
    blind = NodePool("l4", image_streaming=False, disk_images=(path,))
    with pytest.raises(RequestError, match=r"node-pools update l4 .* --enable-image-streaming"):
        secondary_boot_disk.prepared(config, BAKED, lambda: cluster(autopilot=False, node_pools=(blind,)))
    seeing = NodePool("l4", image_streaming=True, disk_images=(path,))
    secondary_boot_disk.prepared(config, BAKED, lambda: cluster(autopilot=False, node_pools=(blind, seeing)))


@pytest.mark.parametrize(
    ("form", "looked_at"),
    [("autopilot", "allowlists"), ("node-pool", "node-pools list"), ("compute-class", "computeclasses")],
)
def test_a_node_that_does_not_come_may_be_the_disk_s_doing(form: str, looked_at: str):
    words = "pod didn't trigger scale-up: 12 node(s) didn't match Pod's node affinity/selector"
    known = secondary_boot_disk.explain(settings(form=form), Symptom("no-node", "vllm-1", words))
    assert known
    assert known.error is InconclusiveError
    assert looked_at in known.message
    assert words in known.message


def test_want_of_quota_is_what_it_is():
    for symptom in (Symptom("no-node", "vllm-1", "GCE quota exceeded"), Symptom("words", "vllm-1", "disk")):
        assert secondary_boot_disk.explain(settings(), symptom) is None
