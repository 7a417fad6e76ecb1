"""The serving scenarios: one DAG a file, wiring only; what a step does is in components/.

The registry below is what `list`, `init` and `compile --all` know. Importing it imports no DAG (kfp takes a second).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from serving.errors import RequestError


@dataclass(frozen=True)
class Scenario:
    """One way to serve."""

    number: str
    name: str
    title: str

    @property
    def pipeline(self) -> Any:
        """The DAG: what `@dsl.pipeline` made of the function in this scenario's module."""
        return import_module(f"{__name__}.{self.name.replace('-', '_')}").pipeline


SCENARIOS = [
    Scenario("03", "gcs-fuse", "weights in a bucket, mounted into the server with GCS FUSE"),
]


def find(word: str) -> Scenario:
    """The scenario of a number (`03`, `3`) or a name. Raises RequestError with what there is."""
    for scenario in SCENARIOS:
        if word in (scenario.name, scenario.number, scenario.number.lstrip("0")):
            return scenario
    close = difflib.get_close_matches(word, [scenario.name for scenario in SCENARIOS], n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    there = ", ".join(f"{scenario.number} ({scenario.name})" for scenario in SCENARIOS)
    raise RequestError(f"there is no scenario {word!r}. {hint}There are: {there}. See `gemma-pipelines list`")
