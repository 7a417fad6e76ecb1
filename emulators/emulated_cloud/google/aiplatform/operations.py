"""What takes a while is an operation; all but cancelling several jobs is done at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from emulated_cloud.google.aiplatform import errors, resources
from emulated_cloud.google.aiplatform.clock import Clock

_V1 = "type.googleapis.com/google.cloud.aiplatform.v1"


class Operations:
    """The operations since this emulator started; `name` makes a resource's name of its path."""

    def __init__(self, name: Callable[[str], str], clock: Clock):
        self._name, self._clock = name, clock
        self._operations: dict[str, Callable[[], dict[str, Any]]] = {}

    def done(self, path: str, kind: str = "", response: dict[str, Any] | None = None) -> dict[str, Any]:
        """An operation on the resource at a path that is done, with a response of that kind; without, an empty one."""
        return self.when(lambda: True, lambda: response or {}, path, kind)

    def when(
        self, is_done: Callable[[], bool], response: Callable[[], dict[str, Any]], path: str, kind: str = ""
    ) -> dict[str, Any]:
        """An operation that is done as soon as `is_done`."""
        name = f"{self._name(path)}/operations/{resources.new_id()}"
        began = resources.timestamp(self._clock.now())
        metadata = {
            "@type": f"{_V1}.{kind.replace('Response', 'OperationMetadata') or 'DeleteOperationMetadata'}",
            "genericMetadata": {"createTime": began, "updateTime": began},
        }
        if kind == "BatchDeletePipelineJobsResponse":
            metadata["@type"] = f"{_V1}.DeleteOperationMetadata"

        def show() -> dict[str, Any]:
            operation = {"name": name, "metadata": metadata}
            if not is_done():
                return operation
            wrapped = {"@type": f"{_V1}.{kind}" if kind else "type.googleapis.com/google.protobuf.Empty"}
            return {**operation, "done": True, "response": {**wrapped, **response()}}

        self._operations[name] = show
        return show()

    def of_a_location(self, name: str) -> dict[str, Any] | None:
        """One that is on several resources; None for another service's."""
        return self._operations[name]() if name in self._operations else None

    def get(self, name: str) -> dict[str, Any]:
        if name not in self._operations:
            raise errors.not_found("Operation", name)
        return self._operations[name]()
