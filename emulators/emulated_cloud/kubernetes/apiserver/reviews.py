"""Requests that are answered and not stored: token and access reviews, tokens of service accounts.

RBAC is not enforced: the caller, whoever it is, may do everything. What another may do is answered by the roles and
bindings that are there (rbac.py).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from emulated_cloud.kubernetes.apiserver import errors, rbac
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.store import Store
from emulated_cloud.kubernetes.apiserver.tokens import ISSUER, Tokens, User

Object = dict[str, Any]

KINDS = {
    "LocalSubjectAccessReview",
    "SelfSubjectAccessReview",
    "SelfSubjectReview",
    "SelfSubjectRulesReview",
    "SubjectAccessReview",
    "TokenReview",
}


def review(resource: Resource, body: Object, user: User, tokens: Tokens, store: Store) -> Object:
    """The review with its status."""
    spec = body.get("spec") or {}
    answer = {
        "kind": resource.kind,
        "apiVersion": resource.api_version,
        "metadata": body.get("metadata") or {},
        "spec": spec,
    }
    if resource.kind == "TokenReview":
        if not spec.get("token"):
            raise errors.bad_request("token is required for TokenReview in authentication")
        return {**answer, "status": _token_status(spec, tokens)}
    if resource.kind == "SelfSubjectReview":
        answer.pop("spec")
        return {**answer, "status": {"userInfo": user.as_info()}}
    if resource.kind == "SelfSubjectRulesReview":
        rules = [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]
        paths = [{"verbs": ["*"], "nonResourceURLs": ["*"]}]
        return {**answer, "status": {"resourceRules": rules, "nonResourceRules": paths, "incomplete": False}}
    if not spec.get("resourceAttributes") and not spec.get("nonResourceAttributes"):
        cause = errors.invalid_value(
            "spec.resourceAttributes",
            None,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )
        raise errors.invalid(resource.group, resource.kind, "", [cause])
    if resource.kind != "SelfSubjectAccessReview" and spec.get("resourceAttributes"):
        return {**answer, "status": {"allowed": rbac.allows(store, spec)}}
    return {**answer, "status": {"allowed": True, "reason": "RBAC is not enforced by the emulated API server"}}


def _token_status(spec: Object, tokens: Tokens) -> Object:
    user = tokens.authenticate(spec.get("token") or "")
    if user is None:
        return {"user": {}, "error": "invalid bearer token"}
    return {"authenticated": True, "user": user.as_info(), "audiences": spec.get("audiences") or [ISSUER]}


def token_request(account: Object, body: Object, tokens: Tokens) -> Object:
    """`serviceaccounts/token`: a new token for the account."""
    spec = body.get("spec") or {}
    token, expires = tokens.issue(account, spec)
    asked = {"audiences": spec.get("audiences") or [ISSUER], "expirationSeconds": spec.get("expirationSeconds") or 3600}
    stamp = datetime.fromtimestamp(expires, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = account["metadata"]
    return {
        "kind": "TokenRequest",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"]},
        "spec": {**asked, "boundObjectRef": spec.get("boundObjectRef")},
        "status": {"token": token, "expirationTimestamp": stamp},
    }
