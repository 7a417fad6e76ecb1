"""From a scenario to the one YAML document that Vertex AI Pipelines and kfp.local run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.scenarios import pipeline_of
from serving import image as component_image
from serving.scenarios import Scenario


def compile_scenario(scenario: Scenario, folder: Path, image: str | None = None) -> Path:
    """Writes `<folder>/<scenario>.yaml` and returns its path.

    `image` replaces the component image everywhere at once: in every executor, and in the settings that tell the steps
    what their Jobs in the cluster run.
    """
    import yaml
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scenario.name}.yaml"
    compiler.Compiler().compile(pipeline_of(scenario), str(path))
    specification = yaml.safe_load(path.read_text())
    _set_image(specification, image or component_image.DEFAULT)
    path.write_text(yaml.safe_dump(specification, sort_keys=True, allow_unicode=True))
    return path


def _set_image(specification: dict[str, Any], image: str) -> None:
    for executor in specification["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = image
    settings = specification["root"]["inputDefinitions"]["parameters"]["settings"]["defaultValue"]
    settings.setdefault("images", {})["components"] = image
