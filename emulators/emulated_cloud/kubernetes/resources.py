"""The table of kinds: what the built-in resources are called, where they live and which subresources they have.

Names, short names, categories and verbs are those of the real server's discovery documents (kubernetes 1.35,
api/discovery). The emulated API server serves them (apiserver/resources.py adds schemas and custom kinds); controllers,
GKE's parts and the kubelet ask any API server for those that have a name here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """One kind at one version. Two are equal that discovery names alike, whatever else is known of them."""

    plural: str
    kind: str
    group: str = ""
    version: str = "v1"
    namespaced: bool = True
    short_names: tuple[str, ...] = field(default=(), compare=False)
    categories: tuple[str, ...] = field(default=(), compare=False)
    subresources: tuple[str, ...] = field(default=(), compare=False)
    verbs: tuple[str, ...] = field(default=ALL_VERBS, compare=False)
    singular: str = field(default="", compare=False)
    stored_as: tuple[str, str] = field(default=("", ""), compare=False)
    """Group and version in which objects are kept, where it is not this one (events.k8s.io is kept as v1)."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        parts = ["/apis", self.group, self.version] if self.group else ["/api", self.version]
        if namespace and self.namespaced:
            parts += ["namespaces", namespace]
        parts += [part for part in (self.plural, name, subresource) if part]
        return "/".join(parts)


_STATUS = ("status",)
_SCALED = ("scale", "status")
_ALL = ("all",)
_EXTENSIONS = ("api-extensions",)


def _group(group: str, version: str, *resources: Resource) -> list[Resource]:
    return [replace(made, group=group, version=version) for made in resources]


_NAMESPACE_VERBS = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")
_POD_PARTS = ("attach", "binding", "eviction", "exec", "log", "portforward", "status")

BUILT_IN: list[Resource] = [
    *_group(
        "",
        "v1",
        Resource("bindings", "Binding", verbs=("create",)),
        Resource("configmaps", "ConfigMap", short_names=("cm",)),
        Resource("endpoints", "Endpoints", short_names=("ep",), singular="endpoints"),
        Resource("events", "Event", short_names=("ev",)),
        Resource("limitranges", "LimitRange", short_names=("limits",)),
        Resource(
            "namespaces",
            "Namespace",
            namespaced=False,
            short_names=("ns",),
            subresources=("finalize", "status"),
            verbs=_NAMESPACE_VERBS,
        ),
        Resource("nodes", "Node", namespaced=False, short_names=("no",), subresources=_STATUS),
        Resource("persistentvolumeclaims", "PersistentVolumeClaim", short_names=("pvc",), subresources=_STATUS),
        Resource("persistentvolumes", "PersistentVolume", namespaced=False, short_names=("pv",), subresources=_STATUS),
        Resource("pods", "Pod", short_names=("po",), categories=_ALL, subresources=_POD_PARTS),
        Resource("podtemplates", "PodTemplate"),
        Resource(
            "replicationcontrollers",
            "ReplicationController",
            short_names=("rc",),
            categories=_ALL,
            subresources=_SCALED,
        ),
        Resource("resourcequotas", "ResourceQuota", short_names=("quota",), subresources=_STATUS),
        Resource("secrets", "Secret"),
        Resource("serviceaccounts", "ServiceAccount", short_names=("sa",), subresources=("token",)),
        Resource("services", "Service", short_names=("svc",), categories=_ALL, subresources=_STATUS),
    ),
    *_group(
        "apps",
        "v1",
        Resource("controllerrevisions", "ControllerRevision"),
        Resource("daemonsets", "DaemonSet", short_names=("ds",), categories=_ALL, subresources=_STATUS),
        Resource("deployments", "Deployment", short_names=("deploy",), categories=_ALL, subresources=_SCALED),
        Resource("replicasets", "ReplicaSet", short_names=("rs",), categories=_ALL, subresources=_SCALED),
        Resource("statefulsets", "StatefulSet", short_names=("sts",), categories=_ALL, subresources=_SCALED),
    ),
    *_group(
        "batch",
        "v1",
        Resource("cronjobs", "CronJob", short_names=("cj",), categories=_ALL, subresources=_STATUS),
        Resource("jobs", "Job", categories=_ALL, subresources=_STATUS),
    ),
    *_group(
        "autoscaling",
        "v2",
        Resource(
            "horizontalpodautoscalers",
            "HorizontalPodAutoscaler",
            short_names=("hpa",),
            categories=_ALL,
            subresources=_STATUS,
        ),
    ),
    *_group(
        "policy",
        "v1",
        Resource("poddisruptionbudgets", "PodDisruptionBudget", short_names=("pdb",), subresources=_STATUS),
    ),
    *_group(
        "networking.k8s.io",
        "v1",
        Resource("ingressclasses", "IngressClass", namespaced=False),
        Resource("ingresses", "Ingress", short_names=("ing",), subresources=_STATUS),
        Resource("networkpolicies", "NetworkPolicy", short_names=("netpol",)),
    ),
    *_group(
        "rbac.authorization.k8s.io",
        "v1",
        Resource("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
        Resource("clusterroles", "ClusterRole", namespaced=False),
        Resource("rolebindings", "RoleBinding"),
        Resource("roles", "Role"),
    ),
    *_group(
        "storage.k8s.io",
        "v1",
        Resource("csidrivers", "CSIDriver", namespaced=False),
        Resource("csinodes", "CSINode", namespaced=False),
        Resource("storageclasses", "StorageClass", namespaced=False, short_names=("sc",)),
        Resource("volumeattachments", "VolumeAttachment", namespaced=False, subresources=_STATUS),
    ),
    *_group("coordination.k8s.io", "v1", Resource("leases", "Lease")),
    *_group("discovery.k8s.io", "v1", Resource("endpointslices", "EndpointSlice")),
    *_group(
        "events.k8s.io",
        "v1",
        Resource("events", "Event", short_names=("ev",), stored_as=("", "v1")),
    ),
    *_group(
        "scheduling.k8s.io",
        "v1",
        Resource("priorityclasses", "PriorityClass", namespaced=False, short_names=("pc",)),
    ),
    *_group(
        "admissionregistration.k8s.io",
        "v1",
        # Kept and shown to whoever watches them; nothing calls a webhook here.
        Resource(
            "mutatingwebhookconfigurations", "MutatingWebhookConfiguration", namespaced=False, categories=_EXTENSIONS
        ),
        Resource(
            "validatingwebhookconfigurations",
            "ValidatingWebhookConfiguration",
            namespaced=False,
            categories=_EXTENSIONS,
        ),
        Resource(
            "validatingadmissionpolicies",
            "ValidatingAdmissionPolicy",
            namespaced=False,
            categories=_EXTENSIONS,
            subresources=_STATUS,
        ),
        Resource(
            "validatingadmissionpolicybindings",
            "ValidatingAdmissionPolicyBinding",
            namespaced=False,
            categories=_EXTENSIONS,
        ),
    ),
    *_group(
        "apiextensions.k8s.io",
        "v1",
        Resource(
            "customresourcedefinitions",
            "CustomResourceDefinition",
            namespaced=False,
            short_names=("crd", "crds"),
            categories=_EXTENSIONS,
            subresources=_STATUS,
        ),
    ),
    *_group(
        "apiregistration.k8s.io",
        "v1",
        Resource("apiservices", "APIService", namespaced=False, categories=_EXTENSIONS, subresources=_STATUS),
    ),
    *_group(
        "authorization.k8s.io",
        "v1",
        Resource("localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=("create",)),
        Resource("selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False, verbs=("create",)),
        Resource("selfsubjectrulesreviews", "SelfSubjectRulesReview", namespaced=False, verbs=("create",)),
        Resource("subjectaccessreviews", "SubjectAccessReview", namespaced=False, verbs=("create",)),
    ),
    *_group(
        "authentication.k8s.io",
        "v1",
        Resource("selfsubjectreviews", "SelfSubjectReview", namespaced=False, verbs=("create",)),
        Resource("tokenreviews", "TokenReview", namespaced=False, verbs=("create",)),
    ),
]


def _named(plural: str, group: str = "") -> Resource:
    return next(made for made in BUILT_IN if (made.group, made.plural) == (group, plural))


PODS = _named("pods")
SERVICES = _named("services")
ENDPOINTS = _named("endpoints")
ENDPOINT_SLICES = _named("endpointslices", "discovery.k8s.io")
CONFIG_MAPS = _named("configmaps")
SECRETS = _named("secrets")
SERVICE_ACCOUNTS = _named("serviceaccounts")
EVENTS = _named("events")
NAMESPACES = _named("namespaces")
NODES = _named("nodes")
LEASES = _named("leases", "coordination.k8s.io")
VOLUMES = _named("persistentvolumes")
CLAIMS = _named("persistentvolumeclaims")
STORAGE_CLASSES = _named("storageclasses", "storage.k8s.io")
CRDS = _named("customresourcedefinitions", "apiextensions.k8s.io")
CSI_DRIVERS = _named("csidrivers", "storage.k8s.io")
CSI_NODES = _named("csinodes", "storage.k8s.io")
VOLUME_ATTACHMENTS = _named("volumeattachments", "storage.k8s.io")
DEPLOYMENTS = _named("deployments", "apps")
REPLICA_SETS = _named("replicasets", "apps")
JOBS = _named("jobs", "batch")
AUTOSCALERS = _named("horizontalpodautoscalers", "autoscaling")
DISRUPTION_BUDGETS = _named("poddisruptionbudgets", "policy")

# Custom kinds that GKE installs, whose definitions are in crds/.
ALLOWLISTS = Resource("gcpresourceallowlists", "GCPResourceAllowlist", "node.gke.io", "v1", namespaced=False)
AUTOSCALING_METRICS = Resource("autoscalingmetrics", "AutoscalingMetric", "autoscaling.gke.io", "v1beta1")
POD_MONITORINGS = Resource("podmonitorings", "PodMonitoring", "monitoring.googleapis.com")
COMPUTE_CLASSES = Resource("computeclasses", "ComputeClass", "cloud.google.com", "v1", namespaced=False)
_GATEWAY_API = "gateway.networking.k8s.io"
GATEWAY_CLASSES = Resource("gatewayclasses", "GatewayClass", _GATEWAY_API, namespaced=False)
GATEWAYS = Resource("gateways", "Gateway", _GATEWAY_API)
HTTP_ROUTES = Resource("httproutes", "HTTPRoute", _GATEWAY_API)
REFERENCE_GRANTS = Resource("referencegrants", "ReferenceGrant", _GATEWAY_API)
INFERENCE_POOLS = Resource("inferencepools", "InferencePool", "inference.networking.k8s.io")
BACKEND_POLICIES = Resource("gcpbackendpolicies", "GCPBackendPolicy", "networking.gke.io")
HEALTH_CHECK_POLICIES = Resource("healthcheckpolicies", "HealthCheckPolicy", "networking.gke.io")
DATA_SOURCES = Resource("gcpdatasources", "GCPDataSource", "datalayer.gke.io")
_SNAPSHOTS = "snapshot.storage.k8s.io"
SNAPSHOTS = Resource("volumesnapshots", "VolumeSnapshot", _SNAPSHOTS)
SNAPSHOT_CONTENTS = Resource("volumesnapshotcontents", "VolumeSnapshotContent", _SNAPSHOTS, namespaced=False)
SNAPSHOT_CLASSES = Resource("volumesnapshotclasses", "VolumeSnapshotClass", _SNAPSHOTS, namespaced=False)
