"""A run on a machine whose locale is not UTF-8."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scenarios.command import Run
from tests.unit.test_locale import ASCII


def test_a_run_reads_and_writes_utf_8_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A locale that can write ASCII alone is less than EUC-KR or ISO-8859-1, and there on every machine."""
    for name, value in ASCII.items():
        monkeypatch.setenv(name, value)
    result = Run("--state", str(tmp_path / "state"), folder=tmp_path).finish()
    assert result["status"] == "succeeded"
    assert "대한민국의 수도" in Path(result["report"]).read_text(encoding="utf-8")
