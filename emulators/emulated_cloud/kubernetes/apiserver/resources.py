"""The table of kinds: what the built-in resources are called, where they live and which subresources they have.

Names, short names, categories and verbs are those of the real server's discovery documents (kubernetes 1.35,
api/discovery). Custom resources join the table when their definition is stored (crds.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from emulated_cloud.kubernetes.apiserver.schema import Schema, builtin

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True)
class Resource:
    """One kind at one version."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    singular: str = ""
    definition: str = ""
    """Name of the OpenAPI definition of a built-in kind."""
    stored_as: tuple[str, str] = ("", "")
    """Group and version in which objects are kept, where it is not this one (events.k8s.io is kept as v1)."""
    crd: dict[str, Any] | None = field(default=None, compare=False)
    """A custom resource's entry of its definition's `spec.versions`."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage_version(self) -> str:
        group, version = self.stored_as if self.stored_as[1] else (self.group, self.version)
        return f"{group}/{version}" if group else version

    @property
    def storage_key(self) -> tuple[str, str]:
        """Objects of one key are the same objects, whatever the version they are asked in."""
        return (self.stored_as[0] if self.stored_as[1] else self.group, self.plural)

    @property
    def singular_name(self) -> str:
        return self.singular or self.kind.lower()

    @cached_property
    def schema(self) -> Schema:
        """The kind's schema; every field of a custom resource without one is unknown but kept."""
        if self.crd is None:
            return builtin(self.definition)
        return Schema.of_custom(self.crd.get("schema", {}).get("openAPIV3Schema", {}))


_CORE = "io.k8s.api.core.v1."
_STATUS = ("status",)
_SCALED = ("scale", "status")
_ALL = ("all",)
_EXTENSIONS = ("api-extensions",)


def _group(group: str, version: str, prefix: str, *resources: Resource) -> list[Resource]:
    return [
        replace(made, group=group, version=version, definition=made.definition or prefix + made.kind)
        for made in resources
    ]


def _r(plural: str, kind: str, **more: Any) -> Resource:
    return Resource("", "", plural, kind, **more)


_NAMESPACE_VERBS = tuple(verb for verb in ALL_VERBS if verb != "deletecollection")
_POD_PARTS = ("attach", "binding", "eviction", "exec", "log", "portforward", "status")

BUILT_IN: list[Resource] = [
    *_group(
        "",
        "v1",
        _CORE,
        _r("bindings", "Binding", verbs=("create",)),
        _r("configmaps", "ConfigMap", short_names=("cm",)),
        _r("endpoints", "Endpoints", short_names=("ep",), singular="endpoints"),
        _r("events", "Event", short_names=("ev",)),
        _r("limitranges", "LimitRange", short_names=("limits",)),
        _r(
            "namespaces",
            "Namespace",
            namespaced=False,
            short_names=("ns",),
            subresources=("finalize", "status"),
            verbs=_NAMESPACE_VERBS,
        ),
        _r("nodes", "Node", namespaced=False, short_names=("no",), subresources=_STATUS),
        _r("persistentvolumeclaims", "PersistentVolumeClaim", short_names=("pvc",), subresources=_STATUS),
        _r("persistentvolumes", "PersistentVolume", namespaced=False, short_names=("pv",), subresources=_STATUS),
        _r("pods", "Pod", short_names=("po",), categories=_ALL, subresources=_POD_PARTS),
        _r("podtemplates", "PodTemplate"),
        _r(
            "replicationcontrollers",
            "ReplicationController",
            short_names=("rc",),
            categories=_ALL,
            subresources=_SCALED,
        ),
        _r("resourcequotas", "ResourceQuota", short_names=("quota",), subresources=_STATUS),
        _r("secrets", "Secret"),
        _r("serviceaccounts", "ServiceAccount", short_names=("sa",), subresources=("token",)),
        _r("services", "Service", short_names=("svc",), categories=_ALL, subresources=_STATUS),
    ),
    *_group(
        "apps",
        "v1",
        "io.k8s.api.apps.v1.",
        _r("controllerrevisions", "ControllerRevision"),
        _r("daemonsets", "DaemonSet", short_names=("ds",), categories=_ALL, subresources=_STATUS),
        _r("deployments", "Deployment", short_names=("deploy",), categories=_ALL, subresources=_SCALED),
        _r("replicasets", "ReplicaSet", short_names=("rs",), categories=_ALL, subresources=_SCALED),
        _r("statefulsets", "StatefulSet", short_names=("sts",), categories=_ALL, subresources=_SCALED),
    ),
    *_group(
        "batch",
        "v1",
        "io.k8s.api.batch.v1.",
        _r("cronjobs", "CronJob", short_names=("cj",), categories=_ALL, subresources=_STATUS),
        _r("jobs", "Job", categories=_ALL, subresources=_STATUS),
    ),
    *_group(
        "autoscaling",
        "v2",
        "io.k8s.api.autoscaling.v2.",
        _r(
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
        "io.k8s.api.policy.v1.",
        _r("poddisruptionbudgets", "PodDisruptionBudget", short_names=("pdb",), subresources=_STATUS),
    ),
    *_group(
        "networking.k8s.io",
        "v1",
        "io.k8s.api.networking.v1.",
        _r("ingressclasses", "IngressClass", namespaced=False),
        _r("ingresses", "Ingress", short_names=("ing",), subresources=_STATUS),
        _r("networkpolicies", "NetworkPolicy", short_names=("netpol",)),
    ),
    *_group(
        "rbac.authorization.k8s.io",
        "v1",
        "io.k8s.api.rbac.v1.",
        _r("clusterrolebindings", "ClusterRoleBinding", namespaced=False),
        _r("clusterroles", "ClusterRole", namespaced=False),
        _r("rolebindings", "RoleBinding"),
        _r("roles", "Role"),
    ),
    *_group(
        "storage.k8s.io",
        "v1",
        "io.k8s.api.storage.v1.",
        _r("csidrivers", "CSIDriver", namespaced=False),
        _r("csinodes", "CSINode", namespaced=False),
        _r("storageclasses", "StorageClass", namespaced=False, short_names=("sc",)),
        _r("volumeattachments", "VolumeAttachment", namespaced=False, subresources=_STATUS),
    ),
    *_group("coordination.k8s.io", "v1", "io.k8s.api.coordination.v1.", _r("leases", "Lease")),
    *_group("discovery.k8s.io", "v1", "io.k8s.api.discovery.v1.", _r("endpointslices", "EndpointSlice")),
    *_group(
        "events.k8s.io",
        "v1",
        "io.k8s.api.events.v1.",
        _r("events", "Event", short_names=("ev",), stored_as=("", "v1")),
    ),
    *_group(
        "scheduling.k8s.io",
        "v1",
        "io.k8s.api.scheduling.v1.",
        _r("priorityclasses", "PriorityClass", namespaced=False, short_names=("pc",)),
    ),
    *_group(
        "apiextensions.k8s.io",
        "v1",
        "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.",
        _r(
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
        "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.",
        _r("apiservices", "APIService", namespaced=False, categories=_EXTENSIONS, subresources=_STATUS),
    ),
    *_group(
        "authorization.k8s.io",
        "v1",
        "io.k8s.api.authorization.v1.",
        _r("localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=("create",)),
        _r("selfsubjectaccessreviews", "SelfSubjectAccessReview", namespaced=False, verbs=("create",)),
        _r("selfsubjectrulesreviews", "SelfSubjectRulesReview", namespaced=False, verbs=("create",)),
        _r("subjectaccessreviews", "SubjectAccessReview", namespaced=False, verbs=("create",)),
    ),
    *_group(
        "authentication.k8s.io",
        "v1",
        "io.k8s.api.authentication.v1.",
        _r("selfsubjectreviews", "SelfSubjectReview", namespaced=False, verbs=("create",)),
        _r("tokenreviews", "TokenReview", namespaced=False, verbs=("create",)),
    ),
]

SUBRESOURCE_KINDS = {
    "scale": ("autoscaling", "v1", "Scale"),
    "binding": ("", "v1", "Binding"),
    "attach": ("", "v1", "PodAttachOptions"),
    "eviction": ("policy", "v1", "Eviction"),
    "exec": ("", "v1", "PodExecOptions"),
    "portforward": ("", "v1", "PodPortForwardOptions"),
    "token": ("authentication.k8s.io", "v1", "TokenRequest"),
}
"""Kinds of the subresources that speak another kind than their parent."""

SUBRESOURCE_VERBS = {
    "attach": ("create", "get"),
    "binding": ("create",),
    "eviction": ("create",),
    "exec": ("create", "get"),
    "finalize": ("update",),
    "log": ("get",),
    "portforward": ("create", "get"),
    "token": ("create",),
}
"""What subresources allow; the others allow get, patch and update."""


def subresource_verbs(name: str) -> tuple[str, ...]:
    return SUBRESOURCE_VERBS.get(name, ("get", "patch", "update"))


class Resources:
    """All kinds that are served now: the table and the custom ones."""

    def __init__(self) -> None:
        self._by_path = {(made.group, made.version, made.plural): made for made in BUILT_IN}
        self.generation = 0
        """Rises whenever a custom kind comes or goes, so that documents made from the table can be kept."""

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._by_path.values())

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._by_path.get((group, version, plural))

    def is_builtin(self, group: str) -> bool:
        """Whether the group is the server's own, and not a custom resource's."""
        return any(made.group == group and made.crd is None for made in self)

    def group_versions(self) -> dict[str, list[str]]:
        """Versions of each group, the preferred one first."""
        versions: dict[str, list[str]] = {}
        for made in self:
            if made.version not in versions.setdefault(made.group, []):
                versions[made.group].append(made.version)
        return versions

    def storages(self) -> list[Resource]:
        """One resource for each kind of stored object."""
        return list({made.storage_key: made for made in reversed(list(self)) if "list" in made.verbs}.values())

    def replace_custom(self, group: str, plural: str, resources: list[Resource]) -> None:
        """Serves `resources` as the versions of one custom kind; an empty list stops serving it."""
        kept = {
            path: made
            for path, made in self._by_path.items()
            if not (made.crd is not None and (made.group, made.plural) == (group, plural))
        }
        self._by_path = {**kept, **{(made.group, made.version, made.plural): made for made in resources}}
        self.generation += 1
