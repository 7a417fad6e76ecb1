"""`emulators up` as a user runs it: variables on stdout, served until it is told to end, and nothing left."""

from __future__ import annotations

import shlex
import signal
from pathlib import Path

from tests.scenarios.command import Run, processes_below

FILE = """
scenario: gcs-fuse
project: demo-project
bucket: demo-bucket
schedule: {cron: "0 3 * * *"}
"""


def test_commands_reach_the_cloud_by_its_variables_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "gemma.yaml").write_text(FILE)
    up = Run("--state", str(tmp_path / "state"), folder=tmp_path, command=("emulators", "up"))
    variables = {}
    while "no_proxy" not in variables:
        (name, value) = shlex.split(up.popen.stdout.readline())[1].split("=", 1)
        variables[name] = value
    assert not variables.keys() & {"PATH", "HOME", "TMPDIR"}
    shown = Run("-f", "gemma.yaml", "--json", folder=tmp_path, command=("schedule", "show"), variables=variables)
    assert shown.finish()["state"] is None
    taken = Run("--state", str(tmp_path / "state"), folder=tmp_path, command=("run", "03", "--json"))
    assert taken.finish(code=2) == {}
    assert up.stop(signal.SIGTERM) == 0
    assert processes_below(tmp_path) == []
    assert not (tmp_path / "state" / "tmp").exists()
