"""Commands for a deployment that is there: which settings they use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pipelines.cli import operate, oversee
from pipelines.cli.output import Output
from pipelines.oversight import destroy as work
from serving.errors import RequestError
from serving.settings import Settings
from tests.unit.deployment import SETTINGS, job


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


def test_nothing_is_destroyed_for_want_of_a_yes_or_for_another_scenario(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The list is told all the same, also when quiet: nobody says yes to what was not shown."""
    own, shared = ["gs://demo-bucket/models/a/b/1"], ["gs://demo-bucket/models/a/b/2"]
    found = work.Found([job("validate", "run-1")], False, [], [], [], own, shared, True)
    monkeypatch.setattr(work, "find", lambda settings, vertex: found)
    monkeypatch.setattr(work, "destroy", lambda *_, **__: pytest.fail("it was not asked for"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: False)
    with pytest.raises(RequestError, match="then say --yes"):
        oversee.destroy(Output(quiet=True), "03", state=Path("state"))
    said = capsys.readouterr()
    assert said.out == ""
    assert "Job/validate" in said.err
    assert f"these weights stay (--weights takes them too):\n  {own[0]}\n" in said.err
    assert f"these weights stay, another deployment uses them:\n  {shared[0]}\n" in said.err
    with pytest.raises(RequestError, match="settings for scenario gcs-fuse, not hyperdisk-ml"):
        oversee.destroy(Output(), "04", state=Path("state"))


def test_that_vertex_is_switched_off_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """A schedule outlives that, unseen."""
    monkeypatch.setattr("pipelines.oversight.runs.vertex_of", lambda settings: None)
    assert oversee._vertex(Output(), SETTINGS, None) is None
    assert "`gcloud services enable aiplatform.googleapis.com --project=" in capsys.readouterr().err
    assert oversee._vertex(Output(), SETTINGS, Path("state")) is None
    assert capsys.readouterr().err == ""
