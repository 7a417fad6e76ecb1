"""What the emulators' pyproject.toml asks for, and what their code imports."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import defaultdict
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
PACKAGE = ROOT / "emulators" / "emulated_cloud"
PROJECT = tomllib.loads((ROOT / "emulators" / "pyproject.toml").read_text())["project"]

# These run in vLLM's own environment (real/pins), by its Python.
OF_VLLM = {"engine/read_flags.py", "real/engine.py"}
# It runs pipelines with kfp, which is an extra, and with what kfp brings.
OF_KFP = {"google/aiplatform/runner.py"}
# A package that several distributions share: which one brings what.
SHARED = {"google.protobuf": "protobuf"}


def imports(file: Path) -> set[str]:
    """The packages that a file imports, or reads data of (`files("package")`)."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names):
                found |= {alias.name for alias in names}
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
            case ast.Call(
                func=ast.Attribute(attr="files") | ast.Name(id="files"), args=[ast.Constant(value=str(package)), *_]
            ):
                found.add(package)
    named = {next((shared for shared in SHARED if name.startswith(shared)), name.partition(".")[0]) for name in found}
    return named - sys.stdlib_module_names - {"emulated_cloud"}


def imported() -> dict[str, set[str]]:
    """The files that import each distribution."""
    found, distributions = defaultdict(set), {**packages_distributions(), **{name: [it] for name, it in SHARED.items()}}
    for file in PACKAGE.rglob("*.py"):
        if (name := file.relative_to(PACKAGE).as_posix()) not in OF_VLLM | OF_KFP:
            for package in imports(file):
                (distribution,) = distributions[package]
                found[canonicalize_name(distribution)].add(name)
    return found


def test_what_is_asked_for_is_what_is_imported() -> None:
    files = imported()
    assert files.pop("pytest") == {"pytest_plugin.py"}, "whoever writes no tests needs no pytest"
    assert files.keys() == {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}


def test_what_is_asked_for_is_pinned_as_for_the_product() -> None:
    lines = re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)
    pins = {canonicalize_name(name): version for name, version in lines}
    extras = PROJECT["optional-dependencies"]
    assert extras.keys() == {"pipelines"}
    for requirement in map(Requirement, [*PROJECT["dependencies"], *extras["pipelines"]]):
        assert str(requirement.specifier) == f"=={pins[canonicalize_name(requirement.name)]}"
