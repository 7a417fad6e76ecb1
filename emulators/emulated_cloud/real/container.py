"""A container's process: a root of its own with its volumes at their paths, and the user that its pod asks for.

    python -I emulated_cloud/real/container.py SPEC.json ARGV…

The root is made of this machine's system folders, read-only, a small /dev, the paths in `show` (an interpreter, the
project) and the mounts; nothing else of the machine is there, no home, no other pod. It is a private mount namespace:
all of it goes with the process. As root the process becomes the pod's user; in a rootless namespace, which has one
user only, it is shown as that user.

SPEC.json: {"root": an empty folder to build in, "mounts": {path inside: {"from": path, "read_only": bool}},
"show": [paths], "user": int, "group": int, "groups": [int], "read_only": bool, "cwd": path inside,
"own": [paths that become the user's]}

It imports the standard library alone: it starts with every container, probe and hook.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import stat
import sys
from typing import Any

SYSTEM = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/usr", "/etc", "/opt", "/sys", "/proc")
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")

# linux/sched.h, linux/mount.h, linux/prctl.h
_CLONE_NEWNS, _CLONE_NEWUSER = 0x20000, 0x10000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 2, 4, 32, 0x1000, 0x4000, 0x40000
_MNT_DETACH = 2
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
_libc = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    argv = sys.argv[2:]
    parent = os.getppid()
    os.umask(0o022)  # As container runtimes have it, whatever this machine's user keeps to himself.
    if _has_users():
        for path in spec["own"]:
            os.chown(path, spec["user"], spec["group"])
    _build_root(spec)
    try:
        _become(spec["user"], spec["group"], spec["groups"])
        # A change of user takes back what the kubelet asked for: that the process dies with it.
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(137)
        os.chdir(spec["cwd"])
        # The root has a /tmp of its own, of a length that sockets can be named in; what is left of a pod is found by
        # the path of its root (kubelet/reaper.py).
        os.environ.pop("TMPDIR", None)
        os.environ["CONTAINER_ROOT"] = spec["root"]
        os.execvpe(argv[0], argv, os.environ)  # noqa: S606 (the container's own command)
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


def _build_root(spec: dict[str, Any]) -> None:
    _call("unshare", _CLONE_NEWNS)
    _mount(None, "/", None, _MS_REC | _MS_PRIVATE)
    root = spec["root"]
    os.makedirs(root, exist_ok=True)
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID, "mode=755")
    for path in SYSTEM:
        if os.path.islink(path):
            os.symlink(os.readlink(path), root + path)
        elif os.path.isdir(path) and any(
            os.path.dirname(mount) == path and not os.path.exists(mount) for mount in spec["mounts"]
        ):
            _link_to(path, root)
        elif os.path.isdir(path):
            _bind(path, root + path, read_only=path not in ("/proc", "/sys"))
    _make_dev(root + "/dev")
    temporary = f"{root}/tmp"  # noqa: S108 (a new one)
    os.mkdir(temporary)
    os.chmod(temporary, 0o1777)  # noqa: S103 (as every /tmp)
    shown = {path: {"from": path, "read_only": True} for path in spec["show"]}
    # One may lie in another: a mount in a mount, a project below the /tmp that a pod mounts.
    for path, mount in sorted({**shown, **spec["mounts"]}.items()):
        _bind(mount["from"], root + path, mount["read_only"])
    if spec["read_only"]:
        _mount(None, root, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID)
    os.chdir(root)
    _call("syscall", _SYS_PIVOT_ROOT, b".", b".")
    # The old root lies over the new one now; with it go the machine's mounts and those of other pods.
    _call("umount2", b".", _MNT_DETACH)
    os.chdir("/")


def _link_to(path: str, root: str) -> None:
    """A system folder that has volumes in it which the machine's has no place for (/etc/something): one of the root's
    own, with links to what is in the machine's. Of the same depth, so that relative links there lead where they did."""
    beside = f"/.{path[1:]}"
    _bind(path, root + beside, read_only=True)
    os.mkdir(root + path)
    for name in os.listdir(path):
        os.symlink(f"{beside}/{name}", f"{root}{path}/{name}")


def _make_dev(dev: str) -> None:
    os.mkdir(dev)
    for name in DEVICES:
        if _has_users():
            # Of its own: whoever the pod's user is may use it, whatever has been done to this machine's.
            os.mknod(f"{dev}/{name}", stat.S_IFCHR, os.stat(f"/dev/{name}").st_rdev)
            os.chmod(f"{dev}/{name}", 0o666)  # noqa: S103 (as everywhere)
        else:
            _bind(f"/dev/{name}", f"{dev}/{name}", read_only=False)
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{dev}/{name}")
    os.mkdir(f"{dev}/shm")
    _mount("tmpfs", f"{dev}/shm", "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=1777,size=64m")


def _bind(source: str, target: str, read_only: bool) -> None:
    # Raises for what is not there, a mount whose process has ended among it.
    if stat.S_ISDIR(os.stat(source).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w", encoding="utf-8").close()
    _mount(source, target, None, _MS_BIND | _MS_REC)
    if read_only:
        _mount(None, target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _locked(target))


def _locked(path: str) -> int:
    """Flags of a mount that a user namespace may not take away when it changes another: statvfs(3) names them alike."""
    return os.statvfs(path).f_flag & (
        _MS_RDONLY | _MS_NOSUID | _MS_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_RELATIME
    )


def _has_users() -> bool:
    """Not so in a rootless namespace, which knows its owner alone."""
    with open("/proc/self/uid_map", encoding="utf-8") as file:
        return file.read().split()[2] != "1"


def _become(user: int, group: int, groups: list[int]) -> None:
    if user and not _has_users():
        outside = (os.getuid(), os.getgid())
        _call("unshare", _CLONE_NEWUSER)
        for name, value in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {outside[0]} 1"),
            ("gid_map", f"{group} {outside[1]} 1"),
        ):
            with open(f"/proc/self/{name}", "w", encoding="utf-8") as file:
                file.write(value)
    elif user:
        os.setgroups(groups)
        os.setgid(group)
        os.setuid(user)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


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
