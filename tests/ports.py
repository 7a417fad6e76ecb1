"""Ports for servers that cannot be asked to take any (port 0)."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket

_PORTS = itertools.count(os.getpid() * 131)


def free_port() -> int:
    """A port that nobody has, and that the system gives nobody who asks for any: those begin at 32768. Each worker of
    xdist begins somewhere else."""
    while True:
        port = 12_000 + next(_PORTS) % 20_000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
