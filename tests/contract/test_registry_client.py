"""Our own client of container registries: names as docker reads them, digests that hold, words for refusals."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from google.auth.credentials import AnonymousCredentials

from serving.clients import google, patience, registry
from serving.clients.registry import Layer, Reference, ResolvedImage
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError

OCI = "application/vnd.oci.image"
TAR = b"a layer" * 1000


def digest_of(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


class Registry:
    """One repository, `vllm/vllm-openai`. `token`: whom it lets in; `answers`: scripted ones, (status, headers), which
    come first."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.kinds: dict[str, str] = {}
        self.token = "t0ken"
        self.challenge = 'Bearer realm="{url}/token",service="registry.example.com",scope="repository:{repo}:pull"'
        self.gives_parts = True
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.asked: list[tuple[str, str]] = []
        """(path, Authorization) of every request."""

    def put(self, content: Any, kind: str = "", tag: str = "") -> dict[str, Any]:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        for name in filter(None, (digest_of(data), tag)):
            self.content[name], self.kinds[name] = data, kind
        return {"digest": digest_of(data), "size": len(data), "mediaType": kind}

    def put_image(self, tag: str, *tars: bytes, architecture: str = "amd64") -> dict[str, Any]:
        """An image of these layers, as its manifest's descriptor."""
        layers = [self.put(gzip.compress(tar, mtime=0), f"{OCI}.layer.v1.tar+gzip") for tar in tars]
        config = {
            "os": "linux",
            "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": [digest_of(tar) for tar in tars]},
        }
        kind = f"{OCI}.manifest.v1+json"
        made = {"schemaVersion": 2, "mediaType": kind, "layers": layers}
        return self.put(made | {"config": self.put(config, f"{OCI}.config.v1+json")}, kind, tag)

    def put_index(self, tag: str, **by_architecture: dict[str, Any]) -> None:
        manifests = [
            {**descriptor, "platform": {"os": "linux", "architecture": architecture}}
            for architecture, descriptor in by_architecture.items()
        ]
        noise = {**manifests[0], "platform": {"os": "unknown", "architecture": "unknown"}}
        kind = f"{OCI}.index.v1+json"
        self.put({"schemaVersion": 2, "mediaType": kind, "manifests": [noise, *manifests]}, kind, tag)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    repository = "vllm/vllm-openai"

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.headers.get("Authorization", "")
            there.asked.append((self.path, sent))
            parts = urlsplit(self.path)
            if there.answers:
                status, headers = there.answers.pop(0)
                return self.answer(status, headers, b"")
            if parts.path == "/token":
                assert parse_qs(parts.query) == {
                    "service": ["registry.example.com"],
                    "scope": [f"repository:{repository}:pull"],
                }
                return self.answer(200, {}, json.dumps({"token": there.token}).encode())
            if sent != f"Bearer {there.token}":
                challenge = there.challenge.format(url=url, repo=repository)
                return self.answer(401, {"WWW-Authenticate": challenge}, b"")
            name = parts.path.rpartition("/")[2]
            if not parts.path.startswith(f"/v2/{repository}/") or name not in there.content:
                return self.answer(404, {}, b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}')
            content, headers = there.content[name], {"Content-Type": there.kinds[name]}
            if "/manifests/" in parts.path:
                assert there.kinds[name] in self.headers["Accept"]
            if (part := self.headers.get("Range")) and there.gives_parts:
                first, _, last = part.removeprefix("bytes=").partition("-")
                return self.answer(206, headers, content[int(first) : int(last) + 1])
            return self.answer(200, headers, content)

        def answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    there = Registry()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setenv(registry.REGISTRY_ENDPOINT, url)
        yield there
        server.shutdown()


@pytest.mark.parametrize(
    ("image", "read"),
    [
        ("vllm/vllm-openai:v1", Reference("docker.io", "vllm/vllm-openai", "v1")),
        ("debian", Reference("docker.io", "library/debian", "latest")),
        ("docker.io/vllm/vllm-openai", Reference("docker.io", "vllm/vllm-openai", "latest")),
        ("localhost:5000/a/b:c", Reference("localhost:5000", "a/b", "c")),
        (f"gcr.io/p/i:t@sha256:{'a' * 64}", Reference("gcr.io", "p/i", f"sha256:{'a' * 64}")),
    ],
)
def test_names_are_read_as_docker_reads_them(image: str, read: Reference):
    assert registry.parse(image) == read


@pytest.mark.parametrize("image", ["", "UPPER/case", "a/b@sha256:12", "a//b", "a/../b", "registry.example.com/"])
def test_what_is_no_name_is_refused(image: str):
    with pytest.raises(RequestError, match="is no image's name"):
        registry.parse(image)


def test_chain_ids_are_those_of_the_specification():
    first, second, third = (digest_of(text) for text in (b"1", b"2", b"3"))
    below = digest_of(f"{first} {second}".encode())
    assert registry.chain_ids([first, second, third]) == (first, below, digest_of(f"{below} {third}".encode()))
    assert registry.chain_ids([]) == ()


def test_an_image_is_resolved_by_the_registrys_own_challenge(there: Registry):
    made = there.put_image("v1", TAR, b"second")
    found = registry.resolve("vllm/vllm-openai:v1")
    assert found.name == f"docker.io/vllm/vllm-openai@{made['digest']}"
    assert (found.repository, found.digest, found.auth) == ("vllm/vllm-openai", made["digest"], "anonymous")
    assert found.diff_ids == (digest_of(TAR), digest_of(b"second"))
    assert [layer.media_type for layer in found.layers] == [f"{OCI}.layer.v1.tar+gzip"] * 2
    assert registry.resolve(found.name) == found, "what it is resolved to can be resolved again"


def test_of_an_index_the_platforms_manifest_is_taken(there: Registry):
    plain, arm = there.put_image("", TAR), there.put_image("", TAR, architecture="arm64")
    there.put_index("v1", amd64=plain, arm64=arm)
    assert registry.resolve("vllm/vllm-openai:v1").digest == plain["digest"]
    assert registry.resolve("vllm/vllm-openai:v1", "linux/arm64").digest == arm["digest"]
    with pytest.raises(RequestError, match="is not for linux/s390x; it is for linux/amd64, linux/arm64"):
        registry.resolve("vllm/vllm-openai:v1", "linux/s390x")


def test_an_image_for_another_platform_is_refused(there: Registry):
    there.put_image("v1", TAR, architecture="arm64")
    with pytest.raises(RequestError, match="is for linux/arm64, and linux/amd64 is needed"):
        registry.resolve("vllm/vllm-openai:v1")


def test_artifact_registry_gets_the_callers_own_token(there: Registry, monkeypatch: pytest.MonkeyPatch):
    credentials = AnonymousCredentials()
    credentials.token = there.token
    monkeypatch.setattr(google, "credentials", lambda: credentials)
    there.put_image("v1", TAR)
    found = registry.resolve("us-docker.pkg.dev/vllm/vllm-openai:v1")
    assert found.auth == "google"
    assert {sent for _, sent in there.asked} == {f"Bearer {there.token}"}
    assert not any(path.startswith("/token") for path, _ in there.asked)


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        pytest.param(lambda r: r.content.clear(), RequestError, "does not exist", id="missing"),
        pytest.param(lambda r: r.put(b"<html>", "", "v1"), RequestError, "no manifest", id="no JSON"),
        pytest.param(lambda r: r.put({"schemaVersion": 1}, "", "v1"), RequestError, "no image of layers", id="old"),
        pytest.param(lambda r: setattr(r, "challenge", "Basic realm=x"), AccessError, "images.registry", id="login"),
        pytest.param(
            lambda r: r.content.update(dict.fromkeys(r.content, b"x" * (9 << 20))), RequestError, "8 MiB", id="huge"
        ),
    ],
)
def test_what_is_final_says_what_to_do(
    there: Registry, spoil: Callable[[Registry], None], error: type[PipelineError], words: str
):
    there.put_image("v1", TAR)
    spoil(there)
    for name in there.kinds:
        there.kinds[name] = there.kinds[name] or f"{OCI}.manifest.v1+json"
    with pytest.raises(error, match=words) as raised:
        registry.resolve("vllm/vllm-openai:v1")
    assert raised.value.final


def test_what_passes_is_waited_for(there: Registry):
    there.put_image("v1", TAR)
    there.answers = [(503, {}), (429, {"Retry-After": "0"})]
    assert registry.resolve("vllm/vllm-openai:v1")
    assert not there.answers


def test_bytes_that_are_not_those_of_their_digest_are_never_believed(there: Registry):
    image = registry.resolve(f"vllm/vllm-openai@{there.put_image('', TAR)['digest']}")
    there.content[image.digest] = there.content[image.digest] + b" "
    with patience.lasting(0), pytest.raises(InconclusiveError, match="other bytes than its digest says"):
        registry.resolve(image.name)


def test_a_registry_that_is_away_is_inconclusive(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(registry.REGISTRY_ENDPOINT, "http://127.0.0.1:9")
    with patience.lasting(0), pytest.raises(InconclusiveError, match="no answer"):
        registry.resolve("vllm/vllm-openai:v1")


def test_the_room_of_layers_is_what_gzip_says(there: Registry):
    there.put_image("v1", TAR, b"second" * 500)
    image = registry.resolve("vllm/vllm-openai:v1")
    assert registry.unpacked_bytes(image) == {image.chain_ids[0]: len(TAR), image.chain_ids[1]: 3000}
    there.gives_parts = False
    assert all(registry.unpacked_bytes(image).values()), "guessed by their packed sizes"


GIB = 1 << 30


@pytest.mark.parametrize(
    ("packed", "said", "room"),
    [
        pytest.param(GIB // 2, GIB, GIB, id="four more would be packed better than layers are"),
        pytest.param(3 * GIB, GIB, 9 * GIB, id="less than it is packed: it wrapped, and may have once more"),
        pytest.param(2 * GIB, 3 * GIB, 7 * GIB, id="may have wrapped"),
    ],
)
def test_a_layer_that_could_wrap_gets_room_for_it(packed: int, said: int, room: int, monkeypatch: pytest.MonkeyPatch):
    layer = Layer(digest_of(b""), packed, f"{OCI}.layer.v1.tar+gzip")
    monkeypatch.setattr(registry._Registry, "last_bytes", lambda *_: said.to_bytes(4, "little"))
    image = ResolvedImage("r.io/a@" + digest_of(b""), "", "a", digest_of(b""), ("sha256:1",), (layer,), "anonymous")
    assert registry.unpacked_bytes(image) == {"sha256:1": room}
