"""Requests and bodies that the tests of Kubernetes API servers send, and what they read out of refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from kubernetes import client
from kubernetes.client.exceptions import ApiException

Object = dict[str, Any]


def refused(error: pytest.ExceptionInfo[ApiException]) -> Object:
    """The Status that an ApiException carries."""
    status: Object = yaml.safe_load(error.value.body)
    return status


def deployment(name: str, **spec: Any) -> Object:
    """A Deployment that asks for little."""
    container = {"name": "server", "image": "example.com/server:1", "ports": [{"containerPort": 8000}]}
    template = {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, "template": template, **spec},
    }


def pod(name: str, **spec: Any) -> Object:
    containers = [{"name": "main", "image": "example.com/tool:1"}]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {"containers": containers, **spec}}


def config_map(name: str, labels: dict[str, str] | None = None, **data: str) -> Object:
    metadata: Object = {"name": name, "labels": labels} if labels else {"name": name}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


class Requests:
    """Requests as they are, without a client's opinion of them."""

    def __init__(self, api: client.ApiClient, namespace: str):
        self._api, self.namespace = api, namespace

    def __call__(self, method: str, path: str, body: Any = None, content_type: str = "") -> tuple[int, Any]:
        """Status and JSON; `path` begins at the test's namespace unless it begins with a slash."""
        if not path.startswith("/"):
            group, _, rest = path.rpartition("!")
            path = f"/{'apis/' + group if group else 'api/v1'}/namespaces/{self.namespace}/{rest}"
        headers = {"Accept": "application/json"}
        if content_type or body is not None:
            headers["Content-Type"] = content_type or "application/json"
        try:
            data, status, _ = self._api.call_api(
                path,
                method,
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
                response_type="object",
            )
        except ApiException as error:
            return error.status, json.loads(error.body)
        return status, data
