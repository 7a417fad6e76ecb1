"""What the unit tests of the command line share."""

from __future__ import annotations

import sys

import pytest

from pipelines import cli


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Runs `gemma-pipelines …` in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gemma-pipelines", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run
