"""`serving.exposure: public`: what is to be had from outside, through a real Envoy, of a deployment of any scenario.

vLLM's key guards /v1 alone: whatever else it answers must not be there at all.
"""

from __future__ import annotations

import json
import ssl
from pathlib import Path

import httpx
import pytest

from serving.scenarios import find
from tests.scenarios.command import MODEL, Site

KEY = "demo-key"
"""What the emulated Secret Manager holds (pipelines/local/cloud.py)."""
HIDDEN = ("/invocations", "/tokenize", "/detokenize", "/metrics", "/health", "/version", "/ping", "/", "/v1x")
"""What vLLM answers without a key, and what only begins like /v1."""
PUBLIC = (
    *("--set", "serving.exposure=public"),
    *("--set", "gateway.plain_http=true"),
    *("--set", "engine.api_key_secret=projects/demo-project/secrets/api-key/versions/latest"),
)


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    return Site(folder, find("gcs-fuse"), PUBLIC)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (PUBLIC[:4], "set engine.api_key_secret"),
        ((*PUBLIC[:2], *PUBLIC[4:]), "set gateway.certificate"),
    ],
    ids=["without a key", "without a certificate"],
)
def test_what_would_be_open_to_anybody_is_refused_before_anything_starts(
    given: tuple[str, ...], words: str, folder: Path, tiny_gemma3: Path
):
    run = Site(folder, find("gcs-fuse"), given).run(tiny_gemma3)
    assert run.finish(code=2) == {}
    assert words in run._text()


def test_from_outside_v1_answers_whoever_has_the_key_and_nothing_else_is_there(site: Site, tiny_gemma3: Path):
    run = site.run(tiny_gemma3, "--keep")
    result = run.result()
    assert result["status"] == "succeeded"
    question = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    with httpx.Client(base_url=result["endpoint"], timeout=60, trust_env=False) as client:
        known = {"Authorization": f"Bearer {KEY}"}
        for path in HIDDEN:
            for headers in ({}, known):
                got = client.get(path, headers=headers).status_code, client.post(path, json=question, headers=headers)
                assert (got[0], got[1].status_code) == (404, 404), path
        for headers in ({}, {"Authorization": "Bearer another"}):
            assert client.get("/v1/models", headers=headers).status_code == 401
            assert client.post("/v1/chat/completions", json=question, headers=headers).status_code == 401
        answer = client.post("/v1/chat/completions", json=question, headers=known)
        streamed = client.post("/v1/chat/completions", json={**question, "stream": True}, headers=known)
        # Envoy takes a path as it is: what is normalised later must not lead out of /v1.
        outside = client.build_request("GET", "/v1/../metrics", headers=known)
        outside.url = outside.url.copy_with(raw_path=b"/v1/../metrics")
        assert client.send(outside).status_code in (400, 404)
    assert run.stop() == 0
    assert (answer.status_code, streamed.status_code) == (200, 200)
    assert answer.json()["choices"][0]["message"]["content"]
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert KEY not in run._text()
    leaks = [
        path for path in (site.state / "buckets").rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()
    ]
    assert leaks == []


def test_over_https_it_shows_validation_and_clients_that_it_is_who_they_call(tmp_path: Path, tiny_gemma3: Path):
    host = "gemma.example.com"
    secure = ("--set", "gateway.certificate=demo", "--set", f"gateway.host={host}")
    site = Site(tmp_path, find("gcs-fuse"), (*PUBLIC[:2], *PUBLIC[4:], *secure))
    run = site.run(tiny_gemma3, "--keep")
    result = run.result()
    assert result["status"] == "succeeded"
    (file,) = site.state.rglob(f"{result['run_id']}/steps/validate_server.json")
    through = json.loads(file.read_text())["through"]
    assert (through["key"], through["asked"], through["problems"]) == ("sent", [MODEL], [])
    assert through["shed"] == {"not_shown": "there is no endpoint picker, which knows priorities"}
    (cluster,) = json.loads((site.state / "kubeconfig").read_text())["clusters"]
    authority = cluster["cluster"]["certificate-authority"]
    known = {"Authorization": f"Bearer {KEY}"}
    with httpx.Client(
        base_url=result["endpoint"], verify=ssl.create_default_context(cafile=authority), trust_env=False
    ) as client:
        assert client.get("/v1/models", headers=known).status_code == 404, "it is called by its name alone"
        called = {"headers": {**known, "Host": host}, "extensions": {"sni_hostname": host}}
        assert client.get("/v1/models", **called).status_code == 200
    assert run.stop() == 0
