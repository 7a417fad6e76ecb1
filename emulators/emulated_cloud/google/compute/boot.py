"""The processes of a machine: `python -I emulated_cloud/google/compute/boot.py MACHINE.json`.

A mount and a PID namespace of their own, in which a startup script runs as on a machine that has just been made: a root
with this machine's system folders, read-only, empty /mnt, /run, /tmp, /var and /root, a small /dev with the machine's
disks at /dev/disk/by-id/google-<device name>, and the network of this machine. A disk is a loop device over a file. All
of it goes with the script: mounts are undone and loop devices detached by the kernel when the last process has ended,
SIGKILL of any of them included, or of the emulator.

MACHINE.json: {"root": an empty folder to build in, "disks": {device name: file}, "script": file,
"environment": {name: value}}. Exits as the script does.

It imports the standard library alone, and runs without the package.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import signal
import stat
import struct
import sys
from typing import Any

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr", "/etc", "/opt", "/sys")
EMPTY = ("/mnt", "/root", "/run", "/tmp", "/var", "/var/lib", "/var/tmp", "/proc", "/dev")  # noqa: S108 (a new one)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# linux/sched.h, linux/mount.h, linux/prctl.h, linux/loop.h, linux/capability.h
_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_MS_RDONLY, _MS_NOSUID, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 32, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
_LOOP_CONFIGURE, _LOOP_CTL_GET_FREE, _LO_FLAGS_AUTOCLEAR = 0x4C0A, 0x4C82, 4
_LOOP_MAJOR = 7
_CAP_SYS_ADMIN = 21
_libc = ctypes.CDLL(None, use_errno=True)


def is_possible() -> bool:
    """Whether this user may have namespaces, mounts and loop devices: root in a container often may not."""
    with open("/proc/self/status", encoding="ascii") as file:
        capabilities = int(re.search(r"^CapEff:\s*(\w+)", file.read(), re.MULTILINE)[1], 16)  # type: ignore[index]
    return bool(capabilities >> _CAP_SYS_ADMIN & 1) and os.access("/dev/loop-control", os.R_OK | os.W_OK)


def main() -> None:
    _die_with(os.getppid())
    with open(sys.argv[1], encoding="utf-8") as file:
        machine = json.load(file)
    _call("unshare", _CLONE_NEWNS | _CLONE_NEWPID)
    first = os.fork()
    if not first:
        # Its parent is in another namespace, which shows it as 0.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _run(machine)
    _, status = os.waitpid(first, 0)
    _end_as(status)


def _run(machine: dict[str, Any]) -> None:
    """The machine's first process: builds what the script sees, and buries what the script leaves behind."""
    with open(machine["script"], encoding="utf-8") as file:
        script = file.read()
    _build_root(machine["root"], machine["disks"])
    with open("/run/startup-script", "w", encoding="utf-8") as file:
        file.write(script)
    os.chmod("/run/startup-script", 0o700)
    started = os.fork()
    if not started:
        os.umask(0o022)
        try:
            os.execve("/run/startup-script", ["/run/startup-script"], machine["environment"])  # noqa: S606
        except OSError as error:
            sys.stderr.write(f"startup-script: {error.strerror}\n")
            os._exit(126)
    while True:
        ended, status = os.wait()
        if ended == started:
            os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def _attach(path: str, node: str) -> None:
    """Makes `node` a loop device with the file at `path`, which is detached when nobody has it open any more. We do, to
    our end."""
    info = struct.pack("=5Q4I64s64s32s2Q", *(0,) * 8, _LO_FLAGS_AUTOCLEAR, b"", b"", b"", 0, 0)
    with open("/dev/loop-control", "rb") as control, open(path, "r+b") as file:
        while True:
            number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
            os.mknod(node, stat.S_IFBLK | 0o660, os.makedev(_LOOP_MAJOR, number))
            device = os.open(node, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _LOOP_CONFIGURE, struct.pack("=2I", file.fileno(), 0) + info + bytes(64))
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
            os.close(device)  # Another was faster.
            os.unlink(node)


def _build_root(root: str, disks: dict[str, str]) -> None:
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    os.makedirs(root, exist_ok=True)
    _mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path):
            os.mkdir(root + path)
            _mount(path, root + path, None, _MS_BIND | _MS_REC)
            if path != "/sys":
                _mount(None, root + path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY)
    for path in EMPTY:
        os.mkdir(root + path)
    os.chmod(f"{root}/tmp", 0o1777)  # noqa: S103, S108 (as every /tmp)
    _mount("proc", f"{root}/proc", "proc", _MS_NOSUID)
    _make_dev(f"{root}/dev", disks)
    os.chdir(root)
    _call("syscall", _SYS_PIVOT_ROOT, b".", b".")
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _make_dev(dev: str, disks: dict[str, str]) -> None:
    for name in DEVICES:
        os.mknod(f"{dev}/{name}", stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev)
        os.chmod(f"{dev}/{name}", 0o666)  # noqa: S103 (as everywhere)
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")
    os.mkdir(f"{dev}/shm")
    os.makedirs(f"{dev}/disk/by-id")
    for letter, (name, file) in zip("bcdefghijklmnop", disks.items(), strict=False):
        _attach(file, f"{dev}/sd{letter}")
        os.symlink(f"../../sd{letter}", f"{dev}/disk/by-id/google-{name}")


def _die_with(parent: int) -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(137)


def _end_as(status: int) -> None:
    if os.WIFSIGNALED(status):
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    source_b, kind_b, data_b = (None if text is None else os.fsencode(text) for text in (source, kind, data))
    _call("mount", source_b, os.fsencode(target), kind_b, ctypes.c_ulong(flags), data_b)


def _call(name: str, *args: Any) -> None:
    if getattr(_libc, name)(*args):
        number = ctypes.get_errno()
        raise OSError(
            number, f"{name}: {os.strerror(number)}", os.fsdecode(args[1] or b"") if name == "mount" else None
        )


if __name__ == "__main__":
    main()
