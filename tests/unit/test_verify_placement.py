"""Where a generation serves, and from which disks."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from components.verify_placement import accelerators, step, zones
from serving import names
from serving.errors import InconclusiveError
from serving.settings import Settings, validated
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment

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
    return zones.verify(MemoryCluster(*objects), SETTINGS, RELEASE)  # type: ignore[arg-type]


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


# -- which accelerators come --------------------------------------------------------------------------------

EITHER = validated(
    Settings,
    {
        "scenario": "fungibility",
        "project": "demo-project",
        "bucket": "demo-bucket",
        "serving": {"capacity_timeout": "2s", "ready_timeout": "2s"},
    },
)
L4 = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
SPOT = {**L4, "cloud.google.com/gke-spot": "true"}
V6E = {"cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice"}
WORDS = "0/4 nodes are available: 4 node(s) didn't match pod anti-affinity rules."


def on(number: int, labels: dict[str, str] | None) -> list[Object]:
    """A ready pod on a node with these labels; None: one that has no node, and the scheduler's words."""
    made, node, _ = pod(number, ZONES[0])
    if labels is None:
        made["spec"] = {}
        made["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "message": WORDS}]}
        return [made]
    node["metadata"]["labels"] |= labels
    return [made, node]


class Scaled(MemoryCluster):
    """A cluster in which these pods come when as many are asked for; `asked` is every number that was."""

    def __init__(self, *come: list[Object]):
        super().__init__(deployment(RELEASE.generation), *come[0])
        self._come, self.asked = come, [1]

    def patch(self, kind: str, name: str, namespace: str | None, body: Object, *, subresource: str = "") -> Object:
        assert (kind, subresource) == ("Deployment", "scale")
        self.asked.append(body["spec"]["replicas"])
        for items in self._come[1 : self.asked[-1]]:
            for item in items:
                self._store(item)
        return super().patch(kind, name, namespace, body, subresource=subresource)


def came(cluster: MemoryCluster, settings: Settings = EITHER) -> tuple[dict[str, list[str]], list[str]]:
    return accelerators.verify(cluster, settings, RELEASE, lambda line: None)  # type: ignore[arg-type]


def test_three_are_asked_for_told_apart_and_given_back():
    cluster = Scaled(on(1, SPOT), on(2, L4), on(3, V6E))
    placement, waiting = came(cluster)
    assert placement == {"nvidia-l4": ["pod-2"], "nvidia-l4 (spot)": ["pod-1"], "tpu-v6e-slice": ["pod-3"]}
    assert accelerators.in_words(placement) == "1 on nvidia-l4, 1 on nvidia-l4 (spot), 1 on tpu-v6e-slice"
    assert (waiting, cluster.asked) == ([], [1, 3, 1])


def test_what_does_not_come_is_told_in_the_schedulers_words_and_is_no_verdict():
    cluster = Scaled(on(1, V6E), on(2, None), on(3, None))
    placement, waiting = came(cluster)
    assert placement == {"tpu-v6e-slice": ["pod-1"]}
    assert waiting == [f"pod-{number} got no node: {WORDS}" for number in (2, 3)]
    assert cluster.asked == [1, 3, 1]


def test_who_has_as_many_already_is_asked_for_no_more():
    changes = {"serving": EITHER.serving.model_copy(update={"replicas": 3})}
    cluster = Scaled(on(1, SPOT))
    assert came(cluster, EITHER.model_copy(update=changes)) == ({"nvidia-l4 (spot)": ["pod-1"]}, [])
    assert cluster.asked == [1]


def test_pods_are_given_back_though_the_looking_fails():
    cluster = Scaled(on(1, L4)[:1])
    with pytest.raises(InconclusiveError, match="the node node-1 under pod-1 is not there any more"):
        came(cluster)
    assert cluster.asked == [1, 3, 1]


def test_no_ready_pod_is_no_verdict():
    with pytest.raises(InconclusiveError, match="no pod of g2 is ready"):
        came(Scaled(on(1, None)))
