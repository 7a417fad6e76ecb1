"""Runs one compiled pipeline with kfp.local, in a process that exists for nothing else.

`python -m pipelines.execute REQUEST`, where REQUEST is a JSON file `{"scenario", "image", "parameters", "folder"}`.
kfp's runner is not thread-safe, leaves temporary folders and tells neither causes nor timings, so it gets a process, a
folder, and a last line on stdout: `{"run_id", "outcomes", "summary", "page"}`, read from what the steps left.

The process ends, with everything it started, when its stdin closes: nothing goes on when the command line dies.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any


def main() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    request = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = execute(request["scenario"], request["image"], request["parameters"], Path(request["folder"]))
    print(json.dumps(result), flush=True)


def execute(scenario: str, image: str | None, parameters: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Compiles and runs a scenario below `folder`; returns what became of it. Never raises for a failed step."""
    from components.write_report import summary
    from pipelines import forked
    from pipelines.compile import compile_scenario
    from serving import names
    from serving.clients import storage
    from serving.scenarios import find
    from serving.settings import from_parameters

    started = time.monotonic()
    root = folder / "kfp"
    # Begun first: it imports while the pipeline is compiled.
    with forked.server(folder) as python:
        compiled = compile_scenario(find(scenario), folder, image, parameters["settings"].get("features", ()))

        # What compiles imports kfp in a way of its own, and so first.
        from kfp import components as kfp_components
        from kfp import local
        from kfp.local import subprocess_task_handler

        replaced = subprocess_task_handler.replace_python_executable
        subprocess_task_handler.replace_python_executable = lambda command, _: replaced(command, python)
        local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        try:
            kfp_components.load_component_from_file(str(compiled))(**parameters)
            state = "SUCCEEDED"
        except RuntimeError as error:
            # kfp's own words name the task and no cause; the steps' outcomes have the causes.
            print(error, flush=True)
            state = "FAILED"
    runs = sorted(path.name for path in root.iterdir()) if root.exists() else []
    run_id = names.run(runs[-1]) if runs else ""
    explicit = {key: value for key, value in parameters.items() if key != "settings"}
    settings = from_parameters(parameters["settings"], **explicit)
    outcomes = summary.read_outcomes(f"{settings.pipeline_root}/{run_id}") if run_id else []
    seconds = time.monotonic() - started
    report = summary.summarize(settings, run_id, outcomes, state=state, seconds=seconds, over=True)
    page = storage.read_text(f"{settings.pipeline_root}/{run_id}/report.html") if run_id else None
    return {"run_id": run_id, "outcomes": outcomes, "summary": report, "page": page}


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
