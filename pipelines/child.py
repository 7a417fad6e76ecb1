"""The pipeline's own process (pipelines/execute.py), as the command line starts it, follows it and ends it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.errors import InconclusiveError, PipelineError
from serving.scenarios import Scenario

if TYPE_CHECKING:
    from serving.settings import Settings

Entry = dict[str, Any]
"""A log entry of a step (serving/log.py)."""


def execute(
    scenario: Scenario,
    settings: Settings,
    folder: Path,
    environment: dict[str, str],
    show: Callable[[Entry], None],
    loss: Callable[[], str] = lambda: "",
    bucket_folder: Callable[[str], Path] | None = None,
) -> dict[str, Any]:
    """Runs the scenario's DAG in a child process, handing every log entry of its steps to `show`.

    As soon as `loss` has words for what the run cannot go on without, the run ends with them. Returns what
    pipelines/execute.py found, or then what the steps had left in their bucket (the folder that is the bucket of a
    name). Raises PipelineError when that process itself broke.
    """
    work = Path(tempfile.mkdtemp(dir=folder / "tmp", prefix="run-"))
    request = work / "request.json"
    request.write_text(
        json.dumps(
            {
                "scenario": scenario.name,
                "image": settings.images.components,
                "parameters": settings.as_parameters(),
                "folder": str(work),
            }
        ),
        encoding="utf-8",
    )
    began = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "pipelines.execute", str(request)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        # kfp reads and writes text in the locale's encoding, and what steps say is UTF-8.
        env={**environment, "TMPDIR": str(work), "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"},
        start_new_session=True,
    )
    log, last, losses = folder / "logs" / "pipeline.log", Entry(), list[str]()

    def take(entry: Entry) -> None:
        last.update(entry)
        show(entry)

    def lose(words: str) -> None:
        # Its steps would wait (`patience`) for what does not come back.
        losses.append(words)
        os.killpg(child.pid, signal.SIGKILL)

    try:
        with watched(loss, lose):
            result = _read(child, log, take)
            code = child.wait()
    finally:
        _end_group(child)
    shutil.rmtree(work, ignore_errors=True)
    if losses and result is None:
        return _cut_short(settings, bucket_folder, last, f"{losses[0]}. Run again", time.monotonic() - began)
    if code != 0 or result is None:
        raise PipelineError(f"the pipeline's process ended with exit code {code}; its log is {log}")
    return result


@contextmanager
def watched(loss: Callable[[], str], lost: Callable[[str], None]) -> Iterator[None]:
    """Gives `lost`, in a thread of its own, the first words that `loss` has while the block runs."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            if words := loss():
                lost(words)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _cut_short(
    settings: Settings, bucket_folder: Callable[[str], Path] | None, last: Entry, words: str, seconds: float
) -> dict[str, Any]:
    """What pipelines/execute.py would have found of a run that lost its cloud, from the files of its bucket: what
    serves them may be what was lost."""
    from components.write_report.summary import summarize

    run_id = last.get("run_id", "")
    bucket, _, root = settings.pipeline_root.removeprefix("gs://").partition("/")
    files = (bucket_folder(bucket) / root / run_id / "steps").glob("*.json") if bucket_folder else ()
    outcomes = sorted((json.loads(path.read_text(encoding="utf-8")) for path in files), key=lambda o: o["started_at"])
    summary = summarize(settings, run_id, outcomes, state="cut short", seconds=seconds, over=True)
    # The release had no part in it.
    error = {"step": last.get("step"), "type": InconclusiveError.__name__, "message": words}
    return {"run_id": run_id, "outcomes": outcomes, "summary": {**summary, "error": error}, "page": None}


def _read(child: subprocess.Popen[str], log: Path, show: Callable[[Entry], None]) -> dict[str, Any] | None:
    """Follows a child's output to its end: returns its result, if it came to one; keeps it all in `log`."""
    assert child.stdout is not None
    result: dict[str, Any] | None = None
    with open(log, "a", encoding="utf-8") as file:
        for line in child.stdout:
            file.write(line)
            file.flush()
            try:
                entry = json.loads(line)  # kfp indents what its steps say.
            except ValueError:
                continue
            if not isinstance(entry, dict):
                continue
            if "step" in entry:
                show(entry)
            elif "outcomes" in entry:
                result = entry
    return result


def _end_group(child: subprocess.Popen[str]) -> None:
    """Ends the child and every step that it started; does nothing when they have ended."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    child.wait()
    for pipe in (child.stdin, child.stdout):
        if pipe:
            pipe.close()
