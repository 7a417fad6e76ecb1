"""The wheel that users and the component image install: what it holds, and that it works with nothing beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("components", "images", "manifests", "pipelines", "serving")


def files_of(package: str) -> Iterator[str]:
    """The files of a package in this checkout."""
    for path in (ROOT / package).rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("setup.cfg", "pyproject.toml", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, source)
    # With what it must leave out.
    for name in (*PACKAGES, "emulators", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(source)], check=True
    )
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with the wheel and its dependencies, which are this one's: a path in a .pth file is
    looked for modules alone, so what is installed here as editable, the emulators for one, is not there."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", wheel],
        check=True,
    )
    return folder / "bin"


def ran(installed: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(installed / "gemma-pipelines"), *arguments],
        cwd=folder,
        env={"PATH": os.defpath, "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_it_holds_the_five_packages_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert there == {name for package in PACKAGES for name in files_of(package)}


def test_it_compiles_a_scenario(installed: Path, tmp_path: Path) -> None:
    ended = ran(installed, tmp_path, "compile", "03", "--image", "registry/python-components:1")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "gcs-fuse.yaml\n", "")
    assert yaml.safe_load((tmp_path / "gcs-fuse.yaml").read_text())["pipelineInfo"]["name"]


def test_a_run_says_what_to_install(installed: Path, tmp_path: Path) -> None:
    ended = ran(installed, tmp_path, "run", "03")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: ")
    assert "`pip install ./emulators`" in line
    assert list(tmp_path.iterdir()) == []
