"""The settings file that `init` writes, made from the model so that it cannot leave a key out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel

from serving import features
from serving.settings.model import Settings
from serving.settings.sections import section_of

_FOLLOW = {"pipeline_root": "", "pipeline_service_account": ""}
"""What follows from project and bucket, and would stay behind when somebody fills those in."""


def commented_example(scenario: str) -> str:
    """A settings file that says everything there is to say, with its defaults: what `init` writes."""
    example = Settings.model_validate({"scenario": scenario, "project": "my-project", "bucket": "my-project-gemma"})
    lines = [
        "# One deployment. Every key is here with its default: keep what you change, delete what you like.",
        "# Look at the outcome with `gemma-pipelines render`; nothing is done before `run` or `submit`.",
        *_commented(Settings, example.model_dump() | _FOLLOW, "", _own_and_features(example)),
    ]
    return "\n".join(lines) + "\n"


def _own_and_features(settings: Settings) -> list[str]:
    """The keys of the file, those of the deployment's features after the engine's."""
    of_features = features.sections()
    of_others = set(of_features) | (set() if settings.has_gateway else {"canary"})
    keys = [key for key in Settings.model_fields if key not in of_others]
    after = keys.index("engine") + 1
    chosen = [key for feature in settings.chosen_features if (key := features.section_name(feature)) in of_features]
    return [*keys[:after], *chosen, *keys[after:]]


def _commented(
    section: type[BaseModel], values: dict[str, Any], indent: str, keys: Iterable[str] = ()
) -> Iterator[str]:
    import yaml

    for name in keys or section.model_fields:
        field = section.model_fields[name]
        # One that may be null is shown as null: its description says what it may hold.
        inner = section_of(field.annotation) if field.default is not None else None
        about = (inner.__doc__ if inner else field.description) or ""
        if not indent:
            yield ""
        for line in textwrap.wrap(" ".join(about.split()), 110 - len(indent), break_on_hyphens=False):
            yield f"{indent}# {line}"
        if inner:
            yield f"{indent}{name}:"
            yield from _commented(inner, values.get(name, {}), indent + "  ")
            continue
        value = values.get(name, field.get_default())
        text = yaml.safe_dump({name: _plain(value)}, allow_unicode=True, width=1000, sort_keys=False)
        yield from (indent + line for line in text.splitlines())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.model_dump() if isinstance(value, BaseModel) else value
