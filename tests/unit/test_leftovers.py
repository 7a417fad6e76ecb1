"""What dead runs left: found by what the record does not name, and taken away without touching what serves."""

from typing import Any

import pytest

from serving import names
from serving.clients.kubernetes import ApiError, kinds
from serving.deployment import leftovers, record
from serving.deployment.record import Record
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import SETTINGS, deployment, job, labels, owned, service

KINDS = ("Deployment", "Service", "PodDisruptionBudget", "PersistentVolumeClaim", "PersistentVolume")


def said(_message: str) -> None:
    pass


def generations(cluster: MemoryCluster) -> set[str]:
    return {body["metadata"]["labels"][names.GENERATION] for kind in KINDS for body in cluster.list(kind)}


def test_nothing_is_left_over_where_the_record_names_everything():
    cluster = MemoryCluster(deployment("g1"), *owned("g1"), deployment("g0", replicas=0), *owned("g0"))
    known = Record(live="g1", previous="g0", kept=["g0"])
    assert leftovers.find(cluster, SETTINGS, known, "run-9") == []
    assert leftovers.running_though_kept(cluster, SETTINGS, known) == []


def test_without_its_record_no_generation_is_left_over():
    kept = [deployment("g0", replicas=0), *owned("g0")]
    cluster = MemoryCluster(deployment("g1"), *owned("g1"), service("g1"), *kept)
    found = record.read(cluster, SETTINGS)
    assert leftovers.remove(cluster, SETTINGS, found, "run-9", "g2", said) == []
    leftovers.remove_run(cluster, SETTINGS, found, "run-1", said)
    assert cluster.names("Deployment") == {"vllm-g0", "vllm-g1"}
    assert len(cluster.names("PersistentVolume")) == 2


def test_a_dead_runs_generation_goes_whole_and_the_live_one_stays():
    cluster = MemoryCluster(deployment("g1"), *owned("g1"), deployment("g7"), *owned("g7"))
    removed = leftovers.remove(cluster, SETTINGS, Record(live="g1"), "run-9", "g2", said)
    assert len(removed) == len(KINDS)
    assert generations(cluster) == {"g1"}


def test_the_generation_that_this_run_goes_on_with_stays():
    cluster = MemoryCluster(deployment("g2"), *owned("g2"))
    assert leftovers.remove(cluster, SETTINGS, Record(), "run-9", "g2", said) == []


def test_jobs_of_other_runs_go_and_the_own_ones_stay():
    cluster = MemoryCluster(job("old", "run-1"), job("own", "run-9"))
    assert leftovers.remove(cluster, SETTINGS, Record(), "run-9", "g2", said) == ["Job/old"]


def test_a_kept_generation_that_a_dead_run_left_running_is_scaled_to_zero():
    cluster = MemoryCluster(deployment("g1"), deployment("g0", replicas=2))
    known = Record(live="g1", previous="g0", kept=["g0"])
    assert leftovers.remove(cluster, SETTINGS, known, "run-9", "g2", said) == ["Deployment/vllm-g0"]
    assert cluster.objects[("Deployment", SETTINGS.namespace, "vllm-g0")]["spec"]["replicas"] == 0
    assert cluster.objects[("Deployment", SETTINGS.namespace, "vllm-g1")]["spec"]["replicas"] == 1


def test_a_validated_generation_waits_for_its_person_with_all_its_replicas():
    cluster = MemoryCluster(deployment("g1"), deployment("g2"), *owned("g2"))
    known = Record(live="g1", validated="g2")
    assert leftovers.remove(cluster, SETTINGS, known, "run-9", "g3", said) == []


def test_volumes_of_a_deployment_of_the_same_name_in_another_namespace_are_not_ours():
    other = next(body for body in owned("g7", namespace="other") if body["kind"] == "PersistentVolume")
    cluster = MemoryCluster(other)
    assert leftovers.find(cluster, SETTINGS, Record(), "run-9") == []


def test_the_exit_task_takes_only_what_its_own_run_left():
    cluster = MemoryCluster(
        job("own", "run-9"),
        job("old", "run-1"),
        deployment("g7", run_id="run-9"),
        *owned("g7", run_id="run-9"),
        deployment("g8", run_id="run-1"),
        deployment("g1", run_id="run-9"),
    )
    leftovers.remove_run(cluster, SETTINGS, Record(live="g1"), "run-9", said)
    assert cluster.names("Job") == {"old"}
    assert cluster.names("Deployment") == {"vllm-g8", "vllm-g1"}


def test_what_is_deleted_is_the_object_that_was_found_and_not_its_successor():
    cluster = MemoryCluster(deployment("g7"))
    found = leftovers.find(cluster, SETTINGS, Record(), "run-9")
    cluster.objects[("Deployment", SETTINGS.namespace, "vllm-g7")]["metadata"]["uid"] = "another"
    assert leftovers.delete(cluster, found, said) == []
    assert cluster.names("Deployment") == {"vllm-g7"}


# -- volumes ------------------------------------------------------------------------------------------------


def of_a_volume(kind: str, generation: str = "g7", **spec: object) -> dict[str, Any]:
    namespace = {"namespace": SETTINGS.namespace} if kinds.find(kind).namespaced else {}
    own = {**labels(generation), **({} if namespace else {names.NAMESPACE: SETTINGS.namespace})}
    return {"kind": kind, "metadata": {"name": names.server(generation), "labels": own, **namespace}, "spec": spec}


def test_a_volume_goes_in_the_only_order_that_works():
    volume = ("StorageClass", "VolumeSnapshotClass", "GCPDataSource", "PersistentVolumeClaim", "VolumeSnapshot")
    cluster = MemoryCluster(deployment("g7"), *(of_a_volume(kind) for kind in volume))
    leftovers.remove_generation(cluster, SETTINGS, "g7", said)
    assert [kind for _, kind, _ in cluster.calls] == ["Deployment", *reversed(volume)]


def test_a_source_waits_until_the_claim_that_is_filled_from_it_is_gone(monkeypatch: pytest.MonkeyPatch):
    cluster = MemoryCluster(of_a_volume("GCPDataSource"), of_a_volume("PersistentVolumeClaim"))
    going: list[str] = []
    delete = MemoryCluster.delete

    def slowly(self: MemoryCluster, body: dict[str, Any]) -> bool:
        if body["kind"] == "PersistentVolumeClaim" and not going:
            going.append(body["metadata"]["name"])
            return True
        return delete(self, body)

    monkeypatch.setattr(MemoryCluster, "delete", slowly)
    claim = ("PersistentVolumeClaim", SETTINGS.namespace, "vllm-g7")
    monkeypatch.setattr(leftovers.time, "sleep", lambda seconds: cluster.objects.pop(claim))
    leftovers.remove_generation(cluster, SETTINGS, "g7", said)
    assert going
    assert cluster.objects == {}


def test_a_source_whose_claim_hangs_stays_and_the_next_run_takes_it_away(monkeypatch: pytest.MonkeyPatch):
    cluster, heard = MemoryCluster(of_a_volume("GCPDataSource"), of_a_volume("PersistentVolumeClaim")), list[str]()
    monkeypatch.setattr(leftovers, "GOES_SECONDS", 0)
    monkeypatch.setattr(leftovers.time, "sleep", lambda seconds: None)
    hanging = cluster.objects["PersistentVolumeClaim", SETTINGS.namespace, "vllm-g7"]
    monkeypatch.setattr(cluster, "delete", lambda body: body["kind"] == "PersistentVolumeClaim")
    leftovers.remove_generation(cluster, SETTINGS, "g7", heard.append)
    assert "GCPDataSource/vllm-g7 stays until the PersistentVolumeClaim that is filled from it is gone" in heard[-1]
    assert cluster.names("GCPDataSource") == {"vllm-g7"}

    assert leftovers.hanging(cluster, SETTINGS) == [], "it is not even being deleted"
    hanging["metadata"] |= {"deletionTimestamp": "2026-11-29T00:00:00Z", "finalizers": ["kubernetes.io/pvc-protection"]}
    (words,) = leftovers.hanging(cluster, SETTINGS)
    assert "PersistentVolumeClaim/vllm-g7 is being deleted since 2026-11-29T00:00:00Z" in words
    assert "(kubernetes.io/pvc-protection)" in words
    assert """`kubectl -n gemma patch pvc vllm-g7 --type=merge -p '{"metadata":{"finalizers":null}}'`""" in words


def test_a_kind_that_the_cluster_does_not_serve_has_left_nothing():
    class Older(MemoryCluster):
        def list(self, kind: str, namespace: str | None = None, *, labels: str = "", fields: str = "") -> Any:
            if kind == "GCPDataSource":
                raise ApiError("the server could not find the requested resource", 404, "NotFound", {})
            return super().list(kind, namespace, labels=labels, fields=fields)

        def serves(self, kind: str) -> bool:
            return kind != "GCPDataSource"

    cluster = Older(of_a_volume("StorageClass"))
    assert leftovers.remove_generation(cluster, SETTINGS, "g7", said) == ["StorageClass/vllm-g7"]
    cluster.serves = lambda kind: True  # type: ignore[method-assign]
    with pytest.raises(ApiError):
        leftovers.remove_generation(cluster, SETTINGS, "g7", said)
