"""Pods that stream their weights: what their init container brings and refuses, and an emulated cluster in which such
pods come up, with no hub, or do not, because the bucket is not what the manifest says."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud.cloud import Cloud

from components.deploy_server.bringing import _place
from serving import names
from serving.clients import kubernetes, storage
from serving.deployment import replicas
from serving.errors import InconclusiveError, RequestError
from serving.features import streamed
from serving.weights import manifest
from serving.weights.release import Release
from tests.contract.test_deploy_server import Site as ClusterSite
from tests.contract.test_hydrate_jobs import ADAPTER, CONTENT, SHARD, SIZES, put
from tests.contract.transfer_site import Site, _site, site
from tests.unit.deployment import RELEASE, quick

__all__ = ["_site", "site"]

STREAMED = {path for path in SIZES if "/" not in path and path.endswith(".safetensors")}
BROUGHT = SIZES.keys() - STREAMED


@pytest.fixture
def weights_uri(site: Site, tmp_path: Path) -> str:
    """Complete weights in the bucket."""
    return put(f"gs://demo-bucket/models/test/{tmp_path.name}/0123456789abcdef", CONTENT)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


def run(site: Site, weights_uri: str, folder: Path, **plan: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the init container's program."""
    text = json.dumps({"weights_uri": weights_uri, "folder": str(folder), "patience_seconds": 10, **plan})
    command = [sys.executable, "-m", "components.deploy_server", "bring", text]
    ended = subprocess.run(command, capture_output=True, text=True, env=site.environment, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


def in_folder(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# -- the init container -------------------------------------------------------------------------------------


def test_all_but_the_base_weights_is_brought_and_those_are_not_read(site: Site, weights_uri: str, folder: Path):
    before = len(site.requests("storage"))
    code, out, err = run(site, weights_uri, folder)
    assert (code, err) == (0, "")
    result = json.loads(out.splitlines()[-1])
    assert result.pop("seconds") >= 0
    assert result == {
        "files": len(BROUGHT),
        "bytes": sum(SIZES[path] for path in BROUGHT),
        "streamed_files": len(STREAMED),
        "streamed_bytes": sum(SIZES[path] for path in STREAMED),
    }
    assert in_folder(folder) == {path: CONTENT[path] for path in BROUGHT}
    asked = [entry["path"] for entry in site.requests("storage")[before:] if "alt=media" in entry["path"]]
    assert not [path for path in asked if "model-0000" in path], "the engine streams them"


def test_what_an_attempt_that_was_killed_left_is_brought_again(site: Site, weights_uri: str, folder: Path):
    (folder / "config.json").write_bytes(b"half of")
    (folder / "empty.txt.part").write_bytes(b"part")
    assert run(site, weights_uri, folder)[0] == 0
    assert in_folder(folder) == {path: CONTENT[path] for path in BROUGHT}


def test_bytes_that_change_on_the_way_are_asked_for_again(site: Site, weights_uri: str, folder: Path):
    fault = {"action": "corrupt", "method": "GET", "path": r"adapter_model\.safetensors.*alt=media", "times": 2}
    site.script("storage", fault)
    assert run(site, weights_uri, folder)[0] == 0
    assert site.consumed("storage") == [2]
    assert in_folder(folder)[ADAPTER] == CONTENT[ADAPTER]


def test_bytes_that_stay_others_end_it(site: Site, weights_uri: str, folder: Path):
    fault = {"action": "corrupt", "method": "GET", "path": r"adapter_model\.safetensors.*alt=media", "times": 3}
    site.script("storage", fault)
    code, _, err = run(site, weights_uri, folder)
    assert code == 1
    assert site.consumed("storage") == [3]
    assert f"{ADAPTER} arrived with other bytes 3 times: sha256" in err
    assert ADAPTER not in in_folder(folder)


def _rewritten(weights_uri: str) -> None:
    storage.write_bytes(f"{weights_uri}/{SHARD}", CONTENT[SHARD], content_type="application/octet-stream")


def _damaged(weights_uri: str) -> None:
    data = bytearray(CONTENT[SHARD])
    data[-1] ^= 1
    storage.write_bytes(f"{weights_uri}/{SHARD}", bytes(data), content_type="application/octet-stream")


def _shorter(weights_uri: str) -> None:
    storage.write_bytes(f"{weights_uri}/{SHARD}", CONTENT[SHARD][:-1], content_type="application/octet-stream")


def _gone(weights_uri: str) -> None:
    storage.delete(f"{weights_uri}/{SHARD}")


def _stray(weights_uri: str) -> None:
    storage.write_bytes(f"{weights_uri}/model-00003.safetensors", b"x", content_type="application/octet-stream")


CHANGES = {
    f"{SHARD} was written again": _rewritten,
    f"{SHARD} has other content": _damaged,
    f"{SHARD} has {SIZES[SHARD] - 1} bytes instead of {SIZES[SHARD]}": _shorter,
    f"{SHARD} is missing": _gone,
    "model-00003.safetensors is not in the manifest": _stray,
}
"""Words → what somebody did to the weights. None of it would the streamer see."""


@pytest.mark.parametrize("words", CHANGES)
def test_weights_that_are_not_the_manifests_are_refused_before_the_engine_starts(
    site: Site, weights_uri: str, folder: Path, words: str
):
    CHANGES[words](weights_uri)
    code, _, err = run(site, weights_uri, folder)
    assert code == 1
    assert f"{weights_uri} is not what its manifest says: {words}" in err
    assert "Run again: download_weights brings back" in err
    assert in_folder(folder) == {}


@pytest.mark.parametrize("words", CHANGES)
def test_what_changed_while_pods_streamed_is_found_when_they_are_ready(site: Site, weights_uri: str, words: str):
    release = RELEASE.model_copy(update={"weights_uri": weights_uri})
    streamed.arrived(quick(), release)
    CHANGES[words](weights_uri)
    with pytest.raises(InconclusiveError, match="was changed while pods streamed it") as raised:
        streamed.arrived(quick(), release)
    assert words in str(raised.value)
    storage.delete(manifest.uri(weights_uri))
    with pytest.raises(InconclusiveError, match=r"_MANIFEST.json was deleted while the weights were streamed"):
        streamed.arrived(quick(), release)


@pytest.mark.parametrize(
    ("path", "permission"), [(r"/b/demo-bucket\?", "storage.buckets.get"), (r"/o\?", "storage.objects.list")]
)
def test_a_bucket_that_is_not_open_yet_is_waited_for(
    site: Site, weights_uri: str, folder: Path, path: str, permission: str
):
    body = json.dumps({"error": {"code": 403, "message": f"the pod does not have {permission} access"}})
    fault = {"action": "status", "status": 403, "method": "GET", "path": path, "body": body}
    site.script("storage", {**fault, "times": 2})
    assert run(site, weights_uri, folder)[0] == 0
    assert site.consumed("storage") == [2]
    site.script("storage", {**fault, "times": 1000})
    code, _, err = run(site, weights_uri, folder, patience_seconds=0.5)
    assert code == 1
    assert site.consumed("storage")[0] >= 1
    assert f"does not have {permission} access" in err
    site.script("storage")


def test_a_bucket_or_weights_that_are_not_there_are_named(site: Site, weights_uri: str, folder: Path):
    code, _, err = run(site, f"{weights_uri[:-1]}0", folder)
    assert (code, "there is no _MANIFEST.json" in err) == (1, True)
    code, _, err = run(site, weights_uri.replace("demo-bucket", "other-bucket"), folder)
    assert (code, "gs://other-bucket does not exist" in err) == (1, True)


def test_weights_without_safetensors_cannot_be_streamed(site: Site, tmp_path: Path, folder: Path):
    only = put(f"gs://demo-bucket/models/test/{tmp_path.name}-x/0123456789abcdef", {"config.json": b"{}"})
    code, _, err = run(site, only, folder)
    assert (code, "has no safetensors to stream" in err) == (1, True)


@pytest.mark.parametrize("path", ["../out", "/etc/x", "a//b", "config.json.part"])
def test_a_manifest_cannot_write_elsewhere(tmp_path: Path, path: str):
    with pytest.raises(RequestError, match="is no file of weights"):
        _place(tmp_path, path)


# -- a cluster ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pods:
    """A streamed deployment in a namespace of its own, its weights in the bucket with their manifest."""

    site: ClusterSite
    cloud: Cloud

    def release(self) -> Release:
        return self.site.release(self.site.settings())

    def upload(self, release: Release) -> None:
        put(release.weights_uri, {path.name: path.read_bytes() for path in sorted(self.site.weights.iterdir())})

    def script(self, emulator: str, *faults: dict[str, Any]) -> None:
        requests.post(f"{self.cloud.url(emulator)}/_emulator/faults", json=list(faults), timeout=60).raise_for_status()

    def consumed(self, emulator: str) -> list[int]:
        found = requests.get(f"{self.cloud.url(emulator)}/_emulator/faults", timeout=60).json()
        return [fault["consumed"] for fault in found]


@pytest.fixture
def pods(emulated_cloud: Cloud, cloud_environment: dict[str, str], tiny_gemma3: Path) -> Iterator[Pods]:
    values = {
        "scenario": "gcs-fuse",
        "features": ["streamed"],
        "project": "demo-project",
        "bucket": "demo-bucket",
        "endpoint": "ip",
        "namespace": f"t{uuid.uuid4().hex[:8]}",
        "patience": "5s",
        "engine": {"max_model_len": 512},
        "serving": {"request_timeout": "5s"},
        "images": {"components": "python:3.11"},
    }
    made = ClusterSite(values, tiny_gemma3)
    yield Pods(made, emulated_cloud)
    cluster = kubernetes.connect(made.settings())
    if namespace := cluster.get("Namespace", made.settings().namespace):
        cluster.delete(namespace)


def test_pods_come_up_and_more_of_them_while_the_hub_is_down(pods: Pods):
    settings, release = pods.site.settings(), pods.release()
    pods.upload(release)
    since = len(pods.cloud.requests("storage"))
    passed, reasons, outcome = pods.site.deploy(settings, release)
    assert (passed, reasons, outcome["status"]) == (True, [], "succeeded"), outcome
    cluster = kubernetes.connect(settings)
    assert cluster.list("PersistentVolumeClaim", settings.namespace) == []
    agents = [
        entry["user_agent"]
        for entry in pods.cloud.requests("storage")[since:]
        if f"{release.weights_key}%2Fmodel-0000" in entry["path"] and "alt=media" in entry["path"]
    ]
    assert agents, "the engine has streamed its weights"

    hub = {"action": "reset", "path": ".*", "times": 1_000_000}
    pods.script("hub", hub)
    try:
        replicas.scale(cluster, settings, release.generation, 2)
        more = pods.site.settings("serving.replicas=2")
        passed, _, outcome = pods.site.deploy(more, release)
        assert (passed, outcome["status"]) == (True, "succeeded"), outcome
        assert pods.consumed("hub") == [0], "no pod has asked the hub for anything"
        with pytest.raises(requests.RequestException):
            requests.get(f"{pods.cloud.url('hub')}/api/models/google/gemma-3-4b-it", timeout=60)
        assert pods.consumed("hub") == [1]
    finally:
        pods.script("hub")
    deployment = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    assert deployment
    assert deployment["status"]["readyReplicas"] == 2


def test_a_damaged_object_stops_the_pod_and_accuses_nobody(pods: Pods):
    settings, release = pods.site.settings(), pods.release()
    pods.upload(release)
    uri = f"{release.weights_uri}/model-00002-of-00002.safetensors"
    data = bytearray(storage.read_bytes(uri) or b"")
    data[-1] ^= 1
    storage.write_bytes(uri, bytes(data), content_type="application/octet-stream")
    outcome = pods.site.broken_off(settings, release)
    assert outcome["status"] == "inconclusive"
    assert "container weights of" in outcome["message"]
    assert "model-00002-of-00002.safetensors has other content: crc32c" in outcome["message"]


def test_an_object_that_is_refused_in_mid_stream_accuses_nobody(pods: Pods):
    settings, release = pods.site.settings(), pods.release()
    pods.upload(release)
    path = f"{release.weights_key}%2Fmodel-00001-of-00002.safetensors.*alt=media"
    pods.script("storage", {"action": "status", "status": 403, "method": "GET", "path": path, "times": 1000})
    try:
        outcome = pods.site.broken_off(settings, release)
        assert pods.consumed("storage")[0] >= 1
    finally:
        pods.script("storage")
    assert outcome["status"] == "inconclusive"
    assert "could not stream its weights" in outcome["message"]
    assert "libstreamer due to: b'File access error'" in outcome["message"]


def test_a_bucket_that_the_streamer_may_not_look_at_is_a_matter_of_access(pods: Pods):
    settings, release = pods.site.settings(), pods.release()
    pods.upload(release)
    body = json.dumps({"error": {"code": 403, "message": "the pod does not have storage.buckets.get access"}})
    fault = {"action": "status", "status": 403, "method": "GET", "path": r"/b/demo-bucket\?", "body": body}
    pods.script("storage", {**fault, "times": 1000})
    try:
        outcome = pods.site.broken_off(settings, release)
        assert pods.consumed("storage")[0] >= 1
    finally:
        pods.script("storage")
    assert outcome["error"]["type"] == "AccessError"
    assert "roles/storage.bucketViewer" in outcome["message"]
