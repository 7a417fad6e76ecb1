"""How weights and generations get their names: digests over exactly what would make them different.

Nothing else may enter a digest: what changes in place (replicas, thresholds, exposure) is not in it, and only
validated settings are hashed, since kfp turns the integers of a struct into floats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


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


def weights_key(repositories: Iterable[tuple[str, Iterable[ServedFile]]]) -> str:
    """The name of a set of weights: 16 hex digits over (role, path, digest) of every file that is served.

    `repositories` are (role, files) pairs, role `base`, `assistant` or an adapter's name, which is neither. A commit
    that touches only a README keeps the key; the same files in another repository have the same key (the
    prefix names the repository).
    """
    lines = sorted(f"{role}\0{file.path}\0{file.digest}" for role, files in repositories for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def generation(
    weights_key: str,
    engine_image: str,
    engine_flags: list[str],
    accelerator: dict[str, Any],
    volume: dict[str, Any],
) -> str:
    """The name of a generation: `g` and 10 hex digits over what makes a server a different server."""
    subject = json.dumps(
        {
            "weights": weights_key,
            "image": engine_image,
            "flags": engine_flags,
            "accelerator": accelerator,
            "volume": volume,
        },
        sort_keys=True,
        separators=(",", ":"),
    )
    return "g" + hashlib.sha256(subject.encode()).hexdigest()[:10]
