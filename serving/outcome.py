"""What became of a step, left where the report, the command line and the next run can read it.

kfp tells neither causes nor timings, so every step writes `<pipeline root>/<run id>/steps/<step>.json`:
`{"name", "status", "started_at", "seconds", "message", "error": null | {"type",
"message", "final"}, …details}`.
"""

from __future__ import annotations

import datetime
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Literal, NoReturn

from serving import log
from serving.clients import patience
from serving.errors import InconclusiveError, PipelineError, ToldToEnd
from serving.values import in_seconds

Status = Literal["succeeded", "skipped", "failed", "inconclusive"]


class Outcome:
    """A step's outcome while it is being made. `details` are further JSON values of the step's own."""

    def __init__(self, name: str, run_id: str, folder: str = ""):
        self.name, self.run_id = name, run_id
        self.folder = folder
        """The run's folder (a `gs://` URI): its steps' outcomes are in `steps/`, its report beside them."""
        self.status: Status = "succeeded"
        self.message = ""
        self.error: dict[str, Any] | None = None
        self.details: dict[str, Any] = {}
        self.started_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        self.was_told_to_end = False
        """An earlier attempt was, and gave back what it held."""
        self.no_other_attempt = False
        """The error that ends the step is final, whatever it is."""

    def say(self, message: str) -> None:
        """One line of progress."""
        log.entry(message, step=self.name, run_id=self.run_id)

    def succeeded(self, message: str) -> None:
        self.status, self.message = "succeeded", message

    def skipped(self, message: str) -> None:
        """Nothing had to be done: says why."""
        self.status, self.message = "skipped", message

    def failed(self, error: BaseException, *, final: bool = False) -> None:
        """The release is bad, or the step broke: with the cause in `error`'s words.

        `final`: it ended the step, which no further attempt can help. (A verdict that the step hands on is not: an
        attempt whose machine went away after it comes to the verdict again.)
        """
        self.status = "inconclusive" if isinstance(error, (InconclusiveError, ToldToEnd)) else "failed"
        self.message = str(error)
        self.error = {"type": type(error).__name__, "message": str(error), "final": final or self.no_other_attempt}

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
def recorded(name: str, root: str, run_id: str, waits: str = patience.DEFAULT) -> Iterator[Outcome]:
    """Runs a step's body and records below `root` (a `gs://` URI) what became of it, also when it raises.
    `waits` is the setting `patience`, for the body and for the record.

    An error of ours ends the process with its message alone (kfp would print a traceback that tells a reader nothing);
    anything else is a defect and keeps its traceback. No orchestrator can be told which failures to retry, so an
    attempt after a final error ends at once, and the outcome stays the first one's. SIGTERM raises ToldToEnd in the
    body.
    """
    from serving.clients import storage

    log.silence_libraries()
    outcome = Outcome(name, run_id, f"{root}/{run_id}")
    uri = f"{outcome.folder}/steps/{name}.json"
    started = time.monotonic()

    def leave() -> None:
        record = outcome.as_dict(time.monotonic() - started)
        storage.write_json(uri, record)
        severity = "ERROR" if outcome.error else "INFO"
        log.entry(outcome.message or "done", step=name, run_id=run_id, severity=severity, status=outcome.status)

    # What a step has done is written down even if it is told to end meanwhile.
    with patience.lasting(in_seconds(waits)), _on_sigterm(signal.SIG_IGN):
        try:
            with _on_sigterm(_end):
                _look_at_earlier_attempt(outcome, uri)
                log.entry("started", step=name, run_id=run_id, status="running")
                yield outcome
        except PipelineError as error:
            outcome.failed(error, final=error.final)
            leave()
            raise SystemExit(1) from error
        except ToldToEnd as error:
            outcome.failed(error)
            leave()
            raise SystemExit(128 + signal.SIGTERM) from error
        except BaseException as error:
            if not isinstance(error, (SystemExit, KeyboardInterrupt)):
                outcome.failed(error if isinstance(error, Exception) else RuntimeError(repr(error)))
                leave()
            raise
        leave()


def _look_at_earlier_attempt(outcome: Outcome, uri: str) -> None:
    """Ends the process when there was one that ended for good."""
    from serving.clients import storage

    name, run_id = outcome.name, outcome.run_id
    try:
        before = storage.read_json(uri) or {}
    except PipelineError as error:
        # Without the bucket there is no place for an outcome: the log is all there is.
        log.entry(str(error), step=name, run_id=run_id, severity="ERROR", status="failed")
        raise SystemExit(1) from error
    error_before = before.get("error") or {}
    if error_before.get("final"):
        words = f"not tried again: {error_before['message']}"
        log.entry(words, step=name, run_id=run_id, severity="ERROR", status=before["status"])
        raise SystemExit(1)
    outcome.was_told_to_end = error_before.get("type") == ToldToEnd.__name__


def _end(_signal: int, _frame: FrameType | None) -> NoReturn:
    # Once: what is given back now is not to be interrupted.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    patience.end_soon()
    raise ToldToEnd("told to end (SIGTERM): the run was cancelled, or the machine goes away. Run again")


@contextmanager
def _on_sigterm(handler: Callable[[int, FrameType | None], Any] | signal.Handlers) -> Iterator[None]:
    """Handles SIGTERM so while the block runs, where Python allows it: in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
