"""The emulators as fixtures, as a team uses them that tests its own components."""

from __future__ import annotations

import os

import pytest
from emulated_cloud.cloud import wait_for


def test_the_clients_of_one_test_reach_the_cloud(emulated_cloud, cloud_environment):
    import google.auth
    from google.cloud import storage

    _, project = google.auth.default()
    assert project == emulated_cloud.project
    storage.Client().bucket("demo-bucket").blob("from-a-fixture").upload_from_string("bytes")
    # The log's line is written just after the answer.
    assert wait_for(lambda: "from-a-fixture" in {r.get("object") for r in emulated_cloud.requests("storage")}, 120)


def test_nothing_else_leads_the_clients_elsewhere(
    emulated_cloud, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
):
    elsewhere = {
        "GOOGLE_API_USE_MTLS_ENDPOINT": "always",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "example.com",
        "ALL_PROXY": "http://192.0.2.1:3128",
        "HF_TOKEN": "hf_somebodys_own",
        "A_VARIABLE_OF_TOMORROW": "somewhere",
    }
    for name, value in elsewhere.items():
        monkeypatch.setenv(name, value)
    assert not elsewhere.keys() & emulated_cloud.environment.keys()
    assert emulated_cloud.environment["PATH"] == os.environ["PATH"]
    assert request.getfixturevalue("cloud_environment") == dict(os.environ)


def test_a_cluster_is_reached_by_project_location_and_name(emulated_cloud, cloud_environment):
    from serving.clients import kubernetes
    from serving.settings import Settings, validated

    values = {"scenario": "gcs-fuse", "project": emulated_cloud.project, "bucket": "demo-bucket", "endpoint": "ip"}
    cluster = kubernetes.connect(validated(Settings, values))
    assert cluster.get("Namespace", "default")
    asked = {request["user"] for request in emulated_cloud.requests("apiserver")}
    assert emulated_cloud.service_account in asked


def test_a_cloud_of_a_tests_own_has_what_it_asks_for(new_cloud, tiny_gemma4):
    from emulated_cloud.pytest_plugin import HUB_TOKEN
    from huggingface_hub import HfApi

    cloud = new_cloud(buckets=["mine"], repositories={"google/gemma-4-E2B-it": tiny_gemma4})
    info = HfApi(endpoint=cloud.url("hub"), token=HUB_TOKEN).model_info("google/gemma-4-E2B-it")
    assert "config.json" in {file.rfilename for file in info.siblings or []}


def test_a_cloud_has_a_registry_machines_and_a_log(emulated_cloud, cloud_environment):
    import json

    import requests

    from serving.clients import google, registry

    image = registry.resolve("vllm/vllm-openai:v0.33.0")
    assert (len(image.diff_ids), image.registry_url) == (3, emulated_cloud.url("registry"))
    disks = google.call("compute", "GET", f"compute/v1/projects/{emulated_cloud.project}/aggregated/disks")
    assert disks["items"].keys() == {f"zones/{emulated_cloud.location}-{zone}" for zone in "abc"}
    with open(emulated_cloud.logs_file, "a", encoding="utf-8") as log:
        log.write(json.dumps({"timestamp": "2026-11-29T10:00:00Z", "textPayload": "from a fixture"}) + "\n")
    asked = {"resourceNames": [f"projects/{emulated_cloud.project}"], "filter": 'textPayload="from a fixture"'}
    assert len(google.call("logging", "POST", "v2/entries:list", asked)["entries"]) == 1
    assert requests.get(f"{image.registry_url}/v2/", timeout=60).status_code == 401
