"""Our own client of container registries: names as docker reads them, digests that hold, words for refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from google.auth.credentials import AnonymousCredentials

from serving.clients import google, patience, registry
from serving.clients.registry import Layer, Reference, ResolvedImage
from serving.errors import AccessError, InconclusiveError, PipelineError, RequestError
from tests.contract.registry_service import OCI, TAR, Registry, digest_of, there

__all__ = ["there"]


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
