"""Access is given once, found afterwards, and with `access: check` only looked for; commands are ready to be pasted."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from components.ensure_access import step
from serving import names
from serving.clients import google, storage
from serving.errors import AccessError, RequestError
from serving.features import gcs_fuse
from serving.rendering import render
from serving.settings import Settings
from tests.unit.cluster import MemoryCluster
from tests.unit.deployment import RELEASE, deployment, quick, service

POOL = "principal://iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/demo-project.svc.id.goog"


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> set[tuple[str, str]]:
    """The bucket's bindings, (role, member), behind the functions of clients.storage; and a project that is known.
    (What is remembered of them: tests/contract/test_bindings.py.)"""
    given: set[tuple[str, str]] = set()
    monkeypatch.setattr(storage, "read_json", lambda uri: None)
    monkeypatch.setattr(storage, "read_json_with_generation", lambda uri: (None, 0))
    monkeypatch.setattr(storage, "write_json", lambda uri, value, **_: 1)
    monkeypatch.setattr(storage, "delete", lambda uri, *_: True)

    def ensure(bucket: str, role: str, member: str) -> bool:
        changed = (role, member) not in given
        given.add((role, member))
        return changed

    monkeypatch.setattr(storage, "ensure_bucket_binding", ensure)
    monkeypatch.setattr(storage, "has_bucket_binding", lambda bucket, role, member: (role, member) in given)
    monkeypatch.setattr(google, "project_number", lambda project: "123")
    address = google.ClusterAddress("https://x", None, "demo-project.svc.id.goog", "1.35.1")
    monkeypatch.setattr(google, "cluster_address", lambda *where: address)
    return given


def members(settings: Settings) -> dict[str, str]:
    return {binding.role: binding.member for binding in step.bindings(settings)}


def test_the_serving_pods_may_read_the_bucket_and_the_profiles_controller_may_look_at_it(policy: Any):
    assert members(quick()) == {
        "roles/storage.objectViewer": f"{POOL}/subject/ns/gemma/sa/gemma-server",
        "projects/demo-project/roles/gke.gcsfuse.profileUser": (
            f"{POOL}/subject/ns/gcs-fuse-csi-driver/sa/gcs-fuse-csi-controller-sa"
        ),
    }


def test_without_the_profile_only_the_pods_need_a_role(policy: Any):
    assert members(quick(gcs_fuse={"profile": "manual"})) == {
        "roles/storage.objectViewer": f"{POOL}/subject/ns/gemma/sa/gemma-server"
    }


def test_bindings_are_given_once_and_told(policy: set[tuple[str, str]]):
    settings, said = quick(), []
    first = step.ensure_bindings(settings, step.bindings(settings), said.append)
    assert len(first) == len(policy) == len(said) == 2
    assert "to ns/gemma/sa/gemma-server" in said[0]
    assert step.ensure_bindings(settings, step.bindings(settings), said.append) == []
    assert len(said) == 2


def test_access_check_names_what_is_missing_as_commands_and_gives_nothing(policy: set[tuple[str, str]]):
    settings = quick(access="check")
    wanted = step.bindings(settings)
    with pytest.raises(AccessError) as caught:
        step.ensure_bindings(settings, wanted, print)
    assert policy == set()
    commands = [line for line in str(caught.value).splitlines() if line.startswith("gcloud ")]
    assert commands == [
        f"gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member={wanted[0].member} "
        "--role=roles/storage.objectViewer",
        "gcloud iam roles create gke.gcsfuse.profileUser --project=demo-project "
        f"--permissions={gcs_fuse.PROFILE_PERMISSIONS}",
        f"gcloud storage buckets add-iam-policy-binding gs://demo-bucket --member={wanted[1].member} "
        "--role=projects/demo-project/roles/gke.gcsfuse.profileUser",
    ]
    policy.update((binding.role, binding.member) for binding in wanted)
    assert step.ensure_bindings(settings, wanted, print) == []


def test_a_project_without_the_profiles_role_is_told_how_to_make_it(policy: Any, monkeypatch: pytest.MonkeyPatch):
    def refuse(bucket: str, role: str, member: str) -> bool:
        if role.startswith("projects/"):
            raise RequestError(f"gs://{bucket}: GCS refused the request: Role {role} is not supported")
        return False

    monkeypatch.setattr(storage, "ensure_bucket_binding", refuse)
    settings = quick()
    with pytest.raises(RequestError, match=r"gcloud iam roles create gke\.gcsfuse\.profileUser"):
        step.ensure_bindings(settings, step.bindings(settings), print)


def test_a_role_that_the_pipeline_may_not_give_stays_an_access_error(policy: Any, monkeypatch: pytest.MonkeyPatch):
    def forbid(*_: str) -> bool:
        raise AccessError("no storage.buckets.setIamPolicy")

    monkeypatch.setattr(storage, "ensure_bucket_binding", forbid)
    with pytest.raises(AccessError, match="setIamPolicy"):
        step.ensure_bindings(quick(), step.bindings(quick()), print)


# -- in the cluster -----------------------------------------------------------------------------------------


def test_the_namespace_is_made_restricted_and_an_existing_one_stays_as_it_is():
    settings, cluster = quick(), MemoryCluster()
    namespace = render.namespace(settings)
    assert step.ensure_namespace(cluster, namespace, settings) == ["Namespace/gemma"]  # type: ignore[arg-type]
    made = cluster.get("Namespace", "gemma")
    assert made
    assert made["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"

    theirs = MemoryCluster({"kind": "Namespace", "metadata": {"name": "gemma", "labels": {"owner": "them"}}})
    assert step.ensure_namespace(theirs, namespace, settings) == []  # type: ignore[arg-type]
    assert theirs.calls == []


def test_a_namespace_that_is_being_deleted_is_told():
    gone = {"kind": "Namespace", "metadata": {"name": "gemma", "deletionTimestamp": "2026-11-24T00:00:00Z"}}
    settings = quick()
    with pytest.raises(RequestError, match="namespace gemma is being deleted"):
        step.ensure_namespace(MemoryCluster(gone), render.namespace(settings), settings)  # type: ignore[arg-type]


def test_the_servers_key_is_copied_when_it_changed(monkeypatch: pytest.MonkeyPatch):
    settings = quick(engine={"api_key_secret": "projects/p/secrets/s/versions/latest"})
    cluster = MemoryCluster()
    monkeypatch.setattr(google, "secret", {"versions/1": "one", "versions/2": "two"}.__getitem__)
    for version, changed in (("versions/1", True), ("versions/1", False), ("versions/2", True)):
        release = RELEASE.model_copy(update={"api_key_version": version})
        assert bool(step.ensure_api_key(cluster, settings, release)) is changed  # type: ignore[arg-type]
    secret = cluster.get("Secret", names.api_key(settings), "gemma")
    assert secret
    assert base64.b64decode(secret["data"][names.API_KEY]) == b"two"


def test_the_record_is_there_before_anything_else_is_made_and_one_that_was_lost_is_made_again():
    settings, lines = quick(), []
    first = MemoryCluster()
    step.ensure_record(first, settings, lines.append)  # type: ignore[arg-type]
    assert (first.names("ConfigMap"), lines) == ({names.record(settings)}, [])

    cluster = MemoryCluster(deployment("g1", replicas=0), deployment("g2"), service("g2"))
    made = step.ensure_record(cluster, settings, lines.append)  # type: ignore[arg-type]
    assert (made.live, made.kept) == ("g2", ["g1"])
    assert cluster.names("ConfigMap") == {names.record(settings)}
    assert "the record gemma/gemma-generations is gone: made again of what is in the cluster (g1, g2)" in lines[0]
    step.ensure_record(cluster, settings, lines.append)  # type: ignore[arg-type]
    assert len(lines) == 1
