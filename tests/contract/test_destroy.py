"""What `destroy` takes away, against a bucket: all that a deployment's runs made, and nothing of anybody else's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.process import start

from pipelines.oversight import destroy as work
from serving import names
from serving.clients import kubernetes, storage
from serving.clients.kubernetes.cluster import FIELD_MANAGER
from serving.deployment import lease as leases
from serving.deployment.record import Known, Record
from serving.errors import InconclusiveError, LeaseHeldError
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import deployment, job, lease, owned, quick, service

LONG = {"duration": "15m"}
SETTINGS = quick(access="check", lease=LONG)
OTHER = quick(access="check", namespace="elsewhere")
"""A deployment of the same name in another namespace, with weights in the same bucket."""
BESIDE = quick(access="check", name="beside")
"""A deployment in the same namespace."""
PREFIX = "gs://demo-bucket/models/google/gemma-3-4b-it"
OWN, OLD, SHARED = "1" * 16, "2" * 16, "3" * 16


def said(_message: str) -> None:
    pass


def ours(kind: str, name: str, namespace: str = "", **labels: str) -> dict[str, Any]:
    """An object that runs made and that carries no deployment's label."""
    where = {"namespace": namespace} if namespace else {}
    by = {"app.kubernetes.io/managed-by": FIELD_MANAGER}
    metadata = {"name": name, "labels": {**by, **labels}, "managedFields": [{"manager": FIELD_MANAGER}]}
    return {"apiVersion": "v1", "kind": kind, "metadata": {**metadata, **where}}


def known(key: str) -> Known:
    return Known(model="m", commit="c", weights_key=key, weights_uri=f"{PREFIX}/{key}")


def a_cluster(settings: Settings = SETTINGS) -> MemoryCluster:
    """A cluster with two generations of the deployment, what shares them, and somebody else's things."""
    stable = service("g1")
    stable["metadata"]["labels"] = {names.DEPLOYMENT: settings.name}
    cluster = MemoryCluster(
        deployment("g1"),
        deployment("g0", replicas=0),
        *owned("g1"),
        *owned("g0"),
        *owned("g1", namespace=OTHER.namespace),
        stable,
        job("validate-server-run-1", "run-1"),
        lease(""),
        ours("Namespace", settings.namespace),
        ours("ServiceAccount", settings.serving.service_account, settings.namespace),
    )
    generations = {"g1": known(OWN), "g0": known(SHARED), "gx": known(OLD)}
    Record(live="g1", kept=["g0"], generations=generations, rejected={}).write(cluster, settings)
    cluster.calls.clear()
    return cluster


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    process = start(
        "emulated_cloud.storage", "--root", str(tmp_path), "--bucket", "demo-bucket", log=tmp_path / "storage.log"
    )
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", process.url)
    for key in (OWN, OLD, SHARED):
        storage.write_json(f"{PREFIX}/{key}/config.json", {})
        storage.write_json(f"{PREFIX}/{key}/_MANIFEST.json", {"key": key})
    storage.write_json(names.weights_in_use(SETTINGS), {"weights_keys": [OWN, OLD, SHARED]})
    storage.write_json(names.weights_in_use(OTHER), {"weights_keys": [SHARED]})
    yield
    process.stop()


def at(monkeypatch: pytest.MonkeyPatch, cluster: MemoryCluster) -> MemoryCluster:
    monkeypatch.setattr(kubernetes, "connect", lambda settings: cluster)
    return cluster


def keys_there() -> set[str]:
    return {uri.split("/")[-2] for uri in storage.list_uris(f"{PREFIX}/")}


def left(cluster: MemoryCluster) -> set[tuple[str, str, str]]:
    return set(cluster.objects)


def destroyed(settings: Settings = SETTINGS, *, weights: bool = False) -> list[str]:
    return work.destroy(settings, work.find(settings), said, weights=weights)


def test_all_of_the_deployment_goes_and_all_of_anothers_stays(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    theirs = {key for key in cluster.objects if OTHER.namespace in f"{key[1]}{key[2]}"}
    gone = destroyed()
    assert left(cluster) == theirs
    assert {"Deployment/vllm-g1", "Deployment/vllm-g0", "Service/gemma", "Namespace/gemma", "Lease/gemma"} <= {*gone}
    assert keys_there() == {OWN, OLD, SHARED}
    assert storage.read_json(names.weights_in_use(SETTINGS)) == {"weights_keys": [OWN, OLD]}


def test_nothing_goes_that_the_list_did_not_show(bucket, monkeypatch):
    at(monkeypatch, a_cluster())
    found = work.find(SETTINGS)
    shown = found.lines(SETTINGS, weights=True)
    gone = work.destroy(SETTINGS, found, said, weights=True)
    assert {*gone} | {names.weights_in_use(SETTINGS)} == {*shown}


def test_weights_go_when_that_is_asked_for_but_for_those_that_another_names(bucket, monkeypatch):
    at(monkeypatch, a_cluster())
    assert work.find(SETTINGS).shared_weights == [f"{PREFIX}/{SHARED}"]
    destroyed(weights=True)
    assert keys_there() == {SHARED}
    assert storage.read_json(names.weights_in_use(SETTINGS)) is None
    assert storage.read_json(names.weights_in_use(OTHER))


def test_twice_is_once_and_the_weights_may_still_go_later(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    destroyed()
    cluster.calls.clear()
    assert work.find(SETTINGS).lines(SETTINGS, weights=False) == []
    assert destroyed() == []
    assert cluster.calls == []
    assert destroyed(weights=True) == [f"{PREFIX}/{OWN}", f"{PREFIX}/{OLD}"]
    assert destroyed(weights=True) == []


@pytest.mark.parametrize("dies_at", [0, 3, 9, 13, 15])
def test_whoever_dies_in_the_middle_begins_anew_and_nothing_is_leaked(bucket, monkeypatch, dies_at: int):
    cluster = at(monkeypatch, a_cluster())
    theirs = {key for key in cluster.objects if OTHER.namespace in f"{key[1]}{key[2]}"}
    writes = 0

    def die(verb: str, kind: str, name: str) -> None:
        nonlocal writes
        if verb == "delete":
            writes += 1
        if writes > dies_at:
            raise KeyboardInterrupt

    cluster.before_write = die
    monkeypatch.setattr(leases, "give_back", lambda *_: False)
    with pytest.raises(KeyboardInterrupt):
        destroyed(weights=True)
    cluster.before_write = lambda *_: None
    held = cluster.objects.get(("Lease", SETTINGS.namespace, SETTINGS.name))
    if held:
        held["spec"]["renewTime"] = "2026-11-24T00:00:00.000000Z"  # It has run out since.
    destroyed(weights=True)
    assert left(cluster) == theirs
    assert keys_there() == {SHARED}


def test_a_run_that_holds_the_lease_is_not_swept_from_under_its_feet(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    leases.take(cluster, SETTINGS, "run-7", said)  # type: ignore[arg-type]
    before = copy.deepcopy(left(cluster))
    with pytest.raises(LeaseHeldError, match="run run-7 holds the Lease"):
        destroyed()
    assert left(cluster) == before


def test_a_deployment_beside_it_keeps_namespace_and_service_account(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    Record(live="g9").write(cluster, BESIDE)  # type: ignore[arg-type]
    destroyed()
    stays = {(kind, name) for kind, namespace, name in cluster.objects if namespace in ("", SETTINGS.namespace)}
    assert {("Namespace", "gemma"), ("ServiceAccount", "gemma-server"), ("ConfigMap", "beside-generations")} <= stays
    assert not {("Deployment", "vllm-g1"), ("ConfigMap", "gemma-generations"), ("Lease", "gemma")} & stays


@pytest.mark.parametrize("kind", ["Namespace", "ServiceAccount"])
def test_what_somebody_else_made_stays(bucket, monkeypatch, kind: str):
    cluster = at(monkeypatch, a_cluster())
    (item,) = (body for body in cluster.objects.values() if body["kind"] == kind)
    item["metadata"]["managedFields"].append({"manager": "kubectl"})
    destroyed()
    assert kind in {found for found, *_ in cluster.objects}


def test_endpoints_that_are_still_there_are_nobody_s(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    place = {"name": SETTINGS.name, "namespace": SETTINGS.namespace, "uid": "endpoints-1"}
    cluster.objects["Endpoints", SETTINGS.namespace, SETTINGS.name] = {"kind": "Endpoints", "metadata": place}
    found = work.find(SETTINGS)
    assert f"Namespace/{SETTINGS.namespace}" in found.lines(SETTINGS, weights=False)
    assert f"Namespace/{SETTINGS.namespace}" in destroyed()


def test_a_namespace_with_something_of_somebody_in_it_stays(bucket, monkeypatch):
    cluster = at(monkeypatch, a_cluster())
    cluster.create(ours("Secret", "theirs", SETTINGS.namespace))
    destroyed()
    assert ("Secret", SETTINGS.namespace, "theirs") in cluster.objects
    assert ("Namespace", "", SETTINGS.namespace) in cluster.objects


# -- with Vertex AI -------------------------------------------------------------------------------------------


class Pipelines:
    """What `destroy` asks of Vertex AI, answered by a schedule and a run that ends when it is told to."""

    def __init__(self, order: list[str], settings: Settings = SETTINGS):
        label = {names.RUNS_AT: names.place_label(settings)}
        self.order = order
        self.schedule: dict[str, Any] | None = {
            "name": "projects/1/locations/l/schedules/7",
            "state": "ACTIVE",
            "createPipelineJobRequest": {"pipelineJob": {"labels": label}},
        }
        self.run = {"name": "projects/1/locations/l/pipelineJobs/refresh-1", "state": "PIPELINE_STATE_RUNNING"}

    def schedules(self, display_name: str) -> list[dict[str, Any]]:
        return [self.schedule] if self.schedule else []

    def jobs(self, condition: str, most: int) -> list[dict[str, Any]]:
        assert condition == f'labels.gemma-place="{names.place_label(SETTINGS)}"'
        return [self.run]

    def pause_schedule(self, name: str) -> None:
        self.order.append("paused")

    def cancel(self, name: str) -> None:
        self.order.append("cancelled")
        self.run["state"] = "PIPELINE_STATE_CANCELLED"

    def delete_schedule(self, name: str) -> None:
        self.order.append("deleted the schedule")
        self.schedule = None

    def console(self, name: str) -> str:
        return f"https://console/{name}"


def test_no_run_begins_any_more_and_those_that_run_end_before_anything_goes(bucket, monkeypatch):
    cluster, order = at(monkeypatch, a_cluster()), list[str]()
    vertex: Any = Pipelines(order)
    cluster.before_write = lambda verb, kind, name: order.append(f"{verb} {kind}")
    found = work.find(SETTINGS, vertex)
    assert "schedule projects/1/locations/l/schedules/7" in found.lines(SETTINGS, weights=False)
    gone = work.destroy(SETTINGS, found, said, weights=False, vertex=vertex, cancel=True)
    assert gone[0] == "schedule projects/1/locations/l/schedules/7"
    deleted = next(place for place, each in enumerate(order) if each.startswith("delete "))
    taken = order.index("replace Lease")
    assert order[:2] == ["paused", "cancelled"]
    assert 2 <= taken < order.index("deleted the schedule") < deleted
    assert work.find(SETTINGS, vertex).lines(SETTINGS, weights=False) == []


def test_what_a_run_makes_before_it_ends_goes_too(bucket, monkeypatch):
    cluster, order = at(monkeypatch, a_cluster()), list[str]()
    theirs = {key for key in cluster.objects if OTHER.namespace in f"{key[1]}{key[2]}"}
    vertex: Any = Pipelines(order)
    told_to_end = vertex.cancel

    def late(name: str) -> None:
        for item in [deployment("g2"), *owned("g2")]:
            cluster.create(item)
        told_to_end(name)

    vertex.cancel = late
    found, said_of = work.find(SETTINGS, vertex), list[str]()
    assert "run refresh-1 (RUNNING), which goes on, once it has ended" in found.lines(SETTINGS, weights=False)
    gone = work.destroy(SETTINGS, found, said_of.append, weights=False, vertex=vertex, cancel=True)
    assert "Deployment/vllm-g2" in gone
    assert "made meanwhile, and goes too: Deployment/vllm-g2" in said_of
    assert left(cluster) == theirs


def test_a_run_that_has_made_nothing_yet_is_not_overlooked(bucket, monkeypatch):
    at(monkeypatch, MemoryCluster())
    storage.delete(names.weights_in_use(SETTINGS))
    vertex: Any = Pipelines(list[str]())
    vertex.schedule = None
    found = work.find(SETTINGS, vertex)
    assert found.lines(SETTINGS, weights=False) == ["run refresh-1 (RUNNING), which goes on, once it has ended"]
    work.destroy(SETTINGS, found, said, weights=False, vertex=vertex, cancel=True)
    assert vertex.order == ["cancelled"]


def test_a_run_that_goes_on_for_too_long_leaves_all_as_it_is(bucket, monkeypatch):
    cluster, order = at(monkeypatch, a_cluster()), list[str]()
    vertex: Any = Pipelines(order)
    found, before = work.find(SETTINGS, vertex), left(cluster)
    with pytest.raises(InconclusiveError, match=r"refresh-1 still goes on .* https://console/refresh-1.*--cancel"):
        work.destroy(SETTINGS, found, said, weights=False, vertex=vertex, wait_seconds=0)
    assert order == ["paused"]
    assert left(cluster) == before
