"""The script that makes a disk, under test as root (`make test-system` installs what it needs and runs this)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from .oracle import Containerd
from .registry import Registry

TOOLS = ("containerd", "ctr", "docker-registry", "mkfs.ext4", "e2fsck", "zstd", "losetup", "mount", "md5sum")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.system)


@pytest.fixture(scope="session", autouse=True)
def machine() -> None:
    """Fails, with the command that mends it, where these tests cannot run."""
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    if missing or os.geteuid():
        pytest.fail(f"{', '.join(missing) or 'root'} is missing: make test-system, as root", pytrace=False)


@pytest.fixture(scope="session")
def registry(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="session")
def containerd(machine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containerd]:
    with Containerd(tmp_path_factory.mktemp("containerd")) as started:
        yield started
