"""Nodes with a secondary boot disk: who gets one, what a node finds on it, and what it says of that."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process
from kubernetes import client

from tests.contract.kubernetes_cluster import PROJECT, Cluster, Kube, kube, pod_manifest

__all__ = ["kube"]

LABEL = "cloud.google.com.node-restriction.kubernetes.io/gke-secondary-boot-disk-"
MODE = f"CONTAINER_IMAGE_CACHE.{PROJECT['id']}"
REPOSITORY = "vllm/python"
MKFS = shutil.which("mkfs.ext4", path="/usr/sbin:/sbin:/usr/bin:/bin")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("registry")
    made = process.start("emulated_cloud.registry", "--root", str(folder), log=folder / "log")
    yield made.url
    made.stop()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, registry: str) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.more = {
        "compute": str(made.folder / "compute"),
        "logs": str(made.folder / "logging.jsonl"),
        "registry": registry,
        "node_pools": [{"name": "mine", "disk_images": [f"projects/{PROJECT['id']}/global/images/in-a-pool"]}],
    }
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def image(registry: str) -> dict[str, Any]:
    """What the registry has: the reference by digest, its chain IDs, its layers' bytes."""

    def get(path: str, **headers: str) -> Any:
        answer = requests.get(f"{registry}/v2/{REPOSITORY}/{path}", headers=headers, timeout=60)
        if answer.status_code == 401:
            said = answer.headers["WWW-Authenticate"].split('"')
            token = requests.get(said[1], params={"service": said[3], "scope": said[5]}, timeout=60).json()["token"]
            return get(path, **headers, Authorization=f"Bearer {token}")
        answer.raise_for_status()
        return answer

    index = get("manifests/v1", Accept="application/vnd.oci.image.index.v1+json").json()
    digest = next(each["digest"] for each in index["manifests"] if each["platform"]["architecture"] == "amd64")
    manifest = get(f"manifests/{digest}", Accept="application/vnd.oci.image.manifest.v1+json").json()
    chain: list[str] = []
    for diff_id in get(f"blobs/{manifest['config']['digest']}").json()["rootfs"]["diff_ids"]:
        chain.append("sha256:" + hashlib.sha256(f"{chain[-1]} {diff_id}".encode()).hexdigest() if chain else diff_id)
    size = sum(layer["size"] for layer in manifest["layers"])
    return {"reference": f"{REPOSITORY}@{digest}", "chain": chain, "size": size}


def bake(cluster: Cluster, name: str, chain: list[str] | None, status: str = "READY") -> None:
    """A disk image in Compute Engine, with these layers on it; None for one that nobody has written to."""
    folder = cluster.folder / "compute" / "global" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    raw = folder / f"{name}.raw"
    raw.touch()
    with open(raw, "r+b") as file:
        file.truncate(8 << 20)
    if chain is not None:
        assert MKFS, "no e2fsprogs here"
        content = cluster.folder / f"content-{name}"
        content.mkdir()
        lines = [f"{chain_id} snapshots/{number}/fs" for number, chain_id in enumerate(chain, 1)]
        (content / "snapshots.metadata").write_text("\n".join(lines) + "\n")
        subprocess.run([MKFS, "-q", "-F", "-d", str(content), str(raw)], check=True, capture_output=True)
    (folder / f"{name}.json").write_text(json.dumps({"name": name, "status": status}))


def allow(kube: Kube, name: str, pattern: str) -> None:
    body = {
        "apiVersion": "node.gke.io/v1",
        "kind": "GCPResourceAllowlist",
        "metadata": {"name": name},
        "spec": {"allowedResourcePatterns": [pattern]},
    }
    client.CustomObjectsApi(kube.raw).create_cluster_custom_object("node.gke.io", "v1", "gcpresourceallowlists", body)


def start(kube: Kube, name: str, image: str, **spec: Any) -> None:
    kube.core.create_namespaced_pod(kube.namespace, pod_manifest(name, image=image, **spec))


def said(cluster: Cluster) -> list[tuple[str, str]]:
    """(node, words) of all that nodes have written."""
    file = Path(cluster.folder / "logging.jsonl")
    entries = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    assert all(entry["logName"] == f"projects/{PROJECT['id']}/logs/gcfs-snapshotter" for entry in entries)
    return [(entry["resource"]["labels"]["node_name"], entry["jsonPayload"]["MESSAGE"]) for entry in entries]


def test_a_node_with_the_disk_finds_all_of_the_image_and_says_so(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "whole", image["chain"])
    start(kube, "reader", image["reference"], nodeSelector={f"{LABEL}whole": MODE})
    kube.wait_event("reader", "NotTriggerScaleUp", "didn't match Pod's node affinity/selector")

    allow(kube, "whole", f"projects/{PROJECT['id']}/global/images/whole$")
    kube.wait_phase("reader", "Succeeded")
    node = kube.core.read_node(kube.pod("reader").spec.node_name)
    assert node.metadata.labels[f"{LABEL}whole"] == MODE
    count = len(image["chain"])
    assert said(cluster)[-1] == (
        node.metadata.name,
        f"Image {image['reference']} is backed by secondary boot disk caching by 100.0% ({count}/{count} layers), by "
        f"image streaming by 0.0% (0/{count} layers).",
    )
    assert kube.wait_event("reader", "Pulled", "Successfully pulled").endswith(f"Image size: {image['size']} bytes.")

    before = len(said(cluster))
    there = {"kubernetes.io/hostname": node.metadata.name}  # Or it may come onto a node of its own.
    start(kube, "again", image["reference"], nodeSelector={f"{LABEL}whole": MODE, **there})
    kube.wait_phase("again", "Succeeded")
    kube.wait_event("again", "Pulled", "already present on machine")
    assert len(said(cluster)) == before, "once for each pull"


def test_a_node_says_what_it_did_not_find(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "partly", image["chain"][:1])
    allow(kube, "partly", f"projects/{PROJECT['id']}/global/images/partly$")
    start(kube, "reader", image["reference"], nodeSelector={f"{LABEL}partly": MODE})
    kube.wait_phase("reader", "Succeeded")
    count = len(image["chain"])
    assert f"({1}/{count} layers), by image streaming" in said(cluster)[-1][1]


def test_layers_that_a_test_takes_away_are_not_found(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "script", None)
    allow(kube, "script", f"projects/{PROJECT['id']}/global/images/script$")
    cluster.configure(uncached_layers=2)
    try:
        start(kube, "reader", image["reference"], nodeSelector={f"{LABEL}script": MODE})
        kube.wait_phase("reader", "Succeeded")
    finally:
        cluster.configure(uncached_layers=0)
    count = len(image["chain"])
    assert f"({count - 2}/{count} layers), by image streaming" in said(cluster)[-1][1]


def test_without_the_image_no_node_comes(kube: Kube, cluster: Cluster, image: dict) -> None:
    for name, status, why in (("pending", "PENDING", "is not ready"), ("absent", "", "cannot be found")):
        if status:
            bake(cluster, name, None, status)
        allow(kube, name, f"projects/{PROJECT['id']}/global/images/{name}$")
        start(kube, name, image["reference"], nodeSelector={f"{LABEL}{name}": MODE})
        words = kube.wait_event(name, "FailedScaleUp")
        assert f"projects/{PROJECT['id']}/global/images/{name}'. The referenced image resource {why}" in words
        kube.core.delete_namespaced_pod(name, kube.namespace, grace_period_seconds=0)


def test_a_pattern_lets_through_what_it_matches_and_no_more(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "one-too-many", None)
    allow(kube, "anchored", f"projects/{PROJECT['id']}/global/images/one$")
    start(kube, "reader", image["reference"], nodeSelector={f"{LABEL}one-too-many": MODE})
    kube.wait_event("reader", "NotTriggerScaleUp", "didn't match Pod's node affinity/selector")
    kube.core.delete_namespaced_pod("reader", kube.namespace, grace_period_seconds=0)


def test_a_node_pool_that_has_the_disk_needs_nobody_s_leave(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "in-a-pool", None)
    start(kube, "reader", image["reference"], nodeSelector={f"{LABEL}in-a-pool": MODE})
    kube.wait_phase("reader", "Succeeded")


def test_a_compute_class_brings_cards_and_disk(kube: Kube, cluster: Cluster, image: dict) -> None:
    bake(cluster, "of-a-class", None)
    body = {
        "apiVersion": "cloud.google.com/v1",
        "kind": "ComputeClass",
        "metadata": {"name": "mine"},
        "spec": {
            "priorities": [
                {
                    "gpu": {"type": "nvidia-l4", "count": 1, "driverVersion": "latest"},
                    "storage": {
                        "secondaryBootDisks": [{"diskImageName": "of-a-class", "mode": "CONTAINER_IMAGE_CACHE"}]
                    },
                }
            ],
            "nodePoolAutoCreation": {"enabled": True},
            "nodePoolConfig": {"imageStreaming": {"enabled": True}},
        },
    }
    custom = client.CustomObjectsApi(kube.raw)
    chosen = {
        "nodeSelector": {"cloud.google.com/compute-class": "mine"},
        "tolerations": [{"key": "cloud.google.com/compute-class", "operator": "Equal", "value": "mine"}],
        "container": {"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    }
    start(kube, "reader", image["reference"], **chosen)
    kube.wait_event("reader", "NotTriggerScaleUp", "didn't match Pod's node affinity/selector")
    custom.create_cluster_custom_object("cloud.google.com", "v1", "computeclasses", body)
    kube.wait_phase("reader", "Succeeded")
    node = kube.core.read_node(kube.pod("reader").spec.node_name)
    assert node.metadata.labels[f"{LABEL}of-a-class"] == MODE
    assert {taint.key for taint in node.spec.taints} == {"nvidia.com/gpu", "cloud.google.com/compute-class"}
    assert said(cluster)[-1][0] == node.metadata.name


def test_what_gke_s_kinds_do_not_have_is_refused(kube: Kube) -> None:
    wrong = {
        "apiVersion": "node.gke.io/v1",
        "kind": "GCPResourceAllowlist",
        "metadata": {"name": "wrong"},
        "spec": {"allowedResourcePatterns": "all"},
    }
    custom = client.CustomObjectsApi(kube.raw)
    with pytest.raises(client.ApiException) as refusal:
        custom.create_cluster_custom_object("node.gke.io", "v1", "gcpresourceallowlists", wrong)
    assert refusal.value.status == 422
