"""Every deployment that can be put together: the features of all columns, their variants, and what else the settings
let one choose among words.

Whatever joins the table, or a section, is among them by itself. What does not go together the settings refuse, with the
reason. The reference counts them, and a test renders each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from serving import features
from serving.errors import RequestError
from serving.scenarios import COLUMNS, REQUIRED
from serving.settings import Settings, validated
from serving.settings.model import AROUND_A_RUN
from serving.settings.sections import section_of

_BASE = {"scenario": "gcs-fuse", "project": "demo-project", "bucket": "demo-bucket"}
_PUBLIC = {
    "serving": {"exposure": "public"},
    "engine": {"api_key_secret": "projects/demo-project/secrets/key/versions/latest"},
    "gateway": {"certificate": "demo"},
}
"""Public, with what has to be said beside it."""
_ARTIFACT_REGISTRY = {"image": "us-docker.pkg.dev/demo-project/mirror/vllm/vllm-openai:v0.33.0"}

Values = dict[str, Any]


@dataclass(frozen=True)
class Combination:
    """One of them: `settings`, or why there are none."""

    features: tuple[str, ...]
    chosen: Values
    """What is said beside the features."""
    settings: Settings | None = None
    refused: str = ""


def every() -> Iterator[Combination]:
    """Features of all columns with each variant of each, and public; then one at a time every other word of a section,
    and with each feature those of the settings in common."""
    variants = {feature: list(_variants(feature)) for words in COLUMNS.values() for feature in words}
    for words in _columns():
        for owns in itertools.product(*(variants[word] for word in words)):
            yield _made(words, {key: value for own in owns for key, value in own.items()})
    for feature, known in variants.items():
        for own in _of_section(feature):
            if own not in known:
                yield _made(_with(feature), own)
    for words in _columns():
        yield _made(words, _PUBLIC)
    for words in dict.fromkeys(map(_with, variants)):
        for chosen in _in_common():
            yield _made(words, chosen)


def _columns() -> Iterator[tuple[str, ...]]:
    """A word of each column, or none of those that a deployment can do without."""
    choices = ((words if column in REQUIRED else ("", *words)) for column, words in COLUMNS.items())
    for words in itertools.product(*choices):
        yield tuple(filter(None, words))


def _with(feature: str) -> tuple[str, ...]:
    """The first deployment that has the feature."""
    return next(words for words in _columns() if feature in words)


def _variants(feature: str) -> Iterator[Values]:
    """What the feature's section says for each of its variants, the plain one first."""
    seen: set[str] = set()
    for own in _of_section(feature):
        made = _made(_with(feature), own)
        variant = features.variant(made.settings, feature) if made.settings else None
        if variant is not None and variant not in seen:
            seen.add(variant)
            yield own


def _of_section(feature: str) -> Iterator[Values]:
    """Everything that the feature's section can be by its words, the default first."""
    key = features.section_name(feature)
    words = _words(section) if (section := features.sections().get(key)) else {}
    for chosen in itertools.product(*words.values()):
        own = {name: word for name, word in zip(words, chosen, strict=True) if word != words[name][0]}
        yield {key: own} if own else {}


def _in_common() -> Iterator[Values]:
    """Every word but the defaults that the settings of any deployment can say, one at a time."""
    for name, words in _words(Settings).items():
        yield from ({name: word} for word in words[1:])
    for name, field in Settings.model_fields.items():
        section = section_of(field.annotation) if name not in (*features.sections(), *AROUND_A_RUN) else None
        if section and field.default is not None:
            for inner, words in _words(section).items():
                yield from ({name: {inner: word}} for word in words[1:])


def _words(section: type[BaseModel]) -> dict[str, list[Any]]:
    """The fields that are one word of a few, or a yes or no: their choices, the default first."""
    found = {}
    for name, field in section.model_fields.items():
        choices = (True, False) if field.annotation is bool else ()
        if get_origin(field.annotation) is Literal:
            choices = get_args(field.annotation)
        if len(choices) > 1:
            found[name] = [field.default, *(choice for choice in choices if choice != field.default)]
    return found


def _made(words: tuple[str, ...], chosen: Values) -> Combination:
    values = {**_BASE, **chosen, "features": list(words)}
    try:
        return Combination(words, chosen, validated(Settings, values))
    except RequestError as error:
        return Combination(words, chosen, refused=str(error))
