"""Every scenario on a real control plane and real mounts: every refresh, and every broken release."""

from __future__ import annotations

import pytest

from .scenarios import passes

REAL = "control-plane,gcsfuse"


@pytest.mark.timeout(3600)
def test_every_refresh(parts: None) -> None:
    passes("test_refresh.py", REAL)


@pytest.mark.timeout(3600)
def test_every_broken_release(parts: None) -> None:
    passes("test_broken_releases.py", REAL)
