"""What takes a while is an operation: PENDING, RUNNING, DONE, with an error when it failed.

A request with a `requestId` that was seen before is the same operation, whatever has become of it. What a test scripts
(faults.py, `outcome`) happens in it: `seconds` more, `hold` until the script is replaced, an `error` instead.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.google.call import Call
from emulated_cloud.google.compute import errors, resources

WAIT_SECONDS = 120.0
"""How long the wait method waits at most."""
OUTCOMES = {"seconds", "hold", "error", "expires", "machine"}
"""What a test can say of an operation: __init__.py."""


class Operations:
    """The operations of a project since this emulator started."""

    def __init__(self, project: str, user: str, faults: Faults):
        self.project, self.user, self._faults = project, user, faults
        self._numbers = itertools.count(1)
        self._operations: dict[str, dict[str, Any]] = {}
        self._by_request: dict[str, tuple[str, dict[str, Any]]] = {}
        self._done = threading.Condition()

    def repeated(self, call: Call) -> dict[str, Any] | None:
        """The operation that a request with this request's id began. Raises HttpError for an id that is none, or that
        another request has used."""
        request_id = call.query.get("requestId")
        if not request_id:
            return None
        try:
            if not uuid.UUID(request_id).int:
                raise ValueError
        except ValueError:
            raise errors.invalid("requestId", request_id, "The request ID must be a valid UUID.") from None
        asked, operation = self._by_request.get(request_id, ("", {}))
        if asked and asked != _asked(call):
            why = "The request ID has already been used for a different request."
            raise errors.invalid("requestId", request_id, why)
        return dict(operation) if operation else None

    def begin(
        self,
        call: Call,
        kind: str,
        target: str,
        target_id: str,
        work: Callable[[dict[str, Any]], None],
        undo: Callable[[errors.OperationFailed], None] = lambda _: None,
    ) -> dict[str, Any]:
        """Begins `kind` (insert, delete, …) of the resource at the path `target`: `work` does it, given what a test has
        scripted for it, and `undo` is called when it failed, or was scripted to. Returns the operation."""
        scope = "/".join(target.split("/")[:2]) if not target.startswith("global/") else "global"
        name = f"operation-{time.time_ns() // 1_000_000}-{next(self._numbers):06d}-{uuid.uuid4().hex[:8]}"
        path = f"{scope}/operations/{name}"
        now = resources.now()
        operation = {
            "kind": "compute#operation",
            "id": resources.new_id(),
            "name": name,
            "operationType": kind,
            "targetLink": resources.link(self.project, target),
            "targetId": target_id,
            "status": "RUNNING",
            "user": self.user,
            "progress": 0,
            "insertTime": now,
            "startTime": now,
            "selfLink": resources.link(self.project, path),
        }
        if scope != "global":
            operation[scope.split("/")[0][:-1]] = resources.link(self.project, scope)
        self._operations[path] = operation
        if request_id := call.query.get("requestId"):
            self._by_request[request_id] = (_asked(call), operation)
        fault = self._faults.take_outcome(call.method, f"/{call.version}/{call.resource}")
        assert not fault or fault.outcome.keys() <= OUTCOMES, f"an outcome here is of {OUTCOMES}: {fault.outcome}"
        threading.Thread(target=self._run, args=(operation, fault, work, undo), daemon=True).start()
        return dict(operation)

    def get(self, path: str) -> dict[str, Any]:
        if path not in self._operations:
            raise errors.not_found(f"projects/{self.project}/{path}")
        return dict(self._operations[path])

    def wait(self, path: str) -> dict[str, Any]:
        """The operation when it is done, or as it is after two minutes."""
        self.get(path)
        with self._done:
            self._done.wait_for(lambda: self._operations[path]["status"] == "DONE", WAIT_SECONDS)
        return self.get(path)

    def of_scope(self, scope: str) -> list[dict[str, Any]]:
        return [dict(each) for path, each in self._operations.items() if path.rpartition("/operations/")[0] == scope]

    def _run(
        self,
        operation: dict[str, Any],
        fault: Fault | None,
        work: Callable[[dict[str, Any]], None],
        undo: Callable[[errors.OperationFailed], None],
    ) -> None:
        outcome = fault.outcome if fault else {}
        ended: dict[str, Any] = {}
        try:
            if fault:
                self._faults.consume(fault)
                time.sleep(outcome.get("seconds", 0))
                if outcome.get("hold"):
                    self._faults.wait_until_replaced(fault)
                if "error" in outcome:
                    zone = operation.get("zone", "").partition("/compute/v1/")[2]
                    raise errors.scripted(outcome["error"], zone)
            work(outcome)
        except errors.OperationFailed as error:
            ended = _failure(error)
            undo(error)
        except Exception:  # noqa: BLE001 (nobody waits for this thread: who has its operation must learn of it)
            traceback.print_exc(file=sys.stderr)
            failed = errors.scripted({"code": "INTERNAL_ERROR"}, "")
            ended = _failure(failed)
            undo(failed)
        with self._done:
            operation.update(ended, status="DONE", progress=100, endTime=resources.now())
            self._done.notify_all()


def _failure(error: errors.OperationFailed) -> dict[str, Any]:
    return {
        "error": {"errors": [error.error]},
        "httpErrorStatusCode": error.status,
        "httpErrorMessage": error.words,
    }


def _asked(call: Call) -> str:
    """What a request was about; its other parameters are a repetition's, too."""
    return f"{call.method} {call.resource}"
