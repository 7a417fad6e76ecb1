"""The kinds that are served: the built-in table (kubernetes/resources.py) with their schemas, and the custom ones.

Custom resources join when their definition is stored (custom.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from emulated_cloud.kubernetes import resources
from emulated_cloud.kubernetes.apiserver.schema import Schema, builtin


@dataclass(frozen=True)
class Resource(resources.Resource):
    """One kind at one version, as it is served."""

    definition: str = ""
    """Name of the OpenAPI definition of a built-in kind."""
    crd: dict[str, Any] | None = field(default=None, compare=False)
    """A custom resource's entry of its definition's `spec.versions`."""

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


_DEFINITIONS = {
    "apiextensions.k8s.io": "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions",
    "apiregistration.k8s.io": "io.k8s.kube-aggregator.pkg.apis.apiregistration",
}
"""Where the OpenAPI definitions of groups are whose Go packages are not in k8s.io/api."""


def _served(made: resources.Resource) -> Resource:
    package = _DEFINITIONS.get(made.group, f"io.k8s.api.{made.group.partition('.')[0] or 'core'}")
    return Resource(**vars(made), definition=f"{package}.{made.version}.{made.kind}")


class Resources:
    """All kinds that are served now: the table and the custom ones."""

    def __init__(self) -> None:
        self._by_path = {(made.group, made.version, made.plural): _served(made) for made in resources.BUILT_IN}
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

    def replace_custom(self, group: str, plural: str, versions: list[Resource]) -> None:
        """Serves these versions of one custom kind; an empty list stops serving it."""
        kept = {
            path: made
            for path, made in self._by_path.items()
            if not (made.crd is not None and (made.group, made.plural) == (group, plural))
        }
        self._by_path = {**kept, **{(made.group, made.version, made.plural): made for made in versions}}
        self.generation += 1
