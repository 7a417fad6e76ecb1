"""What the tests of one file share: a folder, the state in it, and the release that the hub shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of a file work. In the end nothing may be left in the folder for temporary files."""
    folder = tmp_path_factory.mktemp("scenario")
    yield folder
    assert list((folder / "tmp").iterdir()) == []
    assert not (folder / "state" / "tmp").exists()


@pytest.fixture(scope="module")
def state(folder: Path) -> Path:
    return folder / "state"


@pytest.fixture(scope="module")
def weights(folder: Path, tiny_gemma3: Path) -> Path:
    """The release that the hub's main points to."""
    return Path(shutil.copytree(tiny_gemma3, folder / "weights"))
