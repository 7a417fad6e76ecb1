"""Autoscalers in the emulated cluster: pods that come and go by a metric, groups of the API that others serve."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_cluster import Cluster, Kube, cluster, deployment, kube, wait_for

__all__ = ["cluster", "kube"]

QUEUE = "# HELP q:waiting Waiting.\n# TYPE q:waiting gauge\nq:waiting 30.0\n# TYPE q_total counter\nq_total 9\n"
METRIC = "autoscaling.gke.io|web|queue"


def _autoscaler(metric: str = METRIC, **spec: Any) -> dict[str, Any]:
    policies = [{"type": "Pods", "value": 4, "periodSeconds": 1}]
    quick = {"stabilizationWindowSeconds": 0, "policies": policies}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "web"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 1,
            "maxReplicas": 2,
            "metrics": [_target(metric, "10")],
            "behavior": {"scaleUp": quick, "scaleDown": quick},
            **spec,
        },
    }


def _target(metric: str, average: str) -> dict[str, Any]:
    pods = {"metric": {"name": metric}, "target": {"type": "AverageValue", "averageValue": average}}
    return {"type": "Pods", "pods": pods}


def _source(kube: Kube) -> None:
    gauge = {"name": "queue", "prometheusMetricName": "q:waiting"}
    containers = [{"endpoint": {"port": 8000, "path": "/metrics"}, "metrics": [{"gauge": gauge}]}]
    body = {
        "apiVersion": "autoscaling.gke.io/v1beta1",
        "kind": "AutoscalingMetric",
        "metadata": {"name": "web"},
        "spec": {"metrics": [{"pod": {"selector": {"matchLabels": {"app": "web"}}, "containers": containers}}]},
    }
    where = ("autoscaling.gke.io", "v1beta1", kube.namespace, "autoscalingmetrics")
    client.CustomObjectsApi(kube.raw).create_namespaced_custom_object(*where, body)


def _conditions(autoscalers: Any, kube: Kube) -> dict[str, tuple[str, str]]:
    found = autoscalers.read_namespaced_horizontal_pod_autoscaler("web", kube.namespace).status
    return {each.type: (each.status, each.reason) for each in (found and found.conditions) or []}


def _replicas(kube: Kube) -> int:
    return kube.apps.read_namespaced_deployment("web", kube.namespace).spec.replicas


def test_pods_come_and_go_by_the_mean_of_their_queues(kube: Kube):
    autoscalers = client.AutoscalingV2Api(kube.raw)
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", QUEUE))
    autoscalers.create_namespaced_horizontal_pod_autoscaler(kube.namespace, _autoscaler())
    # Nobody brings the metric: nothing is scaled, and the conditions say so.
    wait_for(lambda: _conditions(autoscalers, kube).get("ScalingActive") == ("False", "FailedGetPodsMetric"))
    assert _replicas(kube) == 1
    _source(kube)
    wait_for(lambda: _replicas(kube) == 2)
    assert "New size: 2; reason: pods metric" in kube.wait_event("web", "SuccessfulRescale")
    wait_for(lambda: _conditions(autoscalers, kube).get("ScalingLimited") == ("True", "TooManyReplicas"))
    assert _conditions(autoscalers, kube)["ScalingActive"] == ("True", "ValidMetricFound")
    shown = autoscalers.read_namespaced_horizontal_pod_autoscaler("web", kube.namespace).status
    assert shown.current_metrics[0].pods.current.average_value == "30"

    less = {"spec": {"metrics": [_target(METRIC, "100")]}}
    autoscalers.patch_namespaced_horizontal_pod_autoscaler("web", kube.namespace, less)
    wait_for(lambda: _replicas(kube) == 1)
    assert "All metrics below target" in kube.wait_event("web", "SuccessfulRescale", "New size: 1")

    autoscalers.patch_namespaced_horizontal_pod_autoscaler("web", kube.namespace, {"spec": {"minReplicas": 2}})
    wait_for(lambda: _replicas(kube) == 2)
    kube.wait_event("web", "SuccessfulRescale", "below Spec.MinReplicas")


def test_a_deployment_at_rest_is_left_alone(kube: Kube):
    autoscalers = client.AutoscalingV2Api(kube.raw)
    kube.apps.create_namespaced_deployment(kube.namespace, deployment("web", QUEUE, replicas=0))
    autoscalers.create_namespaced_horizontal_pod_autoscaler(kube.namespace, _autoscaler())
    wait_for(lambda: _conditions(autoscalers, kube).get("ScalingActive") == ("False", "ScalingDisabled"))
    assert _replicas(kube) == 0


def test_an_autoscaler_without_its_target_says_so(kube: Kube):
    autoscalers = client.AutoscalingV2Api(kube.raw)
    autoscalers.create_namespaced_horizontal_pod_autoscaler(kube.namespace, _autoscaler())
    wait_for(lambda: _conditions(autoscalers, kube).get("AbleToScale") == ("False", "FailedGetScale"))


def test_a_group_that_somebody_else_serves_is_listed_and_unavailable_without_its_server(cluster: Cluster, kube: Kube):
    services = client.ApiregistrationV1Api(kube.raw)
    spec = {
        "group": "things.example.com",
        "version": "v1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,
        "service": {"name": "things", "namespace": kube.namespace, "port": 443},
    }
    services.create_api_service({"metadata": {"name": "v1.things.example.com"}, "spec": spec})
    try:
        groups = {group.name for group in client.ApisApi(kube.raw).get_api_versions().groups}
        assert "things.example.com" in groups
        with pytest.raises(ApiException) as refused:
            client.CustomObjectsApi(kube.raw).list_cluster_custom_object("things.example.com", "v1", "things")
        assert refused.value.status == 503
    finally:
        services.delete_api_service("v1.things.example.com")
