"""Digests of content while it passes: what the hub lists a file by, and what GCS stores it by."""

from __future__ import annotations

import base64
import hashlib

import google_crc32c

from components.identity import ServedFile


class Digest:
    """All digests of a file, made in one pass over its bytes.

    The hub lists a file in LFS by its sha256, a small one by git's blob id: sha1 over "blob <size>\\0" and the content.
    """

    def __init__(self, file: ServedFile):
        self._file = file
        self.size = 0
        """Bytes seen so far."""
        self._sha256 = hashlib.sha256()
        self._crc32c = 0
        # Not for security: it is how git names content.
        self._git = None if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)

    def update(self, piece: bytes) -> None:
        self._sha256.update(piece)
        self._crc32c = google_crc32c.extend(self._crc32c, piece)
        if self._git:
            self._git.update(piece)
        self.size += len(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def crc32c(self) -> str:
        """Base64, as GCS writes it."""
        return base64.b64encode(self._crc32c.to_bytes(4, "big")).decode()

    def is_right(self) -> bool:
        """Whether what passed is the whole content that the hub lists."""
        named = self._git.hexdigest() == self._file.blob_id if self._git else self.sha256 == self._file.sha256
        return named and self.size == self._file.size


def of(file: ServedFile, content: bytes) -> Digest:
    """The digests of a content at hand."""
    digest = Digest(file)
    digest.update(content)
    return digest
