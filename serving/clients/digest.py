"""Digests of content while it passes: what its source lists a file by, and what GCS stores it by."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import google_crc32c


@dataclass(frozen=True)
class ServedFile:
    """A file that the engine reads, as its source lists it; `size` in bytes.

    The hub lists LFS files by `sha256` and the small ones by `blob_id` (git's sha1 over "blob <size>\\0" and the
    content). A bucket lists objects by `md5`, those that were composed of others by `crc32c` alone (both base64).
    """

    path: str
    size: int
    sha256: str | None = None
    blob_id: str | None = None
    md5: str | None = None
    crc32c: str | None = None

    @property
    def digest(self) -> str:
        """The strongest digest of the content that its source knows, with its kind."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        if self.blob_id:
            return f"git:{self.blob_id}"
        # 32 bits alone would be too few to tell contents apart.
        return f"md5:{self.md5}" if self.md5 else f"crc32c:{self.crc32c}:{self.size}"


class Digest:
    """All digests of a file, made in one pass over its bytes: sha256, crc32c, and what its source lists it by."""

    def __init__(self, file: ServedFile):
        self._file = file
        self.size = 0
        """Bytes seen so far."""
        self._sha256 = hashlib.sha256()
        self._crc32c = 0
        self._kind = file.digest.partition(":")[0]
        # Neither is for security: they are how git and GCS name content.
        self._other = (
            hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
            if self._kind == "git"
            else hashlib.md5(usedforsecurity=False)
        )

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._crc32c = google_crc32c.extend(self._crc32c, piece)
        if self._kind in ("git", "md5"):
            self._other.update(piece)
        self.size += len(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def crc32c(self) -> str:
        """Base64, as GCS writes it."""
        return base64.b64encode(self._crc32c.to_bytes(4, "big")).decode()

    def is_right(self) -> bool:
        """Whether what passed is the whole content that the source lists."""
        return self.size == self._file.size and self._named() == self._file.digest

    def _named(self) -> str:
        match self._kind:
            case "sha256":
                return f"sha256:{self.sha256}"
            case "git":
                return f"git:{self._other.hexdigest()}"
            case "md5":
                return f"md5:{base64.b64encode(self._other.digest()).decode()}"
        return f"crc32c:{self.crc32c}:{self.size}"


def of(file: ServedFile, content: bytes) -> Digest:
    """The digests of a content at hand."""
    digest = Digest(file)
    digest.update(content)
    return digest
