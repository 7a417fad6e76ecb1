"""What a cluster has from its first start: namespaces, priority classes, its own Service, GKE's definitions."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from emulated_cloud.kubernetes.apiserver import custom, patching
from emulated_cloud.kubernetes.apiserver.resources import Resource
from emulated_cloud.kubernetes.apiserver.storage import Options, Storage

Object = dict[str, Any]

_NAMESPACES = ("default", "kube-node-lease", "kube-public", "kube-system")
_PRIORITY_CLASSES = {"system-cluster-critical": 2_000_000_000, "system-node-critical": 2_000_001_000}
_OPTIONS = Options("kube-apiserver")


def start(storage: Storage, definitions: Path, absent: Collection[str] = ()) -> None:
    """Serves the custom kinds that are stored, and adds what a new cluster lacks, but for definitions in `absent`."""
    for definition in storage.store.list(("apiextensions.k8s.io", "customresourcedefinitions")):
        custom.serve(definition, storage.resources)
    for name in _NAMESPACES:
        _ensure(storage, ("", "v1", "namespaces"), "", {"metadata": {"name": name}})
    for name, value in _PRIORITY_CLASSES.items():
        item: Object = {"metadata": {"name": name}, "value": value}
        _ensure(storage, ("scheduling.k8s.io", "v1", "priorityclasses"), "", item)
    service = {
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"name": "https", "port": 443, "targetPort": 443}]},
    }
    _ensure(storage, ("", "v1", "services"), "default", service)
    for path in sorted(definitions.glob("*.yaml")):
        # Files are named GROUP_PLURAL.yaml, so what is installed already need not be parsed.
        group, _, plural = path.stem.partition("_")
        name = f"{plural}.{group}"
        there = storage.store.get(("apiextensions.k8s.io", "customresourcedefinitions"), "", name)
        if there is None and name not in absent:
            _install(storage, path)


def apply(storage: Storage, path: Path) -> None:
    """Applies the objects of a YAML file, as an administrator does. Raises ApiError, and LookupError for a kind that is
    not served."""
    for item in _documents(path):
        resource = next(
            (one for one in storage.resources if one.kind == item["kind"] and one.api_version == item["apiVersion"]),
            None,
        )
        if resource is None:
            raise LookupError(f"{path}: no {item['apiVersion']} {item['kind']} is served")
        name, namespace = item["metadata"]["name"], item["metadata"].get("namespace", "")
        body, query = json.dumps(item).encode(), {"fieldManager": "gke", "force": "true"}
        patching.patch(storage, resource, namespace, name, "", body, patching.APPLY, query, Options("gke"))


def _install(storage: Storage, path: Path) -> None:
    for definition in _documents(path):
        where = ("apiextensions.k8s.io", "v1", "customresourcedefinitions")
        definition.pop("status", None)
        _ensure(storage, where, "", definition)


def _documents(path: Path) -> list[Object]:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [document for document in yaml.load_all(path.read_bytes(), Loader=loader) if document]


def _ensure(storage: Storage, where: tuple[str, str, str], namespace: str, item: Object) -> None:
    resource: Resource | None = storage.resources.find(*where)
    assert resource is not None
    if storage.store.get(resource.storage_key, namespace, item["metadata"]["name"]) is None:
        storage.create(resource, namespace, item, _OPTIONS)
