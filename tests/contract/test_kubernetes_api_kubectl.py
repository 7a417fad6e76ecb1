"""kubectl against an API server. Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

import pytest
import yaml
from kubernetes import client

from tests.contract.kubernetes_objects import config_map, deployment, pod

pytest_plugins = ["tests.contract.kubernetes_api"]

Kubectl = Callable[..., str]


def text(*bodies: object) -> str:
    return yaml.safe_dump_all(bodies)


def test_apply_creates_then_leaves_alone_then_configures(kubectl: Kubectl) -> None:
    first = text(deployment("web"), config_map("settings", colour="red"))
    assert kubectl("apply", "-f", "-", stdin=first).splitlines() == [
        "deployment.apps/web created",
        "configmap/settings created",
    ]
    assert kubectl("apply", "-f", "-", stdin=first).splitlines() == [
        "deployment.apps/web unchanged",
        "configmap/settings unchanged",
    ]
    changed = text(deployment("web", replicas=3), config_map("settings"))
    assert kubectl("apply", "-f", "-", stdin=changed).splitlines() == [
        "deployment.apps/web configured",
        "configmap/settings configured",
    ]
    assert kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.replicas}") == "3"
    assert kubectl("get", "configmap", "settings", "-o", "jsonpath={.data}") == ""


def test_server_side_apply_takes_over_from_client_side(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(deployment("web", replicas=1)))
    kubectl("apply", "--server-side", "-f", "-", stdin=text(deployment("web", replicas=2)))

    made = json.loads(kubectl("get", "deployment", "web", "-o", "json", "--show-managed-fields"))
    assert made["spec"]["replicas"] == 2
    assert {(e["manager"], e["operation"]) for e in made["metadata"]["managedFields"]} >= {("kubectl", "Apply")}


def test_server_side_apply_tells_of_conflicts(kubectl: Kubectl, apps: client.AppsV1Api, namespace: str) -> None:
    kubectl("apply", "--server-side", "-f", "-", stdin=text(deployment("web", replicas=1)))
    apps.patch_namespaced_deployment("web", namespace, {"spec": {"replicas": 2}}, field_manager="autoscaler")
    with pytest.raises(subprocess.CalledProcessError) as error:
        kubectl("apply", "--server-side", "-f", "-", stdin=text(deployment("web", replicas=1)))
    assert (
        'Apply failed with 1 conflict: conflict with "autoscaler" using apps/v1: .spec.replicas' in error.value.stderr
    )
    kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text(deployment("web", replicas=1)))

    assert kubectl("get", "deployment", "web", "-o", "jsonpath={.spec.replicas}") == "1"


def test_validation_is_the_servers(kubectl: Kubectl) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        kubectl("apply", "-f", "-", stdin=text(deployment("web", replicsa=1)))
    assert 'unknown field "spec.replicsa"' in error.value.stderr
    assert "created" in kubectl("apply", "--validate=warn", "-f", "-", stdin=text(deployment("web", replicsa=1)))


def test_diff_tells_what_would_change(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(deployment("web")))
    assert kubectl("diff", "-f", "-", stdin=text(deployment("web"))) == ""
    with pytest.raises(subprocess.CalledProcessError) as error:
        kubectl("diff", "-f", "-", stdin=text(deployment("web", replicas=5)))
    assert error.value.returncode == 1
    assert "+  replicas: 5" in error.value.stdout


def test_get_prints_columns(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(deployment("web"), pod("p")))
    header, row = kubectl("get", "deployments").splitlines()
    assert header.split() == ["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE"]
    assert row.split()[:4] == ["web", "0/1", "0", "0"]
    header, row = kubectl("get", "pods", "p", "-o", "wide").splitlines()
    assert header.split()[:7] == ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    assert row.split()[:3] == ["p", "0/1", "Pending"]
    assert kubectl("get", "deploy,po", "-o", "name").split() == ["deployment.apps/web", "pod/p"]


def test_kinds_are_discovered(kubectl: Kubectl) -> None:
    found = {line.split()[0] for line in kubectl("api-resources", "--namespaced=true", "--no-headers").splitlines()}

    assert found >= {"configmaps", "deployments", "jobs", "leases", "poddisruptionbudgets", "pods", "services"}
    assert "apps/v1" in kubectl("api-versions").split()
    assert json.loads(kubectl("version", "-o", "json"))["serverVersion"]["major"] == "1"


def test_explain_reads_the_schema(kubectl: Kubectl) -> None:
    said = kubectl("explain", "deployment.spec.strategy")

    assert "rollingUpdate" in said
    assert "KIND:       Deployment" in said


def test_label_annotate_patch_and_scale(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(deployment("web")))
    kubectl("label", "deployment", "web", "tier=front")
    kubectl("annotate", "deployment", "web", "example.com/note=hello")
    kubectl("patch", "deployment", "web", "-p", '{"spec": {"revisionHistoryLimit": 2}}')
    kubectl("scale", "deployment", "web", "--replicas", "4")
    kubectl("set", "image", "deployment/web", "server=example.com/server:9")

    made = json.loads(kubectl("get", "deployment", "web", "-o", "json"))
    assert made["metadata"]["labels"] == {"tier": "front"}
    assert made["metadata"]["annotations"]["example.com/note"] == "hello"
    assert (made["spec"]["revisionHistoryLimit"], made["spec"]["replicas"]) == (2, 4)
    assert made["spec"]["template"]["spec"]["containers"][0]["image"] == "example.com/server:9"


def test_wait_and_rollout_follow_a_status(kubectl: Kubectl, apps: client.AppsV1Api, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=text(deployment("web")))
    conditions = [{"type": "Available", "status": "True"}]
    status = {"replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, "readyReplicas": 1}
    apps.patch_namespaced_deployment_status(
        "web", namespace, {"status": {**status, "observedGeneration": 1, "conditions": conditions}}
    )

    assert "condition met" in kubectl("wait", "deployment/web", "--for=condition=Available", "--timeout=120s")
    assert "successfully rolled out" in kubectl("rollout", "status", "deployment/web", "--timeout=120s")


def test_delete_waits_until_it_is_gone(kubectl: Kubectl) -> None:
    kubectl("apply", "-f", "-", stdin=text(config_map("a"), pod("p")))
    said = kubectl("delete", "configmap/a", "pod/p", "--timeout=120s")

    assert set(said.splitlines()) == {'configmap "a" deleted', 'pod "p" deleted'}
    with pytest.raises(subprocess.CalledProcessError, match="non-zero"):
        kubectl("get", "configmap", "a")


def test_describe_shows_events(kubectl: Kubectl, core: client.CoreV1Api, namespace: str) -> None:
    kubectl("apply", "-f", "-", stdin=text(pod("p")))
    uid = core.read_namespaced_pod("p", namespace).metadata.uid
    about = {"kind": "Pod", "namespace": namespace, "name": "p", "uid": uid}
    event = {"involvedObject": about, "reason": "FailedScheduling", "message": "no nodes", "type": "Warning"}
    core.create_namespaced_event(namespace, {"metadata": {"name": "p.1"}, **event})

    assert "FailedScheduling" in kubectl("describe", "pod", "p")
    assert "no nodes" in kubectl("get", "events")


def test_create_makes_objects_of_many_kinds(kubectl: Kubectl) -> None:
    """kubectl sends what it makes itself as protobuf."""
    kubectl("create", "configmap", "settings", "--from-literal=colour=red")
    kubectl("create", "secret", "generic", "keys", "--from-literal=token=hf")
    kubectl("create", "deployment", "web", "--image=example.com/server:1", "--replicas=0", "--port=8000")
    kubectl("create", "job", "once", "--image=example.com/tool:1", "--", "run", "--fast")
    kubectl("create", "service", "clusterip", "web", "--tcp=80:8000")
    kubectl("create", "serviceaccount", "worker")
    kubectl("create", "role", "reader", "--verb=get,list", "--resource=pods")
    kubectl("create", "rolebinding", "readers", "--role=reader", "--serviceaccount=default:worker")
    kubectl("create", "poddisruptionbudget", "web", "--selector=app=web", "--max-unavailable=25%")
    kubectl("create", "quota", "small", "--hard=pods=5,requests.cpu=2")
    kubectl("create", "cronjob", "nightly", "--image=example.com/tool:1", "--schedule=0 3 * * *")

    def read(path: str, *what: str) -> str:
        return kubectl("get", *what, "-o", f"jsonpath={{{path}}}")

    assert read(".data.colour", "configmap", "settings") == "red"
    assert read(".data.token", "secret", "keys") == "aGY="
    assert read(".spec.replicas", "deployment", "web") == "0"
    assert read(".spec.template.spec.containers[0].ports[0].containerPort", "deployment", "web") == "8000"
    assert read(".spec.template.spec.containers[0].command", "job", "once") == '["run","--fast"]'
    assert read(".spec.ports[0].targetPort", "service", "web") == "8000"
    assert read(".rules[0].verbs", "role", "reader") == '["get","list"]'
    assert read(".subjects[0].name", "rolebinding", "readers") == "worker"
    assert read(".spec.maxUnavailable", "poddisruptionbudget", "web") == "25%"
    assert read(".spec.hard.pods", "quota", "small") == "5"
    assert read(".spec.schedule", "cronjob", "nightly") == "0 3 * * *"
    assert kubectl("create", "token", "worker").count(".") == 2
