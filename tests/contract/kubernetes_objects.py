"""Bodies that the tests of Kubernetes API servers send, and what they read out of refusals."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
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
