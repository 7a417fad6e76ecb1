"""How a set of weights gets its name: a digest over exactly what would make it another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from serving.clients.digest import ServedFile


def weights_key(repositories: Iterable[tuple[str, Iterable[ServedFile]]]) -> str:
    """The name of a set of weights: 16 hex digits over (role, path, digest) of every file that is served.

    `repositories` are (role, files) pairs, role `base`, `assistant` or an adapter's name, which is neither. A commit
    that touches only a README keeps the key; the same files in another repository have the same key (the
    prefix names the repository).
    """
    lines = sorted(f"{role}\0{file.path}\0{file.digest}" for role, files in repositories for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
