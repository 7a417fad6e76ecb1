"""Field sets, strategic merge, JSON patch: the arithmetic under the emulated API server."""

from __future__ import annotations

from typing import Any

import pytest
from emulated_cloud.kubernetes.apiserver.errors import ApiError
from emulated_cloud.kubernetes.apiserver.fieldsets import (
    compare,
    from_fields_v1,
    merge,
    path_text,
    remove,
    to_fields_v1,
    to_set,
)
from emulated_cloud.kubernetes.apiserver.patch_types import json_patch, merge_patch, strategic_merge
from emulated_cloud.kubernetes.apiserver.schema import Schema, builtin

POD = builtin("io.k8s.api.core.v1.Pod")


def containers(*names: str) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": name, "image": name} for name in names]}}


def names(pod: dict[str, Any]) -> list[str]:
    return [each["name"] for each in pod["spec"]["containers"]]


def test_a_set_survives_its_written_form() -> None:
    pod = {"metadata": {"labels": {"a": "b"}}, **containers("x", "y")}
    paths = to_set(POD, pod)

    assert from_fields_v1(to_fields_v1(paths)) == paths
    assert ("f:spec", "f:containers", 'k:{"name":"x"}', "f:image") in paths
    assert ("f:spec", "f:containers") not in paths


def test_a_path_reads_as_messages_write_it() -> None:
    keys = 'k:{"containerPort":80,"protocol":"TCP"}'
    assert path_text(("f:spec", "f:ports", keys, "f:name")) == '.spec.ports[containerPort=80,protocol="TCP"].name'
    assert path_text(("f:metadata", "f:finalizers", 'v:"a/b"')) == '.metadata.finalizers[="a/b"]'


def test_comparison_tells_added_removed_and_modified_apart() -> None:
    before = {"metadata": {"labels": {"same": "1", "old": "1", "changed": "1"}}}
    after = {"metadata": {"labels": {"same": "1", "new": "1", "changed": "2"}}}
    found = compare(POD, before, after)

    labels = ("f:metadata", "f:labels")
    assert found.added == {(*labels, "f:new")}
    assert found.removed == {(*labels, "f:old")}
    assert found.modified == {(*labels, "f:changed")}


def test_an_atomic_list_is_compared_whole() -> None:
    before = {"spec": {"containers": [{"name": "x", "command": ["a", "b"]}]}}
    after = {"spec": {"containers": [{"name": "x", "command": ["a", "c"]}]}}

    assert compare(POD, before, after).modified == {("f:spec", "f:containers", 'k:{"name":"x"}', "f:command")}


@pytest.mark.parametrize(
    ("live", "applied", "expected"),
    [
        (("a", "b"), ("b",), ["a", "b"]),
        (("a", "b"), ("b", "a"), ["b", "a"]),
        (("a",), ("c", "a"), ["c", "a"]),
        (("a", "b"), ("b", "c"), ["a", "b", "c"]),
    ],
)
def test_a_merged_list_keeps_the_applied_order(live: Any, applied: Any, expected: list[str]) -> None:
    assert names(merge(POD, containers(*live), containers(*applied))) == expected


def test_what_is_emptied_goes_too() -> None:
    pod = {"metadata": {"labels": {"a": "b"}, "name": "p"}, **containers("x")}
    left = remove(POD, pod, {("f:metadata", "f:labels", "f:a")})
    assert left == {"metadata": {"name": "p"}, **containers("x")}


def test_without_a_schema_maps_merge_and_lists_are_whole() -> None:
    schema = Schema.of_custom({})
    merged = merge(schema, {"a": {"x": 1}, "l": [1]}, {"a": {"y": 2}, "l": [2]})
    assert merged == {"a": {"x": 1, "y": 2}, "l": [2]}


# -- strategic merge --------------------------------------------------------------------------------------------


def merged(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = strategic_merge(POD, target, patch)
    return result


def test_directives_of_lists() -> None:
    pod = containers("a", "b")
    assert names(merged(pod, {"spec": {"containers": [{"name": "a", "$patch": "delete"}]}})) == ["b"]
    replaced = {"spec": {"containers": [{"$patch": "replace"}, {"name": "c", "image": "c"}]}}
    assert names(merged(pod, replaced)) == ["c"]
    ordered = {"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "b"}]}}
    assert names(merged(pod, ordered)) == ["b", "a"]


def test_directives_of_maps() -> None:
    pod = {"metadata": {"labels": {"a": "1", "b": "2"}}}
    assert merged(pod, {"metadata": {"labels": {"$patch": "replace", "c": "3"}}}) == {
        "metadata": {"labels": {"c": "3"}}
    }
    assert merged(pod, {"metadata": {"labels": {"a": None}}}) == {"metadata": {"labels": {"b": "2"}}}
    volume = {"spec": {"volumes": [{"name": "v", "emptyDir": {}}]}}
    change = {"spec": {"volumes": [{"$retainKeys": ["name", "hostPath"], "name": "v", "hostPath": {"path": "/x"}}]}}
    assert merged(volume, change)["spec"]["volumes"] == [{"name": "v", "hostPath": {"path": "/x"}}]


def test_lists_of_plain_values_are_united_or_cut() -> None:
    pod = {"metadata": {"finalizers": ["a/a", "b/b"]}}
    assert merged(pod, {"metadata": {"finalizers": ["b/b", "c/c"]}})["metadata"]["finalizers"] == ["a/a", "b/b", "c/c"]
    cut = {"metadata": {"$deleteFromPrimitiveList/finalizers": ["a/a"]}}
    assert merged(pod, cut)["metadata"]["finalizers"] == ["b/b"]


def test_an_item_without_its_key_is_refused() -> None:
    with pytest.raises(ApiError, match="does not contain declared merge key: name"):
        merged(containers("a"), {"spec": {"containers": [{"image": "x"}]}})


# -- the other patches ------------------------------------------------------------------------------------------


def test_a_merge_patch_is_rfc_7386() -> None:
    assert merge_patch({"a": {"b": 1, "c": [1]}}, {"a": {"b": None, "c": [2]}, "d": 3}) == {"a": {"c": [2]}, "d": 3}


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ({"op": "add", "path": "/l/-", "value": 3}, {"l": [1, 2, 3], "m": {"a/b": 1}}),
        ({"op": "add", "path": "/l/0", "value": 0}, {"l": [0, 1, 2], "m": {"a/b": 1}}),
        ({"op": "remove", "path": "/l/0"}, {"l": [2], "m": {"a/b": 1}}),
        ({"op": "replace", "path": "/m/a~1b", "value": 2}, {"l": [1, 2], "m": {"a/b": 2}}),
        ({"op": "move", "from": "/l", "path": "/m/l"}, {"m": {"a/b": 1, "l": [1, 2]}}),
        ({"op": "copy", "from": "/l/1", "path": "/n"}, {"l": [1, 2], "m": {"a/b": 1}, "n": 2}),
        ({"op": "test", "path": "/l/1", "value": 2}, {"l": [1, 2], "m": {"a/b": 1}}),
    ],
)
def test_a_json_patch_is_rfc_6902(operation: dict[str, Any], expected: dict[str, Any]) -> None:
    before = {"l": [1, 2], "m": {"a/b": 1}}
    assert json_patch(before, [operation]) == expected
    assert before == {"l": [1, 2], "m": {"a/b": 1}}


@pytest.mark.parametrize(
    "operation",
    [
        {"op": "remove", "path": "/nope"},
        {"op": "replace", "path": "/l/9", "value": 1},
        {"op": "add", "path": "/l/9", "value": 1},
        {"op": "test", "path": "/l/0", "value": 9},
        {"op": "leap", "path": "/l"},
        {"path": "/l"},
    ],
)
def test_what_cannot_be_done_is_unprocessable(operation: dict[str, Any]) -> None:
    with pytest.raises(ApiError) as error:
        json_patch({"l": [1]}, [operation])
    assert error.value.code == 422
