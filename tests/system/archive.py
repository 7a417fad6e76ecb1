"""Layers, made on the spot."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zlib
from dataclasses import dataclass, field
from typing import Any

TIME = 1_600_000_000


@dataclass(frozen=True)
class Blob:
    """A layer as a registry keeps it."""

    content: bytes = field(repr=False)
    diff_id: str
    media_type: str
    digest: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", self.digest or f"sha256:{hashlib.sha256(self.content).hexdigest()}")


class Layer:
    """An archive; its methods add entries."""

    def __init__(self, form: int = tarfile.PAX_FORMAT) -> None:
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(  # noqa: SIM115 (closed when the blob is made)
            fileobj=self.buffer, mode="w", format=form, encoding="utf-8", errors="surrogateescape"
        )

    def entry(
        self,
        name: str,
        kind: bytes,
        data: bytes = b"",
        xattrs: dict[str, str] | None = None,
        pax: dict[str, str] | None = None,
        **attributes: Any,
    ) -> Layer:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.mtime = kind, len(data), TIME
        for key, value in attributes.items():
            setattr(info, key, value)
        info.pax_headers = {**{f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}, **(pax or {})}
        self.tar.addfile(info, io.BytesIO(data) if data else None)
        return self

    def file(self, name: str, data: bytes = b"", **attributes: Any) -> Layer:
        return self.entry(name, tarfile.REGTYPE, data, **attributes)

    def folder(self, name: str, **attributes: Any) -> Layer:
        return self.entry(name, tarfile.DIRTYPE, **{"mode": 0o755, **attributes})

    def symlink(self, name: str, target: str, **attributes: Any) -> Layer:
        return self.entry(name, tarfile.SYMTYPE, linkname=target, **attributes)

    def link(self, name: str, target: str, **attributes: Any) -> Layer:
        return self.entry(name, tarfile.LNKTYPE, linkname=target, **attributes)

    def whiteout(self, name: str, **attributes: Any) -> Layer:
        folder, _, base = name.rpartition("/")
        return self.file(f"{folder}/.wh.{base}".lstrip("/"), **attributes)

    def opaque(self, folder: str) -> Layer:
        return self.file(f"{folder}/.wh..wh..opq")

    def archive(self) -> bytes:
        self.tar.close()
        return self.buffer.getvalue()

    def blob(self, compression: str = "gzip") -> Blob:
        return blob(self.archive(), compression)


def blob(archive: bytes, compression: str = "gzip") -> Blob:
    diff_id = f"sha256:{hashlib.sha256(archive).hexdigest()}"
    if compression == "gzip":
        squeezed, suffix = compress(archive), ".gzip"
        return Blob(squeezed, diff_id, f"application/vnd.docker.image.rootfs.diff.tar{suffix}")
    if compression == "members":  # As pigz and seekable archives write it.
        half = len(archive) // 2
        content = compress(archive[:half]) + compress(archive[half:])
        return Blob(content, diff_id, "application/vnd.docker.image.rootfs.diff.tar.gzip")
    if compression == "zstd":
        content = subprocess.run(["zstd", "-qc"], input=archive, capture_output=True, check=True).stdout
        return Blob(content, diff_id, "application/vnd.oci.image.layer.v1.tar+zstd")
    return Blob(archive, diff_id, "application/vnd.docker.image.rootfs.diff.tar")


def compress(data: bytes) -> bytes:
    stream = zlib.compressobj(1, wbits=31)
    return stream.compress(data) + stream.flush()
