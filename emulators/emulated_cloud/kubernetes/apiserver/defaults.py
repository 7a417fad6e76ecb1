"""What the real server fills in: defaults of built-in kinds, as k8s.io/kubernetes/pkg/apis/*/v1/defaults.go has them.

`apply_defaults` is idempotent and runs on every write of the whole object; what is set once, at creation
(initial status, generated selectors, cluster addresses), is in creation.py.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from emulated_cloud.kubernetes.quantity import canonical

Object = dict[str, Any]


def _set(target: Object, **defaults: Any) -> None:
    for name, value in defaults.items():
        target.setdefault(name, value)


def apply_defaults(kind: str, item: Object) -> None:
    """Fills in `item`, in place. Kinds without defaults are left as they are."""
    fill = _DEFAULTS.get(kind)
    if fill:
        fill(item)


# -- pods -------------------------------------------------------------------------------------------------------


def _pull_policy(image: str) -> str:
    """What can change under its name is pulled every time: no tag, or `latest`, and no digest."""
    name, _, digest = image.rpartition("/")[2].partition("@")
    tag = name.partition(":")[2]
    return "Always" if not digest and tag in ("", "latest") else "IfNotPresent"


def _handler(handler: Object) -> None:
    if "httpGet" in handler:
        _set(handler["httpGet"], path="/", scheme="HTTP")
    if "grpc" in handler:
        _set(handler["grpc"], service="")


def _resources(resources: Object) -> None:
    for part in ("limits", "requests"):
        if part in resources:
            resources[part] = {name: canonical(amount) for name, amount in resources[part].items()}
    # What is limited and not requested is requested in full (SetDefaults_Pod).
    for name, amount in resources.get("limits", {}).items():
        resources.setdefault("requests", {}).setdefault(name, amount)


def _container(container: Object, *, in_pod: bool) -> None:
    _set(container, resources={}, terminationMessagePath="/dev/termination-log", terminationMessagePolicy="File")
    container.setdefault("imagePullPolicy", _pull_policy(container.get("image", "")))
    limited = container["resources"]
    requests = set(limited.get("requests", {}))
    _resources(limited)
    if not in_pod and "requests" in limited:
        # A template keeps what its author wrote; only the pods made from it get their requests filled in.
        limited["requests"] = {name: value for name, value in limited["requests"].items() if name in requests}
        if not limited["requests"]:
            del limited["requests"]
    for port in container.get("ports", []):
        _set(port, protocol="TCP")
    for variable in container.get("env", []):
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            _set(source["fieldRef"], apiVersion="v1")
        if "resourceFieldRef" in source:
            _set(source["resourceFieldRef"], divisor="0")
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if name in container:
            _set(container[name], timeoutSeconds=1, periodSeconds=10, successThreshold=1, failureThreshold=3)
            _handler(container[name])
    for handler in container.get("lifecycle", {}).values():
        if isinstance(handler, dict):
            _handler(handler)


def _volume(volume: Object) -> None:
    for name in ("secret", "configMap", "downwardAPI", "projected"):
        if name in volume:
            _set(volume[name], defaultMode=0o644)
    if "hostPath" in volume:
        _set(volume["hostPath"], type="")
    for source in volume.get("projected", {}).get("sources", []):
        if "serviceAccountToken" in source:
            _set(source["serviceAccountToken"], expirationSeconds=3600)
    files = [volume.get("downwardAPI", {})]
    files += [source.get("downwardAPI", {}) for source in volume.get("projected", {}).get("sources", [])]
    for source in files:
        for entry in source.get("items", []):
            if "fieldRef" in entry:
                _set(entry["fieldRef"], apiVersion="v1")
    if "sizeLimit" in volume.get("emptyDir", {}):
        volume["emptyDir"]["sizeLimit"] = canonical(volume["emptyDir"]["sizeLimit"])
    claim = volume.get("ephemeral", {}).get("volumeClaimTemplate", {}).get("spec")
    if claim is not None:
        _claim_spec(claim)
    if not any(name != "name" for name in volume):
        volume["emptyDir"] = {}


def pod_spec(spec: Object, *, in_pod: bool = False) -> None:
    for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
        _container(container, in_pod=in_pod)
    for volume in spec.get("volumes", []):
        _volume(volume)
    _set(
        spec,
        restartPolicy="Always",
        terminationGracePeriodSeconds=30,
        dnsPolicy="ClusterFirst",
        securityContext={},
        schedulerName="default-scheduler",
    )
    if spec.get("hostNetwork"):
        for container in [*spec.get("initContainers", []), *spec.get("containers", [])]:
            for port in container.get("ports", []):
                _set(port, hostPort=port["containerPort"])
    # The older name of the field is kept in step with the newer one.
    account = spec.get("serviceAccountName") or spec.get("serviceAccount")
    if account:
        spec["serviceAccountName"] = spec["serviceAccount"] = account
    _set_overhead(spec)


def _set_overhead(spec: Object) -> None:
    if "overhead" in spec:
        spec["overhead"] = {name: canonical(amount) for name, amount in spec["overhead"].items()}


def _pod(pod: Object) -> None:
    spec = pod.setdefault("spec", {})
    pod_spec(spec, in_pod=True)
    _set(spec, enableServiceLinks=True)


def _template(spec: Object) -> None:
    template = spec.get("template")
    if isinstance(template, dict):
        template.setdefault("metadata", {})
        pod_spec(template.setdefault("spec", {}))


# -- workloads --------------------------------------------------------------------------------------------------


def _rolling(update: Object) -> None:
    _set(update, type="RollingUpdate")
    if update["type"] == "RollingUpdate":
        _set(update.setdefault("rollingUpdate", {}), maxUnavailable="25%", maxSurge="25%")


def _deployment(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _template(spec)
    _set(spec, replicas=1, revisionHistoryLimit=10, progressDeadlineSeconds=600)
    _rolling(spec.setdefault("strategy", {}))


def _replicated(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _template(spec)
    _set(spec, replicas=1)


def _stateful_set(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _template(spec)
    _set(spec, replicas=1, revisionHistoryLimit=10, podManagementPolicy="OrderedReady", serviceName="")
    update = spec.setdefault("updateStrategy", {})
    _set(update, type="RollingUpdate")
    if update["type"] == "RollingUpdate":
        _set(update.setdefault("rollingUpdate", {}), partition=0)
    _set(spec, persistentVolumeClaimRetentionPolicy={"whenDeleted": "Retain", "whenScaled": "Retain"})
    for claim in spec.get("volumeClaimTemplates", []):
        _set(claim, apiVersion="v1", kind="PersistentVolumeClaim")
        _claim(claim)
        claim["status"] = {"phase": "Pending"}


def _daemon_set(item: Object) -> None:
    item["metadata"].setdefault("annotations", {}).setdefault("deprecated.daemonset.template.generation", "1")
    spec = item.setdefault("spec", {})
    _template(spec)
    _set(spec, revisionHistoryLimit=10)
    update = spec.setdefault("updateStrategy", {})
    _set(update, type="RollingUpdate")
    if update["type"] == "RollingUpdate":
        _set(update.setdefault("rollingUpdate", {}), maxUnavailable=1, maxSurge=0)


def _job_spec(spec: Object) -> None:
    _template(spec)
    if "completions" not in spec and "parallelism" not in spec:
        spec["completions"] = 1
    _set(
        spec,
        parallelism=1,
        backoffLimit=2**31 - 1 if "backoffLimitPerIndex" in spec else 6,
        completionMode="NonIndexed",
        suspend=False,
        manualSelector=False,
        podReplacementPolicy="Failed" if "podFailurePolicy" in spec else "TerminatingOrFailed",
    )


def _cron_job(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(
        spec,
        concurrencyPolicy="Allow",
        suspend=False,
        successfulJobsHistoryLimit=3,
        failedJobsHistoryLimit=1,
    )
    template = spec.get("jobTemplate")
    if isinstance(template, dict):
        template.setdefault("metadata", {})
        # A job's own defaults are filled in when the job is made; its pod template's here already.
        _template(template.setdefault("spec", {}))


def _autoscaler(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(spec, minReplicas=1)
    if not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    for metric in spec["metrics"]:
        for source in ("pods", "object", "external", "resource", "containerResource"):
            target = metric.get(source, {}).get("target", {})
            for amount in ("averageValue", "value"):
                if amount in target:
                    target[amount] = canonical(target[amount])
    for direction, policies in (
        ("scaleUp", [("Pods", 4), ("Percent", 100)]),
        ("scaleDown", [("Percent", 100)]),
    ):
        if "behavior" not in spec:
            break
        rules = spec["behavior"].setdefault(direction, {})
        _set(rules, selectPolicy="Max")
        if direction == "scaleUp":
            _set(rules, stabilizationWindowSeconds=0)
        if not rules.get("policies"):
            rules["policies"] = [{"type": sort, "value": value, "periodSeconds": 15} for sort, value in policies]


# -- services, storage and the rest -----------------------------------------------------------------------------


def _service(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(spec, type="ClusterIP", sessionAffinity="None")
    for port in spec.get("ports", []):
        _set(port, protocol="TCP")
        if not port.get("targetPort"):
            port["targetPort"] = port.get("port")
    if spec["sessionAffinity"] == "ClientIP":
        _set(spec.setdefault("sessionAffinityConfig", {}).setdefault("clientIP", {}), timeoutSeconds=10800)
    if spec["type"] in ("ClusterIP", "NodePort", "LoadBalancer"):
        _set(spec, internalTrafficPolicy="Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        _set(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        _set(spec, allocateLoadBalancerNodePorts=True)
    for address in item.get("status", {}).get("loadBalancer", {}).get("ingress", []):
        if "ip" in address:
            _set(address, ipMode="VIP")


def _volume_object(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(spec, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    if "capacity" in spec:
        spec["capacity"] = {name: canonical(amount) for name, amount in spec["capacity"].items()}
    if "hostPath" in spec:
        _set(spec["hostPath"], type="")


def _claim_spec(spec: Object) -> None:
    _set(spec, volumeMode="Filesystem", resources={})
    for part in ("limits", "requests"):
        if part in spec["resources"]:
            spec["resources"][part] = {name: canonical(value) for name, value in spec["resources"][part].items()}


def _claim(item: Object) -> None:
    _claim_spec(item.setdefault("spec", {}))


def _storage_class(item: Object) -> None:
    _set(item, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def _csi_driver(item: Object) -> None:
    _set(
        item.setdefault("spec", {}),
        attachRequired=True,
        podInfoOnMount=False,
        storageCapacity=False,
        fsGroupPolicy="ReadWriteOnceWithFSType",
        volumeLifecycleModes=["Persistent"],
        requiresRepublish=False,
        seLinuxMount=False,
    )


def _network_policy(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(spec, podSelector={})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    for rule in [*spec.get("ingress", []), *spec.get("egress", [])]:
        for port in rule.get("ports", []):
            _set(port, protocol="TCP")


def _binding(item: Object) -> None:
    _set(item.setdefault("roleRef", {}), apiGroup="rbac.authorization.k8s.io")
    for subject in item.get("subjects", []):
        if subject.get("kind") in ("User", "Group"):
            _set(subject, apiGroup="rbac.authorization.k8s.io")


def _secret(item: Object) -> None:
    _set(item, type="Opaque")
    # stringData is write-only: it becomes data.
    for name, text in item.pop("stringData", {}).items():
        item.setdefault("data", {})[name] = base64.b64encode(text.encode()).decode()


def _namespace(item: Object) -> None:
    labels = item["metadata"].setdefault("labels", {})
    labels["kubernetes.io/metadata.name"] = item["metadata"].get("name", "")


def _endpoint_slice(item: Object) -> None:
    for endpoint in item.get("endpoints", []):
        _set(endpoint, conditions={})
    for port in item.get("ports", []):
        _set(port, name="", protocol="TCP")


def _endpoints(item: Object) -> None:
    for subset in item.get("subsets", []):
        for port in subset.get("ports", []):
            _set(port, protocol="TCP")


def _node(item: Object) -> None:
    item.setdefault("spec", {})
    status = item.setdefault("status", {})
    _set(status, nodeInfo={}, daemonEndpoints={})
    _set(status["daemonEndpoints"], kubeletEndpoint={})
    for name in ("capacity", "allocatable"):
        if name in status:
            status[name] = {resource: canonical(amount) for resource, amount in status[name].items()}
    if "capacity" in status:
        _set(status, allocatable=dict(status["capacity"]))


def _priority_class(item: Object) -> None:
    _set(item, preemptionPolicy="PreemptLowerPriority")


def _matched_resources(match: Object) -> None:
    _set(match, matchPolicy="Equivalent", namespaceSelector={}, objectSelector={})
    for rule in [*match.get("resourceRules", []), *match.get("excludeResourceRules", [])]:
        _set(rule, scope="*")


def _admission_policy(item: Object) -> None:
    spec = item.setdefault("spec", {})
    _set(spec, failurePolicy="Fail")
    if "matchConstraints" in spec:
        _matched_resources(spec["matchConstraints"])


def _admission_policy_binding(item: Object) -> None:
    if "matchResources" in item.setdefault("spec", {}):
        _matched_resources(item["spec"]["matchResources"])


def _custom_definition(item: Object) -> None:
    spec = item.setdefault("spec", {})
    names = spec.setdefault("names", {})
    if "kind" in names:
        _set(names, singular=names["kind"].lower(), listKind=names["kind"] + "List")
    _set(spec, conversion={"strategy": "None"})


def _ingress(item: Object) -> None:
    for rule in item.get("spec", {}).get("rules", []):
        for path in rule.get("http", {}).get("paths", []):
            _set(path, pathType="ImplementationSpecific")


_DEFAULTS: dict[str, Callable[[Object], None]] = {
    "Pod": _pod,
    "PodTemplate": lambda item: _template(item),
    "Deployment": _deployment,
    "ReplicaSet": _replicated,
    "ReplicationController": _replicated,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Job": lambda item: _job_spec(item.setdefault("spec", {})),
    "CronJob": _cron_job,
    "HorizontalPodAutoscaler": _autoscaler,
    "Service": _service,
    "PersistentVolume": _volume_object,
    "PersistentVolumeClaim": _claim,
    "StorageClass": _storage_class,
    "CSIDriver": _csi_driver,
    "NetworkPolicy": _network_policy,
    "RoleBinding": _binding,
    "ClusterRoleBinding": _binding,
    "Secret": _secret,
    "Namespace": _namespace,
    "EndpointSlice": _endpoint_slice,
    "Endpoints": _endpoints,
    "Node": _node,
    "PriorityClass": _priority_class,
    "ValidatingAdmissionPolicy": _admission_policy,
    "ValidatingAdmissionPolicyBinding": _admission_policy_binding,
    "CustomResourceDefinition": _custom_definition,
    "Ingress": _ingress,
}
