"""Addresses of one cluster among several on this machine: on Linux all of 127.0.0.0/8 is local, and shared."""

from __future__ import annotations

import socket
from dataclasses import dataclass

_CLAIM_PORT = 64001
_FIRST, _LAST = 64, 254


@dataclass
class Claim:
    """Networks that no other cluster on this machine uses while this process lives."""

    pod_network: str
    load_balancer_network: str
    _socket: socket.socket

    def release(self) -> None:
        self._socket.close()


def claim() -> Claim:
    """Claims 127.N.0.0/16 for pods and the next one for load balancers, by a bound socket that dies with the process.

    Raises OSError when every one is taken.
    """
    for number in range(_FIRST, _LAST, 2):
        held = socket.socket()
        try:
            held.bind((f"127.{number}.0.1", _CLAIM_PORT))
        except OSError:
            held.close()
            continue
        return Claim(f"127.{number}.0.0/16", f"127.{number + 1}.0.0/16", held)
    raise OSError("too many emulated clusters on this machine: every network from 127.64.0.0/16 on is taken")
