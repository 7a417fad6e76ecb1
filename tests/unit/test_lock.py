"""The locks of the component image and of development: complete, hashed, and agreeing with setup.cfg."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from serving import image
from serving.deployment import job

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "images" / "components"
LOCKS = [FOLDER / "requirements.txt", FOLDER / "build-requirements.txt", ROOT / "constraints.txt"]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def entries(path: Path) -> list[str]:
    """The requirements of a file, each with its options on one line."""
    text = re.sub(r"\\\n", " ", path.read_text())
    return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines()) if line]


def pins(path: Path) -> dict[str, str]:
    """Name → version. Fails for what is not pinned."""
    found: dict[str, str] = {}
    for entry in entries(path):
        requirement = Requirement(entry.partition(" --hash")[0])
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", entry
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def wanted(*sections: str) -> list[Requirement]:
    """What setup.cfg asks for."""
    texts = [SETUP["options"]["install_requires"], *(SETUP["options.extras_require"][name] for name in sections)]
    lines = [line for line in "\n".join(texts).splitlines() if line and not line.startswith("#")]
    return [Requirement(line) for line in lines if not line.startswith("gemma-gke-pipelines")]


@pytest.mark.parametrize(
    ("path", "sections"),
    [(LOCKS[0], ()), (LOCKS[2], ("vertex", "dev"))],
    ids=["image", "development"],
)
def test_a_lock_holds_what_setup_cfg_asks_for(path: Path, sections: tuple[str, ...]) -> None:
    there = pins(path)
    for requirement in wanted(*sections):
        assert requirement.specifier.contains(there[canonicalize_name(requirement.name)]), (
            f"{requirement}: run make lock"
        )


def test_the_image_holds_nothing_of_development_and_the_laptop() -> None:
    unwanted = {"google-cloud-aiplatform", "pytest", "ruff", "mypy", "kubernetes-validate", "tokenizers", "uv"}
    assert not pins(LOCKS[0]).keys() & unwanted


@pytest.mark.parametrize("path", LOCKS[:2], ids=lambda path: path.name)
def test_whatever_goes_into_the_image_has_hashes(path: Path) -> None:
    for entry in entries(path):
        assert re.search(r"--hash=sha256:[0-9a-f]{64}( |$)", entry), entry


def test_development_has_the_versions_of_the_image() -> None:
    development = pins(LOCKS[2])
    assert development.items() >= pins(LOCKS[0]).items()
    assert "uv" in development, "uv writes the locks"


def test_what_builds_the_wheel_is_what_pyproject_asks_for() -> None:
    there = pins(LOCKS[1])
    for requirement in map(
        Requirement, tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    ):
        assert requirement.specifier.contains(there[requirement.name])


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_no_index_and_says_how_it_was_made(path: Path) -> None:
    text = path.read_text()
    assert "images/components/lock.sh" in text.splitlines()[1]
    assert not re.search(r"https?://|^-", text, re.M)


def test_a_constraint_has_no_extra() -> None:
    assert not any("[" in entry for entry in entries(LOCKS[2])), "pip refuses constraints with extras"


def test_the_dockerfile_agrees_with_the_code() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    assert f"\nUSER {job.USER}:{job.USER}\n" in text
    assert f"/{image.DEFAULT.rpartition('/')[2]} " in text
    assert SETUP["metadata"]["version"] == image.VERSION
    assert re.search(r"^ARG PYTHON=python:\d+\.\d+\.\d+-slim-\w+$", text, re.M)
