"""Every scenario on a real control plane and real mounts: every refresh; and every broken release of one of them, since
what a release is refused for stands in steps that all of them share."""

from __future__ import annotations

import pytest

from serving.scenarios import Scenario
from tests.scenarios.command import OF_OTHER_STEPS

from .scenarios import passes

REAL = "control-plane,gcsfuse"


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", OF_OTHER_STEPS, ids=lambda scenario: scenario.name)
def test_every_refresh(scenario: Scenario, parts: None) -> None:
    passes("test_refresh.py", REAL, "-k", scenario.name)


@pytest.mark.timeout(3600)
def test_every_broken_release(parts: None) -> None:
    passes("test_broken_releases.py", REAL, "-k", "gcs-fuse")
