"""The feature hyperdisk-ml: what its settings may say, what it renders, what it makes of a driver's words."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from components.resolve_model import step as resolve
from serving import names
from serving.clients import google
from serving.clients.google import ClusterTraits
from serving.errors import InconclusiveError, RequestError
from serving.features import Symptom, hyperdisk_ml
from serving.rendering import generation, render
from serving.settings import Settings, validated
from serving.weights.release import Release
from tests.unit.deployment import RELEASE

ZONES = ["us-central1-a", "us-central1-b"]
HYDRATED = RELEASE.model_copy(update={"zones": ZONES, "weights_bytes": 8_600_000_000})


def settings(section: dict[str, Any] | None = None, **values: Any) -> Settings:
    base = {"scenario": "hyperdisk-ml", "project": "demo-project", "bucket": "demo-bucket"}
    return validated(Settings, {**base, **({"hyperdisk_ml": section} if section else {}), **values})


def rendered(config: Settings, release: Release = HYDRATED) -> dict[str, dict[str, Any]]:
    """Kind → the object of the generation; what is there while it is made is `temporary KIND`."""
    return {item["kind"]: item for item in render.render(config, release).generation} | {
        f"temporary {item['kind']}": item for item in render.temporary(config, release)
    }


@pytest.mark.parametrize(
    ("section", "values", "words"),
    [
        ({"machine_family": "n2"}, {}, "n2 cannot attach a Hyperdisk ML volume: name one of c3, c3d"),
        ({"machine_family": "c4a"}, {}, "c4a runs no component image: name one of c3, c3d"),
        ({"zones": ["us-central1"]}, {}, "'us-central1' is not a zone, like us-central1-a"),
        ({"zones": ["europe-west4-a"]}, {}, "europe-west4-a is not where the cluster is (us-central1)"),
        ({"zones": ["us-central1-a", "us-central1-a"]}, {}, "names a zone twice"),
        ({"zones": ["us-central1-a"]}, {"serving": {"replicas": 2}}, "us-central1-a is one. Name two or more"),
        ({"throughput": 399}, {}, "hyperdisk_ml.throughput"),
        ({"method": "copy"}, {}, "hyperdisk_ml.method"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(section: dict[str, Any], values: dict[str, Any], words: str):
    with pytest.raises(RequestError) as refused:
        settings(section, **values)
    assert words in str(refused.value)


def test_an_accelerator_whose_machines_cannot_attach_the_volume_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("serving.features.nodes.card", lambda settings: SimpleNamespace(machine_family="n1"))
    with pytest.raises(RequestError, match=r"the machines of nvidia-l4 \(n1\) cannot attach a Hyperdisk ML volume"):
        settings()


@pytest.mark.parametrize(
    ("weights_bytes", "size"),
    [(0, 4), (1, 4), (2 << 30, 4), (3 << 30, 5), (20 << 30, 22), (55_000_000_000, 55), (1 << 40, 1077)],
)
def test_a_volume_is_some_larger_than_its_weights_and_whole(weights_bytes: int, size: int):
    assert hyperdisk_ml.size_gib(weights_bytes) == size


@pytest.mark.parametrize(("asked", "gib", "mib"), [(1200, 11, 1200), (400, 11, 400), (400, 10_001, 1201)])
def test_its_throughput_is_never_less_than_its_size_demands(asked: int, gib: int, mib: int):
    release = HYDRATED.model_copy(update={"weights_bytes": int((gib - 1.5) / 1.05 * (1 << 30))})
    storage_class = rendered(settings({"throughput": asked}), release)["StorageClass"]
    assert storage_class["parameters"]["provisioned-throughput-on-create"] == f"{mib}Mi"
    assert mib >= 0.12 * gib


@pytest.mark.parametrize(("gigabytes", "iops", "mib"), [(1, 2000, 500), (8, 4500, 600), (50, 7000, 600)])
def test_the_disk_that_weights_are_copied_to_asks_for_what_its_size_allows(gigabytes: int, iops: int, mib: int):
    release = HYDRATED.model_copy(update={"weights_bytes": gigabytes * 10**9})
    parameters = rendered(settings(), release)["temporary StorageClass"]["parameters"]
    assert parameters["provisioned-iops-on-create"] == str(iops)
    assert parameters["provisioned-throughput-on-create"] == f"{mib}Mi"
    assert mib * 4 <= iops


def test_the_volume_has_a_copy_in_every_zone_and_pods_are_spread_over_them():
    objects = rendered(settings())
    for kind in ("StorageClass", "temporary StorageClass"):
        (topology,) = objects[kind]["allowedTopologies"]
        assert topology["matchLabelExpressions"] == [{"key": "topology.gke.io/zone", "values": ZONES}]
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    by_zone, by_host = pod["topologySpreadConstraints"]
    assert (by_zone["topologyKey"], by_zone["whenUnsatisfiable"], by_zone["minDomains"]) == (
        "topology.kubernetes.io/zone",
        "DoNotSchedule",
        2,
    )
    assert by_zone["matchLabelKeys"] == ["pod-template-hash"], "or an update in place would gather its pods in one zone"
    assert by_host["whenUnsatisfiable"] == "ScheduleAnyway"
    model = next(volume for volume in pod["volumes"] if volume["name"] == "model")
    assert model["persistentVolumeClaim"] == {"claimName": names.server(RELEASE.generation), "readOnly": True}


def test_one_zone_demands_no_second_one():
    (by_zone, _) = rendered(settings(), HYDRATED.model_copy(update={"zones": ZONES[:1]}))["Deployment"]["spec"][
        "template"
    ]["spec"]["topologySpreadConstraints"]
    assert by_zone["minDomains"] == 1


@pytest.mark.parametrize("method", ["snapshot", "populator"])
def test_each_method_has_its_own_source_and_nothing_of_the_other(method: str):
    objects = rendered(settings({"method": method}))
    source = objects["PersistentVolumeClaim"]["spec"]["dataSourceRef"]
    assert source["name"] == names.server(RELEASE.generation)
    if method == "snapshot":
        assert (source["kind"], "GCPDataSource" in objects) == ("VolumeSnapshot", False)
        assert objects["temporary VolumeSnapshotClass"]["parameters"] == {"snapshot-type": "images"}
    else:
        assert not any(kind.startswith("temporary") for kind in objects)
        storage = objects["GCPDataSource"]["spec"]["cloudStorage"]
        assert storage == {"uri": f"{RELEASE.weights_uri}/", "serviceAccountName": "gemma-server"}


def test_what_is_made_for_a_generation_carries_its_name_and_its_run():
    for item in render.temporary(settings(), HYDRATED):
        labels = item["metadata"]["labels"]
        assert labels[names.GENERATION] == RELEASE.generation
        assert labels[names.RUN] == RELEASE.run_id
        assert RELEASE.generation in item["metadata"]["name"]


def test_what_a_volume_is_names_its_generation_and_what_fills_it_beside_it_does_not():
    first = generation.name(settings(), HYDRATED)
    same: list[dict[str, Any]] = [{"timeout": "2h"}, {"machine_family": "c4"}, {"compute_class": "mine"}]
    assert {generation.name(settings(section), HYDRATED) for section in same} == {first}
    assert generation.name(settings(serving={"replicas": 3}), HYDRATED) == first
    other = [
        generation.name(settings({"throughput": 2400}), HYDRATED),
        generation.name(settings({"method": "populator"}), HYDRATED),
        generation.name(settings(), HYDRATED.model_copy(update={"zones": ["us-central1-a", "us-central1-c"]})),
        generation.name(settings(), HYDRATED.model_copy(update={"weights_bytes": 80_000_000_000})),
    ]
    assert len({first, *other}) == 5


def test_a_release_without_zones_is_rendered_for_nobody():
    with pytest.raises(RequestError, match=r"name them in hyperdisk_ml\.zones"):
        render.render(settings(), RELEASE)


# -- where the cluster comes in -----------------------------------------------------------------------------


def cluster_in(monkeypatch: pytest.MonkeyPatch, *zones: str, version: str = "1.35.3-gke.1") -> None:
    traits = ClusterTraits("cluster gemma", True, version, (), zones)
    monkeypatch.setattr(google, "cluster_traits", lambda settings: traits)


def test_without_a_wish_the_zones_are_the_clusters(monkeypatch: pytest.MonkeyPatch):
    cluster_in(monkeypatch, *ZONES)
    assert resolve.zones(settings()) == ZONES
    assert resolve.zones(settings({"zones": ["us-central1-b"]})) == ["us-central1-b"]
    bucket = validated(Settings, {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"})
    assert resolve.zones(bucket) == []


def test_zones_that_the_cluster_has_not_are_refused(monkeypatch: pytest.MonkeyPatch):
    cluster_in(monkeypatch, *ZONES)
    with pytest.raises(RequestError, match="has no nodes in us-central1-f, only in us-central1-a, us-central1-b"):
        resolve.zones(settings({"zones": ["us-central1-a", "us-central1-f"]}))


def test_replicas_are_not_spread_over_one_zone(monkeypatch: pytest.MonkeyPatch):
    cluster_in(monkeypatch, "us-central1-a")
    with pytest.raises(RequestError, match="2 replicas are to be spread over zones"):
        resolve.zones(settings(serving={"replicas": 2}))
    assert resolve.zones(settings()) == ["us-central1-a"]


def test_a_cluster_older_than_the_populator_is_refused():
    def look() -> ClusterTraits:
        return ClusterTraits("cluster gemma", True, "1.33.1-gke.100")

    with pytest.raises(RequestError, match=r"GKE 1\.33\.1-gke\.100; its populator needs 1\.33\.2-gke\.4780000"):
        hyperdisk_ml.suits(settings({"method": "populator"}), look)
    hyperdisk_ml.suits(settings(), look)


# -- a driver's words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            "rpc error: code = InvalidArgument desc = 'hyperdisk-ml' is not a compatible disk type with the machine "
            "type n2-standard-8, please review the GCP online documentation for available persistent disk options",
            RequestError,
        ),
        (
            "rpc error: code = ResourceExhausted desc = Failed to Attach: failed when waiting for zonal op: Exceeded "
            "limit 'maximum_persistent_disks' on resource 'node-1'. Limit: 128.0",
            InconclusiveError,
        ),
    ],
)
def test_why_a_pod_does_not_get_its_volume_is_told(words: str, error: type[Exception]):
    explained = hyperdisk_ml.explain(settings(), Symptom("mount", "pod-1", words))
    assert explained
    assert explained.error is error
    assert "pod-1" in explained.message


def test_of_other_symptoms_the_volume_knows_nothing():
    assert hyperdisk_ml.explain(settings(), Symptom("words", "pod-1", "CUDA error")) is None
    assert hyperdisk_ml.explain(settings(), Symptom("mount", "pod-1", "timed out")) is None
