"""What the pipeline's identity may do in the cluster, derived from the folders of `manifests/`.

The kinds that generations own, for good or while they are made, are listed and deleted whatever features a deployment
has, so that nothing is leaked when they change; everything else is granted for the features that it has. What has a
known name is granted under that name.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from serving import features, names, scenarios
from serving.clients.kubernetes import kinds
from serving.clients.kubernetes.kinds import Kind, Object
from serving.rendering import manifests
from serving.rendering.manifests import Scope
from serving.settings import Settings

_VERBS = ("get", "list", "watch", "create", "patch", "delete")
_ANY_NAME = ""
_OF_A_GENERATION: tuple[Scope, ...] = ("generation", "temporary")
"""What carries a generation's label."""


def owned_kinds() -> list[Kind]:
    """Every kind that a generation of any deployment may own, in the order in which they are applied."""
    found = {
        item["kind"]
        for feature in _everywhere()
        for scope in _OF_A_GENERATION
        for item in manifests.of_any_variant(feature, scope).values()
    }
    return [kind for kind in kinds.known() if kind.kind in found]


def admin_kinds() -> set[str]:
    """The kinds that only an administrator makes."""

    def made(*scopes: Scope) -> set[str]:
        return {
            item["kind"]
            for feature in _everywhere()
            for scope in scopes
            for item in manifests.of_any_variant(feature, scope).values()
        }

    return made("admin") - made("shared", "entry", *_OF_A_GENERATION)


def rules(settings: Settings, written: list[Object], entry: list[Object]) -> list[Object]:
    """The rules of the pipeline's Role: for what generations consist of, for `written` (the shared objects) and for
    `entry`, which is read as well."""
    granted: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for kind in owned_kinds():
        if kind.namespaced:
            granted[kind.kind][_ANY_NAME] |= _of_generation(settings, kind)
    for name, verbs in _of_steps(settings).items():
        if kinds.find(name).namespaced:
            granted[name][_ANY_NAME] |= verbs
    for item in _namespaced([*written, *entry]):
        granted[item["kind"]][_ANY_NAME] |= {"create"}
        granted[item["kind"]][item["metadata"]["name"]] |= {"patch"} | ({"get"} if item in entry else set())
    return [
        rule
        for kind in kinds.known()
        for name, verbs in sorted(granted[kind.kind].items())
        if (rule := _rule(kind, verbs - (granted[kind.kind][_ANY_NAME] if name else set()), name))
    ]


def cluster_rules(settings: Settings, written: list[Object]) -> list[Object]:
    """The rules of the pipeline's ClusterRole: for what generations own outside of the namespace, for `written` (the
    shared objects), and what features' steps read there."""
    owned, of_steps = owned_kinds(), _of_steps(settings)
    shared = {item["kind"] for item in written} - {item["kind"] for item in _namespaced(written)}
    return [
        rule
        for kind in kinds.known()
        if not kind.namespaced
        if (
            rule := _rule(
                kind,
                (_of_generation(settings, kind) if kind in owned else set())
                | of_steps[kind.kind]
                | ({"create", "patch"} if kind.kind in shared else set()),
            )
        )
    ]


def _namespaced(items: list[Object]) -> list[Object]:
    return [item for item in items if kinds.find(item["kind"]).namespaced]


def cluster_resources() -> list[Object]:
    """The same kinds as an admission policy names them."""
    return [
        {
            "apiGroups": [kind.group],
            "apiVersions": [kind.version],
            "resources": [kind.plural],
            "operations": ["CREATE", "UPDATE", "DELETE"],
        }
        for kind in owned_kinds()
        if not kind.namespaced
    ]


def api_key_rules(settings: Settings) -> list[Object]:
    """What the pipeline may do with Secrets: nothing, unless it copies the server's API key into one."""
    if not settings.engine.api_key_secret:
        return []
    secrets = {"apiGroups": [""], "resources": ["secrets"]}
    return [
        {**secrets, "resourceNames": [names.api_key(settings)], "verbs": ["get", "patch"]},
        {**secrets, "verbs": ["create"]},
    ]


def _of_generation(settings: Settings, kind: Kind) -> set[str]:
    chosen = {manifests.BASE: "", **{name: features.variant(settings, name) for name in settings.chosen_features}}
    made = {
        item["kind"]
        for feature, variant in chosen.items()
        for scope in _OF_A_GENERATION
        for item in manifests.of(feature, scope, variant).values()
    }
    if kind.kind not in made:
        return {"list", "delete"}
    return {"list", "delete", "create"} | (set() if kind.immutable else {"patch"})


def _of_steps(settings: Settings) -> dict[str, set[str]]:
    """What the deployment's features' own steps do, by kind."""
    found: dict[str, set[str]] = defaultdict(set)
    for _, rights in features.answers(settings, "rights"):
        for kind, verbs in rights.items():
            found[kind] |= verbs
    return found


def _everywhere() -> tuple[str, ...]:
    return (manifests.BASE, *scenarios.all_features())


def _rule(kind: Kind, verbs: set[str], name: str = "") -> dict[str, Any]:
    """A rule; empty when nothing is granted."""
    if not verbs:
        return {}
    named = {"resourceNames": [name]} if name else {}
    ordered = [verb for verb in _VERBS if verb in verbs]
    return {"apiGroups": [kind.group], "resources": [kind.plural], **named, "verbs": ordered}
