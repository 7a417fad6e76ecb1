"""Where a generation serves, and from which disks."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from components.verify_placement import step
from serving import names
from serving.errors import InconclusiveError
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE

Object = dict[str, Any]
SETTINGS = validated(Settings, {"scenario": "hyperdisk-ml", "project": "demo-project", "bucket": "demo-bucket"})
HANDLE = "projects/demo-project/zones/multi-zone/disks/pvc-1"
DRIVER = "pd.csi.storage.gke.io"
ZONES = ["us-central1-a", "us-central1-b"]


def volume() -> list[Object]:
    terms = [
        {"matchExpressions": [{"key": "topology.gke.io/zone", "operator": "In", "values": [zone]}]} for zone in ZONES
    ]
    return [
        {
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": names.server(RELEASE.generation), "namespace": "gemma"},
            "spec": {"volumeName": "pvc-1"},
        },
        {
            "kind": "PersistentVolume",
            "metadata": {"name": "pvc-1"},
            "spec": {
                "csi": {"driver": DRIVER, "volumeHandle": HANDLE},
                "nodeAffinity": {"required": {"nodeSelectorTerms": terms}},
            },
        },
    ]


def pod(number: int, zone: str, *, ready: bool = True, attached: bool = True, going: bool = False) -> list[Object]:
    """A pod of the generation on a node of its own."""
    node = f"node-{number}"
    digest = hashlib.sha256(f"{HANDLE}{DRIVER}{node}".encode()).hexdigest()
    labels = {names.DEPLOYMENT: "gemma", names.GENERATION: RELEASE.generation}
    meta: Object = {"name": f"pod-{number}", "namespace": "gemma", "labels": labels}
    if going:
        meta["deletionTimestamp"] = "2026-11-29T00:00:00Z"
    return [
        {
            "kind": "Pod",
            "metadata": meta,
            "spec": {"nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
        },
        {"kind": "Node", "metadata": {"name": node, "labels": {"topology.kubernetes.io/zone": zone}}},
        {"kind": "VolumeAttachment", "metadata": {"name": f"csi-{digest}"}, "status": {"attached": attached}},
    ]


def verify(*objects: Object) -> dict[str, list[str]]:
    return step.verify(MemoryCluster(*objects), SETTINGS, RELEASE)  # type: ignore[arg-type]


def test_the_pods_of_each_zone_are_told():
    found = verify(*volume(), *pod(2, ZONES[1]), *pod(1, ZONES[0]), *pod(3, ZONES[0]))
    assert found == {ZONES[0]: ["pod-1", "pod-3"], ZONES[1]: ["pod-2"]}


def test_one_pod_needs_one_zone():
    assert verify(*volume(), *pod(1, ZONES[1])) == {ZONES[1]: ["pod-1"]}


@pytest.mark.parametrize(
    ("objects", "words"),
    [
        ([*volume(), *pod(1, ZONES[0]), *pod(2, ZONES[0])], f"all 2 ready pods are in {ZONES[0]}"),
        ([*volume(), *pod(1, ZONES[0]), *pod(2, ZONES[1], ready=False)[:1]], None),
        ([*volume(), *pod(1, ZONES[0], going=True)], "there is no ready pod"),
        ([*volume(), *pod(1, ZONES[0], attached=False)], "has no disk of the volume pvc-1 attached"),
        ([*volume(), *pod(1, ZONES[0])[:2]], "has no disk of the volume pvc-1 attached"),
        ([*volume(), *pod(1, "us-central1-f")], "pod-1 is on node-1 in us-central1-f, which has no disk"),
        ([*volume(), *pod(1, ZONES[0])[:1]], "the node node-1 under pod-1 is not there any more"),
        (volume()[:1], "the volume of g2 is not there any more"),
        ([], "the volume of g2 is not there any more"),
    ],
)
def test_what_is_not_as_it_should_be_is_no_verdict(objects: list[Object], words: str | None):
    if words is None:
        assert verify(*objects) == {ZONES[0]: ["pod-1"]}
        return
    with pytest.raises(InconclusiveError) as caught:
        verify(*objects)
    assert words in str(caught.value)


def test_a_verdict_is_handed_on_and_a_failed_release_is_not_looked_at(monkeypatch: pytest.MonkeyPatch):
    cluster = MemoryCluster(*volume(), *pod(1, ZONES[0]))
    monkeypatch.setattr("serving.clients.storage.read_json", lambda uri: None)
    written: dict[str, Any] = {}
    monkeypatch.setattr("serving.clients.storage.write_json", written.__setitem__)
    monkeypatch.setattr("serving.clients.kubernetes.connect", lambda settings: cluster)
    from serving.deployment import lease

    lease.take(cluster, SETTINGS, RELEASE.run_id, print)  # type: ignore[arg-type]
    arguments = SETTINGS.as_struct(), RELEASE.model_dump()
    assert step.run(*arguments, False, ["no good"]) == (False, ["no good"])
    assert step.run(*arguments, True, []) == (True, [])
    (record,) = written.values()
    assert (record["status"], record["placement"]) == ("succeeded", {ZONES[0]: ["pod-1"]})
