"""The DAG of each scenario, a file each: its row of serving/scenarios.py and a docstring."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from serving.scenarios import Scenario


def pipeline_of(scenario: Scenario, compiled: dict[str, Any]) -> Any:
    """The DAG that the scenario's module makes (pipelines/refresh.py). (kfp takes a second to import.)"""
    return import_module(f"{__name__}.{scenario.name.replace('-', '_')}").pipeline(compiled)
