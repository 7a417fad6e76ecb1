"""Docker's registry protocol, as a client speaks it that pulls an image by tag or digest."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import requests
from emulated_cloud import process

TOKEN = "an-access-token"
REPOSITORY = "vllm/vllm-openai"


@dataclass
class Registry:
    """A registry, and a client that gets the tokens it is asked for."""

    url: str
    tokens: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, **headers: str) -> requests.Response:
        return requests.get(f"{self.url}{path}", headers=headers, allow_redirects=False, timeout=60)

    def token(self, repository: str, **headers: str) -> str:
        scope = f"repository:{repository}:pull"
        answer = requests.get(f"{self.url}/token", params={"scope": scope}, headers=headers, timeout=60)
        assert answer.json()["expires_in"] > 0
        return answer.json()["token"]

    def pull(self, path: str, repository: str = REPOSITORY, **headers: str) -> requests.Response:
        token = self.tokens.setdefault(repository, self.token(repository))
        return self.ask(f"/v2/{repository}/{path}", Authorization=f"Bearer {token}", **headers)

    def blob(self, digest: str, repository: str = REPOSITORY, **headers: str) -> bytes:
        there = self.pull(f"blobs/{digest}", repository)
        assert there.status_code == 307
        found = requests.get(there.headers["Location"], headers=headers, timeout=60)
        found.raise_for_status()
        return found.content

    def image(self, tag: str, architecture: str = "amd64") -> dict[str, Any]:
        index = self.pull(f"manifests/{tag}").json()
        (digest,) = [
            each["digest"]
            for each in index["manifests"]
            if each["platform"] == {"architecture": architecture, "os": "linux"}
        ]
        return self.pull(f"manifests/{digest}").json()


@pytest.fixture
def new_registry(tmp_path: Path) -> Iterator[Callable[..., Registry]]:
    started: list[process.Process] = []
    (tmp_path / "token").write_text(TOKEN)

    def make(*options: str) -> Registry:
        root, token = ("--root", str(tmp_path / "root")), ("--token", str(tmp_path / "token"))
        started.append(process.start("emulated_cloud.registry", *root, *token, *options, log=tmp_path / "log"))
        return Registry(started[-1].url)

    yield make
    for each in started:
        each.stop()
    assert (tmp_path / "log").read_text() == ""


@pytest.fixture
def registry(new_registry: Callable[..., Registry]) -> Registry:
    return new_registry("--private", "demo/.*", "--absent", "gone/.*", "--absent", "vllm/vllm-openai:v0")


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def test_a_whole_image(registry):
    tagged = registry.pull("manifests/v1")
    assert tagged.headers["Content-Type"] == tagged.json()["mediaType"]
    assert tagged.headers["Docker-Content-Digest"] == digest_of(tagged.content)
    assert registry.pull(f"manifests/{digest_of(tagged.content)}").content == tagged.content
    for architecture in ("amd64", "arm64"):
        image = registry.image("v1", architecture)
        config = json.loads(registry.blob(image["config"]["digest"]))
        assert (config["architecture"], len(config["rootfs"]["diff_ids"])) == (architecture, 3)
        for layer, diff_id in zip(image["layers"], config["rootfs"]["diff_ids"], strict=True):
            packed = registry.blob(layer["digest"])
            assert (digest_of(packed), len(packed)) == (layer["digest"], layer["size"])
            content = zlib.decompress(packed, 31)
            assert digest_of(content) == diff_id
            with tarfile.open(fileobj=BytesIO(content)) as tar:
                assert tar.getnames()


def test_another_tag_is_another_image_on_the_same_base(registry, new_registry):
    one, two = registry.image("v1"), registry.image("v2")
    same = [a["digest"] == b["digest"] for a, b in zip(one["layers"], two["layers"], strict=True)]
    assert same == [True, False, False]
    assert new_registry().image("v1") == one, "what a tag is does not change when the registry is started again"


def test_a_part_of_a_blob(registry):
    layer = registry.image("v1")["layers"][1]
    whole = registry.blob(layer["digest"])
    assert registry.blob(layer["digest"], Range=f"bytes={len(whole) - 4}-") == whole[-4:]
    assert registry.blob(layer["digest"], Range="bytes=10-19") == whole[10:20]


def test_who_has_no_token_is_told_where_to_get_one(registry):
    refused = registry.ask(f"/v2/{REPOSITORY}/manifests/v1")
    assert refused.status_code == 401
    realm = f'Bearer realm="{registry.url}/token",service="registry.emulated",scope="repository:{REPOSITORY}:pull"'
    assert refused.headers["WWW-Authenticate"] == realm
    assert refused.json()["errors"][0]["code"] == "UNAUTHORIZED"
    assert registry.ask("/v2/").status_code == 401
    other = registry.token("library/other")
    assert registry.ask(f"/v2/{REPOSITORY}/manifests/v1", Authorization=f"Bearer {other}").status_code == 401


def test_a_token_does_not_last(new_registry):
    registry = new_registry("--token-seconds", "0")
    token = requests.get(f"{registry.url}/token?scope=repository:{REPOSITORY}:pull", timeout=60).json()["token"]
    assert registry.ask(f"/v2/{REPOSITORY}/manifests/v1", Authorization=f"Bearer {token}").status_code == 401


def test_the_token_must_not_go_to_the_host_of_the_blobs(registry):
    there = registry.pull(f"blobs/{registry.image('v1')['layers'][0]['digest']}").headers["Location"]
    assert not there.startswith(registry.url)
    sent = requests.get(there, headers={"Authorization": "Bearer x"}, timeout=60)
    assert (sent.status_code, "Only one auth mechanism" in sent.text) == (400, True)
    assert requests.get(there.partition("?")[0], timeout=60).status_code == 403


def test_a_private_repository_is_for_the_service_account(registry):
    path = "manifests/v1"
    assert registry.pull(path, "demo/images/engine").status_code == 401
    ours = registry.ask(f"/v2/demo/images/engine/{path}", Authorization=f"Bearer {TOKEN}")
    assert ours.status_code == 200
    basic = requests.auth._basic_auth_str("oauth2accesstoken", TOKEN)
    exchanged = registry.token("demo/images/engine", Authorization=basic)
    again = registry.ask(f"/v2/demo/images/engine/{path}", Authorization=f"Bearer {exchanged}")
    assert again.content == ours.content


def test_what_is_not_there(registry):
    nothing = f"sha256:{'0' * 64}"
    for found, code in (
        (registry.pull("manifests/v1", "gone/away"), "NAME_UNKNOWN"),
        (registry.pull("manifests/v0"), "MANIFEST_UNKNOWN"),
        (registry.pull(f"manifests/{nothing}"), "MANIFEST_UNKNOWN"),
        (registry.pull(f"blobs/{nothing}"), "BLOB_UNKNOWN"),
    ):
        assert (found.status_code, found.json()["errors"][0]["code"]) == (404, code)
    assert registry.ask("/v2/UPPER/manifests/v1").status_code == 404
    pushed = requests.put(f"{registry.url}/v2/{REPOSITORY}/manifests/v1", data=b"{}", timeout=60)
    assert (pushed.status_code, pushed.json()["errors"][0]["code"]) == (405, "UNSUPPORTED")
