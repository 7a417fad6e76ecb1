"""Strategic merge patches merge as kubectl merges them, by the keys that the API's own schema gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from serving.errors import RequestError
from serving.rendering import patches

DEPLOYMENT: dict[str, Any] = {
    "kind": "Deployment",
    "spec": {
        "replicas": 1,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "vllm",
                        "args": ["a", "b"],
                        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}],
                        "volumeMounts": [{"name": "x", "mountPath": "/x"}],
                        "ports": [{"containerPort": 8000, "name": "http"}],
                    }
                ],
                "tolerations": [{"key": "a"}],
            }
        },
    },
}


def merged(pod: dict[str, Any]) -> dict[str, Any]:
    patch = {"kind": "Deployment", "spec": {"template": {"spec": pod}}}
    before = json.dumps(DEPLOYMENT)
    result = patches.apply(DEPLOYMENT, patch)["spec"]["template"]["spec"]
    assert json.dumps(DEPLOYMENT) == before, "the object is not changed in passing"
    return result


def container(**change: Any) -> dict[str, Any]:
    return merged({"containers": [{"name": "vllm", **change}]})["containers"][0]


def test_the_merge_keys_are_the_apis_own():
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / "v1.35.0-local"
    definitions = json.loads((folder / "_definitions.json").read_text())["$defs"]
    pod_fields = {
        field: described["x-kubernetes-patch-merge-key"]
        for kind in ("PodSpec", "Container")
        for field, described in definitions[f"io.k8s.api.core.v1.{kind}"]["properties"].items()
        if "x-kubernetes-patch-merge-key" in described
    }
    ours = {**patches.MERGE_KEYS, "ports": "containerPort"}
    assert ours == {field: key for field, key in pod_fields.items() if field in ours}
    # What we leave out is what our pods never have.
    assert pod_fields.keys() - ours.keys() <= {
        "ephemeralContainers",
        "resourceClaims",
        "schedulingGates",
        "volumeDevices",
    }
    service = definitions["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"]
    assert service["x-kubernetes-patch-merge-key"] == "port"


def test_items_merge_by_their_key_and_new_ones_are_added():
    changed = container(env=[{"name": "B", "value": "3"}, {"name": "C", "value": "4"}])
    assert changed["env"] == [
        {"name": "A", "value": "1"},
        {"name": "B", "value": "3"},
        {"name": "C", "value": "4"},
    ]
    assert changed["args"] == ["a", "b"]


def test_mounts_and_ports_have_keys_of_their_own():
    changed = container(
        volumeMounts=[{"mountPath": "/x", "readOnly": True}], ports=[{"containerPort": 8000, "hostPort": 1}]
    )
    assert changed["volumeMounts"] == [{"name": "x", "mountPath": "/x", "readOnly": True}]
    assert changed["ports"] == [{"containerPort": 8000, "name": "http", "hostPort": 1}]


def test_a_services_ports_go_by_their_port():
    service = {"kind": "Service", "spec": {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "b"}]}}
    result = patches.apply(service, {"kind": "Service", "spec": {"ports": [{"port": 81, "nodePort": 30000}]}})
    assert result["spec"]["ports"] == [{"port": 80, "name": "a"}, {"port": 81, "name": "b", "nodePort": 30000}]


def test_other_lists_are_replaced():
    assert container(args=["c"])["args"] == ["c"]
    assert merged({"tolerations": [{"key": "b"}]})["tolerations"] == [{"key": "b"}]


def test_null_deletes_and_so_does_the_directive_in_a_list():
    assert "args" not in container(args=None)
    assert "args" not in container(args={"$patch": "delete"})
    assert container(env=[{"name": "A", "$patch": "delete"}])["env"] == [{"name": "B", "value": "2"}]


def test_the_replace_directive_replaces():
    assert container(env=[{"$patch": "replace"}, {"name": "Z", "value": "9"}])["env"] == [{"name": "Z", "value": "9"}]
    assert patches.apply({"kind": "X", "a": {"b": 1, "c": 2}}, {"kind": "X", "a": {"$patch": "replace", "d": 3}}) == {
        "kind": "X",
        "a": {"d": 3},
    }


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"env": [{"value": "1"}]}, "an item of Deployment.spec.template.spec.containers[vllm].env needs its name"),
        ({"env": [{"name": "Z", "$patch": "delete"}]}, "has no item whose name is Z"),
        ({"$setElementOrder/env": []}, "$setElementOrder/env is not supported"),
        ({"resources": {"$patch": "remove"}}, "$patch: remove is not supported"),
        ({"env": "A=1"}, "containers[vllm].env is a list, and the patch has no list for it"),
    ],
)
def test_a_patch_that_cannot_be_merged_is_refused(change: dict[str, Any], words: str):
    with pytest.raises(RequestError) as caught:
        container(**change)
    assert words in str(caught.value)


@pytest.mark.parametrize("spec", [[], "x", 3])
def test_what_is_a_mapping_stays_one(spec: Any):
    with pytest.raises(RequestError, match=r"Deployment\.spec is a mapping, and the patch has no mapping for it"):
        patches.apply(DEPLOYMENT, {"kind": "Deployment", "spec": spec})
