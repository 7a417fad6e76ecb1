"""Debian's containerd: what it makes of an image is what a disk has to hold."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
address = "{folder}/containerd.sock"
[ttrpc]
address = "{folder}/containerd.sock.ttrpc"
"""


class Containerd:
    """A containerd process of its own, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "config.toml").write_text(CONFIG.format(folder=folder))

    def __enter__(self) -> Containerd:
        with (self.folder / "containerd.log").open("w") as log:
            self.process = subprocess.Popen(
                ["containerd", "--config", str(self.folder / "config.toml"), "--log-level", "warn"],
                stdout=log,
                stderr=log,
                cwd="/",
            )
        for _ in range(200):
            if self._ctr("version").returncode == 0:
                return self
            time.sleep(0.05)
        raise AssertionError((self.folder / "containerd.log").read_text())

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()

    def _ctr(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        socket = str(self.folder / "containerd.sock")
        return subprocess.run(["ctr", "-a", socket, "-n", "k8s.io", *arguments], capture_output=True, text=True)

    def ctr(self, *arguments: str) -> str:
        done = self._ctr(*arguments)
        assert done.returncode == 0, f"{arguments}: {done.stdout} {done.stderr}"
        return done.stdout

    def pull(self, name: str, *options: str) -> str:
        """What containerd says when it cannot ("" when it can)."""
        done = self._ctr("images", "pull", "--plain-http", *options, name)
        return f"{done.stdout} {done.stderr}" if done.returncode else ""

    def snapshots(self, top: str) -> list[Path]:
        """The folders of the layers up to a chain ID, the lowest first."""
        key = f"map-{top[-12:]}"
        # A view would be collected: only what is prepared is held.
        self.ctr("snapshots", "prepare", key, top)
        said = self.ctr("snapshots", "mounts", "/x", key)
        lower = said.split("lowerdir=")[1].split(",")[0].split()[0]
        self.ctr("snapshots", "rm", key)
        return [Path(folder) for folder in reversed(lower.split(":"))]
