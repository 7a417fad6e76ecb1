"""How weights and generations get their names: digests over exactly what would make them different.

Nothing else may enter a digest: what changes in place (replicas, thresholds, exposure) is not in it, and only
validated settings are hashed, since kfp turns the integers of a struct into floats.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from serving.clients.digest import ServedFile


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
