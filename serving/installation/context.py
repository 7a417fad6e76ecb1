"""The build context of the component image, made of the distribution that is installed: no clone is needed.

A wheel has the five packages whole, and what beside them builds a wheel again lies in images/components/context/: links
to the files at the repository's top, with .txt after their names, by which no tool takes the folder for a project. The
same distribution gives the same bytes anywhere, so its digest names it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("components", "images", "manifests", "pipelines", "serving")
DOCKERFILE = "images/components/Dockerfile"
_TOP = "images/components/context"
"""What lies at the context's top."""


def packed() -> bytes:
    """The context, a .tar.gz."""
    made = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=made, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in files():
            content = path.read_bytes()
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def digest() -> str:
    """What the context is, in 16 hex digits: of names and contents, whatever packs them."""
    found = hashlib.sha256()
    for name, path in files():
        found.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def files() -> Iterator[tuple[str, Path]]:
    """Names in the context, in order, and the files that they are."""
    root = Path(__file__).parents[2]
    top = [(path.name.removesuffix(".txt"), path) for path in (root / _TOP).iterdir()]
    packages = [
        (path.relative_to(root).as_posix(), path)
        for package in PACKAGES
        for path in (root / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    yield from sorted(top + packages)


def base_image() -> str:
    """The image that the Dockerfile begins with."""
    text = (Path(__file__).parents[2] / DOCKERFILE).read_text(encoding="utf-8")
    return next(line.partition("=")[2] for line in text.splitlines() if line.startswith("ARG PYTHON="))
