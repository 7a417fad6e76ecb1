"""Images, made when a tag is first asked for or pushed by who builds them, and kept by digest.

    blobs/sha256/<hex>                     layers and configurations
    repositories/<name>/_manifests/<hex>   indexes and manifests
    repositories/<name>/_tags/<tag>        a digest

An image is small and like a real one in what an unpacker has to get right: a base that all tags of a repository share,
files that follow from the tag, a file with a hard link, a symbolic link, a folder of its own owner, a whiteout.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emulated_cloud.registry import resources

ARCHITECTURES = ("amd64", "arm64")
FILE_BYTES = 256 << 10
"""Of the larger file in a layer."""


class Images:
    """The images below `root`, each with this many layers."""

    def __init__(self, root: Path, layers: int = 3):
        self.root, self.layers = root, layers
        self._lock = threading.Lock()

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest.replace(":", "/")

    def manifest(self, repository: str, digest: str) -> bytes | None:
        """The bytes of an index or a manifest of a repository; None when it has none of that digest."""
        path = self._manifests(repository) / digest.removeprefix("sha256:")
        return path.read_bytes() if path.exists() else None

    def make(self, repository: str, tag: str) -> str:
        """The digest of a tag's index; the image is there when it returns."""
        tagged = self.root / "repositories" / repository / "_tags" / tag
        with self._lock:
            if not tagged.exists():
                digest = self._write_index(repository, tag)
                _write(tagged, digest.encode())
        return tagged.read_text(encoding="ascii")

    def push(self, repository: str, tags: Iterable[str], layer: bytes) -> str:
        """Puts an image of one layer (a tar) there, for one architecture, at these tags: its digest."""
        packed = gzip.compress(layer, mtime=0)
        described = resources.descriptor(resources.LAYER, self._put_blob(packed), len(packed))
        config = resources.config(ARCHITECTURES[0], [_digest(layer)], [])
        digest, _ = self._write_manifest(repository, [described], json.dumps(config).encode())
        with self._lock:
            for tag in tags:
                _write(self.root / "repositories" / repository / "_tags" / tag, digest.encode(), again=True)
        return digest

    def tags(self, repository: str) -> dict[str, str]:
        """The digests of what was pushed to a repository, or asked for, by tags."""
        folder = self.root / "repositories" / repository / "_tags"
        if not folder.is_dir():
            return {}
        found = sorted(path for path in folder.iterdir() if not path.name.endswith(".part"))
        return {path.name: path.read_text(encoding="ascii") for path in found}

    def below(self, parent: str) -> list[str]:
        """The repositories below a path, without it."""
        folder = self.root / "repositories" / parent
        return sorted(str(path.parent.relative_to(folder)) for path in folder.rglob("_tags"))

    def _manifests(self, repository: str) -> Path:
        return self.root / "repositories" / repository / "_manifests"

    def _write_index(self, repository: str, tag: str) -> str:
        manifests = []
        for architecture in ARCHITECTURES:
            digest, size = self._write_image(repository, tag, architecture)
            platform = {"architecture": architecture, "os": "linux"}
            manifests.append(resources.descriptor(resources.MANIFEST, digest, size, platform=platform))
        # As builders leave it beside what they built: not an image of any platform.
        digest, size = self._write_manifest(repository, [], b"{}")
        about = {"vnd.docker.reference.type": "attestation-manifest"}
        platform = {"architecture": "unknown", "os": "unknown"}
        manifests.append(resources.descriptor(resources.MANIFEST, digest, size, platform=platform, annotations=about))
        return self._put_manifest(repository, resources.index(manifests))[0]

    def _write_image(self, repository: str, tag: str, architecture: str) -> tuple[str, int]:
        layers, diff_ids = [], []
        for number in range(self.layers):
            # The lowest is the same for all tags.
            of = f"{repository} {tag if number else ''} {architecture}"
            content = _layer(number, of, is_last=number == self.layers - 1)
            packed = gzip.compress(content, mtime=0)
            diff_ids.append(_digest(content))
            layers.append(resources.descriptor(resources.LAYER, self._put_blob(packed), len(packed)))
        config = resources.config(architecture, diff_ids, ["vllm", "serve"])
        return self._write_manifest(repository, layers, json.dumps(config).encode())

    def _write_manifest(self, repository: str, layers: list[dict[str, Any]], config: bytes) -> tuple[str, int]:
        described = resources.descriptor(resources.CONFIG, self._put_blob(config), len(config))
        return self._put_manifest(repository, resources.manifest(described, layers))

    def _put_manifest(self, repository: str, document: dict[str, Any]) -> tuple[str, int]:
        content = json.dumps(document, indent=2).encode()
        digest = _digest(content)
        _write(self._manifests(repository) / digest.removeprefix("sha256:"), content)
        return digest, len(content)

    def _put_blob(self, content: bytes) -> str:
        digest = _digest(content)
        _write(self.blob(digest), content)
        return digest


def _layer(number: int, of: str, is_last: bool) -> bytes:
    seed = f"{number} {of}"
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folder = f"opt/layer-{number}"
        if not number:
            for name in ("opt", "etc", "usr", "usr/bin"):
                _add(tar, name, tarfile.DIRTYPE, mode=0o755)
            _add(tar, "etc/old", tarfile.REGTYPE, content=b"deleted by the last layer")
        _add(tar, folder, tarfile.DIRTYPE, mode=0o750, owner=1000 + number)
        _add(tar, f"{folder}/data", tarfile.REGTYPE, content=random.Random(seed).randbytes(FILE_BYTES))
        _add(tar, f"{folder}/same", tarfile.LNKTYPE, link=f"{folder}/data")
        _add(tar, f"{folder}/link", tarfile.SYMTYPE, link="data")
        _add(tar, f"{folder}/about", tarfile.REGTYPE, content=seed.encode(), mode=0o640)
        if is_last and number:
            _add(tar, "etc/.wh.old", tarfile.REGTYPE)
    return made.getvalue()


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes,
    content: bytes = b"",
    link: str = "",
    mode: int = 0o644,
    owner: int = 0,
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname, member.mode, member.size = kind, link, mode, len(content)
    member.uid = member.gid = owner
    member.mtime = 1767225600
    tar.addfile(member, io.BytesIO(content))


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _write(path: Path, content: bytes, again: bool = False) -> None:
    """Whole or not at all: who is killed leaves no half of a blob. `again`: also in another's place."""
    if path.exists() and not again:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
