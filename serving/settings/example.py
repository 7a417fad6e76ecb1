"""The settings file that `init` writes, made from the model so that it cannot leave a key out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from serving.settings.model import Settings
from serving.settings.sections import section_of


def commented_example(scenario: str) -> str:
    """A settings file that says everything there is to say, with its defaults: what `init` writes."""
    lines = [
        "# One deployment. Every key is here with its default: keep what you change, delete what you like.",
        "# Look at the outcome with `gemma-pipelines render`; nothing is done before `run` or `submit`.",
        *_commented(Settings, {"scenario": scenario, "project": "my-project", "bucket": "my-project-gemma"}, ""),
    ]
    return "\n".join(lines) + "\n"


def _commented(section: type[BaseModel], values: dict[str, Any], indent: str) -> Iterator[str]:
    import yaml

    for name, field in section.model_fields.items():
        # One that may be null is shown as null: its description says what it may hold.
        inner = section_of(field.annotation) if field.default is not None else None
        about = (inner.__doc__ if inner else field.description) or ""
        if not indent:
            yield ""
        for line in textwrap.wrap(" ".join(about.split()), 110 - len(indent), break_on_hyphens=False):
            yield f"{indent}# {line}"
        if inner:
            yield f"{indent}{name}:"
            yield from _commented(inner, {}, indent + "  ")
            continue
        value = values.get(name, field.get_default())
        text = yaml.safe_dump({name: _plain(value)}, allow_unicode=True, width=1000, sort_keys=False)
        yield from (indent + line for line in text.splitlines())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, BaseModel) else value
