"""What the tests of one file share: a folder, the state in it, and the release that the hub shows.

Tests that ask for `site` run for every scenario of the table that has steps of its own, each on a state of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.scenarios import Scenario
from tests.scenarios.command import OF_OTHER_STEPS, Site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test is several runs, of 20 s on a quiet machine."""
    for item in items:
        if Path(__file__).parent in item.path.parents and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of a file work. In the end nothing may be left in the folder for temporary files."""
    folder = tmp_path_factory.mktemp("scenario")
    yield folder
    _nothing_is_left(folder)


@pytest.fixture(scope="module", params=OF_OTHER_STEPS, ids=lambda scenario: scenario.name)
def scenario(request: pytest.FixtureRequest) -> Scenario:
    found: Scenario = request.param
    return found


@pytest.fixture(scope="module")
def site(scenario: Scenario, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp(scenario.name), scenario)
    yield site
    _nothing_is_left(site.folder)


@pytest.fixture(scope="module")
def weights(site: Site, tiny_gemma3: Path) -> Path:
    """The release that the hub's main points to."""
    return Path(shutil.copytree(tiny_gemma3, site.folder / "weights"))


def _nothing_is_left(folder: Path) -> None:
    assert list((folder / "tmp").iterdir()) == []
    assert not (folder / "state" / "tmp").exists()
