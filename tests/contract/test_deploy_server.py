"""ensure_access and deploy_server against a cluster and a bucket: from nothing to ready, and every way it can end.

Against the emulated cloud by default. Against a real GKE cluster: `DEPLOY_SETTINGS=FILE` names a settings file with
project, location, cluster and bucket, and Application Default Credentials may use them; each test takes and leaves a
namespace of its own, and the tests that need the emulator's quotas and images are skipped.
"""

from __future__ import annotations

import base64
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from emulated_cloud.pytest_plugin import HUB_TOKEN

from components.deploy_server import step as deploy_server
from components.ensure_access import step as ensure_access
from components.resolve_model.step import key_version
from serving import names, sizing
from serving.clients import google, kubernetes, storage
from serving.clients.kubernetes import Cluster
from serving.deployment import lease, replicas
from serving.rendering import generation, render
from serving.settings import Settings, override, read_values, validated
from serving.weights.release import Release
from tests.unit.deployment import STALLED

REAL = os.environ.get("DEPLOY_SETTINGS")
emulated = pytest.mark.skipif(bool(REAL), reason="needs the emulator's quotas, images or request log")


class Site:
    """One deployment in a namespace of its own, with the tiny model's weights in the bucket."""

    def __init__(self, values: dict[str, Any], weights: Path):
        self.values, self.weights = values, weights
        self.key = uuid.uuid4().hex[:16]
        self.runs = 0

    def settings(self, *assignments: str) -> Settings:
        return validated(Settings, override(self.values, assignments))

    def release(self, settings: Settings) -> Release:
        """A release of the weights as they lie in the bucket, in a run of its own."""
        self.runs += 1
        nameless = Release(
            run_id=f"{settings.namespace}-run-{self.runs}",
            model=settings.model,
            commit="c" * 40,
            weights_key=self.key,
            weights_uri=f"gs://{settings.bucket}/models/{settings.model}/{self.key}",
            generation="",
            api_key_version=key_version(settings),
            sizing=sizing.unknown(settings.model, settings.wish()),
        )
        return nameless.model_copy(update={"generation": generation.name(settings, nameless)})

    def upload(self, release: Release, change: Callable[[str, bytes], bytes] = lambda name, data: data) -> None:
        for path in sorted(self.weights.iterdir()):
            data = change(path.name, path.read_bytes())
            storage.write_bytes(f"{release.weights_uri}/{path.name}", data, content_type="application/octet-stream")

    def outcome(self, release: Release, step: str) -> dict[str, Any]:
        settings = self.settings()
        found = storage.read_json(f"{settings.pipeline_root}/{release.run_id}/steps/{step}.json")
        assert isinstance(found, dict)
        return found

    def access(self, settings: Settings, release: Release) -> dict[str, Any]:
        ensure_access.run(settings.as_struct(), release.model_dump())
        return self.outcome(release, "ensure_access")

    def deploy(self, settings: Settings, release: Release) -> tuple[bool, list[str], dict[str, Any]]:
        """(passed, reasons, outcome) of both steps."""
        self.access(settings, release)
        passed, reasons = deploy_server.run(settings.as_struct(), release.model_dump(), True, [])
        return passed, reasons, self.outcome(release, "deploy_server")

    def expire_lease(self, cluster: Cluster) -> None:
        """The Lease of a run that has ended, or died, runs out."""
        config = self.settings()
        held = cluster.get("Lease", config.name, config.namespace)
        assert held
        cluster.replace({**held, "spec": {**held["spec"], "renewTime": "2026-01-01T00:00:00.000000Z"}})

    def broken_off(self, settings: Settings, release: Release) -> dict[str, Any]:
        """The outcome of a deploy_server that ends without a verdict."""
        self.access(settings, release)
        with pytest.raises(SystemExit):
            deploy_server.run(settings.as_struct(), release.model_dump(), True, [])
        return self.outcome(release, "deploy_server")


@pytest.fixture
def site(request: pytest.FixtureRequest, tiny_gemma3: Path) -> Iterator[Site]:
    values: dict[str, Any] = {
        "scenario": "gcs-fuse",
        "project": "demo-project",
        "bucket": "demo-bucket",
        "endpoint": "ip",
    }
    if REAL:
        values = read_values(Path(REAL))
    else:
        request.getfixturevalue("cloud_environment")
    values = override(
        values,
        [f"namespace=t{uuid.uuid4().hex[:8]}", "engine.max_model_len=512", "serving.request_timeout=5s"],
    )
    made = Site(values, tiny_gemma3)
    yield made
    cluster = kubernetes.connect(made.settings())
    if namespace := cluster.get("Namespace", made.settings().namespace):
        cluster.delete(namespace)
    for volume in cluster.list("PersistentVolume", labels=names.DEPLOYMENT):
        if volume["spec"]["claimRef"]["namespace"] == made.settings().namespace:
            cluster.delete(volume)


def writes(cloud: Any, since: int) -> list[str]:
    """What changed the cluster since a position in its request log, signs of life of the Lease left out."""
    return [
        f"{entry['method']} {entry['path']}"
        for entry in cloud.requests("apiserver")[since:]
        if entry["method"] in ("POST", "PUT", "PATCH", "DELETE")
        and entry.get("user", "pipeline@demo-project.iam.gserviceaccount.com").startswith("pipeline@")
        and "/leases/" not in entry["path"]
    ]


def test_access_is_given_once_and_found_the_second_time(site: Site):
    settings = site.settings()
    first = site.access(settings, site.release(settings))
    assert first["status"] == "succeeded"
    assert f"Namespace/{settings.namespace}" in first["changed"]
    for binding in ensure_access.bindings(settings):
        assert storage.has_bucket_binding(settings.bucket, binding.role, binding.member)
    cluster = kubernetes.connect(settings)
    namespace = cluster.get("Namespace", settings.namespace)
    assert namespace
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    # The first run died: its Lease is a day old to the second.
    second_release = site.release(settings).model_copy(update={"run_id": f"{settings.namespace}-run-1"})
    second = site.access(settings, second_release)
    assert (second["status"], second["changed"]) == ("skipped", [])


def test_access_check_only_looks_and_prints_the_commands(site: Site):
    settings = site.settings("access=check", f"serving.service_account=s{uuid.uuid4().hex[:8]}")
    release = site.release(settings)
    with pytest.raises(SystemExit):
        ensure_access.run(settings.as_struct(), release.model_dump())
    outcome = site.outcome(release, "ensure_access")
    assert outcome["error"]["type"] == "AccessError"
    assert (
        f"gcloud storage buckets add-iam-policy-binding gs://{settings.bucket} --member=principal://"
        in (outcome["message"])
    )
    viewer = ensure_access.bindings(settings)[0]
    assert not storage.has_bucket_binding(settings.bucket, viewer.role, viewer.member)


def test_a_server_comes_up_and_the_second_time_there_is_nothing_to_do(site: Site, request: pytest.FixtureRequest):
    settings = site.settings()
    release = site.release(settings)
    site.upload(release)
    passed, reasons, outcome = site.deploy(settings, release)
    assert (passed, reasons, outcome["status"]) == (True, [], "succeeded"), outcome
    cluster = kubernetes.connect(settings)
    deployment = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    assert deployment
    assert deployment["status"]["readyReplicas"] == 1
    account = cluster.get("ServiceAccount", "gemma-server", settings.namespace)
    assert account
    assert account["automountServiceAccountToken"] is False
    assert cluster.get("Service", settings.name, settings.namespace) is None, "the stable Service is promote's"

    cloud = None if REAL else request.getfixturevalue("emulated_cloud")
    since = len(cloud.requests("apiserver")) if cloud else 0
    passed, _, outcome = site.deploy(settings, release)
    assert (passed, outcome["status"]) == (True, "skipped")
    if cloud:
        assert writes(cloud, since) == []


def test_replicas_change_in_place(site: Site):
    settings = site.settings()
    release = site.release(settings)
    site.upload(release)
    assert site.deploy(settings, release)[0]
    more = site.settings("serving.replicas=2")
    passed, _, outcome = site.deploy(more, release)
    assert (passed, outcome["status"]) == (True, "succeeded")
    cluster = kubernetes.connect(settings)
    deployment = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    assert deployment
    assert deployment["status"]["readyReplicas"] == 2
    assert len(cluster.list("Deployment", settings.namespace)) == 1


def test_two_steps_of_a_run_renew_the_lease_at_once_and_both_hold_it(site: Site):
    settings = site.settings()
    release = site.release(settings)
    site.access(settings, release)
    both_have_read = threading.Barrier(2)

    def renew() -> int:
        """Returns how often it had to read."""
        cluster = kubernetes.connect(settings)
        get, reads = cluster.get, []

        def read(kind: str, name: str, namespace: str | None = None) -> Any:
            found = get(kind, name, namespace)
            reads.append(name)
            if len(reads) == 1:
                both_have_read.wait(timeout=60)
            return found

        cluster.get = read  # type: ignore[method-assign]
        lease.renew(cluster, settings, release.run_id)
        return len(reads)

    with ThreadPoolExecutor(2) as pool:
        assert sorted(future.result() for future in [pool.submit(renew), pool.submit(renew)]) == [1, 2]


def test_weights_that_do_not_fit_their_config_are_a_verdict_in_the_engines_words(site: Site):
    settings = site.settings()
    release = site.release(settings)

    def another_shape(name: str, data: bytes) -> bytes:
        return data.replace(b'"intermediate_size": ', b'"intermediate_size": 1') if name == "config.json" else data

    site.upload(release, another_shape)
    passed, reasons, outcome = site.deploy(settings, release)
    assert not passed
    assert outcome["status"] == "failed"
    assert outcome["error"]["type"] == "ReleaseError"
    assert "torch.Size" in reasons[0]
    assert "Error: " in reasons[0]
    assert "Engine core initialization failed" not in reasons[0]
    assert outcome["log"]


def test_a_release_that_has_failed_already_is_not_deployed(site: Site):
    settings = site.settings()
    release = site.release(settings)
    verdict = deploy_server.run(settings.as_struct(), release.model_dump(), False, ["a shard is missing"])
    assert verdict == (False, ["a shard is missing"])
    assert site.outcome(release, "deploy_server")["status"] == "skipped"
    cluster = kubernetes.connect(settings)
    assert cluster.list("Deployment", settings.namespace) == []


def test_an_image_that_does_not_exist_ends_at_once(site: Site):
    settings = site.settings("engine.image=acme/no-such-server:v1.0.0")
    release = site.release(settings)
    site.upload(release)
    outcome = site.broken_off(settings, release)
    assert outcome["error"]["type"] == "RequestError"
    assert "the image acme/no-such-server:v1.0.0 does not exist" in outcome["message"]


@emulated
def test_a_card_that_is_not_to_be_had_ends_without_a_verdict_in_the_autoscalers_words(site: Site):
    settings = site.settings(
        "accelerator.type=nvidia-h200-141gb", "accelerator.count=8", "serving.capacity_timeout=15s"
    )
    release = site.release(settings)
    site.upload(release)
    outcome = site.broken_off(settings, release)
    assert outcome["status"] == "inconclusive"
    assert "no capacity for" in outcome["message"]
    assert "pod didn't trigger scale-up" in outcome["message"]


def test_another_deployments_generation_is_left_alone(site: Site):
    settings = site.settings()
    release = site.release(settings)
    site.upload(release)
    assert site.deploy(settings, release)[0]
    other = site.settings("name=other")
    outcome = site.broken_off(other, release.model_copy(update={"run_id": f"{settings.namespace}-other"}))
    assert outcome["error"]["type"] == "RequestError"
    assert "the deployment gemma in namespace" in outcome["message"]


def test_a_deployment_without_the_lease_changes_nothing(site: Site):
    settings = site.settings()
    release = site.release(settings)
    site.access(settings, release)
    thief = release.model_copy(update={"run_id": "somebody-else"})
    with pytest.raises(SystemExit):
        deploy_server.run(settings.as_struct(), thief.model_dump(), True, [])
    assert "lost the Lease" in site.outcome(thief, "deploy_server")["message"]
    assert kubernetes.connect(settings).list("Deployment", settings.namespace) == []


@emulated
def test_the_servers_key_reaches_the_pod_and_nobody_else(site: Site):
    # The emulated Secret Manager has one secret, whose value is as good as any other.
    settings = site.settings("engine.api_key_secret=projects/demo-project/secrets/hf-token/versions/latest")
    release = site.release(settings)
    site.upload(release)
    passed, _, _ = site.deploy(settings, release)
    assert passed
    cluster = kubernetes.connect(settings)
    secret = cluster.get("Secret", names.api_key(settings), settings.namespace)
    assert secret
    assert base64.b64decode(secret["data"][names.API_KEY]).decode() == HUB_TOKEN
    shown = [*cluster.list("Deployment", settings.namespace), *cluster.list("Pod", settings.namespace)]
    assert HUB_TOKEN not in str([*shown, *cluster.list("Event", settings.namespace)])


@emulated
def test_a_rotated_key_reaches_running_pods_in_place(site: Site, monkeypatch: pytest.MonkeyPatch):
    settings = site.settings("engine.api_key_secret=projects/demo-project/secrets/hf-token/versions/latest")
    release = site.release(settings)
    site.upload(release)
    assert site.deploy(settings, release)[0]
    cluster = kubernetes.connect(settings)
    (before,) = cluster.list("Pod", settings.namespace, labels=names.selector(settings))

    # The emulated Secret Manager has one version of it.
    second = release.api_key_version.rpartition("/")[0] + "/2"
    monkeypatch.setattr(google, "secret", {second: "rotated"}.__getitem__)
    rotated = release.model_copy(update={"api_key_version": second})
    passed, _, outcome = site.deploy(settings, rotated)
    assert (passed, outcome["status"]) == (True, "succeeded")
    pods = cluster.list("Pod", settings.namespace, labels=names.selector(settings))
    new = [pod for pod in pods if pod["metadata"]["uid"] != before["metadata"]["uid"]]
    assert [pod["metadata"]["annotations"][names.KEY_VERSION] for pod in new] == [second]
    secret = cluster.get("Secret", names.api_key(settings), settings.namespace)
    assert secret
    assert base64.b64decode(secret["data"][names.API_KEY]) == b"rotated"
    assert site.deploy(settings, rotated)[2]["status"] == "skipped"


@emulated
def test_an_update_in_place_without_a_node_is_not_done_although_the_old_pod_serves(site: Site):
    settings = site.settings()
    release = site.release(settings)
    site.upload(release)
    assert site.deploy(settings, release)[0]

    nowhere = "patches=[{kind: Deployment, spec: {template: {spec: {nodeSelector: {nowhere: here}}}}}]"
    changed = site.settings(nowhere, "serving.capacity_timeout=10s")
    assert generation.name(changed, release) == release.generation
    assert site.broken_off(changed, release)["status"] == "inconclusive"
    cluster = kubernetes.connect(settings)
    there = cluster.get("Deployment", names.server(release.generation), settings.namespace)
    assert there
    assert {key: there["status"][key] for key in STALLED} == STALLED
    assert not replicas.rolled_out(there)
    assert there["metadata"]["annotations"][names.SETTINGS] == render.render(changed, release).digest
