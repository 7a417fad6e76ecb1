"""The emulators as a distribution of their own: what its wheel holds, and who can use it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

EMULATORS = Path(__file__).parents[2] / "emulators"


# A team's own project: two of its packages are called as the product's, and a module as a library of the emulators.
PROJECT = {
    "components/__init__.py": "",
    "components/copy.py": "NAME = 'their own components'\n",
    "pipelines/__init__.py": "NAME = 'their own pipelines'\n",
    "yaml.py": "raise ImportError('this is not the YAML that an emulator looks for')\n",
    "test_theirs.py": """
import os
import sys

import components.copy
import pipelines


def test_the_fixtures_work(emulated_cloud, cloud_environment):
    assert (components.copy.NAME, pipelines.NAME) == ("their own components", "their own pipelines")
    assert os.environ["STORAGE_EMULATOR_HOST"] == emulated_cloud.url("storage")
    import emulated_cloud as package
    assert package.__file__.startswith(sys.prefix), "the wheel's, not the source's"
    assert "serving" not in sys.modules
""",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: what an earlier build left beside the source is not in it."""
    folder = tmp_path_factory.mktemp("wheel")
    left = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    source = shutil.copytree(EMULATORS, folder / "source", ignore=left)
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel. Its dependencies are this environment's, by their folder: what
    is installed here as editable is not seen through it."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel)
    paths = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", vars=paths)) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def run(*argv: str | Path, cwd: Path | None = None) -> str:
    """What a command that succeeds prints, with nothing of this process's way to import."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    ended = subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-4000:]
    return ended.stdout


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    files = {path.relative_to(EMULATORS).as_posix() for path in (EMULATORS / "emulated_cloud").rglob("*")}
    there = {path for path in files if (EMULATORS / path).is_file() and "__pycache__" not in path}
    with zipfile.ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == there


def test_the_fixtures_work_in_a_project_that_has_components_and_pipelines_of_its_own(
    python: Path, tmp_path: Path
) -> None:
    readme = (EMULATORS / "README.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", readme, re.M | re.S)
    for name, text in (PROJECT | {"test_readme.py": example}).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert "3 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=tmp_path)


@pytest.mark.parametrize("emulator", ["hub", "storage", "google", "engine", "kubernetes.apiserver", "kubernetes.gke"])
def test_a_server_starts_by_its_name(python: Path, tmp_path: Path, emulator: str) -> None:
    assert "--" in run(python, "-m", f"emulated_cloud.{emulator}", "--help", cwd=tmp_path)


def test_a_storage_server_says_where_it_answers_and_ends_with_its_stdin(python: Path, tmp_path: Path) -> None:
    command = [python, "-m", "emulated_cloud.storage", "--root", "buckets", "--bucket", "mine"]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        assert server.stdin
        assert server.stdout.readline().startswith('{"url": "http://127.0.0.1:')
        server.stdin.close()
        assert server.wait() == 0
    assert (tmp_path / "buckets" / "mine" / "objects").is_dir()
