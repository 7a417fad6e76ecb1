"""Real gcsfuse mounts for the GCS FUSE CSI driver: what a manifest says, as gcsfuse is told it on GKE.

The driver's sidecar turns mount options into flags and a configuration file (gcs-fuse-csi-driver,
pkg/sidecar_mounter/sidecar_mounter_config.go): `a:b:value` is a path into the file, `flag=value` or `flag` a flag, some
are the driver's own, some the kernel's. So gcsfuse itself judges them, and what it does not know fails the mount in its
own words. Mounts are made in the cluster's own mount namespace (namespace.py): nothing of them survives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from emulated_cloud.kubernetes.gke.gcsfuse import Mount
from emulated_cloud.kubernetes.kubelet.csi import CsiError
from emulated_cloud.real.parts import PARTS

MOUNT_SECONDS = 60.0
STOP_SECONDS = 3.0
# What the sidecar itself decides; it drops them with a warning.
_DISALLOWED = {
    "temp-dir", "config-file", "foreground", "log-file", "log-format", "key-file", "token-url", "reuse-token-from-url",
    "o", "logging:log-rotate:max-file-size-mb", "logging:log-rotate:backup-file-count", "logging:log-rotate:compress",
    "cache-dir", "experimental-local-file-cache", "prometheus-port",
}  # fmt: skip
# Of the node's driver and of mount(8): they set what the kernel does, not what gcsfuse does.
_OF_THE_DRIVER = {"read_ahead_kb", "max_ratio", "disable-metrics-for-gke", "token-server-identity-provider", "hnw-ksa"}
_OF_THE_KERNEL = {"ro", "rw", "allow_other", "noexec", "nosuid", "nodev"}
_ENDED = re.compile(r"Error occurred during command execution on \S+ \([^)]*\): (.*)", re.DOTALL)

_PR_SET_PDEATHSIG, _MNT_DETACH = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)


def command_line(mount: Mount, endpoint: str, cache: Path) -> tuple[list[str], dict[str, Any]]:
    """gcsfuse's flags, and what its configuration file says."""
    flags = {
        "app-name": "gke-gcs-fuse-csi",
        "foreground": "",
        # The emulator knows neither hierarchical namespaces nor, of a mount, who asks.
        "enable-hns": "false",
        "anonymous-access": "",
        # The JSON API's root: what stands in place of storage.googleapis.com/storage/v1/.
        "custom-endpoint": f"{endpoint}/storage/v1/",
    }
    kernel = ["allow_other", *(["ro"] if mount.read_only else [])]
    file: dict[str, Any] = {"cache-dir": ""}
    for option in mount.options:
        name, separator, value = option.partition("=")
        if ":" in option and "https" not in option:
            name, _, value = option.rpartition(":")
            if name not in _DISALLOWED | _OF_THE_DRIVER:
                _put(file, name.split(":"), value)
            # The file cache is off until it is given a size.
            if name == "file-cache:max-size-mb" and value != "0":
                file["cache-dir"] = str(cache)
        elif name in _OF_THE_KERNEL:
            kernel.append(name)
        elif name not in _DISALLOWED | _OF_THE_DRIVER:
            flags[name] = value if separator else ""
    argv = [f"--{name}={value}" if value else f"--{name}" for name, value in flags.items()]
    return [*argv, *(word for name in dict.fromkeys(kernel) for word in ("-o", name))], file


def _put(file: dict[str, Any], path: list[str], value: str) -> None:
    for key in path[:-1]:
        file = file.setdefault(key, {})
    file[path[-1]] = _typed(value)


def _typed(value: str) -> Any:
    with contextlib.suppress(ValueError):
        return int(value)
    return {"true": True, "false": False}.get(value.lower(), value)


class GcsFuseMounter:
    """A Mounter (emulated_cloud/kubernetes/gke/gcsfuse.py) of real mounts; `folder` holds caches and logs.

    `mount` raises CsiError with gcsfuse's own words.
    """

    def __init__(self, endpoint: str, folder: Path):
        self._endpoint, self._folder = endpoint, folder
        self._running: dict[Path, subprocess.Popen[bytes]] = {}

    async def mount(self, mount: Mount) -> None:
        if mount.target in self._running and self._running[mount.target].poll() is None:
            return
        await asyncio.to_thread(mount.target.mkdir, parents=True, exist_ok=True)
        popen, log = self._start(mount)
        try:
            mounted = await asyncio.to_thread(_wait_for_mount, mount.target, popen)
        except BaseException:
            popen.kill()
            raise
        if mounted:
            self._running[mount.target] = popen
            return
        words = _words(log, popen)
        popen.kill()
        popen.wait()
        _detach(mount.target)
        raise CsiError("Internal", f"gcsfuse failed with error: {words}")

    async def unmount(self, target: Path) -> None:
        """Lazily, so that neither a reader nor a storage that does not answer can hold it up."""
        popen = self._running.pop(target, None)
        _detach(target)
        if popen:
            popen.send_signal(signal.SIGTERM)
            try:
                await asyncio.to_thread(popen.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                popen.kill()
                popen.wait()
        with contextlib.suppress(OSError):
            target.rmdir()

    def _start(self, mount: Mount) -> tuple[subprocess.Popen[bytes], Path]:
        name = re.sub(r"\W+", "-", str(mount.target)).strip("-")[-100:]
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        flags, file = command_line(mount, self._endpoint, folder / "cache")
        # JSON is YAML.
        (folder / "config.json").write_text(json.dumps(file), encoding="utf-8")
        log = folder / "log"
        with open(log, "wb") as output:
            popen = subprocess.Popen(
                [
                    str(PARTS["gcsfuse"].folder / "gcsfuse"),
                    f"--config-file={folder / 'config.json'}",
                    f"--temp-dir={folder}",
                    *flags,
                    mount.bucket,
                    str(mount.target),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        return popen, log


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _wait_for_mount(target: Path, popen: subprocess.Popen[bytes]) -> bool:
    """Whether the mount came; it is looked for in the kernel's table, since touching it may hang."""
    deadline = time.monotonic() + MOUNT_SECONDS
    ended = os.pidfd_open(popen.pid)
    try:
        with open("/proc/self/mountinfo", encoding="utf-8") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI)
            poll.register(ended, select.POLLIN)
            while not _in(table, target):
                left = deadline - time.monotonic()
                if popen.poll() is not None or left <= 0:
                    return False
                poll.poll(left * 1000)
            return True
    finally:
        os.close(ended)


def _in(table: Any, target: Path) -> bool:
    table.seek(0)
    wanted = str(target.absolute()).replace(" ", "\\040")
    return any(line.split()[4] == wanted for line in table)


def _detach(target: Path) -> None:
    _libc.umount2(os.fsencode(target), _MNT_DETACH)


def _words(log: Path, popen: subprocess.Popen[bytes]) -> str:
    """gcsfuse's own words for its end; its log is JSON lines once the configuration is read, plain text before."""
    last = ""
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            line = json.loads(line).get("message", line)
        if found := _ENDED.search(line):
            return " ".join(found[1].split())
        last = line.strip() or last
    if popen.poll() is None:
        return f"no mount within {MOUNT_SECONDS:g} s: {last}"
    return last or f"exit code {popen.returncode}"
