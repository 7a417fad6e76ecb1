"""The node pools of a cluster, by the container API, and the operations that make them.

https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters.nodePools
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from serving.clients import google
from serving.clients.patience import Patience
from serving.errors import InconclusiveError, RequestError
from serving.log import Say

if TYPE_CHECKING:
    from serving.settings import Settings

_FIRST_LOOK_SECONDS, _LAST_LOOK_SECONDS = 0.2, 5.0
"""Between two looks at an operation: nobody tells us when it is done."""
_SAY_EVERY_SECONDS = 15

NodePool = dict[str, Any]
"""A node pool as the API shows it: `name`, `status`, `config`, `autoscaling`."""


class NodePools:
    """Those of the deployment's cluster."""

    def __init__(self, settings: Settings):
        self._location = f"v1/projects/{settings.project}/locations/{settings.location}"
        self._cluster = f"{self._location}/clusters/{settings.cluster}"
        self._name = f"the cluster {settings.cluster} ({settings.location})"
        self._described = f"gcloud container operations describe {{}} --location {settings.location} "
        self._described += f"--project {settings.project}"

    def list(self) -> list[NodePool]:
        """All that the cluster has. Raises AccessError, RequestError, InconclusiveError."""
        with google.refusals(f"the node pools of {self._name}"):
            found: list[NodePool] = google.call("container", "GET", f"{self._cluster}/nodePools").get("nodePools", [])
        return found

    def make(self, pool: NodePool, timeout: float, say: Say) -> None:
        """Makes a node pool, and returns when it is there; one that is being made, by whomever, is waited for.

        timeout: seconds for all of it. Raises InconclusiveError when they are over, RequestError with GKE's words for
        one that it refuses or cannot make.
        """
        deadline, what = time.monotonic() + timeout, f"node pool {pool['name']}"
        with google.refusals(f"{what} of {self._name}"):
            while self._status(pool) in ("", "PROVISIONING"):
                # A cluster makes one at a time.
                if running := self._under_way():
                    self._wait(what, running, deadline, say)
                elif self._status(pool) == "":
                    Patience().until_it_works(what, lambda: self._begin(pool))
                elif time.monotonic() > deadline:
                    raise InconclusiveError(f"{what} of {self._name} is not there in time, and no operation makes it")

    def _begin(self, pool: NodePool) -> None:
        """Asks once. What an answer that was lost has begun is found by who looks next."""
        from google.api_core.exceptions import BadRequest, Conflict

        if self._status(pool):
            return
        try:
            google.call("container", "POST", f"{self._cluster}/nodePools", {"nodePool": pool}, again=False)
        except Conflict:
            return  # Somebody made it meanwhile.
        except BadRequest:
            # Somebody else was faster, whose operation is waited for first.
            if not self._under_way():
                raise

    def _status(self, pool: NodePool) -> str:
        return next((str(each["status"]) for each in self.list() if each["name"] == pool["name"]), "")

    def _under_way(self) -> dict[str, Any] | None:
        """An operation that makes a node pool of this cluster."""
        found = google.call("container", "GET", f"{self._location}/operations").get("operations", [])
        return next(
            (
                operation
                for operation in found
                if operation["status"] in ("PENDING", "RUNNING")
                and operation.get("operationType") == "CREATE_NODE_POOL"
                and f"/{self._cluster.partition('/')[2].partition('/locations/')[2]}/" in operation["targetLink"]
            ),
            None,
        )

    def _wait(self, what: str, operation: dict[str, Any], deadline: float, say: Say) -> None:
        pause, begun, said = _FIRST_LOOK_SECONDS, time.monotonic(), 0.0
        while operation["status"] != "DONE":
            now = time.monotonic()
            if now > deadline:
                raise InconclusiveError(
                    f"{what}: {operation['name']} has not ended in time. See `"
                    f"{self._described.format(operation['name'])}`, then run again: it is waited for where it is"
                )
            if not said or now - said >= _SAY_EVERY_SECONDS:
                say(f"{what}: {operation['name']} runs, {now - begun:.0f} s")
                said = now
            time.sleep(pause)
            pause = min(pause * 1.5, _LAST_LOOK_SECONDS)
            operation = google.call("container", "GET", f"{self._location}/operations/{operation['name']}")
        if words := (operation.get("error") or {}).get("message"):
            raise RequestError(f"{what}: {words} (`{self._described.format(operation['name'])}`)")
