"""What takes a bucket a while: operations, done when their work is.

A fault of action `outcome` says in its `outcome` what comes of the next one: `seconds` more, `hold` until the script is
replaced, an `error` (`{"code", "message"}`, as google.rpc.Status has them) instead.
"""

from __future__ import annotations

import base64
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from typing import Any

from emulated_cloud.faults import Fault, Faults
from emulated_cloud.storage.call import Answer, Call
from emulated_cloud.storage.errors import GcsError
from emulated_cloud.storage.listing import page_of
from emulated_cloud.storage.store import now


class Operations:
    """The operations of all buckets since this emulator started."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._operations: dict[str, dict[str, Any]] = {}

    def begin(
        self,
        call: Call,
        bucket: str,
        metadata: dict[str, Any],
        work: Callable[[], dict[str, Any]],
        undo: Callable[[], None],
    ) -> dict[str, Any]:
        """Begins one whose result `work` returns; `undo` is called when it is to fail. Returns the operation."""
        operation_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        name = f"projects/_/buckets/{bucket}/operations/{operation_id}"
        operation = {
            "kind": "storage#operation",
            "name": name,
            "selfLink": f"{call.base_url}/storage/v1/b/{bucket}/operations/{operation_id}",
            "metadata": {"commonMetadata": {"createTime": now(), "type": "create"}, **metadata},
            "done": False,
        }
        self._operations[name] = operation
        fault = self._faults.take_outcome(call.method, "/storage/v1/" + "/".join(call.path))
        threading.Thread(target=self._run, args=(operation, fault, work, undo), daemon=True).start()
        return dict(operation)

    def of(self, bucket: str) -> list[dict[str, Any]]:
        mine = f"projects/_/buckets/{bucket}/operations/"
        return [dict(operation) for name, operation in self._operations.items() if name.startswith(mine)]

    def _run(
        self,
        operation: dict[str, Any],
        fault: Fault | None,
        work: Callable[[], dict[str, Any]],
        undo: Callable[[], None],
    ) -> None:
        outcome = fault.outcome if fault else {}
        if fault:
            self._faults.consume(fault)
            time.sleep(outcome.get("seconds", 0))
            if outcome.get("hold"):
                self._faults.wait_until_replaced(fault)
        try:
            ended = {"error": outcome["error"]} if "error" in outcome else {"response": work()}
        except Exception:  # noqa: BLE001 (nobody waits for this thread: who has its operation must learn of it)
            traceback.print_exc(file=sys.stderr)
            ended = {"error": {"code": 13, "message": "Internal error."}}
        if "error" in ended:
            undo()
        operation.update(ended, done=True)


def _name(operation: dict[str, Any]) -> str:
    return str(operation["name"])


def get_operation(call: Call, bucket: str, operation_id: str) -> Answer:
    call.store.bucket(bucket)
    for operation in call.operations.of(bucket):
        if operation["name"].endswith(f"/{operation_id}"):
            return Answer(200, operation)
    raise GcsError(404, "notFound", "The specified operation does not exist.")


def list_operations(call: Call, bucket: str) -> Answer:
    call.store.bucket(bucket)
    found = sorted(call.operations.of(bucket), key=_name)
    page, token = page_of(found, _name, {**call.query, "maxResults": call.query.get("pageSize", "100")})
    listed: dict[str, Any] = {"kind": "storage#operations", "operations": page}
    return Answer(200, listed | ({"nextPageToken": token} if token else {}))
