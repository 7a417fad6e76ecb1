"""Role-based access control, as far as reviews ask for it: what a user may do by the roles and bindings that are there.

Nothing is refused for it. https://kubernetes.io/docs/reference/access-authn-authz/rbac/
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from emulated_cloud.kubernetes.apiserver.store import Store

Object = dict[str, Any]

GROUP = "rbac.authorization.k8s.io"
_MASTERS = "system:masters"


def allows(store: Store, spec: Object) -> bool:
    """Whether somebody may do what the spec of a SubjectAccessReview asks: about resources alone."""
    if _MASTERS in (spec.get("groups") or []):
        return True
    asked = spec.get("resourceAttributes") or {}
    return any(_permits(rule, asked) for rule in _rules(store, spec, asked.get("namespace", "")))


def _rules(store: Store, spec: Object, namespace: str) -> Iterator[Object]:
    """The rules that somebody has in the whole cluster, and those in a namespace."""
    for binding in store.list((GROUP, "clusterrolebindings")):
        if _is_of(binding, spec):
            yield from _role_of(store, binding, "")
    for binding in store.list((GROUP, "rolebindings"), namespace) if namespace else ():
        if _is_of(binding, spec):
            yield from _role_of(store, binding, namespace)


def _is_of(binding: Object, spec: Object) -> bool:
    user, groups = spec.get("user", ""), spec.get("groups") or []
    for subject in binding.get("subjects") or []:
        kind, name = subject.get("kind"), subject.get("name", "")
        if kind == "ServiceAccount":
            kind, name = "User", f"system:serviceaccount:{subject.get('namespace', '')}:{name}"
        if name in {"User": [user], "Group": groups}.get(str(kind), []):
            return True
    return False


def _role_of(store: Store, binding: Object, namespace: str) -> list[Object]:
    """The rules of the role that a binding gives; none for a role that is not there."""
    kind, name = binding["roleRef"]["kind"], binding["roleRef"]["name"]
    plural = "clusterroles" if kind == "ClusterRole" else "roles"
    role = store.get((GROUP, plural), namespace if plural == "roles" else "", name)
    return (role or {}).get("rules") or []


def _permits(rule: Object, asked: Object) -> bool:
    resource = asked.get("resource", "")
    if subresource := asked.get("subresource"):
        resource = f"{resource}/{subresource}"
    named = rule.get("resourceNames") or []
    return (
        _has(rule.get("verbs"), asked.get("verb"))
        and _has(rule.get("apiGroups"), asked.get("group", ""))
        and _has(rule.get("resources"), resource)
        and (not named or asked.get("name") in named)
    )


def _has(given: list[str] | None, wanted: str | None) -> bool:
    return "*" in (given or []) or wanted in (given or [])
