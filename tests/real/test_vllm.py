"""Real vLLM on the CPU, from a bucket to an answer: gcsfuse, a private root, a user whom no passwd knows."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest

from emulators.cloud import Cloud

from .kube import bucket_volume, deployment, endpoint, kubectl, namespace, service, upload

FLAGS = ["/model", "--host", "0.0.0.0", "--port", "8000", "--served-model-name", "tiny", "--max-model-len", "2048"]


@pytest.mark.timeout(400)
def test_it_loads_a_gemma_3_through_the_mount_and_answers(cloud: Cloud, tiny_gemma3: Path) -> None:
    kubectl(cloud, "apply", "-f", "-", objects=[namespace("vllm")])
    upload(cloud, tiny_gemma3, "models/vllm", ["vllm"])
    places = {"model": "/model", "cache": "/cache", "tmp": "/tmp", "shm": "/dev/shm"}
    container = {
        "image": "vllm/vllm-openai:v0.33.0",
        "command": ["vllm", "serve"],
        # What a card's manifest says: vLLM judges it, and then runs on the CPU.
        "args": [*FLAGS, "--gpu-memory-utilization", "0.9", "--tensor-parallel-size", "2"],
        "env": [{"name": "HOME", "value": "/cache"}, {"name": "USER", "value": "vllm"}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "failureThreshold": 180},
        "volumeMounts": [
            {"name": name, "mountPath": path, "readOnly": name == "model"} for name, path in places.items()
        ],
    }
    volumes = [{"name": name, "emptyDir": {}} for name in places if name != "model"]
    volumes.append({"name": "model", "persistentVolumeClaim": {"claimName": "vllm", "readOnly": True}})
    objects = [
        *bucket_volume("vllm", "vllm", ["implicit-dirs", "only-dir:models/vllm"]),
        service("vllm"),
        deployment("vllm", container, volumes, **{"gke-gcsfuse/volumes": "true"}),
    ]
    kubectl(cloud, "apply", "-f", "-", objects=objects)
    rollout = ("-n", "vllm", "rollout", "status", "deployment/vllm", "--timeout=290s")
    try:
        kubectl(cloud, *rollout, seconds=300)
    except AssertionError as error:
        pytest.fail(f"{error}\n{kubectl(cloud, '-n', 'vllm', 'logs', 'deployment/vllm', '--tail=30')}")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{endpoint(cloud.expose[1]['file'])}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        completion = json.load(answer)
    assert completion["model"] == "tiny"
    assert completion["choices"][0]["message"]["content"].strip()
    assert 1 <= completion["usage"]["completion_tokens"] <= 8
    with urllib.request.urlopen(f"{endpoint(cloud.expose[1]['file'])}/version", timeout=10) as answer:
        assert json.load(answer) == {"version": "0.32.0"}
    kubectl(cloud, "-n", "vllm", "delete", "deployment", "vllm")
