"""The serving scenarios: one table, which settings, rendering, pipelines, command line, docs and tests read.

A feature is one word in one column. Its word is the name of its folder in `manifests/`, and with `_` for `-` of its
module in `serving/features/` and of its section in the settings. A scenario is a preset: the `features` of a settings
file replace a feature in its column, add one to an empty column, or empty a column (`-WORD`).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from serving.errors import RequestError

COLUMNS: dict[str, tuple[str, ...]] = {
    "weights": ("gcs-fuse", "hyperdisk-ml", "streamed"),
    "adapters": ("live-adapters",),
    "accelerator": ("gpu", "tpu", "gpu-or-tpu"),
    "entry": ("service", "gateway", "inference-gateway"),
    "image": ("secondary-boot-disk",),
    "scaling": ("queue-hpa",),
}
"""Column → its features, in the order in which features are rendered."""
REQUIRED = ("weights", "accelerator", "entry")
"""Columns that no deployment can do without."""
BUILDS_ON = {"inference-gateway": "gateway"}
"""A feature → another of its column that it is more than: a deployment has both."""


@dataclass(frozen=True)
class Scenario:
    """One way to serve: a row of the table."""

    number: str
    name: str
    title: str
    weights: str
    accelerator: str
    entry: str
    image: str = ""
    scaling: str = ""
    adapters: str = ""

    @property
    def features(self) -> tuple[str, ...]:
        """The row's features, in the order of the columns."""
        return _with_their_bases(getattr(self, column) for column in COLUMNS)


SCENARIOS = (
    Scenario(
        "01",
        "basic-gpu",
        "weights streamed from a bucket into the card, as many pods as the queue asks for",
        weights="streamed",
        accelerator="gpu",
        entry="service",
        scaling="queue-hpa",
    ),
    Scenario(
        "02",
        "secondary-boot-disk",
        "the engine's image on a disk that nodes start with",
        weights="gcs-fuse",
        accelerator="gpu",
        entry="service",
        image="secondary-boot-disk",
    ),
    Scenario(
        "03",
        "gcs-fuse",
        "weights in a bucket, mounted into the server with GCS FUSE",
        weights="gcs-fuse",
        accelerator="gpu",
        entry="service",
    ),
    Scenario(
        "04",
        "hyperdisk-ml",
        "weights on a Hyperdisk ML volume, a read-only copy of it in every zone",
        weights="hyperdisk-ml",
        accelerator="gpu",
        entry="service",
    ),
    Scenario(
        "05",
        "inference-gateway",
        "a Gateway that asks an endpoint picker which pod answers, by queue, cache and LoRA adapter",
        weights="gcs-fuse",
        accelerator="gpu",
        entry="inference-gateway",
        adapters="live-adapters",
    ),
    Scenario(
        "06",
        "tpu",
        "TPU chips in place of cards, weights mounted with GCS FUSE",
        weights="gcs-fuse",
        accelerator="tpu",
        entry="service",
    ),
    Scenario(
        "07",
        "fungibility",
        "a GPU or a TPU, whichever is to be had, in an order of node pools",
        weights="gcs-fuse",
        accelerator="gpu-or-tpu",
        entry="service",
    ),
)


def find(word: str) -> Scenario:
    """The scenario of a number (`03`, `3`) or a name. Raises RequestError with what there is."""
    for scenario in SCENARIOS:
        if word in (scenario.name, scenario.number, scenario.number.lstrip("0")):
            return scenario
    there = ", ".join(f"{scenario.number} ({scenario.name})" for scenario in SCENARIOS)
    raise RequestError(
        f"there is no scenario {word!r}. {_meant(word, [scenario.name for scenario in SCENARIOS])}There are: {there}. "
        "See `gemma-pipelines list`"
    )


def all_features() -> tuple[str, ...]:
    """Every feature that is built, in the order of the columns."""
    return tuple(word for words in COLUMNS.values() for word in words)


def features_of(scenario: Scenario, changes: Iterable[str] = ()) -> tuple[str, ...]:
    """The scenario's features with `changes` (the `features` of a settings file), in the order of the columns.

    Raises RequestError for a word that is no feature, two words for one column, and an emptied column that is needed.
    """
    chosen = {column: getattr(scenario, column) for column in COLUMNS}
    said: dict[str, str] = {}
    for change in changes:
        word = change.removeprefix("-")
        column = _column_of(word)
        if column in said:
            raise RequestError(f"{change} and {said[column]} are both for the column {column}: a deployment has one")
        said[column] = change
        if word == change:
            chosen[column] = word
        elif column in REQUIRED:
            raise RequestError(f"{change}: no deployment is without {column}: {', '.join(COLUMNS[column])}")
        else:
            chosen[column] = ""
    return _with_their_bases(chosen.values())


def _with_their_bases(words: Iterable[str]) -> tuple[str, ...]:
    """These features, each after the one that it builds on."""
    return tuple(each for word in words for each in (BUILDS_ON.get(word), word) if each)


def _column_of(word: str) -> str:
    for column, words in COLUMNS.items():
        if word in words:
            return column
    raise RequestError(f"{word!r} is no feature. {_meant(word, all_features())}There are: {', '.join(all_features())}")


def _meant(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"Did you mean {close[0]}? " if close else ""
