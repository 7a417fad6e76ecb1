"""Every scenario on a real control plane and real mounts: its refreshes; and the broken releases. What neither the
control plane nor a mount has a part in, tests/scenarios alone sees."""

from __future__ import annotations

import pytest
from emulated_cloud.real.parts import require

from serving.scenarios import SCENARIOS, Scenario

from .scenarios import passes

REAL = "control-plane,gcsfuse"
FIRST = "gcs-fuse"
HERE = [row for row in SCENARIOS if row.accelerator != "gpu-or-tpu"]
"""Pods of 07 mount files of their node, which containers with a root of their own have no place for here."""


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "scenario", [pytest.param(row, id=row.name, marks=[] if row.name == FIRST else pytest.mark.long) for row in HERE]
)
def test_every_refresh(scenario: Scenario, parts: None) -> None:
    passes("test_refresh.py", REAL, "-k", scenario.name, "-m", "not of_weights")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_follows_from_the_weights_column_alone(parts: None) -> None:
    """Of one word, which is mounted."""
    passes("test_refresh.py", REAL, "-k", f"{FIRST} and not readme and not manifest")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_real_controller_and_picker_bring_scenario_05_into_service(parts: None) -> None:
    """No further: this pilot asks one picker for both pools of a canary, and this picker says that it is ready before
    its port is open (docs/conformance.md), so that clients meet 500s which no release is to blame for."""
    require({"gateway"})
    passes("test_refresh.py", f"{REAL},gateway", "-k", "inference-gateway and (first_run or second_run)")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_every_broken_release(parts: None) -> None:
    passes("test_broken_releases.py", REAL)
