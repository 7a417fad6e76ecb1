"""A registry with one repository, `vllm/vllm-openai`, which does as a test tells it."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from serving.clients import registry

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
