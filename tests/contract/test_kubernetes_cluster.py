"""A whole cluster driven by the official client and kubectl: workloads from nothing to ready, and what goes wrong.

kubernetes_cluster.py says how to run this against a real control plane.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from kubernetes import watch
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_cluster import (
    PYTHON_IMAGE,
    Kube,
    cluster,
    deployment,
    exists,
    get,
    kube,
    pod_manifest,
    wait_for,
)

__all__ = ["cluster", "kube"]


def _changes(kube: Kube, since: Any) -> Iterator[Any]:
    """Every change of the namespace's Deployments after this one."""
    version = since.metadata.resource_version
    return watch.Watch().stream(
        kube.apps.list_namespaced_deployment, kube.namespace, resource_version=version, timeout_seconds=120
    )


def test_a_deployment_comes_from_nothing_to_ready_through_a_scale_up(kube: Kube) -> None:
    gpu = {
        "nodeSelector": {
            "cloud.google.com/gke-accelerator": "nvidia-l4",
            "cloud.google.com/gke-gpu-driver-version": "latest",
        }
    }
    body = deployment("vllm", "tokens", pod=gpu)
    limits = {"nvidia.com/gpu": "1", "memory": "10Gi", "cpu": "2"}
    body["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": limits}
    made = kube.apps.create_namespaced_deployment(kube.namespace, body)
    seen = []
    for event in _changes(kube, since=made):
        status = event["object"].status
        conditions = {entry.type: (entry.status, entry.reason) for entry in status.conditions or []}
        seen.append(conditions)
        if conditions.get("Progressing") == ("True", "NewReplicaSetAvailable"):
            break
    assert conditions["Available"] == ("True", "MinimumReplicasAvailable"), seen
    assert any(entry.get("Available") == ("False", "MinimumReplicasUnavailable") for entry in seen)
    assert status.ready_replicas == status.available_replicas == status.updated_replicas == 1
    [pod] = kube.pods("app=vllm")
    for reason in ("TriggeredScaleUp", "Scheduled", "Pulled", "Started"):
        kube.wait_event(pod.metadata.name, reason)
    reasons = [reason for _, reason, _ in kube.events(pod.metadata.name)]
    for earlier, later in (("FailedScheduling", "Scheduled"), ("TriggeredScaleUp", "Scheduled"), ("Pulled", "Started")):
        assert earlier in reasons, reasons
        assert reasons.index(earlier) <= reasons.index(later)
    words = kube.wait_event(pod.metadata.name, "TriggeredScaleUp")
    assert words.startswith(
        "pod triggered scale-up: [{https://www.googleapis.com/compute/v1/projects/demo-project/zones/"
    )
    assert words.endswith("0->1 (max: 1000)}]")
    node = kube.core.read_node(pod.spec.node_name)
    assert node.metadata.labels["node.kubernetes.io/instance-type"] == "g2-standard-4"
    assert node.metadata.labels["cloud.google.com/gke-gpu-driver-version"] == "latest"
    assert [taint.key for taint in node.spec.taints] == ["nvidia.com/gpu"]
    assert {entry.type: entry.status for entry in node.status.conditions}["Ready"] == "True"
    tolerated = {toleration.key for toleration in pod.spec.tolerations}
    assert "nvidia.com/gpu" in tolerated, "added as GKE's admission does"
    assert get(f"http://{pod.status.pod_ip}:8000/") == "tokens"
    assert kube.log(pod.metadata.name) == "serving\n"


def test_a_jobs_result_is_read_from_its_pods_log(kube: Kube) -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "validate"},
        "spec": {
            "backoffLimit": 0,
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [
                        {
                            "name": "main",
                            "image": PYTHON_IMAGE,
                            "command": ["python", "-c", "print('progress'); print('{\"verdict\": \"passed\"}')"],
                        }
                    ],
                }
            },
        },
    }
    kube.batch.create_namespaced_job(kube.namespace, body)
    kube.kubectl("wait", "--for=condition=complete", "job/validate", "--timeout=120s")
    job = kube.batch.read_namespaced_job("validate", kube.namespace)
    assert (job.status.succeeded, job.status.failed, job.status.active) == (1, None, None)
    assert {entry.type for entry in job.status.conditions} == {"SuccessCriteriaMet", "Complete"}
    assert job.status.completion_time >= job.status.start_time
    [pod] = kube.pods("job-name=validate")
    assert kube.log(pod.metadata.name, tail_lines=1) == '{"verdict": "passed"}\n'
    assert kube.kubectl("logs", "job/validate") == 'progress\n{"verdict": "passed"}\n'
    state = pod.status.container_statuses[0].state.terminated
    assert (pod.status.phase, state.reason, state.exit_code) == ("Succeeded", "Completed", 0)
    kube.batch.delete_namespaced_job("validate", kube.namespace, propagation_policy="Foreground")
    wait_for(lambda: not kube.pods())
    wait_for(lambda: not exists(lambda: kube.batch.read_namespaced_job("validate", kube.namespace)))


def _job(name: str, code: str, restart: str = "Never", **spec: Any) -> dict[str, Any]:
    template = {
        "spec": {
            "restartPolicy": restart,
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": PYTHON_IMAGE, "command": ["python", "-c", code]}],
        }
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {"template": template, **spec},
    }


def _failed(kube: Kube, name: str) -> Any:
    def condition() -> Any:
        status = kube.batch.read_namespaced_job_status(name, kube.namespace).status
        return next((entry for entry in status.conditions or [] if entry.type == "Failed"), None)

    return wait_for(condition)


def test_a_job_gives_up_at_its_limits(kube: Kube) -> None:
    kube.batch.create_namespaced_job(kube.namespace, _job("crash", "raise SystemExit(3)", backoffLimit=1))
    kube.batch.create_namespaced_job(
        kube.namespace, _job("slow", "import time; time.sleep(600)", activeDeadlineSeconds=1)
    )
    policy = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [42]}}]}
    kube.batch.create_namespaced_job(
        kube.namespace, _job("policy", "raise SystemExit(42)", backoffLimit=5, podFailurePolicy=policy)
    )
    kube.batch.create_namespaced_job(kube.namespace, _job("brief", "pass", backoffLimit=0, ttlSecondsAfterFinished=1))
    crashed = _failed(kube, "crash")
    assert (crashed.reason, crashed.message) == (
        "BackoffLimitExceeded",
        "Job has reached the specified backoff limit",
    )
    assert kube.batch.read_namespaced_job("crash", kube.namespace).status.failed == 2
    slow = _failed(kube, "slow")
    assert (slow.reason, slow.message) == ("DeadlineExceeded", "Job was active longer than specified deadline")
    ended = _failed(kube, "policy")
    assert ended.reason == "PodFailurePolicy"
    assert "failed with exit code 42 matching FailJob rule at index 0" in ended.message
    assert len(kube.pods("job-name=policy")) == 1
    wait_for(lambda: not exists(lambda: kube.batch.read_namespaced_job("brief", kube.namespace)))
    wait_for(lambda: not kube.pods("job-name=brief"))


def test_a_crash_loop_shows_what_a_kubelet_shows(kube: Kube) -> None:
    code = "import sys; print('loading', flush=True); print('no such model', file=sys.stderr); sys.exit(7)"
    kube.create_pod("crash", ["python", "-c", code], restartPolicy="Always")

    def looping() -> Any:
        [status] = kube.pod("crash").status.container_statuses or [None]
        waiting = status and status.state.waiting
        return status if waiting and waiting.reason == "CrashLoopBackOff" and status.restart_count >= 2 else None

    status = wait_for(looping, what=lambda: kube.pod("crash").status)
    assert status.state.waiting.message.startswith("back-off ")
    assert "restarting failed container=main pod=crash_" in status.state.waiting.message
    last = status.last_state.terminated
    assert (last.exit_code, last.reason, status.ready, status.started) == (7, "Error", False, False)
    assert kube.pod("crash").status.phase == "Running"
    assert "Back-off restarting failed container main in pod crash_" in kube.wait_event("crash", "BackOff")
    assert kube.log("crash") == "loading\nno such model\n"
    assert kube.log("crash", previous=True) == "loading\nno such model\n"
    assert "no such model" in kube.kubectl("logs", "crash", "--previous", "--timestamps")


def test_a_container_beyond_its_memory_limit_is_killed(kube: Kube) -> None:
    code = "import time; x = b'1' * 300_000_000; time.sleep(600)"
    kube.create_pod("hungry", ["python", "-c", code], container={"resources": {"limits": {"memory": "100Mi"}}})
    state = kube.wait_phase("hungry", "Failed").status.container_statuses[0].state.terminated
    assert (state.reason, state.exit_code) == ("OOMKilled", 137)


def test_an_image_that_is_not_there(kube: Kube) -> None:
    kube.create_pod("typo", image="example.com/pyhton:1")
    words = kube.wait_event("typo", "Failed", "Failed to pull image")
    assert words.startswith('Failed to pull image "example.com/pyhton:1": ')
    assert words.endswith("not found")
    assert kube.wait_event("typo", "BackOff") == 'Back-off pulling image "example.com/pyhton:1"'

    def backing_off() -> Any:
        [status] = kube.pod("typo").status.container_statuses
        return status.state.waiting if status.state.waiting.reason == "ImagePullBackOff" else None

    assert 'Back-off pulling image "example.com/pyhton:1": ErrImagePull' in wait_for(backing_off).message
    with pytest.raises(ApiException, match="is waiting to start"):
        kube.log("typo")


def _volume(kube: Kube, name: str, handle: str, options: list[str]) -> dict[str, Any]:
    """A pre-bound PersistentVolume and its claim; the pod's volume."""
    size = {"storage": "1Ti"}
    kube.core.create_persistent_volume(
        {
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "capacity": size,
                "storageClassName": "gcsfusecsi-serving",
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": kube.namespace, "name": name},
                "mountOptions": options,
                "csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeHandle": handle, "readOnly": True},
            },
        }
    )
    kube.core.create_namespaced_persistent_volume_claim(
        kube.namespace,
        {
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "gcsfusecsi-serving",
                "volumeName": name,
                "resources": {"requests": size},
            },
        },
    )
    return {"name": "weights", "persistentVolumeClaim": {"claimName": name, "readOnly": True}}


def _reader(name: str, volume: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return pod_manifest(
        name,
        ["python", "-c", "import os, sys; print(sorted(os.listdir(sys.argv[1])))", "/model"],
        container={"volumeMounts": [{"name": "weights", "mountPath": "/model", "readOnly": True}]},
        volumes=[volume],
        **{"annotations": {"gke-gcsfuse/volumes": "true"}, **spec},
    )


def test_weights_are_mounted_once_iam_allows_it(kube: Kube) -> None:
    kube.cluster.upload("models/org/tiny/key/config.json", b"{}")
    options = ["implicit-dirs", "only-dir:models/org/tiny/key"]
    volume = _volume(kube, "weights-g1", "weights:g1", options)
    kube.core.create_namespaced_pod(kube.namespace, _reader("reader", volume))
    words = kube.wait_event("reader", "FailedMount")
    assert words.startswith(
        'MountVolume.SetUp failed for volume "weights-g1" : rpc error: code = PermissionDenied desc = '
        'failed to get GCS bucket "weights": googleapi: Error 403: '
    )
    [status] = wait_for(lambda: kube.pod("reader").status.container_statuses)
    assert status.state.waiting.reason == "ContainerCreating"
    kube.cluster.grant(kube.namespace, "default")
    kube.wait_phase("reader", "Succeeded")
    assert kube.log("reader") == "['config.json']\n"
    assert kube.core.read_persistent_volume("weights-g1").status.phase == "Bound"
    claim = kube.core.read_namespaced_persistent_volume_claim("weights-g1", kube.namespace)
    assert claim.status.phase == "Bound"
    kube.core.create_namespaced_pod(kube.namespace, _reader("plain", volume, annotations={}))
    assert "failed to find the sidecar container in Pod spec" in kube.wait_event("plain", "FailedMount")
    kube.core.delete_namespaced_pod("plain", kube.namespace)
    kube.core.delete_namespaced_pod("reader", kube.namespace)
    kube.core.delete_namespaced_persistent_volume_claim("weights-g1", kube.namespace)
    wait_for(lambda: kube.core.read_persistent_volume("weights-g1").status.phase == "Released")
    kube.core.delete_persistent_volume("weights-g1")
    wait_for(lambda: not exists(lambda: kube.core.read_persistent_volume("weights-g1")))
    stored = kube.cluster.folder / "buckets/weights/objects/models/org/tiny/key/config.json"
    assert stored.read_bytes() == b"{}", "unmounting leaves the bucket whole"


def test_a_claim_in_use_is_protected(kube: Kube) -> None:
    kube.cluster.grant(kube.namespace, "default")
    volume = _volume(kube, "protected", "weights:protected", ["implicit-dirs"])
    body = pod_manifest(
        "user",
        ["python", "-c", "import time; time.sleep(600)"],
        container={"volumeMounts": [{"name": "weights", "mountPath": "/model"}]},
        volumes=[volume],
        annotations={"gke-gcsfuse/volumes": "true"},
        terminationGracePeriodSeconds=0,
    )
    kube.core.create_namespaced_pod(kube.namespace, body)
    kube.wait_phase("user", "Running")
    kube.core.delete_namespaced_persistent_volume_claim("protected", kube.namespace)
    time.sleep(0.5)
    claim = kube.core.read_namespaced_persistent_volume_claim("protected", kube.namespace)
    assert claim.metadata.deletion_timestamp
    assert claim.metadata.finalizers == ["kubernetes.io/pvc-protection"]
    kube.core.delete_namespaced_pod("user", kube.namespace)
    wait_for(lambda: not exists(lambda: kube.core.read_namespaced_persistent_volume_claim("protected", kube.namespace)))
    kube.core.delete_persistent_volume("protected")


def test_a_node_reports_again_though_nothing_has_changed(kube: Kube) -> None:
    kube.core.create_namespaced_pod(kube.namespace, pod_manifest("any"))
    kube.wait_phase("any", "Succeeded")
    node = kube.pod("any").spec.node_name

    def beats() -> dict[str, Any]:
        return {each.type: each.last_heartbeat_time for each in kube.core.read_node(node).status.conditions}

    first = beats()
    assert "Ready" in first
    wait_for(lambda: all(beats()[kind] > first[kind] for kind in first), seconds=120, what=beats)


def test_what_no_machine_has_is_declined(kube: Kube) -> None:
    kube.create_pod(
        "tpu", nodeSelector={"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"},
        container={"resources": {"limits": {"nvidia.com/gpu": "1"}}},
    )  # fmt: skip
    words = kube.wait_event("tpu", "NotTriggerScaleUp")
    assert words.startswith("pod didn't trigger scale-up: ")
    assert "node(s) didn't match Pod's node affinity/selector" in words
    condition = kube.pod("tpu").status.conditions[0]
    assert (condition.type, condition.status, condition.reason) == ("PodScheduled", "False", "Unschedulable")


def test_a_scale_up_fails_in_the_autoscalers_words_and_is_tried_again(kube: Kube) -> None:
    selector = {"cloud.google.com/gke-accelerator": "nvidia-l4", "cloud.google.com/gke-spot": "true"}
    kube.cluster.configure(decline={"nvidia-l4": "GCE out of resources"})
    kube.create_pod("spot", nodeSelector=selector, container={"resources": {"limits": {"nvidia.com/gpu": "1"}}})
    words = kube.wait_event("spot", "FailedScaleUp")
    assert words.startswith("Node scale up in zones us-central1-")
    assert words.endswith(
        "associated with this pod failed: GCE out of resources. Pod is at risk of not being scheduled."
    )
    kube.wait_event("spot", "NotTriggerScaleUp", "pod didn't trigger scale-up: 1 in backoff after failed scale-up")
    kube.cluster.configure(decline={})
    kube.wait_phase("spot", "Succeeded")
    node = kube.core.read_node(kube.pod("spot").spec.node_name)
    assert node.metadata.labels["cloud.google.com/gke-spot"] == "true"


def test_quota_bounds_the_nodes_and_empty_ones_are_given_back(kube: Kube) -> None:
    selector = {"cloud.google.com/gke-accelerator": "nvidia-l4"}
    wait = ["python", "-c", "import time; time.sleep(600)"]

    def create(name: str, cards: str) -> None:
        limits = {"nvidia.com/gpu": cards}
        kube.create_pod(name, wait, nodeSelector=selector, container={"resources": {"limits": limits}})

    create("both", "2")
    node = kube.wait_phase("both", "Running").spec.node_name
    assert kube.core.read_node(node).status.capacity["nvidia.com/gpu"] == "2"
    create("third", "1")
    words = kube.wait_event("third", "FailedScaleUp")
    assert "GCE quota exceeded" in words
    assert "Insufficient nvidia.com/gpu" in kube.wait_event("third", "FailedScheduling", "Insufficient")
    kube.core.delete_namespaced_pod("both", kube.namespace, grace_period_seconds=0)
    kube.wait_phase("third", "Running")


def test_a_rolling_update_never_falls_below_what_must_be_available(kube: Kube) -> None:
    rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", "one", 2, strategy=rolling))
    kube.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    lowest, most = 2, 0

    def live() -> list[Any]:
        return [pod for pod in kube.pods("app=web") if not pod.metadata.deletion_timestamp]

    body = {
        "spec": {
            "template": {"spec": {"containers": [{"name": "server", "env": [{"name": "ANSWER", "value": "two"}]}]}}
        }
    }
    patched = kube.apps.patch_namespaced_deployment("web", kube.namespace, body)
    for event in _changes(kube, since=patched):
        status = event["object"].status
        if (status.observed_generation or 0) >= patched.metadata.generation:
            # Not status.replicas: it adds up what each ReplicaSet last said of itself, and may say more than there is.
            lowest, most = min(lowest, status.available_replicas or 0), max(most, len(live()))
            reason = next(entry.reason for entry in status.conditions if entry.type == "Progressing")
            if reason == "NewReplicaSetAvailable" and status.updated_replicas == status.replicas == 2:
                break
    # What of the pods is between two looks at them is not seen.
    assert lowest == 2
    assert most <= 3
    assert {get(f"http://{pod.status.pod_ip}:8000/") for pod in live()} == {"two"}
    assert kube.kubectl("rollout", "history", "deployment/web").count("<none>") == 2
    kube.kubectl("rollout", "undo", "deployment/web")
    kube.kubectl("rollout", "status", "deployment/web", "--timeout=120s")
    sets = kube.apps.list_namespaced_replica_set(kube.namespace).items
    assert sorted(item.metadata.annotations["deployment.kubernetes.io/revision"] for item in sets) == ["2", "3"]
    kube.apps.delete_namespaced_deployment("web", kube.namespace)
    wait_for(lambda: not kube.apps.list_namespaced_replica_set(kube.namespace).items)
    wait_for(lambda: not kube.pods())


def test_a_rollout_that_cannot_progress_says_so(kube: Kube) -> None:
    body = deployment("stuck", "x", progressDeadlineSeconds=1)
    body["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"]["port"] = 9
    # A busy machine may take longer than a second to be refused.
    body["spec"]["template"]["spec"]["containers"][0]["readinessProbe"]["timeoutSeconds"] = 60
    kube.apps.create_namespaced_deployment(kube.namespace, body)

    def deadline() -> Any:
        status = kube.apps.read_namespaced_deployment("stuck", kube.namespace).status
        return next((entry for entry in status.conditions or [] if entry.reason == "ProgressDeadlineExceeded"), None)

    condition = wait_for(deadline)
    assert (condition.type, condition.status) == ("Progressing", "False")
    assert condition.message.endswith("has timed out progressing.")
    # The deadline may pass before the pod has its address.
    pod = wait_for(lambda: next((pod for pod in kube.pods("app=stuck") if pod.status.pod_ip), None))
    words = kube.wait_event(pod.metadata.name, "Unhealthy")
    assert words.startswith(f'Readiness probe failed: Get "http://{pod.status.pod_ip}:9/": dial tcp ')
    assert words.endswith("connect: connection refused")
