"""The cluster's own machine: a private network in which every address of the cluster is local, and private mounts.

The real API server takes no pod on a loopback address, and the addresses that it takes lead nowhere on a laptop. In a
network namespace they can all be loopback's. `python -m emulated_cloud.real.namespace` makes one and holds it; whoever
runs in the cluster is started in it (`Namespace.prefix`), and everybody else stays outside, as a pipeline on Vertex
does. What has to cross is a loopback port of the same number on both sides: `publish` (a port inside, as seen from
outside) and `reach` (a port outside, as seen from inside).

Needs root, or a kernel that gives ordinary users namespaces of their own. Mounts that are made inside go with the last
process inside.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emulated_cloud.kubernetes.network.relay import Relay, Side
from emulated_cloud.process import EmulatorFailed, how_it_ended, machine_environment

NODE_ADDRESS = "10.128.0.2"
POD_NETWORK = "10.244.0.0/16"
SERVICE_NETWORK = "10.96.0.0/16"
LOAD_BALANCER_NETWORK = "10.129.0.0/16"
NETWORKS = {
    "nodes": f"{NODE_ADDRESS}/16",
    "pods": POD_NETWORK,
    "services": SERVICE_NETWORK,
    "lb": LOAD_BALANCER_NETWORK,
}

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/sockios.h, linux/if.h
_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _SIOCSIFNETMASK = 0x8913, 0x8914, 0x8916, 0x891C
_IFF_UP = 1
_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceError(EmulatorFailed):
    """No namespace to be had, or a port that is taken: why, and the command that mends it."""


@dataclass
class Namespace:
    """A running namespace, as the one who started it sees it."""

    popen: subprocess.Popen[str]
    pid: int

    @classmethod
    def start(cls, log: Path) -> Namespace:
        """Raises NamespaceError."""
        with open(log, "a", encoding="utf-8") as stderr:
            popen = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                encoding="utf-8",
                env=machine_environment(),
                start_new_session=True,
            )
        namespace = cls(popen, 0)
        try:
            namespace.pid = namespace._answer()
        except NamespaceError:
            namespace.stop()
            raise
        return namespace

    @property
    def prefix(self) -> list[str]:
        """What a command is started with to run inside, in the same working directory."""
        user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
        return ["nsenter", "--target", str(self.pid), *user, "--net", "--mount", f"--wdns={os.getcwd()}"]

    @property
    def end(self) -> str:
        """How it ended; empty while it is there."""
        code = self.popen.poll()
        return "" if code is None else how_it_ended("the cluster's network namespace", code, "")

    def publish(self, port: int = 0) -> int:
        """A port on this machine's loopback (0: any free one) that leads to the same port inside. Raises
        NamespaceError when it is taken."""
        return self._ask("publish", port)

    def reach(self, port: int) -> int:
        """Makes a port of this machine's loopback the same port inside."""
        return self._ask("reach", port)

    def _ask(self, what: str, port: int) -> int:
        assert self.popen.stdin
        self.popen.stdin.write(json.dumps({what: port}) + "\n")
        self.popen.stdin.flush()
        return self._answer()

    def _answer(self) -> int:
        assert self.popen.stdout
        answer = json.loads(self.popen.stdout.readline() or '{"error": "the namespace has ended"}')
        if "error" in answer:
            raise NamespaceError(answer["error"])
        return answer["ok"]

    def stop(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                pipe.close()
        self.popen.wait()


# -- the process ----------------------------------------------------------------------------------------------


def main() -> None:
    asker, holder = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if not pid:
        asker.close()
        _hold(holder)
        os._exit(0)
    holder.close()
    problem = asker.recv(4096).decode()
    if problem:
        _say({"error": problem})
        sys.exit(problem)
    _say({"ok": pid})

    def inside() -> socket.socket:
        asker.send(b"socket")
        _, (number,), _, _ = socket.recv_fds(asker, 1, 1)
        return socket.socket(fileno=number)

    asyncio.run(_relay(inside))


def _hold(asked: socket.socket) -> None:
    """The process that the namespace is known by: it makes sockets, which belong where they were made."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        _enter_new()
    except OSError as error:
        asked.send(_advice(error).encode())
        return
    asked.send(b"")
    while asked.recv(64):
        with socket.socket() as made:
            socket.send_fds(asked, [b"s"], [made.fileno()])


def _enter_new() -> None:
    """Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWNET | (_CLONE_NEWUSER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny", encoding="utf-8")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="utf-8")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="utf-8")
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        _bring_up(control)
        # Every address of a network that loopback has is local, not just the one that it is given.
        for label, network in NETWORKS.items():
            address, _, bits = network.partition("/")
            name = f"lo:{label}"
            fcntl.ioctl(control, _SIOCSIFADDR, _request(name, _address(address)))
            mask = (0xFFFFFFFF << (32 - int(bits))) & 0xFFFFFFFF
            fcntl.ioctl(control, _SIOCSIFNETMASK, _request(name, _address(socket.inet_ntoa(struct.pack("!I", mask)))))


def _bring_up(control: socket.socket) -> None:
    answer = fcntl.ioctl(control, _SIOCGIFFLAGS, _request("lo", b""))
    (flags,) = struct.unpack_from("h", answer, 16)
    fcntl.ioctl(control, _SIOCSIFFLAGS, _request("lo", struct.pack("h", flags | _IFF_UP)))


def _request(interface: str, value: bytes) -> bytes:
    """struct ifreq: the interface's name, then a union."""
    return struct.pack("16s24s", interface.encode(), value)


def _address(address: str) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("=HH4s", socket.AF_INET, 0, socket.inet_aton(address))


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def _advice(error: OSError) -> str:
    if os.geteuid() == 0:
        return f"no namespace of our own ({error.strerror}): inside a container it needs CAP_SYS_ADMIN (--privileged)"
    return (
        f"no namespace of our own ({error.strerror}): run as root, or let users have them: "
        "sudo sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0"
    )


def _say(answer: dict[str, object]) -> None:
    print(json.dumps(answer), flush=True)


def _crossing(make: Callable[[], socket.socket], port: int) -> Relay:
    """A connection from one side to a port of the other, where `make` makes sockets."""

    async def connect() -> Side:
        loop = asyncio.get_running_loop()
        far = make()
        far.setblocking(False)
        try:
            await loop.sock_connect(far, ("127.0.0.1", port))
        except OSError:
            far.close()
            raise
        return (await loop.create_connection(Side, sock=far))[1]

    return Relay(connect)


async def _relay(inside: Callable[[], socket.socket]) -> None:
    """Opens what is asked for on stdin, until that closes."""
    loop = asyncio.get_running_loop()
    servers = []
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, reader.feed_eof)
    while line := await reader.readline():
        ((what, port),) = json.loads(line).items()
        here, there = (socket.socket, inside) if what == "publish" else (inside, socket.socket)
        listener = here()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            _say({"error": f"port {port} on 127.0.0.1: {error.strerror}. `ss -ltnp` shows by whom; 0 is any free one"})
            continue
        bound = listener.getsockname()[1]
        servers.append(await loop.create_server(partial(_crossing, there, bound), sock=listener))
        _say({"ok": bound})


if __name__ == "__main__":
    main()
