"""Real parts without root: an ordinary user, the kernel's namespaces for users, and /dev/fuse open to all."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

from emulated_cloud.cloud import wait_for
from emulated_cloud.real.parts import PARTS, cache, interpreters
from emulated_cloud.real.runtime import LAUNCHER

from pipelines.local.cloud import SHOWN
from tests.scenarios.command import processes_below

from .kube import USER, mounts


def test_an_ordinary_user_runs_it_on_a_real_control_plane_and_real_mounts(parts: None, tmp_path: Path) -> None:
    """What is shown to the user of this machine is what a checkout of his own would have: the project, a Python, the
    parts. Everything else, this test's own folders too, he could not read."""
    home, fuse, root = tmp_path / "home", tmp_path / "fuse", tmp_path / "root"
    home.mkdir()
    os.mknod(fuse, stat.S_IFCHR | 0o666, os.stat("/dev/fuse").st_rdev)
    fuse.chmod(0o666)
    spec = {
        "root": str(root),
        "mounts": {
            "/home/user": {"from": str(home), "read_only": False},
            "/dev/fuse": {"from": str(fuse), "read_only": False},
        },
        "show": [str(path) for path in (*interpreters(), *SHOWN, *(part.folder for part in PARTS.values()))],
        "user": USER,
        "group": USER,
        "groups": [],
        "read_only": False,
        "cwd": "/home/user",
        "own": [str(home)],
    }
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    run = ("-m", "pipelines.cli", "run", "03", "--real", "control-plane,gcsfuse", "--state", "state", "--json")
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", str(LAUNCHER), str(tmp_path / "spec.json"), sys.executable, *run],
        env={"PATH": os.environ["PATH"], "HOME": "/home/user", "XDG_CACHE_HOME": str(cache().parents[1])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout)["status"] == "succeeded"
    assert (home / "state" / "control-plane").stat().st_uid == USER
    assert wait_for(lambda: not processes_below(root), 120), processes_below(root)
    assert mounts() == []
