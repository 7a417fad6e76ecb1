"""Debian's docker-registry on loopback, and how an image comes into it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.ports import free_port

from .archive import Blob

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Image:
    """An image in a registry."""

    host: str
    repository: str
    digest: str
    layers: list[Blob]

    @property
    def name(self) -> str:
        return f"{self.host}/{self.repository}@{self.digest}"

    def wanted(self, **changed: Any) -> dict[str, Any]:
        """As the script is told of it."""
        told = {"name": self.name, "registry": f"http://{self.host}", "repository": self.repository}
        return {**told, "digest": self.digest, "auth": "anonymous", **changed}


class Registry:
    """A registry process; `auth` is that section of its configuration, `storage` a folder it may share with another."""

    def __init__(self, folder: Path, auth: dict[str, Any] | None = None, storage: Path | None = None) -> None:
        self.folder = folder
        self.storage = storage or folder / "storage"
        self.host = f"127.0.0.1:{free_port()}"
        self.client = httpx.Client(base_url=f"http://{self.host}", timeout=60)
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": self.host},
        }
        if auth:
            config["auth"] = auth
        (folder / "registry.yml").write_text(yaml.safe_dump(config))

    def __enter__(self) -> Registry:
        with (self.folder / "registry.log").open("w") as log:
            self.process = subprocess.Popen(
                ["docker-registry", "serve", str(self.folder / "registry.yml")], stdout=log, stderr=log
            )
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/v2/").status_code in (200, 401):
                    return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "registry.log").read_text())

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.process.terminate()
        self.process.wait()

    def push(self, repository: str, layers: list[Blob], **config: Any) -> Image:
        """An image of these layers; `config` changes what its configuration says."""
        said = {
            "os": "linux",
            "architecture": "amd64",
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            **config,
        }
        about = self._blob(repository, json.dumps(said).encode())
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.docker.container.image.v1+json", **about},
            "layers": [{"mediaType": layer.media_type, **self._blob(repository, layer.content)} for layer in layers],
        }
        content = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        url = f"/v2/{repository}/manifests/{digest}"
        self.client.put(url, content=content, headers={"Content-Type": MANIFEST}).raise_for_status()
        return Image(self.host, repository, digest, layers)

    def _blob(self, repository: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = self.client.post(f"/v2/{repository}/blobs/uploads/")
        begun.raise_for_status()
        url = httpx.URL(begun.headers["Location"]).copy_merge_params({"digest": digest})
        headers = {"Content-Type": "application/octet-stream"}
        self.client.put(url, content=content, headers=headers).raise_for_status()
        return {"digest": digest, "size": len(content)}

    def file(self, digest: str) -> Path:
        """Where a blob lies on the registry's disk."""
        algorithm, _, value = digest.partition(":")
        return self.storage / f"docker/registry/v2/blobs/{algorithm}/{value[:2]}/{value}/data"
