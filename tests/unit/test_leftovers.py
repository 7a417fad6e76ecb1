"""What dead runs left: found by what the record does not name, and taken away without touching what serves."""

from serving import names
from serving.deployment import leftovers, record
from serving.deployment.record import Record
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import SETTINGS, deployment, job, owned, service

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
    assert leftovers._delete(cluster, found, said) == []
    assert cluster.names("Deployment") == {"vllm-g7"}
