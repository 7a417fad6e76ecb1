"""Discovery documents: which groups, versions and kinds are served, in both forms that clients ask for.

kubectl asks for the aggregated form (apidiscovery.k8s.io/v2: one document for all groups), the Python client for
a document a group.
"""

from __future__ import annotations

from typing import Any

from emulated_cloud.kubernetes.apiserver.resources import (
    SUBRESOURCE_KINDS,
    Resource,
    Resources,
    subresource_verbs,
)

AGGREGATED_TYPE = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
VERSION = {
    "major": "1",
    "minor": "35",
    "gitVersion": "v1.35.4",
    "gitCommit": "emulated",
    "gitTreeState": "clean",
    "buildDate": "1970-01-01T00:00:00Z",
    "goVersion": "none",
    "compiler": "none",
    "platform": "linux/amd64",
}


def api_versions(server: str) -> dict[str, Any]:
    """/api"""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def group(resources: Resources, name: str) -> dict[str, Any] | None:
    """/apis/GROUP; None for a group that is not served."""
    versions = resources.group_versions().get(name)
    if not versions or not name:
        return None
    described = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": described, "preferredVersion": described[0]}


def group_list(resources: Resources) -> dict[str, Any]:
    """/apis"""
    groups = [group(resources, name) for name in resources.group_versions() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def resource_list(resources: Resources, name: str, version: str) -> dict[str, Any] | None:
    """/api/v1 and /apis/GROUP/VERSION; None for a version that is not served."""
    found = [made for made in resources if (made.group, made.version) == (name, version)]
    if not found:
        return None
    listed = []
    for made in sorted(found, key=lambda each: each.plural):
        listed.append(_described(made))
        listed += [_subresource(made, sub) for sub in sorted(made.subresources)]
    group_version = f"{name}/{version}" if name else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def _described(made: Resource) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": made.plural,
        "singularName": made.singular_name,
        "namespaced": made.namespaced,
        "kind": made.kind,
        "verbs": list(made.verbs),
    }
    if made.short_names:
        described["shortNames"] = list(made.short_names)
    if made.categories:
        described["categories"] = list(made.categories)
    return described


def _subresource(made: Resource, sub: str) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": f"{made.plural}/{sub}",
        "singularName": "",
        "namespaced": made.namespaced,
        "kind": made.kind,
        "verbs": list(subresource_verbs(sub)),
    }
    if sub in SUBRESOURCE_KINDS:
        described["group"], described["version"], described["kind"] = SUBRESOURCE_KINDS[sub]
    return {name: value for name, value in described.items() if name != "group" or value}


def aggregated(resources: Resources, *, core: bool) -> dict[str, Any]:
    """/api (`core`) or /apis as an APIGroupDiscoveryList."""
    items = []
    for name, versions in resources.group_versions().items():
        if bool(name) == core:
            continue
        items.append(
            {
                "metadata": {"name": name} if name else {},
                "versions": [
                    {
                        "version": version,
                        "freshness": "Current",
                        "resources": [
                            _aggregated(made)
                            for made in sorted(resources, key=lambda each: each.plural)
                            if (made.group, made.version) == (name, version)
                        ],
                    }
                    for version in versions
                ],
            }
        )
    return {"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items}


def _aggregated(made: Resource) -> dict[str, Any]:
    described: dict[str, Any] = {
        "resource": made.plural,
        "responseKind": {"group": made.group, "version": made.version, "kind": made.kind},
        "scope": "Namespaced" if made.namespaced else "Cluster",
        "singularResource": made.singular_name,
        "verbs": list(made.verbs),
    }
    if made.short_names:
        described["shortNames"] = list(made.short_names)
    if made.categories:
        described["categories"] = list(made.categories)
    if made.subresources:
        described["subresources"] = [
            {
                "subresource": sub,
                "responseKind": dict(
                    zip(
                        ("group", "version", "kind"),
                        SUBRESOURCE_KINDS.get(sub, (made.group, made.version, made.kind)),
                        strict=True,
                    )
                ),
                "verbs": list(subresource_verbs(sub)),
            }
            for sub in sorted(made.subresources)
        ]
    return described
