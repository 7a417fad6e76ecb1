"""The pages that are made from the code, and those that tell the same: compared both ways."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pipelines import reference
from serving.scenarios import SCENARIOS

ROOT = Path(__file__).parents[2]


def test_the_reference_is_what_the_code_says(update_golden: bool):
    page = ROOT / "docs" / "reference.md"
    if update_golden:
        page.write_text(reference.text(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == reference.text(), "reviewed and meant? then: make golden"


def test_what_fits_where_is_what_the_code_says(update_golden: bool):
    page = ROOT / "docs" / "fits.md"
    if update_golden:
        page.write_text(reference.fits(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == reference.fits(), "reviewed and meant? then: make golden"


@pytest.mark.parametrize("page", ["README.md", "README.ko.md"])
def test_a_readme_names_the_scenarios(page: str):
    rows = [
        line.split("|") for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if line.startswith("| 0")
    ]
    assert [(row[1].strip(), row[2].strip(" `")) for row in rows] == [(s.number, s.name) for s in SCENARIOS]


PAGES = sorted(path for path in ROOT.glob("**/*.md") if not {".venv", "build", ".pytest_cache"} & set(path.parts))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page: Path):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target
