"""From a scenario to the one YAML document that Vertex AI Pipelines and kfp.local run."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import components
from pipelines.scenarios import pipeline_of
from serving.image import DEFAULT, VERSION
from serving.scenarios import Scenario, features_of
from serving.values import checked_image


def compile_scenario(scenario: Scenario, folder: Path, image: str | None = None, changes: Iterable[str] = ()) -> Path:
    """Writes `<folder>/<scenario>.yaml`, which is `specification`, and returns its path."""
    import yaml

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{scenario.name}.yaml"
    document = specification(scenario, image, changes)
    path.write_text(yaml.safe_dump(document, sort_keys=True, allow_unicode=True), encoding="utf-8")
    return path


def specification(scenario: Scenario, image: str | None = None, changes: Iterable[str] = ()) -> dict[str, Any]:
    """The compiled pipeline.

    `image`: the component image of every step, and of the Jobs that steps run in the cluster. `changes`: the
    `features` of a settings file. What was compiled is a constant of the document, `compiled: {"scenario", "features",
    "image", "version"}`, which no caller's parameters can lose.
    """
    _import_kfp()
    from kfp import compiler

    compiled = {
        "scenario": scenario.name,
        "features": list(features_of(scenario, changes)),
        "image": DEFAULT if image is None else checked_image(image),
        "version": VERSION,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{scenario.name}.yaml"
        compiler.Compiler().compile(pipeline_of(scenario, compiled), str(path))
        found = _read(path)
    for executor in found["deploymentSpec"]["executors"].values():
        executor["container"]["image"] = compiled["image"]
        executor["container"]["command"] = [_handing_over(part) for part in executor["container"]["command"]]
    return found


def _handing_over(part: str) -> str:
    """The part of kfp's command with its shell replaced by the step's Python: it is the container's first process,
    which alone is told to end, and a shell would keep that to itself."""
    return part.replace("_KFP_RUNTIME=true python3 -m", "exec env _KFP_RUNTIME=true python3 -m")


def compile_components(folder: Path, image: str | None = None) -> list[Path]:
    """Writes every step as a component of its own, `<folder>/<step>.yaml`, for pipelines of other people's making.
    Returns their paths.

    `resolve_model` alone knows no image there: `compiled` is an input that such a pipeline gives it.
    """
    _import_kfp()
    import importlib
    import pkgutil

    import yaml
    from kfp import compiler

    image = DEFAULT if image is None else checked_image(image)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for step in sorted(module.name for module in pkgutil.iter_modules(components.__path__)):
        path = folder / f"{step}.yaml"
        compiler.Compiler().compile(getattr(importlib.import_module(f"components.{step}.component"), step), str(path))
        document = _read(path)
        (executor,) = document["deploymentSpec"]["executors"].values()
        command = [_handing_over(part) for part in executor["container"]["command"]]
        executor["container"].update(image=image, command=command)
        path.write_text(yaml.safe_dump(document, sort_keys=True, allow_unicode=True), encoding="utf-8")
        written.append(path)
    return written


def _read(path: Path) -> dict[str, Any]:
    import yaml

    # The loader that libyaml makes fast, where PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found: dict[str, Any] = yaml.load(path.read_bytes(), Loader=loader)  # noqa: S506 (both are safe)
    return found


def _import_kfp() -> None:
    """Imports kfp without its client of a KFP server. Nothing here asks one, and it is most of kfp's weight: all models
    of the Kubernetes client come with it. The switch is kfp's own, for steps; its first import alone looks at it."""
    if "kfp" in sys.modules:
        return
    switch = "_KFP_RUNTIME"
    before = os.environ.get(switch)
    os.environ[switch] = "true"
    try:
        import kfp  # noqa: F401
    finally:
        del os.environ[switch]
        if before is not None:
            os.environ[switch] = before
