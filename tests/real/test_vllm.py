"""Real vLLM on the CPU, from a bucket to an answer: gcsfuse, a private root, a user whom no passwd knows."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
from emulated_cloud.cloud import Cloud

from .kube import bucket_volume, deployment, endpoint, kubectl, namespace, service, upload

FLAGS = ["/model", "--host", "0.0.0.0", "--port", "8000", "--served-model-name", "tiny", "--max-model-len", "2048"]


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
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "failureThreshold": 450},
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
    rollout = ("-n", "vllm", "rollout", "status", "deployment/vllm", "--timeout=900s")
    try:
        kubectl(cloud, *rollout, seconds=910)
    except AssertionError as error:
        pytest.fail(f"{error}\n{kubectl(cloud, '-n', 'vllm', 'logs', 'deployment/vllm', '--tail=30')}")
    assert_it_answers(cloud)
    with urllib.request.urlopen(f"{endpoint(cloud.expose[1]['file'])}/version", timeout=60) as answer:
        assert json.load(answer) == {"version": "0.32.0"}
    kubectl(cloud, "-n", "vllm", "delete", "deployment", "vllm", "--cascade=foreground")


def assert_it_answers(cloud: Cloud) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
    request = urllib.request.Request(
        f"{endpoint(cloud.expose[1]['file'])}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            completion = json.load(answer)
    except OSError as error:
        pytest.fail(f"{error}\n{kubectl(cloud, '-n', 'vllm', 'logs', 'deployment/vllm', '--tail=60')}")
    assert completion["model"] == "tiny"
    assert completion["choices"][0]["message"]["content"].strip()
    assert 1 <= completion["usage"]["completion_tokens"] <= 8


def test_it_streams_a_gemma_3_from_the_bucket_and_answers(cloud: Cloud, tiny_gemma3: Path) -> None:
    """With the Run:ai Model Streamer as it is, and the flags of the feature streamed."""
    kubectl(cloud, "apply", "-f", "-", objects=[namespace("vllm")])
    upload(cloud, tiny_gemma3, "models/streamed", ["vllm"])
    places = {"cache": "/cache", "tmp": "/tmp", "shm": "/dev/shm"}
    extra = json.dumps({"concurrency": 4, "memory_limit": 1 << 30, "distributed": True})
    container = {
        "image": "vllm/vllm-openai:v0.33.0",
        "command": ["vllm", "serve"],
        "args": [
            *("gs://demo-bucket/models/streamed", *FLAGS[1:], "--load-format", "runai_streamer"),
            *("--model-loader-extra-config", extra),
        ],
        "env": [{"name": "HOME", "value": "/cache"}, {"name": "USER", "value": "vllm"}],
        "ports": [{"name": "http", "containerPort": 8000}],
        "startupProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2, "failureThreshold": 450},
        "volumeMounts": [{"name": name, "mountPath": path} for name, path in places.items()],
    }
    since = len(cloud.requests("storage"))
    volumes = [{"name": name, "emptyDir": {}} for name in places]
    kubectl(cloud, "apply", "-f", "-", objects=[service("vllm"), deployment("vllm", container, volumes)])
    try:
        kubectl(cloud, "-n", "vllm", "rollout", "status", "deployment/vllm", "--timeout=900s", seconds=910)
    except AssertionError as error:
        pytest.fail(f"{error}\n{kubectl(cloud, '-n', 'vllm', 'logs', 'deployment/vllm', '--tail=30')}")
    assert_it_answers(cloud)
    streamed = [
        entry
        for entry in cloud.requests("storage")[since:]
        if entry["user_agent"].startswith("gl-cpp/") and ".safetensors?alt=media" in entry["path"]
    ]
    size = sum(path.stat().st_size for path in tiny_gemma3.glob("*.safetensors"))
    assert sum(entry["bytes_out"] for entry in streamed) == size, "the streamer's own client has read every byte, once"
    kubectl(cloud, "-n", "vllm", "delete", "deployment", "vllm", "--cascade=foreground")


def test_load_figures_are_what_vllms_benchmark_calculates(parts: None, tmp_path: Path) -> None:
    """Both are given the same answers. `python -m tests.bench.agreement` compares what they measure of one engine."""
    from components.validate_server.load import row
    from serving.clients.engine import Answer
    from tests.bench.agreement import FIGURES, Theirs

    random = Random(7)
    answers = []
    for _ in range(37):
        times = list(accumulate(random.uniform(0.001, 0.2) for _ in range(random.randint(1, 60))))
        # More tokens than chunks: an engine may send several at once.
        answers.append(Answer("text", "length", 10, len(times) + random.randint(0, 3), sent=0.0, times=times))
    said = [
        {"ttft": answer.ttft, "itl": answer.itl, "latency": answer.e2e, "tokens": answer.completion_tokens}
        for answer in answers
    ]
    theirs = Theirs(tmp_path)
    found = theirs.ask({"answers": said, "seconds": 12.5, "percentiles": [50, 95, 99]})
    theirs.stop()
    ours = row(4, answers, Counter(), 12.5)
    assert ours["tokens_per_second"] == pytest.approx(found["output_throughput"], abs=0.05)
    assert ours["output_tokens"] == found["total_output"]
    for name, their_name in FIGURES.items():
        percentiles = {f"p{percent}": value for percent, value in found[f"percentiles_{their_name}_ms"]}
        assert ours[name] == pytest.approx(percentiles, abs=0.001), name
