"""The real parts under test (`make real` builds them, `make test-real` runs this). Nothing here builds anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from emulated_cloud.cloud import Cloud
from emulated_cloud.real.parts import PARTS, require

IN_CI = PARTS.keys() - {"gateway"}
"""What .ci/run builds, and every test here may ask for. Who needs another part asks for it, and is marked `long`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session")
def parts() -> None:
    """Fails every test that asks for it, with the command that mends it, when a part is missing."""
    require(IN_CI)


@pytest.fixture(scope="session")
def cloud(parts: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """A cloud in which everything is real that can be."""
    folder = tmp_path_factory.mktemp("real")
    web = {"namespace": "web", "service": "web", "port": 80, "file": str(folder / "web")}
    vllm = {"namespace": "vllm", "service": "vllm", "port": 80, "file": str(folder / "vllm")}
    with Cloud(folder, real=set(IN_CI), expose=[web, vllm]) as made:
        yield made
