"""deploy_server's own order: what is applied, what is left alone, and whose words end up in an error."""

from __future__ import annotations

import copy
import dataclasses
import sys
import types
from typing import Any

import pytest

from components.deploy_server import step
from components.deploy_server.diagnosis import Patience
from serving import names, scenarios
from serving.clients.kubernetes import ApiError
from serving.deployment import replicas
from serving.errors import InconclusiveError, ReleaseError, RequestError
from serving.outcome import Outcome
from serving.rendering import render
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, quick

NAME = names.server(RELEASE.generation)
KEY = ("Deployment", "gemma", NAME)


class Cluster(MemoryCluster):
    """Brings a Deployment up as soon as it is wanted, or has its pod end as a test says."""

    def __init__(self, *objects: dict[str, Any], pod: dict[str, Any] | None = None, monitoring: bool = True):
        self.pod, self.monitoring = pod, monitoring
        super().__init__(*objects)
        self.logs = {False: "", True: ""}
        self.refuses: str = ""

    def apply(self, body: dict[str, Any], *, force: bool = True) -> dict[str, Any]:
        if body["kind"] == self.refuses:
            raise ApiError(f'{body["kind"]}.apps "{NAME}" is invalid: spec.selector: field is immutable', 422, "", {})
        applied = super().apply(body, force=force)
        if body["kind"] == "Deployment" and self.pod is not None:
            self._store(copy.deepcopy(self.pod))
        return applied

    def _store(self, body: dict[str, Any]) -> dict[str, Any]:
        if body["kind"] == "Deployment" and self.pod is None:
            wanted = body["spec"].get("replicas", 1)
            counts = {"replicas": wanted, "updatedReplicas": wanted, "readyReplicas": wanted}
            body["status"] = {"observedGeneration": 1, **counts}
        return super()._store(body)

    def serves(self, api_version: str) -> bool:
        return self.monitoring

    def log(self, pod: str, namespace: str, *, container: str = "", tail: int = 50, previous: bool = False) -> str:
        assert (pod, container) == ("p1", names.SERVER_CONTAINER)
        return self.logs[previous]


def pod(**state: Any) -> dict[str, Any]:
    labels = {names.DEPLOYMENT: "gemma", names.GENERATION: RELEASE.generation}
    container = {"name": "vllm", "image": "i", "restartCount": 0, "state": {}, **state}
    return {
        "kind": "Pod",
        "metadata": {"name": "p1", "namespace": "gemma", "labels": labels},
        "spec": {"nodeName": "n1"},
        "status": {"phase": "Pending", "containerStatuses": [container]},
    }


def deploy(cluster: MemoryCluster, settings: Settings | None = None, patience: Patience | None = None) -> Outcome:
    outcome = Outcome("deploy_server", RELEASE.run_id)
    step.deploy(cluster, settings or quick(), RELEASE, outcome, patience)  # type: ignore[arg-type]
    return outcome


def test_everything_is_applied_once_and_the_second_time_nothing_is():
    cluster = Cluster()
    assert deploy(cluster).status == "succeeded"
    rendered = render.render(quick(), RELEASE)
    assert [call[1:] for call in cluster.calls] == [
        (item["kind"], item["metadata"]["name"]) for item in [*rendered.shared, *rendered.generation]
    ] + [("Deployment", NAME)]
    assert cluster.calls[-1] == ("scale", "Deployment", NAME)
    cluster.calls.clear()
    assert deploy(cluster).status == "skipped"
    assert cluster.calls == []


def test_changed_settings_are_applied_to_the_same_generation():
    cluster = Cluster()
    deploy(cluster)
    cluster.calls.clear()
    assert deploy(cluster, quick(serving={"request_timeout": "3m"})).status == "succeeded"
    assert ("apply", "Deployment", NAME) in cluster.calls


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (3, 5)])
def test_replicas_change_in_place_and_leave_the_pods_as_they_are(before: int, after: int):
    cluster = Cluster()
    deploy(cluster, quick(serving={"replicas": before}))
    template = cluster.objects[KEY]["spec"]["template"]
    assert deploy(cluster, quick(serving={"replicas": after})).status == "succeeded"
    assert cluster.objects[KEY]["spec"]["replicas"] == after
    assert cluster.objects[KEY]["spec"]["template"] == template
    assert deploy(cluster, quick(serving={"replicas": after})).status == "skipped"


def test_an_autoscalers_number_is_left_alone_and_a_generation_at_rest_is_not(monkeypatch: pytest.MonkeyPatch):
    row = dataclasses.replace(scenarios.find("gcs-fuse"), scaling="demo-scaling")
    monkeypatch.setattr(scenarios, "SCENARIOS", (row,))
    monkeypatch.setitem(scenarios.COLUMNS, "scaling", ("demo-scaling",))
    monkeypatch.setitem(sys.modules, "serving.features.demo_scaling", types.ModuleType("demo_scaling"))
    cluster = Cluster()
    deploy(cluster, quick(serving={"replicas": 2}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 2
    cluster.objects[KEY]["spec"]["replicas"] = 5
    cluster._store(cluster.objects[KEY])
    assert deploy(cluster, quick(serving={"replicas": 2})).status == "skipped"
    deploy(cluster, quick(serving={"replicas": 2, "request_timeout": "3m"}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 5
    replicas.scale(cluster, quick(), RELEASE.generation, 0)  # type: ignore[arg-type]
    deploy(cluster, quick(serving={"replicas": 2}))
    assert cluster.objects[KEY]["spec"]["replicas"] == 2


def test_a_kept_generation_that_rests_is_brought_up_again():
    cluster = Cluster()
    deploy(cluster)
    replicas.scale(cluster, quick(), RELEASE.generation, 0)  # type: ignore[arg-type]
    assert deploy(cluster).status == "succeeded"
    assert cluster.objects["Deployment", "gemma", NAME]["spec"]["replicas"] == 1


def test_a_cluster_without_managed_prometheus_gets_no_pod_monitoring(capsys: pytest.CaptureFixture[str]):
    cluster = Cluster(monitoring=False)
    deploy(cluster)
    assert cluster.names("PodMonitoring") == set()
    assert "left out PodMonitoring/gemma" in capsys.readouterr().out


def test_a_volume_is_made_once_and_never_changed():
    cluster = Cluster()
    deploy(cluster)
    cluster.calls.clear()
    deploy(cluster, quick(labels={"team": "another"}))
    touched = {(verb, kind) for verb, kind, _ in cluster.calls if kind.startswith("PersistentVolume")}
    assert touched == {("create", "PersistentVolume"), ("create", "PersistentVolumeClaim")}, "there already: left alone"


def test_a_volume_whose_claim_is_gone_makes_room_and_one_that_goes_is_waited_for():
    cluster = Cluster()
    deploy(cluster)
    (name,) = cluster.names("PersistentVolume")
    cluster.set_status("PersistentVolume", name, "", phase="Released")
    changed = quick(labels={"team": "another"})
    with pytest.raises(InconclusiveError, match=f"PersistentVolume/{name} of an earlier attempt is being deleted"):
        deploy(cluster, changed)
    assert cluster.names("PersistentVolume") == set()
    assert deploy(cluster, changed).status == "succeeded"

    cluster.objects["PersistentVolume", "", name]["metadata"]["deletionTimestamp"] = "2026-11-29T00:00:00Z"
    with pytest.raises(InconclusiveError, match=r"kubectl get persistentvolume .* \(finalizers\)"):
        deploy(cluster, quick(labels={"team": "third"}))


def test_what_the_api_server_refuses_is_told_in_its_words():
    cluster = Cluster()
    cluster.refuses = "Deployment"
    with pytest.raises(RequestError, match=rf"the cluster refuses Deployment/{NAME}: .*field is immutable"):
        deploy(cluster)


def test_the_generation_of_another_deployment_is_left_alone():
    theirs = {
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": "gemma", "labels": {names.DEPLOYMENT: "other"}},
        "spec": {},
    }
    cluster = Cluster(theirs)
    with pytest.raises(RequestError, match="the deployment other in namespace gemma serves the same generation"):
        deploy(cluster)
    assert cluster.calls == []


ENDED = {"terminated": {"exitCode": 1, "reason": "Error"}}


@pytest.mark.parametrize("where", [False, True], ids=["log of this container", "log of the one before"])
def test_a_crash_is_told_in_the_engines_words(where: bool):
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ENDED, restartCount=1))
    cluster.logs[where] = "(EngineCore pid=7) ERROR 11-24 03:42:19 [core.py:936] ValueError: no such layer\n"
    outcome = Outcome("deploy_server", RELEASE.run_id)
    with pytest.raises(ReleaseError) as caught:
        step.deploy(cluster, quick(), RELEASE, outcome)  # type: ignore[arg-type]
    assert "the engine ends with exit code 1: ValueError: no such layer" in str(caught.value)
    assert f"kubectl -n gemma logs p1 -c {names.SERVER_CONTAINER}" in str(caught.value)
    assert outcome.details["log"] == cluster.logs[where].splitlines()


def test_an_engine_that_ends_because_its_mount_is_gone_is_not_a_bad_release():
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ENDED, restartCount=1))
    cluster.logs[True] = "OSError: [Errno 107] Transport endpoint is not connected: '/model/config.json'\n"
    with pytest.raises(InconclusiveError) as caught:
        deploy(cluster)
    assert "the volume of p1 has lost its gcsfuse" in str(caught.value)
    assert "kubectl -n gemma delete pod p1" in str(caught.value)
    assert "Transport endpoint is not connected: '/model/config.json'" in str(caught.value)


def test_waiting_ends_by_the_clock_and_says_on_the_way_what_it_waits_for(capsys: pytest.CaptureFixture[str]):
    cluster = Cluster(pod=pod(state={"waiting": {"reason": "ContainerCreating"}}))
    with pytest.raises(InconclusiveError, match="did not start its engine within serving"):
        deploy(cluster, patience=Patience(capacity=0.2, ready=0.2))
    assert "the pod has a node" in capsys.readouterr().out
