"""Events and conditions whose words the deploy step and our Jobs read (components/deploy_server/diagnosis.py, job.py):
what a controller says of a pod that is refused, a claim that nobody binds, a Job that ends.

kubernetes_cluster.py says how to run this against a real control plane.
"""

from __future__ import annotations

import re
from typing import Any

from tests.contract.kubernetes_cluster import PYTHON_IMAGE, Kube, cluster, deployment, kube, pod_manifest, wait_for

__all__ = ["cluster", "kube"]

LEVEL = "pod-security.kubernetes.io/enforce"


def condition(item: Any, kind: str) -> Any:
    return next((entry for entry in item.status.conditions or [] if entry.type == kind), None)


def test_a_pod_that_is_not_admitted_is_told_of_where_the_deploy_step_looks(kube: Kube) -> None:
    kube.core.patch_namespace(kube.namespace, {"metadata": {"labels": {LEVEL: "restricted"}}})
    body = deployment("web", "one", progressDeadlineSeconds=1)
    kube.apps.create_namespaced_deployment(kube.namespace, body)

    def read() -> Any:
        return kube.apps.read_namespaced_deployment("web", kube.namespace)

    failure = wait_for(lambda: condition(read(), "ReplicaFailure"))
    name = kube.apps.list_namespaced_replica_set(kube.namespace).items[0].metadata.name
    words = (
        rf'pods "{name}-\w+" is forbidden: violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false'
    )
    assert (failure.status, failure.reason) == ("True", "FailedCreate")
    assert re.match(words, failure.message)
    assert re.match(f"Error creating: {words}", kube.wait_event(name, "FailedCreate"))
    late = wait_for(lambda: (found := condition(read(), "Progressing")).status == "False" and found)
    assert (late.reason, late.message) == (
        "ProgressDeadlineExceeded",
        f'ReplicaSet "{name}" has timed out progressing.',
    )
    available = condition(read(), "Available")
    assert (available.status, available.reason) == ("False", "MinimumReplicasUnavailable")
    assert available.message == "Deployment does not have minimum availability."


def claim(name: str, **spec: Any) -> dict[str, Any]:
    resources = {"requests": {"storage": "1Gi"}}
    return {"metadata": {"name": name}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": resources, **spec}}


def mounting(name: str, claimed: str) -> dict[str, Any]:
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": claimed}}]
    return pod_manifest(name, volumes=volumes)


def test_a_claim_that_nobody_binds_is_told_of(kube: Kube) -> None:
    kube.create_pod("first", ["python", "-c", "import time; time.sleep(600)"])
    kube.wait_phase("first", "Running")  # Without a node the scheduler looks no further.
    create = kube.core.create_namespaced_persistent_volume_claim
    create(kube.namespace, claim("unclassed", storageClassName=""))
    create(kube.namespace, claim("unknown", storageClassName="no-such-class"))
    words = "no persistent volumes available for this claim and no storage class is set"
    assert kube.wait_event("unclassed", "FailedBinding") == words
    words = 'storageclass.storage.k8s.io "no-such-class" not found'
    assert kube.wait_event("unknown", "ProvisioningFailed") == words
    kube.core.create_namespaced_pod(kube.namespace, mounting("waits", "unclassed"))
    kube.core.create_namespaced_pod(kube.namespace, mounting("lacks", "nothing"))
    kube.wait_event("waits", "FailedScheduling", "pod has unbound immediate PersistentVolumeClaims")
    kube.wait_event("lacks", "FailedScheduling", 'persistentvolumeclaim "nothing" not found. not found')
    kube.create_pod("big", container={"resources": {"requests": {"cpu": "900"}}})
    kube.create_pod("picky", nodeSelector={"a": "b"})
    # Other nodes, of tests before, may be there still.
    no_help = r"no new claims to deallocate, preemption: 0/\d+ nodes are available: \d+ Preemption is not helpful"
    for name, words in (("big", "Insufficient cpu"), ("picky", "node(s) didn't match Pod's node affinity/selector")):
        said = kube.wait_event(name, "FailedScheduling", words)
        assert re.fullmatch(rf"0/\d+ nodes are available: \d+ .*\. {no_help} for scheduling\.", said)
    unscheduled = condition(kube.pod("lacks"), "PodScheduled")
    assert unscheduled.reason == "Unschedulable"
    assert 'persistentvolumeclaim "nothing" not found. not found' in unscheduled.message


def job(name: str, command: list[str], **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": PYTHON_IMAGE, "command": command}
    template = {"spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}}
    return {"metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template, **spec}}


def test_the_end_of_a_job_is_a_condition_with_a_reason(kube: Kube) -> None:
    create = kube.batch.create_namespaced_job
    create(kube.namespace, job("good", ["python", "-c", "print('fine')"]))
    create(kube.namespace, job("bad", ["python", "-c", "raise SystemExit(3)"]))
    create(kube.namespace, job("late", ["python", "-c", "import time; time.sleep(600)"], activeDeadlineSeconds=3))

    def ended(name: str) -> tuple[str, str, str]:
        def found() -> Any:
            read = kube.batch.read_namespaced_job(name, kube.namespace)
            return condition(read, "Complete") or condition(read, "Failed")

        end = wait_for(found)
        return end.type, end.reason, end.message

    assert ended("good") == ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
    assert ended("bad") == ("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert ended("late") == ("Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
    kinds = [entry.type for entry in kube.batch.read_namespaced_job("bad", kube.namespace).status.conditions]
    assert kinds == ["FailureTarget", "Failed"]
    kinds = [entry.type for entry in kube.batch.read_namespaced_job("good", kube.namespace).status.conditions]
    assert kinds == ["SuccessCriteriaMet", "Complete"]
    assert kube.wait_event("bad", "BackoffLimitExceeded") == "Job has reached the specified backoff limit"
    assert kube.wait_event("late", "DeadlineExceeded") == "Job was active longer than specified deadline"
    assert kube.wait_event("good", "Completed") == "Job completed"
