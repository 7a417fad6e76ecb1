"""Validation of metadata and of built-in kinds: names, labels, required fields, enumerations, immutable fields.

The rules and their words are those of k8s.io/apimachinery/pkg/api/validation and of
k8s.io/kubernetes/pkg/apis/*/validation, for the fields that the scenarios use.
"""

from __future__ import annotations

from typing import Any

from emulators.kubernetes.apiserver import names
from emulators.kubernetes.apiserver.errors import Cause
from emulators.kubernetes.apiserver.resources import Resource

Object = dict[str, Any]


def causes(resource: Resource, item: Object, live: Object | None, subresource: str = "") -> list[Cause]:
    """What is wrong with an object of a built-in kind; with its change, where there is a `live` one."""
    return metadata_causes(resource, item, live)


def metadata_causes(resource: Resource, item: Object, live: Object | None) -> list[Cause]:
    return names.metadata_causes(resource, item, live)
