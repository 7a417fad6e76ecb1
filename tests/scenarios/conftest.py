"""What the tests of one file share: a folder, the state in it, and the release that the hub shows.

**How a new scenario is tested.** Tests that ask for `site` run for every row of the table, each on a state of its own.
A new row, without a line here, gets what can differ with it (test_refresh.py): a first run, an unchanged second one,
other weights that go live under traffic, a bad release that never does, and of each the exact outcomes of its steps.
That is four runs, of ten to twenty seconds of a processor each.

What follows from the weights' column alone is tested on one row for each of its words (`of_weights`; the row with the
fewest features): other flags, rollback and promotion. That is three runs for a new word. `of_weights` with words is
for what fewer of them show as well. What a scenario alone has gets a file of its own (test_secondary_boot_disk.py),
about its own steps and faults: what the above sees it need not see again.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.scenarios import SCENARIOS, Scenario
from tests.scenarios.command import Site


def of_weights(scenario: Scenario) -> bool:
    """Whether the scenario is the one that stands for all of its word in the weights' column."""
    rows = [row for row in SCENARIOS if row.weights == scenario.weights]
    return scenario == min(rows, key=lambda row: len(row.features))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A test is several runs, of ten seconds on a quiet machine. Those of the weights' column are for one row."""
    beside = []
    for item in items:
        if Path(__file__).parent in item.path.parents:
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(1800))
            row = getattr(item, "callspec", None) and item.callspec.params.get("scenario")
            marker = item.get_closest_marker("of_weights")
            if row and marker and not (of_weights(row) and row.weights in (marker.args or [row.weights])):
                beside.append(item)
    items[:] = [item for item in items if item not in beside]
    config.hook.pytest_deselected(items=beside)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all runs of a file work. In the end nothing may be left in the folder for temporary files."""
    folder = tmp_path_factory.mktemp("scenario")
    yield folder
    _nothing_is_left(folder)


@pytest.fixture(scope="module", params=SCENARIOS, ids=lambda scenario: scenario.name)
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
