"""`emulators up` as a user runs it: variables on stdout, served until it is told to end, and nothing left."""

from __future__ import annotations

import re
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


ROOT = Path(__file__).parents[2]


def variables_of(up: Run) -> dict[str, str]:
    """What `emulators up` prints, as a shell reads it."""
    found = {}
    while "no_proxy" not in found:
        (name, value) = shlex.split(up.popen.stdout.readline())[1].split("=", 1)
        found[name] = value
    return found


def test_commands_reach_the_cloud_by_its_variables_and_nothing_is_left(tmp_path: Path):
    (tmp_path / "gemma.yaml").write_text(FILE)
    up = Run("--state", str(tmp_path / "state"), folder=tmp_path, command=("emulators", "up"))
    variables = variables_of(up)
    assert not variables.keys() & {"PATH", "HOME", "TMPDIR"}
    shown = Run("-f", "gemma.yaml", "--json", folder=tmp_path, command=("schedule", "show"), variables=variables)
    assert shown.finish()["state"] is None
    taken = Run("--state", str(tmp_path / "state"), folder=tmp_path, command=("run", "03", "--json"))
    assert taken.finish(code=2) == {}
    assert up.stop(signal.SIGTERM) == 0
    assert processes_below(tmp_path) == []
    assert not (tmp_path / "state" / "tmp").exists()


def test_the_readmes_lines_work_with_the_settings_as_init_writes_them(tmp_path: Path):
    """Up to `submit`, which tests/scenarios/test_vertex.py has: `plan` says that nothing is missing for it."""
    Run("03", "-o", "gemma.yaml", folder=tmp_path, command=("init",)).finish_with_text()
    first, _, *lines = typed("README.md")
    assert lines == typed("README.ko.md")[2:]
    up = Run(*shlex.split(first.partition(">")[0])[3:], folder=tmp_path, command=("emulators", "up"))
    variables = variables_of(up)
    up.wait_for("up: project my-project")
    for line in lines[: lines.index("gemma-pipelines submit 03 -f gemma.yaml --wait")]:
        verb, *arguments = shlex.split(line)[1:]
        done = Run(*arguments, "--json", folder=tmp_path, command=(verb,), variables=variables).finish()
        assert done["ready"], done
    assert up.stop(signal.SIGTERM) == 0


def typed(readme: str) -> list[str]:
    """The lines that a README has one type for the emulated cloud."""
    text = (ROOT / readme).read_text(encoding="utf-8")
    (block,) = re.findall(r"```\n(gemma-pipelines emulators up .*?)```", text, flags=re.DOTALL)
    return block.splitlines()
