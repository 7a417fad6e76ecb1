"""Options of the whole test-suite."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest

# A shell's background job ignores Ctrl-C, and so would everything that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The tests start thousands of processes: each would compile all of our sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Threads that wait for each other at every small product take ten times as long on cores that are busy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a file is one worker's alone, and would run on when all else has ended."""

    def place(item: pytest.Item) -> tuple[bool, bool]:
        file = item.nodeid.partition("::")[0]
        long = "scenarios" in file or "test_pipeline_access" in file
        return not long, "contract" not in file

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker takes a file whole (`--dist loadfile`), and of a file that runs for every scenario those of one."""
    from xdist.scheduler import LoadFileScheduling

    from serving.scenarios import SCENARIOS

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("::")
            own = next((row.name for row in SCENARIOS if "scenarios" in file and row.name in test), "")
            return f"{file}::{own}"

    return Scheduling(config, log)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing them")


@pytest.fixture(scope="session")
def emulated_cloud_options() -> dict[str, Any]:
    """What our clients need of every emulated cloud beside the customary variables."""
    from serving.clients.google import API_ENDPOINT
    from serving.clients.registry import REGISTRY_ENDPOINT

    return {"endpoints": {API_ENDPOINT: "google", REGISTRY_ENDPOINT: "registry"}}


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written (`make golden`)."""
    return bool(request.config.getoption("--update-golden"))
