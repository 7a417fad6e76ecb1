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


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In which order workers take what is one worker's alone (`_scope`). Scenarios keep processors busy and contracts
    wait for much, so that both are dealt out evenly; of each the longest first, which would run on when all else has
    ended (scenarios of many tests, contracts of few); what takes a moment fills up in the end. Who runs all of them
    alone takes them as they come: files that share a real cluster find what the one before has left there."""
    if not hasattr(config, "workerinput"):
        return
    scopes: dict[str, list[pytest.Item]] = {}
    for item in items:
        scopes.setdefault(_scope(item.nodeid), []).append(item)
    places: dict[str, float] = {}
    for folder, sign in (("real", -1), ("scenarios", -1), ("contract", 1)):
        ours = [scope for scope in scopes if scope.startswith(f"tests/{folder}/")]
        ours.sort(key=lambda scope: (scope.partition("::")[0] not in _LONG, sign * len(scopes[scope])))
        places |= {scope: place / len(ours) for place, scope in enumerate(ours)}
    items.sort(key=lambda item: places.get(_scope(item.nodeid), 1))


_LONG = [f"tests/real/test_{name}.py" for name in ("scenarios", "scenarios_vllm", "control_plane")]
"""Few tests, each of minutes."""


def _scope(nodeid: str) -> str:
    """What one worker runs whole: a file; of one that runs for every scenario, the tests of one scenario; of one that
    runs files of scenarios with real parts, a test."""
    from serving.scenarios import SCENARIOS

    file, _, test = nodeid.partition("::")
    if file.startswith("tests/real/test_scenarios"):
        return nodeid
    own = next((row.name for row in SCENARIOS if "scenarios" in file and row.name in test), "")
    return f"{file}::{own}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _scope(nodeid)

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
