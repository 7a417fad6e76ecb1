"""The last one out: ends what is left of the pods when the kubelet's process has ended, `kill -9` included.

`python -m emulated_cloud.kubernetes.kubelet.reaper PODS` waits until its stdin closes. A killed kubelet's own children
die with it (PR_SET_PDEATHSIG), but not what those have started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path


def kill_leftovers(pods: Path) -> None:
    """Kills the processes with a variable that leads to a pod's folder (TMPDIR, or emulated_cloud/real/container.py's
    CONTAINER_ROOT): every process of a container has inherited that."""
    markers = tuple(f"{name}={pods}/".encode() for name in ("TMPDIR", "CONTAINER_ROOT"))
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            environment = Path(entry.path, "environ").read_bytes()
            if any(variable.startswith(markers) for variable in environment.split(b"\0")):
                os.kill(int(entry.name), signal.SIGKILL)


if __name__ == "__main__":
    # The kubelet's end is told by the pipe alone; a signal for a whole group or session is not meant for this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.stdin.read()
    kill_leftovers(Path(sys.argv[1]))
