"""What became of a step, left where the report, the command line and the next run can read it.

kfp tells neither causes nor timings, so every step writes `<pipeline root>/<run id>/steps/<step>.json`:
`{"name", "status", "started_at", "seconds", "message", "error": null | {"type",
"message", "final"}, …details}`.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from serving import log
from serving.errors import InconclusiveError, PipelineError

if TYPE_CHECKING:
    from serving.settings import Settings

Status = Literal["succeeded", "skipped", "failed", "inconclusive"]


class Outcome:
    """A step's outcome while it is being made. `details` are further JSON values of the step's own."""

    def __init__(self, name: str, run_id: str):
        self.name, self.run_id = name, run_id
        self.status: Status = "succeeded"
        self.message = ""
        self.error: dict[str, Any] | None = None
        self.details: dict[str, Any] = {}
        self.started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")

    def say(self, message: str) -> None:
        """One line of progress."""
        log.entry(message, step=self.name, run_id=self.run_id)

    def succeeded(self, message: str) -> None:
        self.status, self.message = "succeeded", message

    def skipped(self, message: str) -> None:
        """Nothing had to be done: says why."""
        self.status, self.message = "skipped", message

    def failed(self, error: Exception) -> None:
        """The release is bad, or the step broke: with the cause in `error`'s words."""
        self.status = "inconclusive" if isinstance(error, InconclusiveError) else "failed"
        self.message = str(error)
        final = isinstance(error, PipelineError) and error.final
        self.error = {"type": type(error).__name__, "message": str(error), "final": final}

    def as_dict(self, seconds: float) -> dict[str, Any]:
        return {
            "name": self.name,
            "status": self.status,
            "started_at": self.started_at,
            "seconds": round(seconds, 3),
            "message": self.message,
            "error": self.error,
            **self.details,
        }


@contextmanager
def recorded(name: str, settings: Settings, run_id: str) -> Iterator[Outcome]:
    """Runs a step's body and records what became of it, also when it raises.

    An error of ours ends the process with its message alone (kfp would print a traceback that tells a reader nothing);
    anything else is a defect and keeps its traceback. The orchestrator retries a step whatever ended it: an attempt
    after a final error ends at once.
    """
    from serving.clients import storage

    log.silence_libraries()
    outcome = Outcome(name, run_id)
    uri = f"{settings.pipeline_root}/{run_id}/steps/{name}.json"
    try:
        before = storage.read_json(uri)
    except PipelineError as error:
        # Without the bucket there is no place for an outcome: the log is all there is.
        log.entry(str(error), step=name, run_id=run_id, severity="ERROR", status="failed")
        raise SystemExit(1) from error
    if before and before["error"] and before["error"]["final"]:
        raise SystemExit(1)
    started = time.monotonic()
    log.entry("started", step=name, run_id=run_id, status="running")

    def leave() -> None:
        record = outcome.as_dict(time.monotonic() - started)
        storage.write_json(uri, record)
        severity = "ERROR" if outcome.error else "INFO"
        log.entry(outcome.message or "done", step=name, run_id=run_id, severity=severity, status=outcome.status)

    try:
        yield outcome
    except PipelineError as error:
        outcome.failed(error)
        leave()
        raise SystemExit(1) from error
    except BaseException as error:
        if not isinstance(error, (SystemExit, KeyboardInterrupt)):
            outcome.failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))
            leave()
        raise
    leave()
