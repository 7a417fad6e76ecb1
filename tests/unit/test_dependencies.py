"""What the product imports is what setup.cfg declares."""

from __future__ import annotations

import ast
import configparser
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PRODUCT = ("components", "images", "manifests", "pipelines", "serving")
NOT_ON_AN_INDEX = {"emulated_cloud"}
"""Imported by pipelines/local/ alone, which says how to install it when it is not there."""


def imported() -> dict[str, set[str]]:
    """What is imported from elsewhere, as `a.b` or, of `from a.b import c`, `a.b.c` → the files that do so."""
    found: dict[str, set[str]] = defaultdict(set)
    for package in PRODUCT:
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                for name in names:
                    if name.partition(".")[0] not in {*sys.stdlib_module_names, *PRODUCT, *NOT_ON_AN_INDEX}:
                        found[name].add(str(path.relative_to(ROOT)))
    return found


def modules() -> dict[str, str]:
    """Module → the distribution that brings it, of all that are installed."""
    found = {}
    for distribution in metadata.distributions():
        brought_by = canonicalize_name(distribution.metadata["Name"])
        for line in (distribution.read_text("RECORD") or "").splitlines():
            file = line.partition(",")[0]
            if file.endswith(".py"):
                name = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
                found[name] = brought_by
    return found


def declared() -> Iterator[str]:
    """The distributions of install_requires and of every extra that a user may want."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = setup["options.extras_require"]
    texts = [setup["options"]["install_requires"], *(text for extra, text in extras.items() if extra != "dev")]
    for line in "\n".join(texts).splitlines():
        if line and not line.startswith("#"):
            yield canonicalize_name(Requirement(line).name)


def test_what_is_imported_is_declared_and_nothing_else_is():
    brings = modules()
    used: dict[str, set[str]] = defaultdict(set)
    for name, files in imported().items():
        module = name
        while module not in brings:
            module = module.rpartition(".")[0]
            assert module, f"{name} is imported by {files}, and no installed distribution brings it"
        used[brings[module]] |= files
    wanted = set(declared())
    assert {name: files for name, files in used.items() if name not in wanted} == {}, "declare them in setup.cfg"
    assert wanted - used.keys() == set(), "setup.cfg declares what nothing imports"
