"""What stands on this machine for images that others built: a gate's, above all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.local import programs
from serving.errors import RequestError
from tests.unit.deployment import quick

GATE = "us-docker.pkg.dev/team/gates/eval:3"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "eval.py"
    path.write_text("#!/usr/bin/env python3\n")
    path.chmod(0o755)
    return path


def test_a_gate_runs_the_program_that_stands_for_its_image(program: Path):
    settings = quick(validation={"jobs": [{"image": GATE}]})
    assert programs(settings, [f"{GATE}={program}"]) == {GATE: program}
    assert programs(quick(), None) == {}


def test_a_gate_without_a_program_is_told_before_anything_is_started():
    with pytest.raises(RequestError) as refused:
        programs(quick(validation={"jobs": [{"image": GATE}]}), None)
    assert f"`--program {GATE}=FILE`" in str(refused.value)
    assert "--set 'validation.jobs=[]'" in str(refused.value)


def test_what_is_no_program_is_told(program: Path):
    program.chmod(0o644)
    for wrong in (f"{GATE}={program}", f"{GATE}=nowhere", GATE, f"={program}"):
        with pytest.raises(RequestError, match="chmod"):
            programs(quick(), [wrong])
