"""The columns that `kubectl get` prints of built-in kinds (k8s.io/kubernetes/pkg/printers/internalversion)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

Object = dict[str, Any]
Column = tuple[str, str, int, Callable[[Object], Any]]
"""Header, type, priority (1: only with `-o wide`), and the cell's value."""


def age(timestamp: str | None) -> str:
    """How long ago, as kubectl writes it (duration.HumanDuration)."""
    if not timestamp:
        return "<unknown>"
    try:
        seconds = int((datetime.now(UTC) - datetime.fromisoformat(timestamp)).total_seconds())
    except (ValueError, TypeError):  # No date, or one without a zone.
        return "<invalid>"
    return human_duration(seconds)


def human_duration(seconds: int) -> str:
    if seconds < 0:
        return "0s" if seconds >= -2 else "<invalid>"
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400

    def pair(whole: int, unit: str, rest: int, rest_unit: str) -> str:
        return f"{whole}{unit}{rest}{rest_unit}" if rest else f"{whole}{unit}"

    if seconds < 120:
        return f"{seconds}s"
    if minutes < 10:
        return pair(minutes, "m", seconds % 60, "s")
    if hours < 3:
        return f"{minutes}m"
    if hours < 8:
        return pair(hours, "h", minutes % 60, "m")
    if hours < 48:
        return f"{hours}h"
    if days < 8:
        return pair(days, "d", hours % 24, "h")
    if days < 730:
        return f"{days}d"
    return pair(days // 365, "y", days % 365, "d") if days < 8 * 365 else f"{days // 365}y"


def get(path: str, default: Any = None) -> Callable[[Object], Any]:
    def read(item: Object) -> Any:
        value: Any = item
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    return read


def _joined(values: list[str]) -> str:
    return ",".join(values) or "<none>"


def _pairs(labels: Object | None) -> str:
    return _joined([f"{name}={value}" for name, value in sorted((labels or {}).items())])


def _selector(item: Object) -> str:
    return _pairs(item.get("spec", {}).get("selector", {}).get("matchLabels"))


def _containers(part: str) -> Callable[[Object], str]:
    def read(item: Object) -> str:
        spec = item["spec"].get("template", item).get("spec", {})
        return _joined([str(container.get(part, "")) for container in spec.get("containers", [])])

    return read


def _condition(item: Object, kind: str) -> Object:
    return next((each for each in item.get("status", {}).get("conditions") or [] if each["type"] == kind), {})


def pod_status(pod: Object) -> str:
    """The STATUS of `kubectl get pods`."""
    status = pod.get("status", {})
    reason = status.get("reason") or status.get("phase", "")
    if any(condition.get("reason") == "SchedulingGated" for condition in status.get("conditions") or []):
        reason = "SchedulingGated"
    init = status.get("initContainerStatuses") or []
    for index, container in enumerate(init):
        state = container.get("state", {})
        ended = state.get("terminated")
        if ended and ended.get("exitCode") == 0:
            continue
        if ended:
            reason = "Init:" + (ended.get("reason") or f"ExitCode:{ended.get('exitCode')}")
        elif state.get("waiting", {}).get("reason") not in (None, "PodInitializing"):
            reason = "Init:" + state["waiting"]["reason"]
        else:
            reason = f"Init:{index}/{len(init)}"
        break
    else:
        running = False
        for container in reversed(status.get("containerStatuses") or []):
            state = container.get("state", {})
            ended = state.get("terminated")
            if state.get("waiting", {}).get("reason"):
                reason = state["waiting"]["reason"]
            elif ended:
                reason = ended.get("reason") or f"ExitCode:{ended.get('exitCode')}"
            elif container.get("ready") and state.get("running"):
                running = True
        if reason == "Completed" and running:
            reason = "Running" if _condition(pod, "Ready").get("status") == "True" else "NotReady"
    if pod["metadata"].get("deletionTimestamp"):
        return "Unknown" if status.get("reason") == "NodeLost" else "Terminating"
    return reason


def _ready(pod: Object) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    ready = sum(bool(each.get("ready") and each.get("state", {}).get("running")) for each in statuses)
    return f"{ready}/{len(pod['spec'].get('containers', []))}"


def _restarts(pod: Object) -> str:
    statuses = pod.get("status", {}).get("containerStatuses") or []
    count = sum(each.get("restartCount", 0) for each in statuses)
    ends = [each.get("lastState", {}).get("terminated", {}).get("finishedAt") for each in statuses]
    last = max((end for end in ends if end), default=None)
    return f"{count} ({age(last)} ago)" if count and last else str(count)


def _node_status(node: Object) -> str:
    words = [{"True": "Ready", "False": "NotReady"}.get(_condition(node, "Ready").get("status", ""), "Unknown")]
    return ",".join(words + (["SchedulingDisabled"] if node.get("spec", {}).get("unschedulable") else []))


def _node_roles(node: Object) -> str:
    prefix = "node-role.kubernetes.io/"
    return _joined(sorted(n.removeprefix(prefix) for n in node["metadata"].get("labels", {}) if n.startswith(prefix)))


def _address(kind: str) -> Callable[[Object], str]:
    def read(node: Object) -> str:
        found = [each["address"] for each in node.get("status", {}).get("addresses", []) if each["type"] == kind]
        return found[0] if found else "<none>"

    return read


def _ports(service: Object) -> str:
    return _joined(
        [
            f"{port['port']}" + (f":{port['nodePort']}" if port.get("nodePort") else "") + f"/{port.get('protocol')}"
            for port in service["spec"].get("ports", [])
        ]
    )


def _external(service: Object) -> str:
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return spec.get("externalName", "")
    found = [
        each.get("ip") or each.get("hostname", "")
        for each in service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
    ]
    return _joined(found) if found or spec.get("type") != "LoadBalancer" else "<pending>"


def _job_status(job: Object) -> str:
    for kind, words in (("Complete", "Complete"), ("Failed", "Failed")):
        if _condition(job, kind).get("status") == "True":
            return words
    if job["metadata"].get("deletionTimestamp"):
        return "Terminating"
    return next(
        (
            name
            for name in ("Suspended", "FailureTarget", "SuccessCriteriaMet")
            if _condition(job, name).get("status") == "True"
        ),
        "Running",
    )


def _job_duration(job: Object) -> str:
    status = job.get("status", {})
    if not status.get("startTime"):
        return ""
    end = status.get("completionTime")
    until = datetime.fromisoformat(end) if end else datetime.now(UTC)
    return human_duration(int((until - datetime.fromisoformat(status["startTime"])).total_seconds()))


def _completions(job: Object) -> str:
    done, spec = job.get("status", {}).get("succeeded", 0), job["spec"]
    if "completions" in spec:
        return f"{done}/{spec['completions']}"
    parallel = spec.get("parallelism", 1)
    return f"{done}/1 of {parallel}" if parallel > 1 else f"{done}/1"


def _bound(path: str) -> Callable[[Object], str]:
    read = get(path)
    return lambda item: read(item) or ""


def _access_modes(path: str) -> Callable[[Object], str]:
    read = get(path, [])
    short = {"ReadWriteOnce": "RWO", "ReadOnlyMany": "ROX", "ReadWriteMany": "RWX", "ReadWriteOncePod": "RWOP"}
    return lambda item: ",".join(short.get(mode, mode) for mode in read(item))


def _volume_status(item: Object) -> str | None:
    """Of a volume or a claim."""
    return "Terminating" if item["metadata"].get("deletionTimestamp") else item["status"].get("phase")


def _claim_of(volume: Object) -> str:
    claim = volume["spec"].get("claimRef")
    return f"{claim.get('namespace')}/{claim.get('name')}" if claim else ""


def _param_kind(policy: Object) -> str:
    kind = policy["spec"].get("paramKind")
    return f"{kind['apiVersion']}/{kind['kind']}" if kind else "<unset>"


def _param_ref(binding: Object) -> str:
    reference = binding["spec"].get("paramRef")
    return "/".join(filter(None, map(reference.get, ("namespace", "name")))) if reference else "<unset>"


def _event_object(event: Object) -> str:
    involved = event.get("involvedObject", {})
    return f"{involved.get('kind', '').lower()}/{involved.get('name', '')}"


def _last_seen(event: Object) -> str:
    series = (event.get("series") or {}).get("lastObservedTime")
    return age(series or event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp"))


def _hpa_reference(item: Object) -> str:
    target = item["spec"]["scaleTargetRef"]
    return f"{target['kind']}/{target['name']}"


def _hpa_targets(item: Object) -> str:
    """`current/target` of each metric, unknown until the controller has seen it."""
    current = item.get("status", {}).get("currentMetrics") or []
    shown = []
    for index, metric in enumerate(item["spec"].get("metrics", [])):
        source = metric["type"][0].lower() + metric["type"][1:]
        target = metric.get(source, {}).get("target", {})
        seen = current[index].get(source, {}).get("current", {}) if index < len(current) else {}
        if "averageUtilization" in target:
            now = f"{seen['averageUtilization']}%" if "averageUtilization" in seen else "<unknown>"
            shown.append(f"{metric.get(source, {}).get('name', '')}: {now}/{target['averageUtilization']}%")
        elif "averageValue" in target:
            shown.append(f"{seen.get('averageValue', '<unknown>')}/{target['averageValue']}")
        else:
            shown.append(f"{seen.get('value', '<unknown>')}/{target.get('value')}")
    return ", ".join(shown) or "<none>"


NAME: Column = ("Name", "string", 0, get("metadata.name"))
AGE: Column = ("Age", "string", 0, lambda item: age(item["metadata"].get("creationTimestamp")))
_NODE_INFO = "status.nodeInfo."


def _c(name: str, read: Callable[[Object], Any], priority: int = 0, kind: str = "string") -> Column:
    return (name, kind, priority, read)


def _n(name: str, path: str) -> Column:
    return (name, "integer", 0, get(path, 0))


_TEMPLATE = [
    _c("Containers", _containers("name"), 1),
    _c("Images", _containers("image"), 1),
    _c("Selector", _selector, 1),
]
_VOLUME_CLASSES = [
    _c("StorageClass", _bound("spec.storageClassName")),
    _c("VolumeAttributesClass", get("spec.volumeAttributesClassName", "<unset>")),
]
_VOLUME_END = [AGE, _c("VolumeMode", get("spec.volumeMode", "<unset>"), 1)]


def _rows_ready(item: Object) -> str:
    return f"{item.get('status', {}).get('readyReplicas', 0)}/{item['spec'].get('replicas', 0)}"


COLUMNS: dict[str, list[Column]] = {
    "Pod": [
        NAME,
        _c("Ready", _ready),
        _c("Status", pod_status),
        _c("Restarts", _restarts),
        AGE,
        _c("IP", get("status.podIP", "<none>"), 1),
        _c("Node", get("spec.nodeName", "<none>"), 1),
        _c("Nominated Node", get("status.nominatedNodeName", "<none>"), 1),
        _c("Readiness Gates", lambda pod: "<none>", 1),
    ],
    "Deployment": [
        NAME,
        _c("Ready", _rows_ready),
        _n("Up-to-date", "status.updatedReplicas"),
        _n("Available", "status.availableReplicas"),
        AGE,
        *_TEMPLATE,
    ],
    "ReplicaSet": [
        NAME,
        _n("Desired", "spec.replicas"),
        _n("Current", "status.replicas"),
        _n("Ready", "status.readyReplicas"),
        AGE,
        *_TEMPLATE,
    ],
    "StatefulSet": [NAME, _c("Ready", _rows_ready), AGE, *_TEMPLATE[:2]],
    "Job": [
        NAME,
        _c("Status", _job_status),
        _c("Completions", _completions),
        _c("Duration", _job_duration),
        AGE,
        *_TEMPLATE,
    ],
    "Service": [
        NAME,
        _c("Type", get("spec.type")),
        _c("Cluster-IP", get("spec.clusterIP", "<none>")),
        _c("External-IP", _external),
        _c("Port(s)", _ports),
        AGE,
        _c("Selector", lambda item: _pairs(item["spec"].get("selector")), 1),
    ],
    "Namespace": [NAME, _c("Status", get("status.phase", "")), AGE],
    "Node": [
        NAME,
        _c("Status", _node_status),
        _c("Roles", _node_roles),
        AGE,
        _c("Version", get(_NODE_INFO + "kubeletVersion", "")),
        _c("Internal-IP", _address("InternalIP"), 1),
        _c("External-IP", _address("ExternalIP"), 1),
        _c("OS-Image", get(_NODE_INFO + "osImage", "<unknown>"), 1),
        _c("Kernel-Version", get(_NODE_INFO + "kernelVersion", "<unknown>"), 1),
        _c("Container-Runtime", get(_NODE_INFO + "containerRuntimeVersion", "<unknown>"), 1),
    ],
    "ConfigMap": [
        NAME,
        _c("Data", lambda i: len(i.get("data", {})) + len(i.get("binaryData", {})), 0, "string"),
        AGE,
    ],
    "Secret": [NAME, _c("Type", get("type")), _c("Data", lambda item: len(item.get("data", {})), 0, "string"), AGE],
    "ServiceAccount": [NAME, _c("Secrets", lambda item: len(item.get("secrets", [])), 0, "string"), AGE],
    "PersistentVolumeClaim": [
        NAME,
        _c("Status", _volume_status),
        _c("Volume", _bound("spec.volumeName")),
        _c("Capacity", _bound("status.capacity.storage")),
        _c("Access Modes", _access_modes("status.accessModes")),
        *_VOLUME_CLASSES,
        *_VOLUME_END,
    ],
    "PersistentVolume": [
        NAME,
        _c("Capacity", _bound("spec.capacity.storage")),
        _c("Access Modes", _access_modes("spec.accessModes")),
        _c("Reclaim Policy", _bound("spec.persistentVolumeReclaimPolicy")),
        _c("Status", _volume_status),
        _c("Claim", _claim_of),
        *_VOLUME_CLASSES,
        _c("Reason", _bound("status.reason")),
        *_VOLUME_END,
    ],
    "StorageClass": [
        NAME,
        _c("Provisioner", get("provisioner")),
        _c("ReclaimPolicy", get("reclaimPolicy")),
        _c("VolumeBindingMode", get("volumeBindingMode")),
        _c("AllowVolumeExpansion", lambda item: str(bool(item.get("allowVolumeExpansion"))).lower()),
        AGE,
    ],
    "Event": [
        _c("Last Seen", _last_seen),
        _c("Type", get("type", "")),
        _c("Reason", get("reason", "")),
        _c("Object", _event_object),
        _c("Subobject", get("involvedObject.fieldPath", ""), 1),
        _c("Source", get("source.component", ""), 1),
        _c("Message", lambda item: (item.get("message") or "").strip()),
        _c("First Seen", lambda item: age(item.get("firstTimestamp") or item.get("eventTime")), 1),
        _c("Count", lambda item: item.get("count") or 1, 1),
        _c("Name", get("metadata.name"), 1),
    ],
    "HorizontalPodAutoscaler": [
        NAME,
        _c("Reference", _hpa_reference),
        _c("Targets", _hpa_targets),
        _c("MinPods", get("spec.minReplicas", "<unset>")),
        _n("MaxPods", "spec.maxReplicas"),
        _n("Replicas", "status.currentReplicas"),
        AGE,
    ],
    "PodDisruptionBudget": [
        NAME,
        _c("Min Available", get("spec.minAvailable", "N/A")),
        _c("Max Unavailable", get("spec.maxUnavailable", "N/A")),
        _n("Allowed Disruptions", "status.disruptionsAllowed"),
        AGE,
    ],
    "Lease": [NAME, _c("Holder", get("spec.holderIdentity", "")), AGE],
    "NetworkPolicy": [
        NAME,
        _c("Pod-Selector", lambda item: _pairs(item["spec"].get("podSelector", {}).get("matchLabels"))),
        AGE,
    ],
    "ValidatingAdmissionPolicy": [
        NAME,
        _c("Validations", lambda item: len(item["spec"].get("validations", [])), 0, "integer"),
        _c("ParamKind", _param_kind),
        AGE,
    ],
    "ValidatingAdmissionPolicyBinding": [
        NAME,
        _c("PolicyName", get("spec.policyName")),
        _c("ParamRef", _param_ref),
        AGE,
    ],
    "CustomResourceDefinition": [NAME, _c("Created At", get("metadata.creationTimestamp"))],
}
