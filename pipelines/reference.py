"""docs/reference.md, made from the code: scenarios, features and settings. `make golden` writes it again."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from serving import features
from serving.rendering import manifests
from serving.scenarios import COLUMNS, REQUIRED, SCENARIOS
from serving.settings import Settings
from serving.settings.sections import entry_of, section_of


def text() -> str:
    """The whole page, Markdown."""
    lines = [
        "# Reference",
        "",
        "Made from the code by `make golden`; a change belongs there.",
        "",
        "## Scenarios",
        "",
        "A scenario is a preset of features, one a column at most. `features: [NAME, -NAME]` in the settings puts "
        "another into its column, or takes one away.",
        "",
        *_table(
            ["", "scenario", *COLUMNS, ""],
            [[s.number, f"`{s.name}`", *(getattr(s, column) for column in COLUMNS), s.title] for s in SCENARIOS],
        ),
        "",
        "## Features",
        "",
        *(line for column, words in COLUMNS.items() for word in words for line in _feature(column, word)),
        "## Settings",
        "",
        *_settings(),
    ]
    return "\n".join(lines) + "\n"


def _feature(column: str, word: str) -> Iterator[str]:
    module = features.module(word)
    yield from (f"### `{word}`", "", f"{(module.__doc__ or '').strip()}", "")
    used = ", ".join(f"`{scenario.number}`" for scenario in SCENARIOS if word in scenario.features)
    yield f"* column {column}{'' if column in REQUIRED else ' (may be empty)'}, in {used or 'no scenario by itself'}"
    for scope in ("admin", "shared", "generation", "entry"):
        kinds = sorted({item["kind"] for item in manifests.of(word, scope).values()})
        if kinds:
            yield f"* {scope}: {', '.join(kinds)}"
    if patched := sorted(path.rpartition("/")[2].removesuffix(".yaml") for path in manifests.of(word, "patch")):
        yield f"* patches base's {', '.join(patched)}"
    if features.section_name(word) in features.sections():
        yield f"* settings: `{features.section_name(word)}`"
    yield ""


def _settings() -> Iterator[str]:
    own = [key for key in Settings.model_fields if key not in features.sections()]
    yield from _table(
        ["key", "default", ""],
        [row for key in [*own, *features.sections()] for row in _rows(key, Settings.model_fields[key])],
    )


def _rows(key: str, field: Any) -> Iterator[list[str]]:
    inner = section_of(field.annotation) if field.default is not None else None
    if inner:
        for name, below in inner.model_fields.items():
            yield from _rows(f"{key}.{name}", below)
        return
    entry = entry_of(field.annotation)
    name = f"{key}.NAME" if entry else key
    default = "" if field.is_required() else f"`{_shown(field.get_default())}`"
    yield [f"`{name}`", default, " ".join((field.description or "").split())]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        value = [item.model_dump() if isinstance(item, BaseModel) else item for item in value]
    return textwrap.shorten(json.dumps(value, ensure_ascii=False), 60, placeholder="…")


def _table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    for row in [head, ["---"] * len(head), *rows]:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
