"""The component image without a container: its Dockerfile's own commands, run in folders, and every step started there.

The build stage's COPY and RUN lines are done as they stand, with a fresh virtual environment for the base image and a
folder for each of its paths; what is copied comes from the build context that `bootstrap` sends to Cloud Build. What is
not done: the base image itself, and the final stage's clean-up of it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.installation import context

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "images" / "components" / "Dockerfile"
STEPS = sorted(path.parent.name for path in (ROOT / "components").glob("*/component.py"))
JOBS = sorted(path.parent.name for path in (ROOT / "components").glob("*/__main__.py"))


def stages() -> list[list[tuple[str, str]]]:
    """The Dockerfile's stages as (instruction, rest) lists."""
    text = re.sub(r"\\\n", "", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.M))
    found: list[list[tuple[str, str]]] = []
    for line in filter(None, text.splitlines()):
        instruction, _, rest = line.partition(" ")
        if instruction == "FROM":
            found.append([])
        elif found:
            found[-1].append((instruction, rest.strip()))
    return found


class Image:
    """A built image: `folder` stands for its /."""

    def __init__(self, folder: Path):
        self.folder = folder
        build, self.final = stages()
        self.python = folder / "venv" / "bin" / "python"
        context_folder = folder / "context"
        with tarfile.open(fileobj=io.BytesIO(context.packed())) as tar:
            tar.extractall(context_folder, filter="data")
        venv.create(folder / "base", with_pip=True)
        workdir = folder
        for instruction, rest in build:
            if instruction == "WORKDIR":
                workdir = Path(self._inside(rest))
                workdir.mkdir()
            elif instruction == "COPY":
                *sources, target = rest.split()
                for source in sources:
                    self._copy(context_folder / source, workdir / target)
            elif instruction == "RUN":
                self._run(self._inside(rest), workdir)
            else:
                raise AssertionError(f"{instruction} is not known here")

    def _inside(self, text: str) -> str:
        return re.sub(r"(?<![\w.])/(?=build|wheels|venv)", f"{self.folder}/", text)

    @staticmethod
    def _copy(source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target / source.name)

    def _run(self, command: str, workdir: Path) -> None:
        path = f"{self.folder}/base/bin:{os.environ['PATH']}"
        # The cache is the difference between a minute and a download; an image has none to keep.
        command = command.replace("--no-cache-dir", "")
        ended = subprocess.run(
            ["sh", "-euc", command], cwd=workdir, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr[-2000:]

    def start(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python ARGUMENTS` in the image, by a user who owns nothing there, with the image's environment alone."""
        variables = dict(item.split("=", 1) for kind, rest in self.final if kind == "ENV" for item in rest.split())
        path = variables.pop("PATH").replace("$PATH", os.defpath)
        home = self.folder / "tmp"
        home.mkdir(exist_ok=True)
        environment = {**variables, "PATH": self._inside(path), "HOME": str(home)}
        return subprocess.run(
            ["python", *arguments], cwd=home, env=environment, capture_output=True, text=True, timeout=120
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    folder = tmp_path_factory.mktemp("image")
    yield Image(folder)
    shutil.rmtree(folder, ignore_errors=True)


def test_what_is_locked_is_all_that_is_needed(image: Image) -> None:
    ended = subprocess.run(
        [f"{image.folder}/base/bin/pip", "--python", str(image.python), "check"], capture_output=True, text=True
    )
    assert (ended.returncode, ended.stdout) == (0, "No broken requirements found.\n")


def test_no_build_tool_is_left(image: Image) -> None:
    ended = image.start("-c", "import importlib.util as u; print([n for n in ('pip', 'setuptools') if u.find_spec(n)])")
    assert ended.stdout == "[]\n", ended.stderr


@pytest.mark.parametrize("step", JOBS)
def test_a_job_starts(image: Image, step: str) -> None:
    ended = image.start("-m", f"components.{step}", "--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("usage:")


def test_every_step_can_be_run(image: Image) -> None:
    """By kfp's executor, from the image's packages alone."""
    names = ", ".join(f"components.{step}.step" for step in STEPS)
    ended = image.start("-W", "error::ImportWarning", "-c", f"import kfp.dsl.executor_main, {names}; print('ok')")
    assert ended.stdout == "ok\n", ended.stderr


def test_what_the_steps_read_travels_with_them(image: Image) -> None:
    program = (
        "from pathlib import Path\n"
        "from serving import catalog\n"
        "print(catalog.kind('gpu').image)\n"
        "print(Path(catalog.__file__).parents[1])\n"
    )
    ended = image.start("-c", program)
    assert ended.returncode == 0, ended.stderr
    engine_image, packages = ended.stdout.split()
    assert engine_image.startswith("vllm/")
    assert packages.startswith(str(image.folder / "venv"))
    for package in ("components", "images", "manifests", "pipelines", "serving"):
        wanted = [path.relative_to(ROOT) for path in (ROOT / package).rglob("*") if "__pycache__" not in path.parts]
        assert [str(path) for path in wanted if not (Path(packages) / path).exists()] == []


def test_it_carries_what_the_steps_need_and_no_more(image: Image) -> None:
    names = ("emulated_cloud", "tests", "google.cloud.aiplatform", "google.cloud.bigquery", "pytest")
    ended = image.start("-c", f"from importlib.util import find_spec; print([n for n in {names} if find_spec(n)])")
    assert ended.stdout == "[]\n", ended.stderr


def test_a_run_there_says_what_to_install(image: Image) -> None:
    ended = image.start("-m", "pipelines.cli", "run", "03")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert "`pip install ./emulators`" in ended.stderr


def test_a_step_writes_nothing_but_temporary_files(image: Image) -> None:
    assert ("USER", "65532:65532") in image.final
    image.start("-m", "components.validate_server", "--help")
    assert list((image.folder / "tmp").iterdir()) == []


def test_the_image_has_the_python_that_the_project_needs() -> None:
    (base,) = re.findall(r"^ARG PYTHON=python:(\d+\.\d+)", DOCKERFILE.read_text(), re.M)
    assert base == "3.11"
    assert sys.version_info >= (3, 11)
