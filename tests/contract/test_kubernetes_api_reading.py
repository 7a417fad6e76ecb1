"""Lists, selectors and watches, with the official client. Runs against a real server, too: see kubernetes_api.py."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from tests.contract.kubernetes_objects import config_map, pod, refused

pytest_plugins = ["tests.contract.kubernetes_api"]


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("tier=web", {"a", "b"}),
        ("tier!=web", {"c", "d"}),
        ("tier in (web, batch),stage", {"a", "c"}),
        ("tier notin (web)", {"c", "d"}),
        ("!tier", {"d"}),
        ("stage==live,tier=web", {"a"}),
    ],
)
def test_labels_select(core: client.CoreV1Api, namespace: str, selector: str, names: set[str]) -> None:
    labels = {
        "a": {"tier": "web", "stage": "live"},
        "b": {"tier": "web"},
        "c": {"tier": "batch", "stage": "x"},
        "d": {},
    }
    for name, each in labels.items():
        core.create_namespaced_config_map(namespace, config_map(name, each))
    found = {item.metadata.name for item in core.list_namespaced_config_map(namespace, label_selector=selector).items}

    assert found - {"kube-root-ca.crt"} == names


def test_fields_select(core: client.CoreV1Api, namespace: str) -> None:
    for name in ("a", "b"):
        core.create_namespaced_pod(namespace, pod(name))
    core.patch_namespaced_pod_status("b", namespace, {"status": {"phase": "Running"}})

    def names(selector: str) -> list[str]:
        return [item.metadata.name for item in core.list_namespaced_pod(namespace, field_selector=selector).items]

    assert names("status.phase=Running") == ["b"]
    assert names("metadata.name!=b") == ["a"]
    assert names("spec.nodeName=") == ["a", "b"]
    with pytest.raises(ApiException) as error:
        names("spec.colour=red")
    assert (refused(error)["code"], refused(error)["message"]) == (400, "field label not supported: spec.colour")


def test_events_are_found_by_what_they_are_about(core: client.CoreV1Api, namespace: str) -> None:
    for name in ("a", "b"):
        about = {"kind": "Pod", "namespace": namespace, "name": name, "uid": f"uid-{name}"}
        body = {"metadata": {"name": f"{name}.1"}, "involvedObject": about, "reason": "Failed", "type": "Warning"}
        core.create_namespaced_event(namespace, body)
    found = core.list_namespaced_event(namespace, field_selector="involvedObject.uid=uid-b,type=Warning").items

    assert [event.metadata.name for event in found] == ["b.1"]


def test_a_long_list_comes_in_pages(core: client.CoreV1Api, namespace: str) -> None:
    for number in range(5):
        core.create_namespaced_config_map(namespace, config_map(f"a{number}", {"page": "yes"}))
    first = core.list_namespaced_config_map(namespace, limit=2, label_selector="page=yes")
    core.create_namespaced_config_map(namespace, config_map("a00", {"page": "yes"}))
    names, page = [item.metadata.name for item in first.items], first
    while page.metadata._continue:
        page = core.list_namespaced_config_map(
            namespace, limit=2, label_selector="page=yes", _continue=page.metadata._continue
        )
        names += [item.metadata.name for item in page.items]

    assert [name for name in names if name != "a00"] == ["a0", "a1", "a2", "a3", "a4"]


# -- watching ---------------------------------------------------------------------------------------------------


def events(watcher: Any, count: int) -> list[tuple[str, str]]:
    found = []
    for event in watcher:
        found.append((event["type"], event["object"].metadata.name))
        if len(found) == count:
            break
    return found


def test_a_watch_tells_what_happens_after_a_list(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("old"))
    version = core.list_namespaced_config_map(namespace).metadata.resource_version

    def change() -> None:
        core.create_namespaced_config_map(namespace, config_map("a"))
        core.patch_namespaced_config_map("a", namespace, {"data": {"k": "v"}})
        core.delete_namespaced_config_map("a", namespace)

    threading.Timer(0.2, change).start()
    stream = watch.Watch().stream(
        core.list_namespaced_config_map,
        namespace,
        resource_version=version,
        timeout_seconds=60,
        field_selector="metadata.name=a",
    )
    assert events(stream, 3) == [("ADDED", "a"), ("MODIFIED", "a"), ("DELETED", "a")]


def test_a_watch_without_a_version_begins_with_what_is_there(core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", {"x": "y"}))
    stream = watch.Watch().stream(core.list_namespaced_config_map, namespace, timeout_seconds=60, label_selector="x=y")
    assert events(stream, 1) == [("ADDED", "a")]


def test_what_leaves_the_selection_is_deleted_for_the_watch(core: client.CoreV1Api, namespace: str) -> None:
    version = core.create_namespaced_config_map(namespace, config_map("a", {"x": "y"})).metadata.resource_version
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"labels": {"x": "z"}}})
    core.patch_namespaced_config_map("a", namespace, {"metadata": {"labels": {"x": "y"}}})
    stream = watch.Watch().stream(
        core.list_namespaced_config_map,
        namespace,
        timeout_seconds=60,
        label_selector="x=y",
        resource_version=version,
    )
    assert events(stream, 2) == [("DELETED", "a"), ("ADDED", "a")]


def test_a_watch_ends_when_its_time_is_over(core: client.CoreV1Api, namespace: str) -> None:
    version = core.list_namespaced_config_map(namespace).metadata.resource_version
    started = time.monotonic()
    stream = watch.Watch().stream(core.list_namespaced_pod, namespace, resource_version=version, timeout_seconds=1)
    assert list(stream) == []
    assert time.monotonic() - started > 0.9


def test_initial_events_end_with_a_bookmark(api: client.ApiClient, core: client.CoreV1Api, namespace: str) -> None:
    core.create_namespaced_config_map(namespace, config_map("a", {"x": "y"}))
    query = {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "labelSelector": "x=y",
        "timeoutSeconds": "5",
    }
    response = api.call_api(
        f"/api/v1/namespaces/{namespace}/configmaps",
        "GET",
        query_params=list(query.items()),
        auth_settings=["BearerToken"],
        response_type="str",
        _preload_content=False,
    )[0]
    lines = [json.loads(line) for line in response.data.splitlines()]
    assert [line["type"] for line in lines[:2]] == ["ADDED", "BOOKMARK"]
    assert lines[1]["object"]["metadata"]["annotations"] == {"k8s.io/initial-events-end": "true"}
