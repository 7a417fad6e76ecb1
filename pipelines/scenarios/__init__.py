"""The DAG of each scenario, a file each: its row of serving/scenarios.py and a docstring."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from serving.scenarios import Scenario


def pipeline_of(scenario: Scenario) -> Any:
    """The DAG: what `@dsl.pipeline` made of the function in the scenario's module. (kfp takes a second to import.)"""
    return import_module(f"{__name__}.{scenario.name.replace('-', '_')}").pipeline
