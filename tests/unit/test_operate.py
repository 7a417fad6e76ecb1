"""Commands for a deployment that is there: which settings they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.cli import operate
from pipelines.cli.output import Output
from serving.errors import RequestError
from serving.settings import Settings
from tests.unit.deployment import SETTINGS


@pytest.fixture(autouse=True)
def a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every folder is the state of a run."""

    @contextmanager
    def of_state(out: Output, state: Path) -> Iterator[Settings]:
        yield SETTINGS

    monkeypatch.setattr(operate, "of_state", of_state)


@pytest.mark.parametrize(("sets", "wait"), [(["lease.wait=30m"], "30m"), (None, SETTINGS.lease.wait)])
def test_a_setting_of_a_local_run_may_be_another_for_one_command(sets: list[str] | None, wait: str):
    """As an error advises: `--set lease.wait=30m`."""
    with operate.deployment(Output(), None, sets, Path("state")) as settings:
        assert (settings.lease.wait, settings.bucket) == (wait, SETTINGS.bucket)


def test_a_local_run_has_its_settings_and_no_file():
    with (
        pytest.raises(RequestError, match="leave -f out"),
        operate.deployment(Output(), Path("gemma.yaml"), None, Path("state")),
    ):
        pass
