"""verify_image_cache: what nodes said, what it means, and what it does not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from components.verify_image_cache import step
from components.verify_image_cache.step import Cached
from serving import names
from serving.clients import logging, registry, storage
from serving.errors import InconclusiveError
from serving.outcome import Outcome
from tests.unit.cluster import MemoryCluster
from tests.unit.test_secondary_boot_disk import BAKED, DIGEST, IMAGE, image, settings

REFERENCE = f"docker.io/vllm/vllm-openai@{DIGEST}"


def entry(node: str, disk: int, layers: int = 27, at: str = "2026-11-29T09:00:00Z", **changes: Any) -> dict[str, Any]:
    share, streamed = 100 * disk / layers, layers - disk
    return {
        "timestamp": at,
        "resource": {"type": "k8s_node", "labels": {"node_name": node, "cluster_name": "gemma"}},
        "jsonPayload": {
            "MESSAGE": f"Image {REFERENCE} is backed by secondary boot disk caching by {share:.1f}% ({disk}/{layers} "
            f"layers), by image streaming by {100 - share:.1f}% ({streamed}/{layers} layers)."
        },
        **changes,
    }


def pod(node: str | None, name: str = "vllm-1") -> dict[str, Any]:
    meta = {
        "name": name,
        "namespace": "gemma",
        "uid": f"uid-{name}",
        "labels": {names.DEPLOYMENT: "gemma", names.GENERATION: BAKED.generation},
    }
    return {"kind": "Pod", "metadata": meta, "spec": {"nodeName": node} if node else {}, "status": {}}


def pulled(of: str, image: str = REFERENCE, took: str = "13.3s") -> dict[str, Any]:
    return {
        "kind": "Event",
        "metadata": {"name": f"{of}.1", "namespace": "gemma"},
        "involvedObject": {"kind": "Pod", "name": of, "uid": f"uid-{of}"},
        "reason": "Pulled",
        "message": f'Successfully pulled image "{image}" in {took} ({took} including waiting). Image size: 8730576300 '
        "bytes.",
    }


class Logs:
    """Cloud Logging: its answers in turn, the last for ever."""

    def __init__(self, *answers: list[dict[str, Any]]):
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    def entries(self, project: str, condition: str) -> list[dict[str, Any]]:
        self.asked.append((project, condition))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Any:
    def given(*answers: list[dict[str, Any]]) -> Logs:
        made = Logs(*answers)
        monkeypatch.setattr(logging, "entries", made.entries)
        return made

    return given


@pytest.fixture
def baked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was noted when the disk image was baked."""
    noted: dict[str, Any] = {"chain_ids": list(image("vllm").chain_ids)}
    monkeypatch.setattr(storage, "read_json", lambda uri: noted if uri.endswith(f"disk-images/{IMAGE}.json") else None)
    monkeypatch.setattr(registry, "resolve", lambda name, platform: image("vllm"))
    return noted


def verify(cluster: MemoryCluster, config: Any = None, release: Any = BAKED) -> tuple[list[str], Outcome]:
    outcome = Outcome("verify_image_cache", "run-1")
    config = config or settings(verify_timeout="0.05s")
    return step.verify(cluster, config, release, outcome, pause=0.01), outcome  # type: ignore[arg-type]


def test_nodes_that_found_all_of_it_pass_and_the_pull_is_told(logs):
    made = logs([entry("node-1", 27)])
    reasons, outcome = verify(MemoryCluster(pod("node-1"), pulled("vllm-1")))
    assert reasons == []
    assert outcome.message == "1 node found 27 of 27 layers on their disk; pulled in 13.3s"
    assert outcome.details["pulls"] == {"node-1": "13.3s"}
    assert outcome.details["nodes"][0]["disk"] == 27
    ((project, condition),) = made.asked
    assert project == "demo-project"
    assert condition.startswith('logName="projects/demo-project/logs/gcfs-snapshotter" AND ')
    assert f'jsonPayload.MESSAGE:"{DIGEST}"' in condition
    assert 'AND timestamp>="' in condition


def test_below_the_threshold_the_verdict_is_no_and_names_node_figures_and_cure(logs, baked):
    logs([entry("node-1", 25), entry("node-2", 27)])
    reasons, _ = verify(MemoryCluster(pod("node-1", "a"), pod("node-2", "b")))
    assert reasons[0] == (
        "node-1 found 25 of 27 layers of the engine's image on its disk: 92.6%, below secondary_boot_disk.threshold "
        "(100%)"
    )
    assert f"{IMAGE} has all 1 layers, so the node did not read them" in reasons[1]
    assert len(reasons) == 2


def test_layers_that_the_disk_image_lacks_are_named(logs, baked):
    missing = baked["chain_ids"].pop()
    logs([entry("node-1", 0)])
    reasons, _ = verify(MemoryCluster(pod("node-1")))
    assert f"the disk image {IMAGE} lacks the layers {missing}" in reasons[1]
    assert f"gcloud compute images delete {IMAGE}" in reasons[1]


def test_without_a_note_of_what_was_baked_the_verdict_stays(logs, monkeypatch):
    monkeypatch.setattr(storage, "read_json", lambda uri: None)
    logs([entry("node-1", 0)])
    reasons, _ = verify(MemoryCluster(pod("node-1")))
    assert "is not known" in reasons[1]


def test_the_threshold_is_a_setting(logs):
    logs([entry("node-1", 25)])
    assert verify(MemoryCluster(pod("node-1")), settings(threshold=90.0))[0] == []


def test_the_newest_word_of_a_node_counts_and_another_node_s_does_not(logs, baked):
    logs([entry("elsewhere", 0), entry("node-1", 27), entry("node-1", 0, at="2026-11-01T09:00:00Z")])
    assert verify(MemoryCluster(pod("node-1")))[0] == []


def test_a_line_comes_late_and_is_waited_for(logs):
    made = logs([], [], [entry("node-1", 27)])
    assert verify(MemoryCluster(pod("node-1")), settings(verify_timeout="10s"))[0] == []
    assert len(made.asked) == 3


def test_a_node_that_says_nothing_proves_nothing(logs):
    logs([entry("node-2", 27)])
    with pytest.raises(InconclusiveError) as silence:
        verify(MemoryCluster(pod("node-1", "a"), pod("node-2", "b"), pulled("a", took="6m13s")))
    message = str(silence.value)
    assert message.startswith(
        "node-1 said nothing of the engine's image (sha256:dddddddddddd…) in Cloud Logging within"
    )
    assert "(node-1 pulled it in 6m13s)" in message
    assert "gcloud logging read" in message


def test_a_generation_in_service_is_not_waited_for(logs):
    made = logs([])
    live = BAKED.model_copy(update={"live": BAKED.generation})
    reasons, outcome = verify(MemoryCluster(pod("node-1")), settings(verify_timeout="10s"), live)
    assert reasons == []
    assert "said nothing" in outcome.message
    assert len(made.asked) == 1


def test_pods_without_a_node_prove_nothing(logs):
    logs([])
    with pytest.raises(InconclusiveError, match=r"no pod of .* has a node"):
        verify(MemoryCluster(pod(None)))


def test_streamed_layers_count_where_streaming_is_what_is_asked_for(logs):
    logs([entry("node-1", 0)])
    streaming = settings(image="streaming", verify_timeout="0.05s")
    release = BAKED.model_copy(update={"disk_image": ""})
    assert verify(MemoryCluster(pod("node-1")), streaming, release)[0] == []
    logs([])
    reasons, outcome = verify(MemoryCluster(pod("node-1"), pulled("vllm-1")), streaming, release)
    assert reasons == []
    assert outcome.message == "1 node said nothing in Cloud Logging; pulled in 13.3s"


@pytest.mark.parametrize(
    "changes",
    [
        {"jsonPayload": {"MESSAGE": "gcfs-snapshotter starts"}},
        {"jsonPayload": {}},
        {"textPayload": "Image x", "jsonPayload": None},
        {"resource": {}},
    ],
)
def test_other_entries_say_nothing(changes: dict[str, Any]):
    assert step.line_of(entry("node-1", 27, **changes)) is None


def test_a_node_is_known_by_its_host_name_too():
    plain = entry("node-1", 27)["jsonPayload"]
    found = step.line_of(entry("", 27, resource={}, jsonPayload={**plain, "_HOSTNAME": "node-1.c.demo.internal"}))
    assert found == Cached("node-1", 27, 27, 0, "2026-11-29T09:00:00Z")


def test_pulls_of_other_images_and_of_other_pods_are_not_told():
    pods = [pod("node-1", "a")]
    others = [pulled("a", image="example.com/sidecar:1"), pulled("b"), {**pulled("a"), "reason": "Pulling"}]
    assert step.pulls_of(others, pods, DIGEST) == {}
    assert step.pulls_of([pulled("a")], pods, DIGEST) == {"node-1": "13.3s"}


def test_google_s_own_line_is_read():
    """As https://cloud.google.com/kubernetes-engine/docs/how-to/data-container-image-preloading shows it."""
    words = (
        "Image vllm/vllm-openai:v0.10.0 is backed by secondary boot disk caching by 100.0% (27/27 layers), by image "
        "streaming by 0.0% (0/27 layers)."
    )
    found = step.line_of({"resource": {"labels": {"node_name": "n"}}, "jsonPayload": {"MESSAGE": words}})
    assert found
    assert (found.layers, found.disk, found.streamed, re.sub("0", "", found.said_at)) == (27, 27, 0, "")
